//! Sections 3.2-3.4: what a caller of a pod's 15008 meets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::h2::{self, Event, Frame};
use crate::peer::hpack;
use crate::peer::pki::{self, Certified, Tls};
use crate::peer::tunnel::Client;
use crate::peer::wds::{Gateway, Service};
use crate::peer::world::{App, Pod, Stage, World};
use crate::peer::{net, until, within};

/// A world with the local pod `here` (198.18.1.2) and the remote pod `there` (198.18.1.3), and an application on 8080.
pub(crate) struct Case {
    pub(crate) world: World,
    pub(crate) here: Pod,
    pub(crate) there: Pod,
    _app: App,
}

impl Case {
    pub(crate) async fn start() -> Result<Self> {
        Self::vary(|_, _, _| {}).await
    }

    pub(crate) async fn vary(change: impl FnOnce(&mut Stage, &mut Pod, &mut Vec<Service>)) -> Result<Self> {
        let mut stage = Stage::set()?;
        let (mut here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
        here.workload.services = vec![("app/web.example".into(), vec![(80, 8080)])];
        let mut services = vec![Service {
            name: "web".into(),
            namespace: "app".into(),
            hostname: "web.example".into(),
            addresses: vec![net::vip(1)],
            ports: vec![(80, 8080), (81, 0), (8080, 8080)],
            ..Service::default()
        }];
        change(&mut stage, &mut here, &mut services);
        let mut resources = vec![here.workload.resource(), there.workload.resource()];
        resources.extend(services.iter().map(Service::resource));
        let world = World::start(stage, &[&here], &resources).await?;
        let _app = App::start(&here.netns, SocketAddr::from(([0; 16], 8080)))?;
        Ok(Self { world, here, there, _app })
    }

    pub(crate) async fn dial(&self) -> Result<Client> {
        self.world.dial(&self.there, &self.here).await
    }

    /// Whether a caller with this certificate and TLS gets through to the application.
    pub(crate) async fn gets_through(&self, own: Option<Certified>, tls: &Tls) -> bool {
        match Client::dial_with(&self.there.netns, self.here.at(15008), own, tls).await {
            Ok(client) => client.status(&self.here.at(8080).to_string()).await.is_ok_and(|status| status == "200"),
            Err(_) => false,
        }
    }

    pub(crate) fn certificate(&self) -> Result<Option<Certified>> {
        self.world.certificate(&self.there).map(Some)
    }
}

/// 3.2: the SETTINGS as recorded, but for the window, which starts at 256 KiB.
#[tokio::test(flavor = "multi_thread")]
async fn settings() -> Result<()> {
    let case = Case::start().await?;
    let client = case.dial().await?;
    let mut settings = client.connection.frame("SETTINGS", |f| f.kind == h2::SETTINGS && !f.is_ack()).await?.settings();
    settings.sort_unstable();
    assert_eq!(settings, [(3, 200), (4, 256 * 1024), (5, 1024 * 1024), (6, 64 * 1024)]);
    Ok(())
}

/// 3.2: PINGs are answered with what they carried; the first own one comes after ten seconds, and a caller that does
/// not answer is dropped twenty seconds later.
#[tokio::test(flavor = "multi_thread")]
async fn pings() -> Result<()> {
    let case = Case::start().await?;
    let begin = Instant::now();
    let (answering, silent) = (case.dial().await?, case.dial().await?);
    // Both have been used: a pooled connection may be idle for five minutes.
    for client in [&answering, &silent] {
        assert_eq!(client.status(&case.here.at(8080).to_string()).await?, "200");
    }
    silent.connection.mute();
    answering.connection.send(&Frame { kind: h2::PING, flags: 0, stream: 0, payload: b"8 bytes.".to_vec() });
    answering.connection.frame("the answer", |f| f.kind == h2::PING && f.is_ack() && f.payload == b"8 bytes.").await?;
    silent.connection.frame("a PING", |f| f.kind == h2::PING && !f.is_ack()).await?;
    let took = begin.elapsed();
    ensure!((Duration::from_secs(9)..Duration::from_secs(50)).contains(&took), "the first PING after {took:?}");
    silent.connection.closed().await?;
    let took = begin.elapsed();
    ensure!((Duration::from_secs(25)..Duration::from_secs(150)).contains(&took), "dropped after {took:?}");
    let status = answering.status(&case.here.at(8080).to_string()).await;
    assert_eq!(status.with_context(|| format!("{:?}", answering.connection.frames()))?, "200");
    Ok(())
}

/// 3.3, 3.4: the status of each CONNECT.
#[tokio::test(flavor = "multi_thread")]
async fn statuses() -> Result<()> {
    let case = Case::start().await?;
    // 15053 is not among the illegal ports (trap 22).
    let _dns_like = App::start(&case.here.netns, case.here.at(15053))?;
    let client = case.dial().await?;
    let (ip, ip6) = (case.here.ip(), case.here.ip6());
    for (authority, expected) in [
        (format!("{ip}:8080"), "200"),
        ("web.example:80".to_owned(), "200"),
        (format!("{ip}:15053"), "200"),
        (format!("{ip}:9999"), "503"),
        ("unknown.example:80".to_owned(), "503"),
        ("web.example:82".to_owned(), "503"),
        ("web.example:81".to_owned(), "503"),
        (format!("{ip}:15001"), "503"),
        (format!("{ip}:15006"), "503"),
        (format!("{ip}:15008"), "503"),
        ("198.18.1.77:8080".to_owned(), "400"),
        (format!("[{ip6}]:8080"), "400"),
        (format!("{ip}"), "400"),
        (format!("{ip}:http"), "400"),
        (format!("{ip}:99999"), "400"),
        ("nonsense".to_owned(), "400"),
    ] {
        assert_eq!(client.status(&authority).await?, expected, "{authority}");
    }
    Ok(())
}

/// 3.3: over IPv6, `[v6]:port`.
#[tokio::test(flavor = "multi_thread")]
async fn authority_over_ipv6() -> Result<()> {
    let case = Case::start().await?;
    let to = (case.here.ip6(), 15008).into();
    let client = Client::dial(&case.there.netns, to, case.certificate()?).await?;
    let (mut stream, headers) = client.connect(&format!("[{}]:8080", case.here.ip6()), &[]).await?;
    assert_eq!(hpack::value(&headers, ":status"), Some("200"));
    let greeting = stream.read(7).await?;
    ensure!(greeting.starts_with(b"hello f"), "the caller's IPv6 address is kept: {greeting:?}");
    Ok(())
}

/// 3.3, 12.11: what is no CONNECT is 400; an error ends the stream in its HEADERS, and RST_STREAM NO_ERROR follows,
/// but not after the refused GET.
#[tokio::test(flavor = "multi_thread")]
async fn error_frames() -> Result<()> {
    let case = Case::start().await?;
    let client = case.dial().await?;
    let get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "198.18.1.2:8080")];
    let mut stream = client.connection.open(&get, true);
    let (headers, end) = stream.response().await?;
    assert_eq!((hpack::value(&headers, ":status"), end), (Some("400"), true));
    let refused = stream.id();
    for authority in ["198.18.1.2:9999", "198.18.1.77:1", "198.18.1.2:15008"] {
        let (stream, _) = client.connect(authority, &[]).await?;
        let id = stream.id();
        let headers = client.connection.frame("HEADERS", |f| f.kind == h2::HEADERS && f.stream == id).await?;
        ensure!(headers.ends_stream(), "{authority}: HEADERS without END_STREAM");
        let reset = client.connection.frame("RST_STREAM", |f| f.kind == h2::RST_STREAM && f.stream == id).await?;
        assert_eq!(reset.number(), 0, "{authority}");
    }
    let resets = client.connection.frames().into_iter().filter(|f| f.kind == h2::RST_STREAM && f.stream == refused);
    assert_eq!(resets.count(), 0, "the GET was reset");
    Ok(())
}

