//! Against the lines that the reference node proxy wrote: each is taken apart, made into a record, and must come out
//! as it was.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use aquifer_core::identity::Identity;
use aquifer_core::service::Service;
use aquifer_core::workload::Workload;
use aquifer_proto::workload as wire;
use aquifer_runtime::telemetry::{Format, lines};
use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::testing;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn logged(format: Format, log: impl FnOnce()) -> String {
    let buffer = Buffer::default();
    let filter: tracing_subscriber::EnvFilter = "info".parse().unwrap();
    let subscriber = tracing_subscriber::registry().with(filter).with(lines(format, buffer.clone()));
    tracing::subscriber::with_default(subscriber, log);
    let bytes = std::mem::take(&mut *buffer.0.lock());
    String::from_utf8(bytes).unwrap()
}

fn recorded(file: &str) -> String {
    let path = format!("{}/../tests/recordings/ztunnel/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// `key=value key="quoted value"`.
fn fields(mut text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some((key, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap(),
            None => rest.split_once(' ').map_or((rest, ""), |(value, rest)| (value, rest)),
        };
        fields.insert(key.trim().to_owned(), value.to_owned());
        text = rest.trim_start();
    }
    fields
}

fn workload(fields: &BTreeMap<String, String>, side: &str) -> Option<Arc<Workload>> {
    let part = |key: &str| fields.get(&format!("{side}.{key}")).cloned();
    let identity: Option<Identity> = part("identity").map(|text| text.parse().unwrap());
    let wire = wire::Workload {
        uid: part("workload")?,
        name: part("workload")?,
        namespace: part("namespace")?,
        cluster_id: part("cluster")?,
        service_account: identity.map(|i| i.service_account.to_string()).unwrap_or_default(),
        ..wire::Workload::default()
    };
    Some(testing::workload(wire))
}

fn service(hostname: &str) -> Arc<Service> {
    testing::service(wire::Service {
        name: hostname.split('.').next().unwrap().into(),
        namespace: "amb".into(),
        hostname: hostname.into(),
        ..wire::Service::default()
    })
}

/// Writes the line that these fields describe.
fn write(fields: &BTreeMap<String, String>, metrics: &Rc<WorkerMetrics>) {
    let reporter = if fields["direction"] == "outbound" { Reporter::Source } else { Reporter::Destination };
    let (src, dst) = (fields["src.addr"].parse().unwrap(), fields["dst.addr"].parse().unwrap());
    let failure = fields.get("error").map(|error| Failure::new(Reason::Internal, error.as_str()));
    let Some(duration) = fields.get("duration") else {
        return refused(metrics.shared(), reporter, src, dst, &failure.unwrap());
    };
    let millis = duration.strip_suffix("ms").unwrap().parse().unwrap();
    let record = Record::open(
        Opening {
            src,
            dst,
            hbone_target: fields.get("dst.hbone_addr").map(|text| text.as_str().into()),
            parties: Parties {
                reporter,
                source: workload(fields, "src"),
                source_identity: fields.get("src.identity").map(|text| text.parse().unwrap()),
                destination: workload(fields, "dst"),
                service: fields.get("dst.service").map(|hostname| service(hostname)),
            },
            since: Instant::now() - Duration::from_millis(millis),
        },
        metrics,
    );
    let (own, others) = (fields["bytes_sent"].parse().unwrap(), fields["bytes_recv"].parse().unwrap());
    let (from_client, to_client) = match reporter {
        Reporter::Source => (own, others),
        Reporter::Destination => (others, own),
    };
    record.traffic().counters.sent.set(from_client);
    record.traffic().counters.received.set(to_client);
    record.finish(match &failure {
        Some(failure) => Err(failure),
        None => Ok(()),
    });
}

#[tokio::test(start_paused = true)]
async fn text_lines_are_the_recorded_ones() {
    tokio::time::advance(Duration::from_secs(60)).await;
    let metrics = Rc::new(WorkerMetrics::new(Arc::default(), 0));
    let recorded = recorded("access-log.txt");
    let lines: Vec<&str> = recorded.lines().filter(|line| line.contains("\taccess\t")).collect();
    assert!(lines.len() > 20);
    for line in lines {
        let (_, expect) = line.split_once('\t').unwrap();
        let fields = fields(line.rsplit_once('\t').unwrap().1);
        let ours = logged(Format::Text, || write(&fields, &metrics));
        let (_, ours) = ours.trim_end().split_once('\t').unwrap();
        // What we add stands at the end, on refusals and failures only.
        let ours = match fields.contains_key("error") {
            true => ours.strip_suffix(" reason=\"internal\"").unwrap(),
            false => ours,
        };
        assert_eq!(ours, expect);
    }
}

#[tokio::test(start_paused = true)]
async fn json_lines_are_the_recorded_ones() {
    tokio::time::advance(Duration::from_secs(60)).await;
    let metrics = Rc::new(WorkerMetrics::new(Arc::default(), 0));
    for line in recorded("access-log-json.txt").lines() {
        let expect: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let fields = expect.iter().map(|(k, v)| (k.clone(), text(v))).collect();
        let ours = logged(Format::Json, || write(&fields, &metrics));
        let mut ours: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&ours).unwrap();
        assert!(ours.remove("reason").is_some() == expect.contains_key("error"));
        ours["time"] = expect["time"].clone();
        assert_eq!(ours, expect);
    }
}

#[tokio::test]
async fn a_refusal_names_reason_policy_and_remedy() {
    let metrics = ProxyMetrics::default();
    let line = |reason, policy: &str| {
        let failure = Failure { reason, message: "denied".into(), policy: Some(policy.into()) };
        let addr = SocketAddr::from(([10, 0, 0, 1], 1));
        logged(Format::Text, || refused(&metrics, Reporter::Destination, addr, addr, &failure))
    };
    let cases = [
        (Reason::PolicyDenied, "amb/locked", "change this DENY policy, or call as somebody whom it does not match"),
        (Reason::PolicyDenied, "istio-system/istio_converted_static_strict", remedy::STRICT),
        (Reason::PolicyChanged, "istio-system/istio_converted_static_strict", remedy::STRICT),
        (Reason::PolicyDenied, "amb/converted_peer_authentication_ports", remedy::STRICT),
    ];
    for (reason, policy, remedy) in cases {
        let end = format!("error=\"denied\" reason=\"{reason}\" policy=\"{policy}\" remedy=\"{remedy}\"\n");
        let line = line(reason, policy);
        assert!(line.ends_with(&end), "{line}");
    }
}

/// Plaintext that STRICT refuses: who called, from where, why not, and what mends it.
#[tokio::test(start_paused = true)]
async fn a_plaintext_refusal_names_the_calling_pod() {
    let metrics = Rc::new(WorkerMetrics::new(Arc::default(), 0));
    let pod = |namespace: &str, name: &str, last| testing::workload(testing::pod(namespace, name, [10, 0, 0, last]));
    let record = Record::open(
        Opening {
            src: "10.0.0.9:4000".parse().unwrap(),
            dst: "10.0.0.1:8080".parse().unwrap(),
            hbone_target: None,
            parties: Parties {
                reporter: Reporter::Destination,
                source: Some(pod("outside", "client", 9)),
                source_identity: None,
                destination: Some(pod("shop", "payments", 1)),
                service: None,
            },
            since: Instant::now(),
        },
        &metrics,
    );
    let policy = "istio-system/istio_converted_static_strict";
    let failure = Failure { policy: Some(policy.into()), ..Failure::new(Reason::PolicyDenied, "denied") };
    let line = logged(Format::Text, || record.finish(Err(&failure)));
    let fields = fields(line.trim_end().rsplit_once('\t').unwrap().1);
    let said =
        ["src.workload", "src.namespace", "dst.workload", "reason", "policy", "remedy"].map(|key| fields[key].as_str());
    assert_eq!(said, ["client", "outside", "payments", "policy_denied", policy, remedy::STRICT]);
    assert!(!fields.contains_key("src.identity"), "nobody has shown who they are: {line}");
}
