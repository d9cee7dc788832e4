//! Section 8: metrics and access lines, by name and in order.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::istiod::CaMode;
use crate::peer::net;
use crate::peer::wds::{Match, Policy, Service, Text};
use crate::peer::world::{App, Pod, Stage, World, exchange, greeted, sum};
use crate::peer::{until, within};

const RECORDED: &str = include_str!("../../recordings/ztunnel/metrics.txt");
const RECORDED_LINES: &str = include_str!("../../recordings/ztunnel/access-log.txt");
const RECORDED_JSON: &str = include_str!("../../recordings/ztunnel/access-log-json.txt");

/// `here` and `near` on one node, both in the mesh, so that both reporters speak; `web.example` is `near`.
struct Case {
    world: World,
    here: Pod,
    near: Pod,
    _app: App,
}

impl Case {
    async fn start() -> Result<Self> {
        Self::vary(|_| {}).await
    }

    async fn vary(change: impl FnOnce(&mut Stage)) -> Result<Self> {
        let mut stage = Stage::set()?;
        change(&mut stage);
        let (mut here, mut near) = (stage.local(2, "here")?, stage.local(3, "near")?);
        for pod in [&mut here, &mut near] {
            pod.workload.locality = ["eu", "eu-1", "rack-0"];
        }
        near.workload.services = vec![("app/web.example".into(), vec![(80, 8080), (81, 8081)])];
        let web = Service {
            name: "web".into(),
            namespace: "app".into(),
            hostname: "web.example".into(),
            addresses: vec![net::vip(1)],
            ports: vec![(80, 8080), (81, 8081)],
            ..Service::default()
        };
        let resources = [here.workload.resource(), near.workload.resource(), web.resource()];
        let world = World::start(stage, &[&here, &near], &resources).await?;
        let _app = App::named(&near.netns, near.at(8080), "0123456789")?;
        Ok(Self { world, here, near, _app })
    }

    /// One call: 3 bytes there, 11 + 3 back.
    async fn call(&self) -> Result<()> {
        let mut stream = self.here.netns.connect((net::vip(1), 80).into()).await?;
        assert_eq!(exchange(&mut stream, b"abc").await?, b"0123456789\nabc");
        Ok(())
    }

    /// The metrics once both reporters have counted `closed` calls.
    async fn closed(&self, closed: f64) -> Result<String> {
        until("counted calls", async || {
            let metric = async |reporter| self.world.metric("istio_tcp_connections_closed_total", &[reporter]).await;
            Ok(metric("reporter=\"source\"").await? >= closed && metric("reporter=\"destination\"").await? >= closed)
        })
        .await?;
        self.world.metrics().await
    }
}

/// The names of a sample's labels, in order.
fn labels(line: &str) -> Vec<String> {
    let inner = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').map_or("", |(inner, _)| inner));
    inner.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name.to_owned()).collect()
}

/// The keys of an access line, in order.
fn keys(line: &str) -> Vec<String> {
    let fields = line.splitn(5, '\t').nth(4).unwrap_or_default();
    let mut quoted = false;
    let parts = fields.split(move |c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    });
    parts.filter_map(|pair| pair.split_once('=')).map(|(key, _)| key.to_owned()).collect()
}

/// 8.2: names, labels and their order as recorded; who is who on both sides of one call.
#[tokio::test(flavor = "multi_thread")]
async fn tcp_metrics() -> Result<()> {
    let case = Case::start().await?;
    case.call().await?;
    let text = case.closed(1.0).await?;
    let recorded = RECORDED.lines().find(|line| line.starts_with("istio_tcp_sent_bytes_total{")).context("a sample")?;
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
    ] {
        let samples: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).collect();
        assert_eq!(samples.len(), 2, "{name}: {samples:?}");
        for sample in samples {
            assert_eq!(labels(sample), labels(recorded), "{name}");
            for expected in [
                "source_workload=\"here\"",
                "source_canonical_service=\"here-app\"",
                "source_canonical_revision=\"v7\"",
                "source_workload_namespace=\"app\"",
                "source_principal=\"spiffe://cluster.local/ns/app/sa/sa-here\"",
                "source_app=\"here-app\"",
                "source_version=\"v7\"",
                "source_cluster=\"Kubernetes\"",
                "destination_service=\"web.example\"",
                "destination_service_namespace=\"app\"",
                "destination_service_name=\"web\"",
                "destination_workload=\"near\"",
                "destination_principal=\"spiffe://cluster.local/ns/app/sa/sa-near\"",
                "request_protocol=\"tcp\"",
                "response_flags=\"-\"",
                "connection_security_policy=\"mutual_tls\"",
                "source_region=\"eu\"",
                "source_zone=\"eu-1\"",
                "destination_region=\"eu\"",
                "destination_zone=\"eu-1\"",
            ] {
                ensure!(sample.contains(expected), "{expected} in {sample}");
            }
        }
    }
    Ok(())
}