/// 3.3: 200 carries the destination's baggage; errors don't.
#[tokio::test(flavor = "multi_thread")]
async fn response_baggage() -> Result<()> {
    let case = Case::vary(|_, here, _| {
        here.workload.locality = ["eu", "eu-1", ""];
    })
    .await?;
    let client = case.dial().await?;
    let (_stream, headers) = client.connect("198.18.1.2:8080", &[]).await?;
    let baggage = "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.pod.name=here,service.name=here-app,\
                   service.version=v7,cloud.region=eu,cloud.availability_zone=eu-1";
    assert_eq!(hpack::value(&headers, "baggage"), Some(baggage));
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [":status", "baggage"]);
    let (_stream, headers) = client.connect("198.18.1.2:9999", &[]).await?;
    assert_eq!(hpack::value(&headers, "baggage"), None);
    Ok(())
}

/// 9: ENABLE_RESPONSE_BAGGAGE=false leaves it out.
#[tokio::test(flavor = "multi_thread")]
async fn no_response_baggage() -> Result<()> {
    let case = Case::vary(|stage, _, _| stage.var("ENABLE_RESPONSE_BAGGAGE", "false")).await?;
    let client = case.dial().await?;
    let (_stream, headers) = client.connect("198.18.1.2:8080", &[]).await?;
    assert_eq!(headers, [(":status".to_owned(), "200".to_owned())]);
    Ok(())
}

