//! The cluster's resolver: dnsmasq as the Service `kube-dns` in `kube-system`, told of the Services by a file.
//!
//! It knows the full names of Services only, as a real one does: short names are the client's search list at work.
//! There is no world outside; names out there are those that the lab's options give it.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cluster::NewPod;
use super::components::{apply, create, mount, name_suffix};
use super::hosts::HostEntry;
use super::pod::{Extra, PodState};
use super::shared::{Shared, new_uid};
use crate::addresses::DNS;
use crate::error::{During, Result};
use crate::start::need_program;

pub(super) const NAMESPACE: &str = "kube-system";

/// Where the resolver's files are in its pod.
const FOLDER: &str = "/run/aquifer/dns";

/// Begins to start the resolver.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<Arc<PodState>> {
    let program = need_program("dnsmasq", "dnsmasq-base")?;
    let folder = shared.paths.dns();
    let hosts = folder.join("hosts.d");
    fs::create_dir_all(&hosts).during(|| format!("making {}", hosts.display()))?;
    fs::write(folder.join("dnsmasq.conf"), config(&shared.options.dns_records))
        .during(|| "writing the resolver's settings".into())?;
    apply(shared, service()).await?;
    let extra = Extra { mounts: vec![mount(folder, FOLDER)], system: true, ..Extra::default() };
    create(shared, NewPod { pod: pod(&program.display().to_string()), uid: new_uid(), extra }).await
}

/// Tells the resolver of the Services: it notices by itself.
pub(super) fn write(shared: &Shared, services: &[HostEntry]) {
    let folder = shared.paths.dns();
    let (hosts, new) = (folder.join("hosts.d"), folder.join("services.new"));
    let written = fs::create_dir_all(&hosts)
        .and_then(|()| fs::write(&new, records(services)))
        .and_then(|()| fs::rename(&new, hosts.join("services")));
    if let Err(error) = written {
        tracing::warn!(%error, "the resolver was not told of the Services");
    }
}

fn records(services: &[HostEntry]) -> String {
    let line = |HostEntry { namespace, service, addresses }: &HostEntry| {
        let line = |ip| format!("{ip} {service}.{namespace}.svc.cluster.local\n");
        addresses.iter().map(line).collect::<String>()
    };
    services.iter().map(line).collect()
}

fn config(records: &[String]) -> String {
    let fixed = "keep-in-foreground\nuser=root\npid-file=\nlog-facility=-\nno-resolv\nno-hosts\ncache-size=0\n";
    // What is not known does not exist, since nobody else can be asked.
    let mut text = format!("{fixed}hostsdir={FOLDER}/hosts.d\naddress=/#/\n");
    for record in records {
        text.push_str(record);
        text.push('\n');
    }
    text
}

fn service() -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "clusterIP": DNS, "clusterIPs": [DNS], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "type": "ClusterIP",
            "selector": {"k8s-app": "kube-dns"},
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

fn pod(program: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("kube-dns-{}", name_suffix()), "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "serviceAccountName": "default",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "dnsmasq",
                "image": "dnsmasq",
                "command": [program, format!("--conf-file={FOLDER}/dnsmasq.conf")],
                "readinessProbe": {"tcpSocket": {"port": 53}, "periodSeconds": 1, "timeoutSeconds": 1},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_and_every_address() {
        let entry = |service: &str, ips: &[&str]| HostEntry {
            namespace: "shop".into(),
            service: service.into(),
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        assert_eq!(
            records(&[
                entry("web", &["198.19.0.16", "fd00:19::10"]),
                entry("none", &[]),
                entry("db", &["198.18.17.2"])
            ]),
            "198.19.0.16 web.shop.svc.cluster.local\n\
             fd00:19::10 web.shop.svc.cluster.local\n\
             198.18.17.2 db.shop.svc.cluster.local\n"
        );
    }

    #[test]
    fn records_are_added_as_they_are() {
        let text = config(&["host-record=example.test,198.18.0.1".into()]);
        assert!(text.ends_with("address=/#/\nhost-record=example.test,198.18.0.1\n"), "{text}");
    }
}