/// 8.2, trap 33: sent is server to client, received client to server, for both reporters.
#[tokio::test(flavor = "multi_thread")]
async fn byte_directions() -> Result<()> {
    let case = Case::start().await?;
    case.call().await?;
    let text = case.closed(1.0).await?;
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        assert_eq!(sum(&text, "istio_tcp_sent_bytes_total", &[reporter]), 14.0, "{reporter}");
        assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &[reporter]), 3.0, "{reporter}");
    }
    Ok(())
}

/// 8.2: what is unknown is called so, and a plaintext call has the policy `unknown`.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_values() -> Result<()> {
    let case = Case::start().await?;
    let outside = case.world.stage.wire.pod(50)?;
    ensure!(greeted(&outside, case.near.at(8080)).await?.is_some());
    let mine = ["reporter=\"destination\"", "source_workload=\"unknown\"", "connection_security_policy=\"unknown\""];
    until("a counted call", async || Ok(case.world.metric("istio_tcp_connections_closed_total", &mine).await? == 1.0))
        .await?;
    let text = case.world.metrics().await?;
    let sample = text.lines().find(|line| mine.iter().all(|label| line.contains(label))).context("a sample")?;
    for name in
        ["source_principal", "source_workload_namespace", "source_canonical_service", "source_app", "source_cluster"]
    {
        ensure!(sample.contains(&format!("{name}=\"unknown\"")), "{name} in {sample}");
    }
    Ok(())
}

/// 8.2: regions and zones are labels only if known.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_regions_are_left_out() -> Result<()> {
    let case = Case::start().await?;
    let outside = case.world.stage.wire.pod(50)?;
    ensure!(greeted(&outside, case.near.at(8080)).await?.is_some());
    let mine = ["reporter=\"destination\"", "source_workload=\"unknown\""];
    until("a counted call", async || Ok(case.world.metric("istio_tcp_connections_closed_total", &mine).await? == 1.0))
        .await?;
    let text = case.world.metrics().await?;
    let sample = text.lines().find(|line| mine.iter().all(|label| line.contains(label))).context("a sample")?;
    ensure!(!labels(sample).contains(&"source_region".to_owned()), "{sample}");
    ensure!(labels(sample).contains(&"destination_region".to_owned()), "{sample}");
    Ok(())
}

/// 8.2: open sockets are a gauge by reporter that comes back to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_open() -> Result<()> {
    let case = Case::start().await?;
    let mut stream = case.here.netns.connect((net::vip(1), 80).into()).await?;
    let mut greeting = [0; 11];
    within("a greeting", stream.read_exact(&mut greeting)).await??;
    let open = async |reporter: &str| case.world.metric("istio_tcp_sockets_open", &[reporter]).await;
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        until(reporter, async || Ok(open(reporter).await? >= 1.0)).await?;
    }
    stream.shutdown().await?;
    let mut rest = Vec::new();
    within("the end", stream.read_to_end(&mut rest)).await??;
    until("none open at the source", async || Ok(open("reporter=\"source\"").await? == 0.0)).await
}