/// 3.3, trap 42: 200 only after the upstream connect succeeded; 503 when it ran out of time (1.5: ten seconds).
#[tokio::test(flavor = "multi_thread")]
async fn status_follows_the_connect() -> Result<()> {
    let case = Case::start().await?;
    case.here.netns.command(&["iptables-nft", "-I", "INPUT", "-p", "tcp", "--dport", "7777", "-j", "DROP"], "")?;
    let client = case.dial().await?;
    let begin = Instant::now();
    assert_eq!(client.status("198.18.1.2:7777").await?, "503");
    let took = begin.elapsed();
    ensure!((Duration::from_secs(9)..Duration::from_secs(50)).contains(&took), "after {took:?}");
    Ok(())
}

/// 1.5, 3.4: the application sees the caller's address; ENABLE_ORIG_SRC=false ends that.
#[tokio::test(flavor = "multi_thread")]
async fn source_address() -> Result<()> {
    let case = Case::start().await?;
    let client = case.dial().await?;
    let (mut stream, _) = client.connect("198.18.1.2:8080", &[]).await?;
    ensure!(stream.read(10).await?.starts_with(b"hello 198.18.1.3"), "the caller's address");
    let case = Case::vary(|stage, _, _| stage.var("ENABLE_ORIG_SRC", "false")).await?;
    let client = case.dial().await?;
    let (mut stream, _) = client.connect("198.18.1.2:8080", &[]).await?;
    ensure!(stream.read(10).await?.starts_with(b"hello 198.18.1.2"), "the pod's own address");
    Ok(())
}

/// 3.4: `x-forwarded-network`, `forwarded` and `x-istio-source` change neither the decision nor the source.
#[tokio::test(flavor = "multi_thread")]
async fn headers_are_not_trusted() -> Result<()> {
    let case = Case::start().await?;
    let client = case.dial().await?;
    let more = [
        ("forwarded", "for=\"203.0.113.9:1\";host=web.example"),
        ("x-istio-source", "waypoint"),
        ("baggage", "k8s.namespace.name=other,k8s.pod.name=liar"),
        ("traceparent", "00-0775a8b1c60dc20fb08003eeba889db2-076ef58ec3af14a9-00"),
    ];
    let (mut stream, headers) = client.connect("198.18.1.2:8080", &more).await?;
    assert_eq!(hpack::value(&headers, ":status"), Some("200"));
    ensure!(stream.read(10).await?.starts_with(b"hello 198.18.1.3"));
    // Unreadable ones are no fault of the connection's.
    let odd = [("forwarded", ";;;="), ("baggage", "%%%"), ("traceparent", "x"), ("x-forwarded-network", "")];
    let (_stream, headers) = client.connect("198.18.1.2:8080", &odd).await?;
    assert_eq!(hpack::value(&headers, ":status"), Some("200"));
    Ok(())
}

