//! Against the reference node proxy's page.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_proto::workload as wire;
use aquifer_runtime::metrics::encode;

use super::*;
use crate::testing;

/// Names on the recorded page that aren't this crate's: the xDS client's and the DNS proxy's.
fn is_not_ours(name: &str) -> bool {
    name.starts_with("istio_xds_") || name.starts_with("istio_dns_")
}

fn recorded() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/recordings/ztunnel/metrics.txt");
    std::fs::read_to_string(path).unwrap()
}

fn types(page: &str) -> BTreeMap<&str, &str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

#[test]
fn names_and_types_are_the_recorded_ones() {
    let mut registry = Registry::default();
    let metrics = ProxyMetrics::default();
    metrics.register(&mut registry);
    // A family without series isn't shown.
    let worker = WorkerMetrics::new(Arc::new(metrics.clone()), 0);
    let parties =
        Parties { reporter: Reporter::Source, source: None, source_identity: None, destination: None, service: None };
    worker.closed(&worker.series(&parties), &parties, Some(Reason::PeerDenied));
    drop(metrics.socket_open(Reporter::Source));
    InpodMetrics::default().register(&mut registry);
    register_build(&mut registry, "unknown");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    aquifer_runtime::process::register_runtimes(&mut registry, [runtime.handle().clone()]);
    aquifer_runtime::process::register(&mut registry);
    let (ours, recorded) = (encode(&registry), recorded());
    let ours = types(&ours);
    for (name, kind) in types(&recorded).into_iter().filter(|(name, _)| !is_not_ours(name)) {
        assert_eq!(ours.get(name), Some(&kind), "{name}");
    }
}

/// The labels of a recorded line, in order.
fn labels(line: &str) -> BTreeMap<&str, &str> {
    let inside = line.split_once('{').unwrap().1.split_once('}').unwrap().0;
    inside.split("\",").map(|pair| pair.trim_end_matches('"').split_once("=\"").unwrap()).collect()
}

fn parties(labels: &BTreeMap<&str, &str>) -> Parties {
    let known = |key: String| labels.get(key.as_str()).copied().filter(|v| *v != "unknown");
    let workload = |side: &str| {
        let part = |key: &str| known(format!("{side}_{key}")).unwrap_or_default().to_owned();
        let name = known(format!("{side}_workload"))?;
        let principal: Option<Identity> = known(format!("{side}_principal")).map(|p| p.parse().unwrap());
        Some(testing::workload(wire::Workload {
            uid: name.into(),
            name: name.into(),
            workload_name: name.into(),
            namespace: part("workload_namespace"),
            canonical_name: part("canonical_service"),
            canonical_revision: part("canonical_revision"),
            cluster_id: part("cluster"),
            service_account: principal.map(|p| p.service_account.to_string()).unwrap_or_default(),
            locality: Some(wire::Locality { region: part("region"), zone: part("zone"), subzone: String::new() }),
            ..wire::Workload::default()
        }))
    };
    Parties {
        reporter: if labels["reporter"] == "source" { Reporter::Source } else { Reporter::Destination },
        source: workload("source"),
        source_identity: known("source_principal".into()).map(|p| p.parse().unwrap()),
        destination: workload("destination"),
        service: known("destination_service".into()).map(|hostname| {
            testing::service(wire::Service {
                name: labels["destination_service_name"].into(),
                namespace: labels["destination_service_namespace"].into(),
                hostname: hostname.into(),
                ..wire::Service::default()
            })
        }),
    }
}

#[test]
fn recorded_series_come_out_as_they_were() {
    let recorded = recorded();
    let series = |name: &str| -> BTreeSet<String> {
        recorded.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    };
    let metrics = Arc::new(ProxyMetrics::default());
    let worker = WorkerMetrics::new(metrics.clone(), 0);
    let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    let (opened, closed) = (series("istio_tcp_connections_opened_total"), series("istio_tcp_connections_closed_total"));
    for line in &opened {
        let handles = worker.series(&parties(&labels(line)));
        (0..value(line)).for_each(|_| handles.opened());
    }
    for line in &closed {
        let labels = labels(line);
        let parties = parties(&labels);
        let failure = match labels["response_flags"] {
            "-" => None,
            "DENY" => Some(Reason::PolicyNotAllowed),
            "CONNECT" => Some(Reason::PeerDenied),
            other => panic!("{other}"),
        };
        let handles = worker.series(&parties);
        (0..value(line)).for_each(|_| worker.closed(&handles, &parties, failure));
    }
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let ours = encode(&registry);
    let lines = |name: &str| -> BTreeSet<String> {
        // Series that were only looked up stand at nought.
        ours.lines().filter(|line| line.starts_with(name) && !line.ends_with(" 0")).map(str::to_owned).collect()
    };
    assert_eq!(lines("istio_tcp_connections_opened_total"), opened);
    assert_eq!(lines("istio_tcp_connections_closed_total"), closed);
    let failed: BTreeSet<String> = lines("istio_tcp_connections_failed_total");
    assert_eq!(failed, series("istio_tcp_connections_failed_total"));
}

