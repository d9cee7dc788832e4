//! Somebody with a good certificate, whose requests are not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use rustls::ClientConfig;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::frames::{
    self, CONTINUATION, END_HEADERS, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, block, flood, frame, hello,
};
use super::{Bystander, rss};
use crate::harness::{
    ORDERS, access_line_appears, access_lines_appear, connect_from, eventually, get, meshed_shop, netns,
};
use crate::mint::{Ca, client};

/// Growth of a proxy's memory that no single attack may exceed, in KiB.
const GROWTH: u64 = 64 << 10;

const REFUSED_STREAM: u32 = 7;

/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client outside the mesh with a certificate of `orders`, which it should not have.
struct Intruder {
    lab: Lab,
    netns: PathBuf,
    target: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Intruder {
    async fn new() -> Result<Self> {
        let lab = meshed_shop(LabOptions::default()).await?;
        let config = client(Some(&Ca::of(&lab)?.workload(&[ORDERS])?), &[&TLS13])?;
        let netns = netns(&lab, &lab.pod("outside", "client").await?)?;
        let target = (lab.pod("shop", "payments").await?.ipv4(), 15008).into();
        Ok(Self { lab, netns, target, config })
    }

    fn app(&self) -> String {
        format!("{}:8080", self.target.ip())
    }

    async fn tls(&self) -> Result<TlsStream<TcpStream>> {
        let tcp = connect_from(&self.netns, self.target)?;
        let connect = TlsConnector::from(self.config.clone()).connect(self.target.ip().into(), tcp);
        Ok(tokio::time::timeout(PATIENCE, connect).await??)
    }

    /// HTTP/2 by the book, and the local port.
    async fn http2(&self) -> Result<(SendRequest<Bytes>, u16)> {
        let tls = self.tls().await?;
        let port = tls.get_ref().0.local_addr()?.port();
        let (send, connection) = h2::client::handshake(tls).await?;
        tokio::spawn(connection);
        Ok((send, port))
    }

    async fn still_served(&self, bystander: Bystander) -> Result<()> {
        bystander.unharmed().await?;
        assert!(get(&self.lab, "shop", "orders", "http://payments/").await?.ok());
        let (send, _) = self.http2().await?;
        let answer = ask(&send, Method::CONNECT, &self.app(), HeaderMap::new()).await?;
        assert_eq!(answer, StatusCode::OK, "a request as it should be");
        let log = self.lab.component_logs(&Component::ztunnel("node2")).await?;
        assert!(!log.contains("panick"), "a panic in the log of node2's ztunnel");
        Ok(())
    }
}

/// The status of one request.
async fn ask(send: &SendRequest<Bytes>, method: Method, uri: &str, headers: HeaderMap) -> Result<StatusCode> {
    let uri: Uri = if method == Method::CONNECT { Uri::builder().authority(uri).build()? } else { uri.parse()? };
    let mut request = Request::builder().method(method).uri(uri).body(())?;
    *request.headers_mut() = headers;
    let exchange = async {
        let (response, _body) = send.clone().ready().await?.send_request(request, false)?;
        response.await
    };
    Ok(tokio::time::timeout(PATIENCE, exchange).await.context("no answer")??.status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_answered_with_their_reason() -> Result<()> {
    let intruder = Intruder::new().await?;
    let lab = &intruder.lab;
    let bystander = Bystander::start(lab).await?;
    let ip = intruder.target.ip();
    let cart = lab.pod("shop", "cart").await?;
    let own = |port: u16| format!("{ip}:{port}");
    let cases = [
        (format!("{}:6379", cart.ipv4()), 400, "destination_mismatch"),
        ("198.18.0.1:8080".into(), 400, "destination_mismatch"),
        ("127.0.0.1:8080".into(), 400, "destination_mismatch"),
        ("[::1]:8080".into(), 400, "destination_mismatch"),
        ("169.254.169.254:80".into(), 400, "destination_mismatch"),
        (own(15001), 503, "illegal_port"),
        (own(15006), 503, "illegal_port"),
        (own(15008), 503, "illegal_port"),
        (format!("[::ffff:{ip}]:15008"), 503, "illegal_port"),
        (own(9), 503, "connect_refused"),
        ("nobody.nowhere:80".into(), 503, "service_unknown"),
        ("cart.shop.svc.cluster.local:6379".into(), 503, "port_unknown"),
        ("payments.shop.svc.cluster.local:4711".into(), 503, "port_unknown"),
        (ip.to_string(), 400, "invalid_authority"),
        (format!("{ip}:0"), 400, "invalid_authority"),
        (own(0).replace(":0", ":99999"), 400, "invalid_authority"),
        (format!("{ip}:"), 400, "invalid_authority"),
        (format!("root@{ip}:8080"), 400, "invalid_authority"),
        (format!("{}:80", "a".repeat(300)), 400, "invalid_authority"),
    ];
    for (authority, status, reason) in cases {
        let (send, port) = intruder.http2().await?;
        let answer = ask(&send, Method::CONNECT, &authority, HeaderMap::new()).await.context(authority.clone())?;
        println!("CONNECT {authority}: {answer}");
        assert_eq!(answer, status, "CONNECT {authority}");
        let line = access_line_appears(lab, "node2", &[&format!(":{port} "), &format!("reason=\"{reason}\"")]).await?;
        assert!(line.contains("direction=\"inbound\""), "{line}");
    }
    for (method, uri) in [
        (Method::GET, "https://payments.shop/"),
        (Method::POST, "http://127.0.0.1:8080/"),
        (Method::OPTIONS, "https://x/"),
    ] {
        let (send, port) = intruder.http2().await?;
        assert_eq!(ask(&send, method.clone(), uri, HeaderMap::new()).await?, 400, "{method} {uri}");
        access_line_appears(lab, "node2", &[&format!(":{port} "), method.as_str(), "reason=\"method_not_allowed\""])
            .await?;
    }
    // What a client says of itself opens no door: only its certificate counts.
    let mut headers = HeaderMap::new();
    headers.insert("forwarded", HeaderValue::from_static("for=\"127.0.0.1:1\";host=cart.shop.svc.cluster.local"));
    headers.insert("x-forwarded-network", HeaderValue::from_static("elsewhere"));
    headers.insert("baggage", HeaderValue::from_static("k8s.namespace.name=istio-system,,=,k8s"));
    headers.insert("traceparent", HeaderValue::from_static("00-zz"));
    let (send, _) = intruder.http2().await?;
    assert_eq!(ask(&send, Method::CONNECT, &format!("{}:6379", cart.ipv4()), headers).await?, 400);
    intruder.still_served(bystander).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_and_memory_stays() -> Result<()> {
    let intruder = Intruder::new().await?;
    let lab = &intruder.lab;
    let bystander = Bystander::start(lab).await?;
    let app = intruder.app();
    let connect = block(&[(":method", "CONNECT"), (":authority", &app)]);
    let before = rss(lab, "node2").await?;
    let report = async |what: &str| -> Result<()> {
        let now = rss(lab, "node2").await?;
        let stats = lab.stats(Component::ztunnel("node2")).await?;
        println!("{what}: rss {before} → {now} KiB (peak {} KiB), {} fds", stats.peak_rss_bytes >> 10, stats.fds);
        assert!(now < before + GROWTH, "{what}: memory grew from {before} to {now} KiB");
        Ok(())
    };

    // A header list beyond the limit of 64 KiB: refused, and the connection is none the worse. One far beyond it: its
    // connection ends.
    let headers = |count: usize| -> Result<HeaderMap> {
        let one = |index| {
            Ok((http::HeaderName::try_from(format!("x-{index}"))?, HeaderValue::try_from("v".repeat(8 << 10))?))
        };
        (0..count).map(one).collect()
    };
    let (send, _) = intruder.http2().await?;
    assert_eq!(ask(&send, Method::CONNECT, &app, headers(9)?).await?, 431);
    assert_eq!(ask(&send, Method::CONNECT, &app, HeaderMap::new()).await?, 200);
    let answer = ask(&send, Method::CONNECT, &app, headers(64)?).await;
    println!("512 KiB of headers: {answer:?}");
    assert!(answer.as_ref().map_or(true, |status| *status == 431), "{answer:?}");
    report("giant headers").await?;

    // A header list without end.
    let mut tls = intruder.tls().await?;
    hello(&mut tls).await?;
    let more = block(&[("x", &"v".repeat(16_000))]);
    let start = std::iter::once(frame(HEADERS, 0, 1, &connect));
    let sent = flood(tls, start.chain((0..8_000).map(|_| frame(CONTINUATION, 0, 1, &more))), PATIENCE).await;
    println!("endless CONTINUATION: {sent:?}");
    assert!(sent.dismissed() && sent.bytes < 32 << 20, "{sent:?}");
    report("endless CONTINUATION").await?;

    // Few bytes that unpack into many: one entry of the dynamic table, named 10 000 times on each of 20 streams: 800 MB.
    let mut tls = intruder.tls().await?;
    hello(&mut tls).await?;
    let mut bomb = connect.clone();
    frames::literal(0x40, "x", &"v".repeat(4_000), &mut bomb);
    bomb.resize(bomb.len() + 10_000, 0x80 | 62);
    let bombs = (0..20u32).map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &bomb));
    let sent = flood(tls, bombs, PATIENCE).await;
    println!("compressed headers: {sent:?}");
    assert!(sent.dismissed(), "{sent:?}");
    report("compressed headers").await?;

    // Five times as many streams as are allowed, at once: those beyond are refused one by one.
    let mut tls = intruder.tls().await?;
    hello(&mut tls).await?;
    for n in 0..1000u32 {
        tls.write_all(&frame(HEADERS, END_HEADERS, 2 * n + 1, &connect)).await?;
    }
    tls.flush().await?;
    let mut answers: BTreeMap<&str, u32> = BTreeMap::new();
    let read = async {
        while answers.values().sum::<u32>() < 1000 {
            let Some(got) = frames::next(&mut tls).await else { break };
            let what = match got.kind {
                HEADERS => "answered",
                RST_STREAM if got.error() == REFUSED_STREAM => "refused",
                RST_STREAM => "reset",
                GOAWAY => "goaway",
                _ => continue,
            };
            *answers.entry(what).or_default() += 1;
        }
    };
    let all = tokio::time::timeout(PATIENCE, read).await;
    println!("1000 streams at once: {answers:?}");
    all.context("some of 1000 streams were not answered")?;
    assert!(answers.get("answered").is_some_and(|n| *n <= 200), "{answers:?}");
    assert!(answers.contains_key("refused") || answers.contains_key("goaway"), "{answers:?}");
    report("1000 streams").await?;
    drop(tls);

    // Opened and reset, over and over (CVE-2023-44487).
    let mut tls = intruder.tls().await?;
    hello(&mut tls).await?;
    let cancel = 8u32.to_be_bytes();
    let resets = (0..50_000u32)
        .map(|n| [frame(HEADERS, END_HEADERS, 2 * n + 1, &connect), frame(RST_STREAM, 0, 2 * n + 1, &cancel)].concat());
    let sent = flood(tls, resets, PATIENCE * 2).await;
    println!("rapid reset: {sent:?}");
    assert!(sent.dismissed() && sent.bytes < 1 << 20, "{sent:?}");
    report("rapid reset").await?;

    // Questions whose answers nobody reads.
    for (what, one) in [("PING", frame(PING, 0, 0, &[7; 8])), ("SETTINGS", frame(SETTINGS, 0, 0, &[]))] {
        let mut tls = intruder.tls().await?;
        hello(&mut tls).await?;
        let many = one.repeat(1000);
        let mut bytes = 0;
        let write = async {
            while bytes < 64 << 20 && tls.write_all(&many).await.is_ok() {
                bytes += many.len();
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(3), write).await.is_ok();
        println!("{what} without reading: {bytes} bytes taken, ended {ended}");
        report(what).await?;
    }
    intruder.still_served(bystander).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_and_silence_end_by_themselves() -> Result<()> {
    let intruder = Intruder::new().await?;
    let lab = &intruder.lab;
    let bystander = Bystander::start(lab).await?;
    let fds = async || Ok::<_, anyhow::Error>(lab.stats(Component::ztunnel("node2")).await?.fds);
    let (before, memory) = (fds().await?, rss(lab, "node2").await?);

    // Garbage where HTTP/2 should be.
    let mut tls = intruder.tls().await?;
    let port = tls.get_ref().0.local_addr()?.port();
    tls.write_all(&[0xa5; 4096]).await?;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, tls.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "garbage kept its connection");
    access_line_appears(lab, "node2", &[&format!(":{port} "), "reason=\"h2_failed\""]).await?;

    // Garbage, and HTTP in the clear, where TLS should be.
    let mut tcp = connect_from(&intruder.netns, intruder.target)?;
    let port = tcp.local_addr()?.port();
    tcp.write_all(&[0xa5; 4096]).await?;
    assert!(tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.is_ok());
    access_line_appears(lab, "node2", &[&format!(":{port} "), "reason=\"tls_failed\""]).await?;
    for more in [None, Some("--http2-prior-knowledge")] {
        let url = format!("http://{}/", intruder.target);
        let mut args =
            vec!["curl", "-s", "-m", "5", "--local-port", "40000-49999", "-w", "%{local_port} %{http_code}", &url];
        args.extend(more);
        let output = lab.exec("outside", "client", &args).await?;
        println!("curl {more:?}: exit {} {}", output.code, output.stdout);
        let said = output.stdout.rsplit_once(' ').context("curl's port and status")?;
        assert!(output.code != 0 && output.code != 28 && said.1 == "000", "{output:?}");
        let port = said.0.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned();
        access_line_appears(lab, "node2", &[&format!(":{port} "), "reason=\"tls_failed\""]).await?;
    }

    // Those who connect and then say nothing, or the half of a hello, or nothing after TLS.
    let begin = Instant::now();
    let mut silent = Vec::new();
    for index in 0..300 {
        let mut tcp = connect_from(&intruder.netns, intruder.target)?;
        if index % 2 == 1 {
            tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await?;
        }
        silent.push(tcp);
    }
    let mut quiet = intruder.tls().await?;
    let held = fds().await?;
    println!("silence: {held} fds held, {before} before, opened in {:?}", begin.elapsed());
    for tcp in &mut silent {
        let left = Duration::from_secs(60).saturating_sub(begin.elapsed());
        let ended = tokio::time::timeout(left, tcp.read(&mut [0; 64])).await;
        assert!(ended.is_ok(), "a silent connection is still open after 60 s");
    }
    println!("silence: all closed after {:?} (bound 10 s)", begin.elapsed());
    // After TLS the server speaks first, with its SETTINGS; then it waits no longer than for TLS.
    let ended = tokio::time::timeout(Duration::from_secs(50), quiet.read_to_end(&mut rest)).await;
    println!("silence after TLS: closed after {:?} (bound 10 s)", begin.elapsed());
    assert!(ended.is_ok(), "a connection without HTTP/2 is still open");
    access_lines_appear(lab, "node2", 300, &["reason=\"tls_timeout\""]).await?;
    eventually("their descriptors are back", Duration::from_secs(2), async || Ok(fds().await? < before + 30)).await?;
    let now = rss(lab, "node2").await?;
    println!("rss {memory} → {now} KiB");
    assert!(now < memory + GROWTH, "memory grew from {memory} to {now} KiB");
    intruder.still_served(bystander).await
}