/// 3.2: a half-close goes through in each direction by itself.
#[tokio::test(flavor = "multi_thread")]
async fn half_close() -> Result<()> {
    let case = Case::start().await?;
    let app = case.here.netns.listen(case.here.at(7000))?;
    let client = case.dial().await?;
    // The caller ends first.
    let (mut stream, _) = client.connect("198.18.1.2:7000", &[]).await?;
    let (mut upstream, _) = within("a connection", app.accept()).await??;
    stream.data(b"question", true);
    let mut question = Vec::new();
    within("the question", upstream.read_to_end(&mut question)).await??;
    assert_eq!(question, b"question");
    upstream.write_all(b"answer").await?;
    drop(upstream);
    assert_eq!(stream.read_to_end().await?, (b"answer".to_vec(), None));
    // The application ends first.
    let (mut stream, _) = client.connect("198.18.1.2:7000", &[]).await?;
    let (mut upstream, _) = within("a connection", app.accept()).await??;
    upstream.write_all(b"all").await?;
    upstream.shutdown().await?;
    assert_eq!(stream.read_to_end().await?, (b"all".to_vec(), None));
    stream.data(b"late", true);
    let mut late = Vec::new();
    within("late bytes", upstream.read_to_end(&mut late)).await??;
    assert_eq!(late, b"late");
    Ok(())
}

/// 3.2: RST_STREAM with NO_ERROR or CANCEL reads as an end.
#[tokio::test(flavor = "multi_thread")]
async fn reset_reads_as_end() -> Result<()> {
    let case = Case::start().await?;
    let app = case.here.netns.listen(case.here.at(7000))?;
    let client = case.dial().await?;
    for code in [0, 8] {
        let (stream, _) = client.connect("198.18.1.2:7000", &[]).await?;
        let (mut upstream, _) = within("a connection", app.accept()).await??;
        stream.data(b"said", false);
        let mut said = [0; 4];
        within("bytes", upstream.read_exact(&mut said)).await??;
        stream.reset(code);
        let mut rest = Vec::new();
        within("an end", upstream.read_to_end(&mut rest)).await?.with_context(|| format!("code {code}"))?;
        ensure!(rest.is_empty());
    }
    Ok(())
}

/// 3.2: streams of one connection are apart: a refused one harms no other, and many run side by side.
#[tokio::test(flavor = "multi_thread")]
async fn many_streams() -> Result<()> {
    let case = Case::start().await?;
    let client = case.dial().await?;
    let mut streams = Vec::new();
    for n in 0..60u8 {
        streams.push((n, client.connect("198.18.1.2:8080", &[]).await?.0));
        ensure!(client.status("198.18.1.2:9999").await? == "503");
    }
    for (n, stream) in &mut streams {
        let mut text = vec![*n + b' '; 1000];
        stream.data(&text, true);
        let (bytes, reset) = stream.read_to_end().await?;
        text.splice(0..0, *b"hello 198.18.1.3\n");
        ensure!(bytes == text && reset.is_none(), "stream {n}");
    }
    Ok(())
}