/// 8.2: why a call failed, as a flag.
#[tokio::test(flavor = "multi_thread")]
async fn response_flags() -> Result<()> {
    let case = Case::start().await?;
    let counted = async |labels: &[&str]| -> Result<bool> {
        let text = case.world.metrics().await?;
        Ok(["istio_tcp_connections_failed_total", "istio_tcp_connections_closed_total"]
            .iter()
            .any(|name| sum(&text, name, labels) >= 1.0))
    };
    // Nobody listens on 8081.
    ensure!(greeted(&case.here.netns, (net::vip(1), 81).into()).await?.is_none());
    for reporter in ["reporter=\"destination\""] {
        until("CONNECT", async || counted(&[reporter, "response_flags=\"CONNECT\""]).await).await?;
    }
    // A policy refuses everybody.
    let deny = Policy {
        name: "deny".into(),
        namespace: "app".into(),
        scope: 1,
        deny: true,
        rules: vec![vec![]],
        ..Policy::default()
    };
    let mut case = case;
    case.world.push(&[deny.resource()]).await?;
    ensure!(greeted(&case.here.netns, (net::vip(1), 80).into()).await?.is_none());
    until("DENY", async || {
        let text = case.world.metrics().await?;
        let labels = ["reporter=\"destination\"", "response_flags=\"DENY\""];
        Ok(sum(&text, "istio_tcp_connections_failed_total", &labels)
            + sum(&text, "istio_tcp_connections_closed_total", &labels)
            >= 1.0)
    })
    .await
}

/// 8.2: a server that is not who it should be is TLS_FAILURE; a caller without a certificate is IDENTITY_ERROR.
#[tokio::test(flavor = "multi_thread")]
async fn response_flags_of_tls_and_identity() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let world = World::start(stage, &[&here], &[here.workload.resource(), there.workload.resource()]).await?;
    let own = world.stage.ca.workload("spiffe://cluster.local/ns/app/sa/other")?;
    let server = crate::peer::tunnel::Server::bind(&there.netns, there.at(15008), own)?;
    let flagged = async |world: &World, flag: &str| {
        let flag = format!("response_flags=\"{flag}\"");
        until(&flag, async || {
            Ok(world.metric("istio_tcp_connections_failed_total", &["reporter=\"source\"", &flag]).await? >= 1.0)
        })
        .await
    };
    let call = greeted(&here.netns, there.at(8080));
    let (answer, _) = tokio::join!(call, server.accept());
    ensure!(answer?.is_none());
    flagged(&world, "TLS_FAILURE").await?;

    let stage = Stage::set()?;
    stage.istiod.ca_mode(CaMode::Refuse(7, "no"));
    let (here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let world = World::start(stage, &[&here], &[here.workload.resource(), there.workload.resource()]).await?;
    let _server = world.serve(&there)?;
    ensure!(greeted(&here.netns, there.at(8080)).await?.is_none());
    flagged(&world, "IDENTITY_ERROR").await
}

/// 3.10, 8.2: 15008 that nobody answers is told as a NetworkPolicy's doing.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_15008() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    there.netns.command(&["iptables-nft", "-I", "INPUT", "-p", "tcp", "--dport", "15008", "-j", "DROP"], "")?;
    let world = World::start(stage, &[&here], &[here.workload.resource(), there.workload.resource()]).await?;
    ensure!(greeted(&here.netns, there.at(8080)).await?.is_none());
    world.ztunnel.lines(&["\taccess\t", "maybe a NetworkPolicy is blocking HBONE port 15008"], 1).await?;
    until("the flag", async || {
        Ok(world.metric("istio_tcp_connections_failed_total", &["response_flags=\"NETWORK_POLICY\""]).await? >= 1.0)
    })
    .await
}

