//! The container runtime's call of the CNI plugin: tells the node's agent of a pod whose network is up, before any of
//! its containers starts.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::http;

/// How long the agent may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells the agent of a pod. An error is one line, and the call may be made again.
pub(super) async fn add(
    socket: &Path,
    netns: &Path,
    namespace: &str,
    name: &str,
    ips: &[IpAddr],
) -> Result<(), String> {
    let body = body(netns, namespace, name, ips).to_string();
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(http::request("POST", "/cmdadd", "unix", &[], &body).as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("the node agent is not there: {error}")),
        Err(_) => return Err(format!("the node agent did not answer within {PATIENCE:?}")),
    };
    match http::status(&answer) {
        Some(200) => Ok(()),
        status => {
            let text = String::from_utf8_lossy(&answer);
            let why = text.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
            Err(format!("the node agent refused ({}): {why}", status.unwrap_or(0)))
        }
    }
}

/// The event as Istio's plugin writes it: an address is a Go `net.IPNet`, whose mask is bytes, hence base64.
fn body(netns: &Path, namespace: &str, name: &str, ips: &[IpAddr]) -> Value {
    let ips: Vec<Value> = ips
        .iter()
        .map(|ip| {
            let mask = if ip.is_ipv4() { "/////w==" } else { "/////////////////////w==" };
            json!({"Address": {"IP": ip, "Mask": mask}})
        })
        .collect();
    json!({"Netns": netns, "PodName": name, "PodNamespace": namespace, "IPs": ips})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_is_the_plugins() {
        let ips = ["198.18.17.2".parse().unwrap(), "fd00:18:0:1::2".parse().unwrap()];
        assert_eq!(
            body(Path::new("/n"), "shop", "web", &ips),
            json!({
                "Netns": "/n", "PodName": "web", "PodNamespace": "shop",
                "IPs": [
                    {"Address": {"IP": "198.18.17.2", "Mask": "/////w=="}},
                    {"Address": {"IP": "fd00:18:0:1::2", "Mask": "/////////////////////w=="}},
                ],
            })
        );
    }
}