/// 3.4, trap 31: a hostname goes to the port of the workload's own list; with 0 in the service and nothing in the
/// list there is no port. What the authority's port maps to is what the application is called on.
#[tokio::test(flavor = "multi_thread")]
async fn hostname_ports() -> Result<()> {
    let case = Case::vary(|_, here, services| {
        here.workload.services = vec![("app/web.example".into(), vec![(80, 7001)])];
        services[0].ports = vec![(80, 0), (90, 7002), (91, 0)];
    })
    .await?;
    let _first = App::start(&case.here.netns, case.here.at(7001))?;
    let _second = App::start(&case.here.netns, case.here.at(7002))?;
    let client = case.dial().await?;
    assert_eq!(client.status("web.example:80").await?, "200", "from the workload's list");
    assert_eq!(client.status("web.example:90").await?, "200", "from the service");
    assert_eq!(client.status("web.example:91").await?, "503", "from nowhere");
    Ok(())
}

/// 3.3, 3.4: the handshake is done with the pod's certificate; the unknown local workload is a 503 of the stream's
/// after five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_local_workload() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let world = World::start(stage, &[&here], &[there.workload.resource()]).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    let begin = Instant::now();
    let client = world.dial(&there, &here).await?;
    assert_eq!(client.status("198.18.1.2:8080").await?, "503");
    let took = begin.elapsed();
    ensure!((Duration::from_secs(4)..Duration::from_secs(25)).contains(&took), "after {took:?}");
    Ok(())
}

/// 3.4: a local workload that comes within five seconds is awaited.
#[tokio::test(flavor = "multi_thread")]
async fn local_workload_is_awaited() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let mut world = World::start(stage, &[&here], &[there.workload.resource()]).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    let own = world.certificate(&there)?;
    let call = async {
        let client = Client::dial(&there.netns, here.at(15008), Some(own)).await?;
        client.status("198.18.1.2:8080").await
    };
    let later = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        world.ads.accepted(crate::peer::wds::ADDRESS, &[here.workload.resource()], &[]).await
    };
    let (status, pushed) = tokio::join!(call, later);
    pushed?;
    assert_eq!(status?, "200");
    Ok(())
}

