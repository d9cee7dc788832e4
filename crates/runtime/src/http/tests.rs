use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Sends `head` plus `Connection: close` and gives the whole answer.
pub(crate) async fn ask(address: SocketAddr, line: &str, headers: &[&str]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).unwrap(), body)
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn queries_are_decoded() {
    let table: &[(&str, &[(&str, &str)])] = &[
        ("", &[]),
        ("reset", &[("reset", "")]),
        ("level=debug&reset", &[("level", "debug"), ("reset", "")]),
        ("level=a%3A%3Ab%3Adebug", &[("level", "a::b:debug")]),
        ("level=100%&x=%zz", &[("level", "100%"), ("x", "%zz")]),
    ];
    for (query, expect) in table {
        let expect: BTreeMap<_, _> = expect.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(parse_query(query), expect, "{query}");
    }
}

#[test]
fn serves_on_a_current_thread_and_on_a_multi_thread_runtime() {
    let runtimes = [
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
    ];
    for runtime in runtimes {
        runtime.block_on(async {
            let (tracker, cancel) = (Tracker::new(), Cancel::new());
            let server = Server::bind("test", loopback()).await.unwrap();
            let address = server.local_addr().unwrap();
            let echo = handler(|r: Request| async move { text(StatusCode::OK, r.path) });
            server.serve(echo, &tracker, cancel.clone());
            let (head, body) = ask(address, "GET /a?b=c", &[]).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(body, b"/a");
            // An idle keep-alive connection does not hold the drain.
            let _idle = TcpStream::connect(address).await.unwrap();
            cancel.drain();
            tracker.close();
            tracker.wait().await;
        });
    }
}

#[tokio::test]
async fn a_wildcard_is_reached_over_ipv4_and_a_taken_port_is_told() {
    let (tracker, cancel) = (Tracker::new(), Cancel::new());
    let server = Server::bind_wildcard("test", 0).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let error = Server::bind_wildcard("other", port).await.unwrap_err();
    assert!(error.to_string().contains("other server on"), "{error}");
    server.serve(handler(|_| async { text(StatusCode::OK, "x") }), &tracker, cancel);
    let (head, _) = ask(([127, 0, 0, 1], port).into(), "GET /", &[]).await;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
}