#[test]
fn where_an_unknown_client_is_is_not_said() {
    let metrics = Arc::new(ProxyMetrics::default());
    let worker = WorkerMetrics::new(metrics.clone(), 0);
    let parties = Parties {
        reporter: Reporter::Destination,
        source: None,
        source_identity: None,
        destination: None,
        service: None,
    };
    worker.series(&parties).opened();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let page = encode(&registry);
    let line = page.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    assert!(
        line.contains(r#"source_workload="unknown""#) && line.contains(r#"destination_region="unknown""#),
        "{line}"
    );
    assert!(!line.contains("source_region") && !line.contains("source_zone"), "{line}");
}

#[test]
fn refusals_stand_by_reason_and_policy() {
    let metrics = ProxyMetrics::default();
    metrics.refused(Reporter::Destination, Reason::PolicyDenied, Some(&"shop/only-orders".into()));
    metrics.refused(Reporter::Source, Reason::NoHealthyUpstream, None);
    let socket = metrics.socket_open(Reporter::Source);
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let page = encode(&registry);
    for line in [
        r#"aquifer_connections_refused_total{reason="policy_denied",policy="shop/only-orders",reporter="destination"} 1"#,
        r#"aquifer_connections_refused_total{reason="no_healthy_upstream",policy="",reporter="source"} 1"#,
        r#"istio_tcp_sockets_open{reporter="source"} 1"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    drop(socket);
    assert!(encode(&registry).contains(r#"istio_tcp_sockets_open{reporter="source"} 0"#));
}

#[test]
fn what_has_changed_is_counted_by_its_new_labels() {
    let worker = WorkerMetrics::new(Arc::default(), 0);
    let workload = |name: &str| {
        let wire = wire::Workload { uid: "w".into(), workload_name: name.into(), ..Default::default() };
        Arc::new(testing::workload(wire))
    };
    let identity = |name: &str| Some(format!("spiffe://cluster.local/ns/n/sa/{name}").parse().unwrap());
    let parties = |source: &Arc<Workload>, source_identity| Parties {
        reporter: Reporter::Source,
        source: Some(source.clone()),
        source_identity,
        destination: None,
        service: None,
    };
    let (old, new) = (workload("old"), workload("new"));
    let first = worker.series(&parties(&old, identity("a")));
    assert!(Rc::ptr_eq(&first, &worker.series(&parties(&old, identity("a")))));
    assert!(Rc::ptr_eq(&first, &worker.series(&parties(&workload("old"), identity("a")))), "alike is the same series");
    for other in [parties(&new, identity("a")), parties(&old, identity("b")), parties(&old, None)] {
        assert!(!Rc::ptr_eq(&first, &worker.series(&other)), "{other:?}");
    }
    assert!(Rc::ptr_eq(&first, &worker.series(&parties(&old, identity("a")))));
    // Each of these lives for one connection only; their places in memory are used again and again.
    for turn in 0..3 * RECENT_KEPT {
        let name = format!("w{}", turn % 2);
        let series = worker.series(&parties(&workload(&name), None));
        series.opened();
        assert!(worker.recent.borrow().len() <= RECENT_KEPT);
    }
    let names = worker
        .series
        .borrow()
        .iter()
        .map(|(labels, series)| (labels.source_workload.clone(), series.opened.get()))
        .collect::<Vec<_>>();
    for name in ["w0", "w1"] {
        let counted = names.iter().find(|(label, _)| label.0.as_deref() == Some(name)).map(|(_, count)| *count);
        assert_eq!(counted, Some(3 * RECENT_KEPT as u64 / 2), "{name}");
    }
}
