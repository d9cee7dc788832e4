use super::*;

fn options() -> TcpOptions {
    TcpOptions {
        mark: None,
        keepalive: Some(Keepalive { time: Duration::from_secs(180), interval: Duration::from_secs(170), retries: 9 }),
        user_timeout: false,
        within_pod: true,
    }
}

#[tokio::test]
async fn accepted_sockets_inherit_what_the_listener_has() {
    let listener = listen(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), &options(), OriginalSource::Auto, true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let addr = listener.local_addr().unwrap();
    let (socket, _) = upstream(addr, None, &options()).unwrap();
    let (client, accepted) = tokio::join!(socket.connect(addr), listener.accept());
    for stream in [client.unwrap(), accepted.unwrap().0] {
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(180));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(170));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
    }
}

#[tokio::test]
async fn dual_stack_listeners_overlap_and_show_plain_v4() {
    let first = listen_wildcard(0, true, &options(), OriginalSource::Auto, true).unwrap();
    let port = first.local_addr().unwrap().port();
    let second = listen_wildcard(port, true, &options(), OriginalSource::Auto, true).unwrap();
    drop(first);
    let listener = tokio::net::TcpListener::from_std(second).unwrap();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let addr = SocketAddr::new(ip, port);
        let (socket, _) = upstream(addr, None, &options()).unwrap();
        let (client, accepted) = tokio::join!(socket.connect(addr), listener.accept());
        let (accepted, peer) = accepted.unwrap();
        assert_eq!(canonical(peer), client.unwrap().local_addr().unwrap());
        // Nothing redirects here, so the destination is the address that the client dialled.
        assert_eq!(original_destination(&accepted, peer).unwrap(), addr);
    }
    // v4 only: the v6 wildcard isn't taken.
    let v4 = listen_wildcard(0, false, &options(), OriginalSource::Auto, false).unwrap();
    assert!(v4.local_addr().unwrap().is_ipv4());
}

#[tokio::test]
async fn a_reset_is_what_the_client_sees() {
    use tokio::io::AsyncReadExt;
    let listener =
        listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &TcpOptions::default(), OriginalSource::Off, false).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let addr = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (accepted, _) = accepted.unwrap();
    reset_on_close(&accepted);
    drop(accepted);
    let error = client.unwrap().read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_source_of_the_other_family_is_no_reason_to_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _in_runtime = runtime.enter();
    let (_, unspoofed) =
        upstream(SocketAddr::from((Ipv6Addr::LOCALHOST, 80)), Some(Ipv4Addr::LOCALHOST.into()), &TcpOptions::default())
            .unwrap();
    assert!(unspoofed.is_none());
}

/// Settings are held to these limits: what is refused here would keep every pod out.
#[test]
fn keepalive_is_taken_within_its_limits_and_refused_beyond() {
    let apply = |time, interval, retries| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let (time, interval) = (Duration::from_secs(time), Duration::from_secs(interval));
        let keepalive = Some(Keepalive { time, interval, retries });
        TcpOptions { keepalive, user_timeout: true, ..TcpOptions::default() }.apply(&socket).is_ok()
    };
    assert!(apply(1, 1, 1) && apply(32767, 1, 127) && apply(1, 32767, 65));
    assert!(!apply(0, 1, 1) && !apply(32768, 1, 1) && !apply(1, 32768, 1) && !apply(1, 1, 0) && !apply(1, 1, 128));
    assert!(!apply(1, 32767, 66), "more than 2^31 - 1 ms");
}
