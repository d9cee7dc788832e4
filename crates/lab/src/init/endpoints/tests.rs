use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    let object = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "s1"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn pod(name: &str, ports: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
    }))
    .unwrap()
}

fn view<'a>(pod: &'a Pod, ips: &'a [IpAddr], ready: bool, terminating: bool) -> PodView<'a> {
    PodView { pod, ips, node: "node1", uid: "u", ready, terminating }
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// `family [ports] address=ready/serving/terminating …`, one a line.
fn text(slices: &[EndpointSlice]) -> Vec<String> {
    let line = |slice: &EndpointSlice| {
        let ports: Vec<String> = slice
            .ports
            .iter()
            .flatten()
            .map(|port| format!("{}:{}", port.name.as_deref().unwrap_or("?"), port.port.unwrap_or(0)))
            .collect();
        let endpoints = slice.endpoints.iter().flatten().map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            let flag = |flag: Option<bool>| if flag == Some(true) { "y" } else { "n" };
            let (ready, serving, terminating) =
                (flag(conditions.ready), flag(conditions.serving), flag(conditions.terminating));
            format!(" {}={ready}{serving}{terminating}", endpoint.addresses[0])
        });
        let name = slice.metadata.name.clone().unwrap();
        format!("{name} [{}]{}", ports.join(","), endpoints.collect::<String>())
    };
    slices.iter().map(line).collect()
}

fn rules(service: &Service, pods: &[PodView<'_>]) -> Vec<String> {
    let line = |port: &ServicePort| {
        let backends: Vec<String> = port.backends.iter().map(SocketAddr::to_string).collect();
        format!("{}:{} -> {}", port.address, port.port, backends.join(" "))
    };
    service_ports(service, pods).iter().map(line).collect()
}

#[test]
fn conditions_follow_readiness_and_deletion() {
    let service = service(json!({
        "clusterIP": "198.19.0.16", "clusterIPs": ["198.19.0.16", "fd00:19::10"], "ipFamilies": ["IPv4", "IPv6"],
        "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    }));
    let (a, b, c) = (pod("a", json!([])), pod("b", json!([])), pod("c", json!([])));
    let (ip_a, ip_b, ip_c) = (ips(&["198.18.17.2", "fd00:18:0:1::2"]), ips(&["198.18.17.3"]), ips(&["198.18.17.4"]));
    let pods = [view(&a, &ip_a, true, false), view(&b, &ip_b, false, false), view(&c, &ip_c, true, true)];
    assert_eq!(
        text(&slices(&service, &pods)),
        [
            "web-ipv4 [http:8080] 198.18.17.2=yyn 198.18.17.3=nnn 198.18.17.4=nyy",
            "web-ipv6 [http:8080] fd00:18:0:1::2=yyn",
        ]
    );
    assert_eq!(
        rules(&service, &pods),
        ["198.19.0.16:80 -> 198.18.17.2:8080", "fd00:19::10:80 -> [fd00:18:0:1::2]:8080"]
    );
    // Only one left, and it is on its way out: it serves until it is gone.
    assert_eq!(rules(&service, &pods[2..]), ["198.19.0.16:80 -> 198.18.17.4:8080", "fd00:19::10:80 -> "]);
}

#[test]
fn named_ports_are_each_pods_own() {
    let service = service(json!({
        "clusterIP": "198.19.0.16", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "raw", "port": 90}],
    }));
    let a = pod("a", json!([{"name": "web", "containerPort": 8080}]));
    let b = pod("b", json!([{"name": "web", "containerPort": 9090}]));
    let lacks = pod("c", json!([{"name": "web", "containerPort": 1, "protocol": "UDP"}]));
    let (ip_a, ip_b, ip_c) = (ips(&["198.18.17.2"]), ips(&["198.18.17.3"]), ips(&["198.18.17.4"]));
    let pods = [view(&a, &ip_a, true, false), view(&b, &ip_b, true, false), view(&lacks, &ip_c, true, false)];
    assert_eq!(
        text(&slices(&service, &pods)),
        [
            "web-ipv4 [raw:90] 198.18.17.4=yyn",
            "web-ipv4-2 [http:8080,raw:90] 198.18.17.2=yyn",
            "web-ipv4-3 [http:9090,raw:90] 198.18.17.3=yyn",
        ]
    );
    assert_eq!(
        rules(&service, &pods),
        [
            "198.19.0.16:80 -> 198.18.17.2:8080 198.18.17.3:9090",
            "198.19.0.16:90 -> 198.18.17.2:90 198.18.17.3:90 198.18.17.4:90",
        ]
    );
}

#[test]
fn what_a_service_without_backends_selector_or_address_gives() {
    let (a, ip) = (pod("a", json!([])), ips(&["198.18.17.2"]));
    let pods = [view(&a, &ip, true, false)];
    let cases = [
        (
            json!({"clusterIP": "198.19.0.16", "selector": {"app": "other"}, "ports": [{"name": "http", "port": 80}]}),
            ["web-ipv4 [http:80]", "198.19.0.16:80 -> ", "198.19.0.16"],
        ),
        (json!({"clusterIP": "198.19.0.16", "ports": [{"port": 80}]}), ["", "", "198.19.0.16"]),
        (
            json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]}),
            ["web-ipv4 [:80] 198.18.17.2=yyn", "", "198.18.17.2"],
        ),
        (
            json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": []}),
            ["web-ipv4 [] 198.18.17.2=yyn", "", "198.18.17.2"],
        ),
    ];
    for (spec, [expect_slices, expect_rules, expect_hosts]) in cases {
        let service = service(spec.clone());
        assert_eq!(text(&slices(&service, &pods)).join("; "), expect_slices, "{spec}");
        assert_eq!(rules(&service, &pods).join("; "), expect_rules, "{spec}");
        assert_eq!(host_entry(&service, &pods).addresses, ips(&[expect_hosts]), "{spec}");
    }
}

#[test]
fn pods_of_other_namespaces_or_without_address_are_left_out() {
    let service = service(json!({"clusterIP": "198.19.0.16", "selector": {"app": "web"}, "ports": [{"port": 80}]}));
    let mut other = pod("a", json!([]));
    other.metadata.namespace = Some("outside".into());
    let (pending, ip) = (pod("b", json!([])), ips(&["198.18.17.2"]));
    let pods = [view(&other, &ip, true, false), view(&pending, &[], false, false)];
    assert_eq!(text(&slices(&service, &pods)), ["web-ipv4 [:80]"]);
}