/// 8.5: a line's shape: tabs, lower-case level, target, message, then the fields in the recorded order.
#[tokio::test(flavor = "multi_thread")]
async fn access_lines() -> Result<()> {
    let case = Case::start().await?;
    case.call().await?;
    let recorded = |direction: &str| {
        let direction = format!("direction=\"{direction}\"");
        let wanted = ["\tinfo\taccess\tconnection complete\t", &direction, "dst.service=", "src.identity="];
        RECORDED_LINES.lines().find(|line| wanted.iter().all(|text| line.contains(text))).expect("a recorded line")
    };
    for (direction, sent, received) in [("outbound", 3, 14), ("inbound", 14, 3)] {
        let texts = ["\taccess\t", &format!("direction=\"{direction}\"")];
        let line = case.world.ztunnel.lines(&texts, 1).await?.remove(0);
        let parts: Vec<&str> = line.splitn(5, '\t').collect();
        let time = parts[0];
        ensure!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        assert_eq!(parts[1..4], ["info", "access", "connection complete"]);
        assert_eq!(keys(&line), keys(recorded(direction)), "{line}");
        for expected in [
            "src.workload=\"here\"".to_owned(),
            "src.namespace=\"app\"".into(),
            "src.identity=\"spiffe://cluster.local/ns/app/sa/sa-here\"".into(),
            "dst.addr=198.18.1.3:15008".into(),
            "dst.hbone_addr=198.18.1.3:8080".into(),
            "dst.service=\"web.example\"".into(),
            "dst.workload=\"near\"".into(),
            format!("bytes_sent={sent} bytes_recv={received} duration=\""),
        ] {
            ensure!(line.contains(&expected), "{expected} in {line}");
        }
        ensure!(line.ends_with("ms\""), "{line}");
    }
    Ok(())
}

/// 8.5: a plaintext call has neither identities nor an HBONE address.
#[tokio::test(flavor = "multi_thread")]
async fn access_line_of_plaintext() -> Result<()> {
    let case = Case::start().await?;
    let outside = case.world.stage.wire.pod(50)?;
    ensure!(greeted(&outside, case.near.at(8080)).await?.is_some());
    let line = case.world.ztunnel.lines(&["\taccess\t", "direction=\"inbound\""], 1).await?.remove(0);
    let keys = keys(&line);
    ensure!(
        keys.first().map(String::as_str) == Some("src.addr") && line.contains("dst.addr=198.18.1.3:8080"),
        "{line}"
    );
    for absent in ["src.identity", "dst.identity", "dst.hbone_addr", "src.workload"] {
        ensure!(!keys.contains(&absent.to_owned()), "{absent} in {line}");
    }
    Ok(())
}

/// 8.5: a call that failed is at error with the error last but for the product's own keys; the caller's side says
/// what it was answered.
#[tokio::test(flavor = "multi_thread")]
async fn access_lines_of_failures() -> Result<()> {
    let case = Case::start().await?;
    ensure!(greeted(&case.here.netns, (net::vip(1), 81).into()).await?.is_none());
    let inbound =
        case.world.ztunnel.lines(&["\terror\taccess\tconnection complete\t", "direction=\"inbound\""], 1).await?;
    ensure!(inbound[0].contains("error=\"connection failed: Connection refused (os error 111)\""), "{inbound:?}");
    let outbound =
        case.world.ztunnel.lines(&["\terror\taccess\tconnection complete\t", "direction=\"outbound\""], 1).await?;
    ensure!(outbound[0].contains("error=\"http status: 503 Service Unavailable\""), "{outbound:?}");
    for line in [&inbound[0], &outbound[0]] {
        let keys = keys(line);
        let at = |name: &str| keys.iter().position(|key| key == name);
        ensure!(at("duration") < at("error") && at("error").is_some(), "{line}");
    }
    Ok(())
}

/// 8.5: the refusal of a policy names it on the side that refused.
#[tokio::test(flavor = "multi_thread")]
async fn access_lines_of_a_refusal() -> Result<()> {
    let mut case = Case::start().await?;
    let nobody = Match { principals: vec![Text::Exact("nobody")], ..Match::default() };
    let allow = Policy {
        name: "allow".into(),
        namespace: "app".into(),
        scope: 1,
        rules: vec![vec![vec![nobody]]],
        ..Policy::default()
    };
    case.world.push(&[allow.resource()]).await?;
    ensure!(greeted(&case.here.netns, (net::vip(1), 80).into()).await?.is_none());
    let refused = "connection closed due to policy rejection: allow policies exist, but none allowed";
    case.world.ztunnel.lines(&["\terror\taccess\t", "direction=\"inbound\"", refused], 1).await?;
    case.world
        .ztunnel
        .lines(&["\terror\taccess\t", "direction=\"outbound\"", "http status: 401 Unauthorized"], 1)
        .await?;
    Ok(())
}

