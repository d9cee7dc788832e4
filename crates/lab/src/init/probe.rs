//! Carries out a container's checks: over the network from the node, by a command in the pod, or by waiting.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::container::{Check, ContainerPlan};
use super::http;
use super::kubelet::NetworkProbe;
use super::pod::PodState;
use super::reaper::Place;
use super::shared::Shared;

/// Does it, within the time given.
pub(super) async fn check(
    shared: &Arc<Shared>,
    pod: &PodState,
    place: &Place,
    plan: &ContainerPlan,
    check: &Check,
    timeout: Duration,
) -> Result<(), String> {
    let kubelet = &shared.node(pod.node).kubelet;
    let address = |host: &Option<String>, port: u16| -> Result<SocketAddr, String> {
        let host = match host {
            Some(host) => host.parse::<IpAddr>().map_err(|_| format!("host `{host}` is no address"))?,
            None => *pod.ips.first().ok_or("the pod has no address")?,
        };
        Ok(SocketAddr::new(host, port))
    };
    match check {
        Check::TcpSocket { host, port } => kubelet.probe(NetworkProbe::Tcp(address(host, *port)?), timeout).await,
        Check::HttpGet { host, port, path, headers } => {
            let to = address(host, *port)?;
            let request = http::request("GET", path, &to.to_string(), headers, "");
            kubelet.probe(NetworkProbe::Http { to, request }, timeout).await
        }
        Check::Exec(args) => exec(shared, place, plan, args, timeout).await,
        Check::Sleep(time) => {
            tokio::time::sleep((*time).min(timeout)).await;
            Ok(())
        }
    }
}

async fn exec(
    shared: &Arc<Shared>,
    place: &Place,
    plan: &ContainerPlan,
    args: &[String],
    timeout: Duration,
) -> Result<(), String> {
    let Some((program, rest)) = args.split_first() else { return Err("an empty command".into()) };
    let mut command = Command::new(program);
    command.args(rest).env_clear().envs(&plan.env);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = shared.reaper.start(command, place).map_err(|error| format!("starting {program}: {error}"))?;
    match tokio::time::timeout(timeout, running.wait()).await {
        Ok(0) => Ok(()),
        Ok(code) => Err(format!("{program} exited with {code}")),
        Err(_) => {
            running.signal_group(libc::SIGKILL);
            Err(format!("{program} took longer than {timeout:?}"))
        }
    }
}