/// 3.4: the local workload is one of this node's; trap 29: an elided service account is `default`.
#[tokio::test(flavor = "multi_thread")]
async fn elided_service_account() -> Result<()> {
    let stage = Stage::set()?;
    let (mut here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    here.workload.service_account = "default".into();
    let mut elided = here.workload.clone();
    elided.service_account.clear();
    let world = World::start(stage, &[&here], &[elided.resource(), there.workload.resource()]).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    let client = world.dial(&there, &here).await?;
    assert_eq!(pki::uris(&client.peer[0])?, ["spiffe://cluster.local/ns/app/sa/default"]);
    assert_eq!(client.status("198.18.1.2:8080").await?, "200");
    Ok(())
}

/// 3.4: with an application tunnel any address passes, and its port is called instead.
#[tokio::test(flavor = "multi_thread")]
async fn application_tunnel() -> Result<()> {
    let case = Case::vary(|_, here, _| here.workload.application_tunnel = Some((0, 7003))).await?;
    let _app = App::start(&case.here.netns, SocketAddr::from(([0, 0, 0, 0], 7003)))?;
    let client = case.dial().await?;
    assert_eq!(client.status("198.19.0.1:80").await?, "200");
    assert_eq!(client.status("198.18.1.2:1").await?, "200");
    Ok(())
}

/// 4.4, trap 26: with PROXY the tunnel's port on loopback gets a PROXY v2 header: source the peer, destination the
/// authority, TLV 0xD0 the peer's identity, no 0xD1.
#[tokio::test(flavor = "multi_thread")]
async fn application_tunnel_proxy() -> Result<()> {
    let case = Case::vary(|_, here, _| here.workload.application_tunnel = Some((1, 7003))).await?;
    let app = case.here.netns.listen(SocketAddr::from(([127, 0, 0, 1], 7003)))?;
    let client = case.dial().await?;
    for (authority, destination) in
        [("198.19.0.1:80", [198, 19, 0, 1, 0, 80]), ("web.example:80", [198, 19, 0, 1, 0, 80])]
    {
        let (stream, headers) = client.connect(authority, &[]).await?;
        assert_eq!(hpack::value(&headers, ":status"), Some("200"), "{authority}");
        let (mut upstream, from) = within("a connection", app.accept()).await??;
        ensure!(from.ip().is_loopback(), "from {from}");
        let mut head = [0; 28];
        within("a PROXY header", upstream.read_exact(&mut head)).await??;
        assert_eq!(head[..12], *b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(head[12..14], [0x21, 0x11], "version 2, PROXY, TCP over IPv4");
        assert_eq!(head[16..20], [198, 18, 1, 3]);
        assert_eq!(head[24..26].len() + head[20..26].len(), 8);
        assert_eq!([&head[20..24], &head[26..28]].concat(), destination, "{authority}");
        let length = usize::from(u16::from_be_bytes([head[14], head[15]])) - 12;
        let mut tlvs = vec![0; length];
        within("TLVs", upstream.read_exact(&mut tlvs)).await??;
        let identity = case.there.identity();
        let mut expected = vec![0xd0];
        expected.extend_from_slice(&(identity.len() as u16).to_be_bytes());
        expected.extend_from_slice(identity.as_bytes());
        assert_eq!(tlvs, expected);
        stream.data(b"after", false);
        let mut after = [0; 5];
        within("bytes", upstream.read_exact(&mut after)).await??;
        assert_eq!(&after, b"after");
    }
    Ok(())
}

/// 3.4: a sandwiched waypoint is called by the addresses of what it serves.
#[tokio::test(flavor = "multi_thread")]
async fn sandwich_destination() -> Result<()> {
    let case = Case::vary(|_, _, services| {
        let to_here = Some(Gateway::Ip(net::ipv4(2), 15008));
        services[0].waypoint = to_here.clone();
        services[0].ports = vec![(8080, 8080)];
        services.push(Service {
            name: "other".into(),
            namespace: "app".into(),
            hostname: "other.example".into(),
            addresses: vec![net::vip(2)],
            ports: vec![(8080, 8080)],
            ..Service::default()
        });
    })
    .await?;
    let client = case.dial().await?;
    assert_eq!(client.status("198.19.0.1:8080").await?, "200", "a service whose waypoint this is");
    assert_eq!(client.status("198.19.0.2:8080").await?, "400", "another service");
    Ok(())
}

/// 3.4: ztunnel serves its own pod on 15008 in its own namespace.
#[tokio::test(flavor = "multi_thread")]
async fn own_pod() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("SERVICE_ACCOUNT", "ztunnel");
    let there = stage.remote(3, "there")?;
    let mut own = stage.remote(9, "ztunnel-abc")?;
    own.number = 1;
    own.workload.namespace = "istio-system".into();
    own.workload.service_account = "ztunnel".into();
    own.workload.node = "node-a".into();
    own.workload.addresses = vec![net::ipv4(1)];
    let world = World::start(stage, &[], &[own.workload.resource(), there.workload.resource()]).await?;
    let mut served = None;
    until("the own pod served", async || {
        served = world.dial(&there, &own).await.ok();
        Ok(served.is_some())
    })
    .await?;
    let client = served.context("a connection")?;
    assert_eq!(pki::uris(&client.peer[0])?, ["spiffe://cluster.local/ns/istio-system/sa/ztunnel"]);
    let (mut stream, headers) = client.connect("198.18.1.1:15020", &[]).await?;
    assert_eq!(hpack::value(&headers, ":status"), Some("200"));
    stream.data(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false);
    let mut text = Vec::new();
    while let Some(Event::Data { bytes, end }) = stream.next().await? {
        text.extend(bytes);
        if end {
            break;
        }
    }
    ensure!(String::from_utf8_lossy(&text).contains("istio_build"), "metrics over mTLS");
    Ok(())
}