/// 8.5: DEBUG says that a connection was opened.
#[tokio::test(flavor = "multi_thread")]
async fn debug_says_opened() -> Result<()> {
    let case = Case::vary(|stage| stage.var("RUST_LOG", "info,access=debug")).await?;
    case.call().await?;
    case.world.ztunnel.lines(&["\tdebug\taccess\tconnection opened\t", "direction=\"outbound\""], 1).await?;
    case.world.ztunnel.lines(&["\tdebug\taccess\tconnection opened\t", "direction=\"inbound\""], 1).await?;
    Ok(())
}

/// 8.5: LOG_FORMAT=json: level, time, scope, message, then the fields, in the recorded order and types.
#[tokio::test(flavor = "multi_thread")]
async fn json_lines() -> Result<()> {
    let case = Case::vary(|stage| stage.var("LOG_FORMAT", "json")).await?;
    case.call().await?;
    let line = case.world.ztunnel.lines(&["\"scope\":\"access\"", "\"direction\":\"outbound\""], 1).await?.remove(0);
    let order = |line: &str| {
        let parsed: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).expect("JSON");
        let mut keys: Vec<(usize, String, bool)> = parsed
            .iter()
            .map(|(key, value)| (line.find(&format!("\"{key}\":")).expect("the key"), key.clone(), value.is_number()))
            .collect();
        keys.sort();
        keys.into_iter().map(|(_, key, number)| (key, number)).collect::<Vec<_>>()
    };
    let recorded = RECORDED_JSON
        .lines()
        .find(|line| {
            line.contains("\"direction\":\"outbound\"")
                && line.contains("dst.hbone_addr")
                && !line.contains("\"error\"")
        })
        .context("a recorded line")?;
    assert_eq!(order(&line), order(recorded));
    ensure!(
        line.starts_with("{\"level\":\"info\",\"time\":\"") && line.contains("\"bytes_sent\":3,\"bytes_recv\":14,"),
        "{line}"
    );
    Ok(())
}

/// 8.2: the build, and the process's metrics.
#[tokio::test(flavor = "multi_thread")]
async fn build_and_process() -> Result<()> {
    let case = Case::vary(|stage| stage.var("ISTIO_META_ISTIO_VERSION", "1.99.7")).await?;
    let text = case.world.metrics().await?;
    assert_eq!(sum(&text, "istio_build", &["component=\"ztunnel\"", "tag=\"1.99.7\""]), 1.0);
    for name in ["process_open_fds", "process_max_fds"] {
        ensure!(sum(&text, name, &[]) > 10.0, "{name}");
    }
    Ok(())
}

/// 8.2: the runtime's metrics by their recorded names.
#[tokio::test(flavor = "multi_thread")]
async fn runtime_metrics() -> Result<()> {
    let case = Case::start().await?;
    for name in [
        "tokio_num_workers",
        "tokio_global_queue_depth",
        "tokio_num_alive_tasks",
        "tokio_worker_total_busy_duration_seconds_total",
        "tokio_worker_park_count_total",
        "tokio_worker_park_unpark_count_total",
    ] {
        until(name, async || Ok(case.world.metrics().await?.lines().any(|line| line.starts_with(name)))).await?;
    }
    Ok(())
}

/// 8.2: every metric of the recording has its TYPE here too (DNS apart, which has its own tests).
#[tokio::test(flavor = "multi_thread")]
async fn metric_types() -> Result<()> {
    let case = Case::start().await?;
    case.call().await?;
    ensure!(greeted(&case.here.netns, (net::vip(1), 81).into()).await?.is_none());
    case.world.ztunnel.lines(&["\terror\taccess\t"], 2).await?;
    for line in RECORDED
        .lines()
        .filter(|line| line.starts_with("# TYPE ") && !line.contains("istio_dns") && !line.contains("tokio_"))
    {
        until(line, async || Ok(case.world.metrics().await?.lines().any(|own| own == line))).await?;
    }
    Ok(())
}
