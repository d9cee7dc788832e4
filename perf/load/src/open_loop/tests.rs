use std::net::TcpListener;

use super::*;
use crate::serve::Kind;
use crate::serve::tests::start;

fn options(target: SocketAddr) -> Options {
    Options {
        target,
        sources: Vec::new(),
        path: "/".into(),
        rate: 500.0,
        connections: 8,
        seconds: 0.4,
        warmup: 0.0,
        timeout: Duration::from_secs(20),
        seed: 1,
    }
}

#[test]
fn every_request_that_is_due_is_made_and_answered() {
    let report = run(&options(start(&[Kind::Http])[0])).unwrap();
    assert_eq!((report.requests, report.errors), (200, 0), "{report:?}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&json["work"], &json["asked_rate"], &json["connections"]),
        (&"open-loop".into(), &500.0.into(), &8.into())
    );
    assert!(json["latency_us"]["p99.9"].as_f64().unwrap() > 0.0);
}

/// A server that answers on every connection, doing this before its nth answer; false ends the connection behind it.
fn server(before: fn(u32) -> bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                for n in 0.. {
                    if !stream.read(&mut [0; 256]).is_ok_and(|read| read > 0) {
                        break;
                    }
                    let on = before(n);
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    if !on {
                        break;
                    }
                }
            });
        }
    });
    target
}

/// A server that stalls once: all requests that came due meanwhile have waited, though only one was sent.
#[test]
fn a_stall_shows_in_all_that_was_due_meanwhile() {
    let target = server(|n| {
        if n == 0 {
            std::thread::sleep(Duration::from_millis(800));
        }
        true
    });
    let report = run(&Options { connections: 1, ..options(target) }).unwrap();
    assert_eq!((report.requests, report.errors), (200, 0), "{report:?}");
    assert!(report.latency_us.p50 > 400_000.0, "half of them were due more than 0.6 s before: {report:?}");
}

#[test]
fn a_connection_that_ends_is_opened_anew() {
    let report = run(&Options { connections: 2, rate: 100.0, ..options(server(|n| n < 2)) }).unwrap();
    assert_eq!(report.requests + report.errors, 40, "{report:?}");
    // Two of three at least: one may be sent while the end is on its way.
    assert!(report.requests >= 26, "{report:?}");
}

#[test]
fn a_target_that_is_not_there_is_told() {
    let (_held, closed) = crate::serve::tests::closed();
    let error = run(&options(closed)).unwrap_err().to_string();
    assert!(error.contains("were not opened") && error.contains("\"refused\":"), "{error}");
    let error = run(&Options { rate: 0.0, ..options(closed) }).unwrap_err().to_string();
    assert_eq!(error, "--rate 0 is no rate to keep: take more than 0 and at most 1000000");
}
