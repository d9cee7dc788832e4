//! Addresses, routes, Services.

use std::collections::BTreeSet;
use std::time::Duration;

use aquifer_lab::{LabOptions, Netns};

use crate::support::{curl, idle, plain_lab, start, until, web};

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_pods_and_services_on_their_node_and_across_by_both_families() {
    let lab = plain_lab().await;
    let manifests = [
        web("default", "near", 1, Some("node1")),
        web("default", "far", 1, Some("node2")),
        idle("default", "client", 1, Some("node1")),
    ];
    lab.apply(&manifests.join("---")).await.unwrap();
    for name in ["near", "far", "client"] {
        lab.wait_ready("default", name, 1).await.unwrap();
    }
    for name in ["near", "far"] {
        let pod = lab.pod("default", name).await.unwrap();
        let (v4, v6) = (pod.ipv4(), pod.ipv6().unwrap());
        for url in [format!("http://{v4}:8080/"), format!("http://[{v6}]:8080/")] {
            assert_eq!(curl(&lab, "default", "client", &[&url]).await.as_ref(), Ok(&pod.name), "{url}");
        }
        for family in ["-4", "-6"] {
            for host in [name.to_owned(), format!("{name}.default"), format!("{name}.default.svc.cluster.local")] {
                let url = format!("http://{host}/");
                assert_eq!(
                    curl(&lab, "default", "client", &[family, &url]).await.as_ref(),
                    Ok(&pod.name),
                    "{family} {url}"
                );
            }
            // A pod that its own Service sends back to itself.
            assert_eq!(
                curl(&lab, "default", name, &[family, &format!("http://{name}/")]).await.as_ref(),
                Ok(&pod.name)
            );
        }
        // The node itself, as a kubelet would.
        let url = format!("http://{v4}:8080/");
        let output = lab.node_exec("node1", &["curl", "-sS", "-m", "5", &url]).await.unwrap();
        assert_eq!(output.stdout.trim(), pod.name);
    }
    // Names resolve to IPv4 first, whatever the machine prefers.
    let output = lab.exec("default", "client", &["getent", "ahosts", "far"]).await.unwrap();
    assert!(output.stdout.starts_with("198.19."), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_spreads_follows_readiness_and_refuses_without_backends() {
    let lab = plain_lab().await;
    lab.apply(&[web("default", "web", 3, None), idle("default", "client", 1, None)].join("---")).await.unwrap();
    let pods = lab.wait_ready("default", "web", 3).await.unwrap();
    lab.wait_ready("default", "client", 1).await.unwrap();
    let expected: BTreeSet<String> = pods.iter().map(|pod| pod.name.clone()).collect();
    let mut seen = BTreeSet::new();
    // Each of 3 is missed by 60 random choices with a chance of 1 in 10^10.
    for _ in 0..3 {
        let urls = ["http://web/"; 20];
        let output =
            curl(&lab, "default", "client", &[&["-H", "Connection: close"], &urls[..]].concat()).await.unwrap();
        seen.extend(output.lines().map(str::to_owned));
    }
    assert_eq!(seen, expected);
    lab.scale("default", "web", 0).await.unwrap();
    lab.wait_ready("default", "web", 0).await.unwrap();
    for family in ["-4", "-6"] {
        let refused = curl(&lab, "default", "client", &[family, "http://web/"]).await.unwrap_err();
        assert!(refused.starts_with("7:"), "a refusal, not a time-out: {refused}");
    }
    lab.scale("default", "web", 1).await.unwrap();
    lab.wait_ready("default", "web", 1).await.unwrap();
    assert!(curl(&lab, "default", "client", &["http://web/"]).await.unwrap().starts_with("web-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn established_connections_outlive_changes_of_the_service() {
    let lab = plain_lab().await;
    lab.apply(&[web("default", "web", 1, Some("node2")), idle("default", "client", 1, Some("node1"))].join("---"))
        .await
        .unwrap();
    lab.wait_ready("default", "web", 1).await.unwrap();
    lab.wait_ready("default", "client", 1).await.unwrap();
    // One connection that asks again after each line it is given.
    let script = "exec 3<>/dev/tcp/web/80; while read line; do printf 'GET / HTTP/1.1\\r\\nHost: web\\r\\n\\r\\n' >&3; \
                  while read -t 5 answer <&3; do case $answer in web-*) echo \"$answer\"; break;; esac; done; done";
    let mut client = lab.spawn("default", "client", &["bash", "-c", script]).unwrap();
    let mut stdin = client.take_stdin().unwrap();
    use std::io::Write;
    stdin.write_all(b"one\n").unwrap();
    until("a first answer", Duration::from_secs(10), async || client.stdout_so_far().lines().count() == 1).await;
    lab.scale("default", "web", 3).await.unwrap();
    lab.wait_ready("default", "web", 3).await.unwrap();
    stdin.write_all(b"two\n").unwrap();
    until("a second answer", Duration::from_secs(10), async || client.stdout_so_far().lines().count() == 2).await;
    let lines: BTreeSet<String> = client.stdout_so_far().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 1, "the same pod answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_show_what_is_on_the_wire() {
    let lab = plain_lab().await;
    lab.apply(&[web("default", "web", 1, Some("node2")), idle("default", "client", 1, Some("node1"))].join("---"))
        .await
        .unwrap();
    let web = lab.wait_ready("default", "web", 1).await.unwrap().remove(0);
    let client = lab.wait_ready("default", "client", 1).await.unwrap().remove(0);
    for interface in ["node2", "any"] {
        let capture = lab.capture(interface).await.unwrap();
        curl(&lab, "default", "client", &["http://web/secret-path"]).await.unwrap();
        let pcap = capture.stop().await.unwrap();
        assert!(pcap.contains(b"GET /secret-path") && !pcap.contains(b"GET /other"), "{interface}");
        assert!(pcap.tls_versions().is_empty());
        let request = pcap.tcp_payloads().find(|packet| packet.payload.starts_with(b"GET")).unwrap();
        assert_eq!((request.src.ip(), request.dst.ip(), request.dst.port()), (client.ipv4(), web.ipv4(), 8080));
    }
    // Inside the node as well: traffic of one node never reaches the wire.
    let capture = lab.capture_in(Netns::Node("node2".into()), "any").await.unwrap();
    curl(&lab, "default", "web", &[&format!("http://{}:8080/at-home", web.ipv4())]).await.unwrap();
    curl(&lab, "default", "client", &["http://web/abroad"]).await.unwrap();
    let pcap = capture.stop().await.unwrap();
    assert!(pcap.contains(b"/abroad") && !pcap.contains(b"/at-home"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leads_out_and_ipv6_can_be_taken_away() {
    let lab = plain_lab().await;
    let pod = |name: &str, annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  annotations: {{{annotation}: 'true'}}\n\
             spec:\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: c, command: [sleep, infinity]}}]\n"
        )
    };
    let pods = [
        pod("plain", "x"),
        pod("no-loopback", "lab.aquifer.io/no-ipv6-loopback"),
        pod("no-ipv6", "lab.aquifer.io/no-ipv6"),
    ];
    lab.apply(&pods.join("---\n")).await.unwrap();
    lab.wait_status("three pods", Duration::from_secs(20), |status| {
        (status.pods.iter().filter(|pod| pod.ready).count() == 3).then_some(())
    })
    .await
    .unwrap();
    let addresses =
        async |pod: &str| lab.pod_netns_exec("default", pod, &["ip", "-6", "-o", "addr"]).await.unwrap().stdout;
    assert!(addresses("plain").await.contains("::1/128"));
    let without = addresses("no-loopback").await;
    assert!(!without.contains("::1/128 scope host") && without.contains("fd00:18:"), "{without}");
    assert_eq!(addresses("no-ipv6").await, "");
    assert_eq!(lab.pod("default", "no-ipv6").await.unwrap().ipv6(), None);
    let failed = curl(&lab, "default", "plain", &["http://192.0.2.1/"]).await.unwrap_err();
    assert!(failed.starts_with("7:"), "unreachable, told at once: {failed}");
    let interfaces = lab.netns_exec(Netns::Wire, &["ip", "-o", "link"]).await.unwrap().stdout;
    let names: Vec<&str> = interfaces.lines().filter_map(|line| line.split([':', '@']).nth(1).map(str::trim)).collect();
    assert!(
        names.iter().all(|name| ["lo", "node1", "node2", "ifb0", "ifb1", "tunl0", "sit0"].contains(name)),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lab_without_ipv6_and_with_one_node() {
    let lab = start(LabOptions { ipv6: false, nodes: 1, ..LabOptions::plain() }).await;
    lab.apply(&[web("default", "web", 1, None), idle("default", "client", 1, None)].join("---")).await.unwrap();
    let web = lab.wait_ready("default", "web", 1).await.unwrap().remove(0);
    lab.wait_ready("default", "client", 1).await.unwrap();
    assert_eq!((web.ips.len(), web.node.as_str()), (1, "node1"));
    assert_eq!(curl(&lab, "default", "client", &["http://web/"]).await, Ok(web.name));
}
