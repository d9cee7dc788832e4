//! Against what the reference node proxy answered on its ports, word for word but for what [`DIFFERENCES`] lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::admin::AdminServer;
use crate::http::Server;
use crate::http::tests::{ask, loopback};
use crate::metrics::Registry;
use crate::readiness::Readiness;
use crate::telemetry::LogLevel;
use crate::{Cancel, Tracker};

/// What, how, why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("date", "header", "the hour of the recording"),
    ("content-length", "header of /metrics", "another page"),
    ("connection", "header", "these tests ask for it"),
    (
        "POST /logging?reset",
        "usage",
        "ours: back to the level of the start; the reference takes it and does not say so",
    ),
    ("hickory_server::server=off,info", "level", "the default filter silences a DNS library that we do not link"),
];

fn differs(what: &str, how: &str) -> bool {
    DIFFERENCES.iter().any(|(listed, kind, _)| *listed == what && *kind == how)
}

fn recorded(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recordings/ztunnel").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The status line, and the headers in small letters.
fn head(text: &str) -> (String, BTreeMap<String, String>) {
    let mut lines = text.lines();
    let status = lines.next().unwrap().to_owned();
    let header = |line: &str| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
    (status, lines.map_while(header).collect())
}

/// Compares two heads, but for the headers that are listed under `how`.
fn assert_same_head(ours: &str, theirs: &str, hows: &[&str]) {
    let strip = |text| {
        let (status, mut headers) = head(text);
        headers.retain(|name, _| !hows.iter().any(|how| differs(name, how)));
        (status, headers)
    };
    assert_eq!(strip(ours), strip(theirs));
}

#[tokio::test]
async fn readiness_is_told_as_recorded() {
    let server = Server::bind("readiness", loopback()).await.unwrap();
    let address = server.local_addr().unwrap();
    server.serve(Readiness::new().handler(), &Tracker::new(), Cancel::new());
    let recorded = recorded("ready.txt");
    let (their_head, their_body) = recorded.split_once("\r\n\r\n").unwrap();
    let (our_head, our_body) = ask(address, "GET /healthz/ready", &[]).await;
    assert_same_head(&our_head, their_head, &["header"]);
    assert_eq!(our_body, their_body.as_bytes());
}

#[tokio::test]
async fn the_metrics_page_has_the_recorded_headers() {
    let server = Server::bind("metrics", loopback()).await.unwrap();
    let address = server.local_addr().unwrap();
    crate::metrics::serve(server, Arc::new(Registry::default()), &Tracker::new(), Cancel::new());
    let (ours, _) = ask(address, "GET /metrics", &[]).await;
    assert_same_head(&ours, &recorded("metrics-headers.txt"), &["header", "header of /metrics"]);
}

#[tokio::test]
async fn the_log_level_is_told_and_explained_as_recorded() {
    let server = Server::bind("admin", loopback()).await.unwrap();
    let address = server.local_addr().unwrap();
    let (_filter, level) = LogLevel::layer("info").unwrap();
    AdminServer::new().with_logging(level).serve(server, &Tracker::new(), Cancel::new());
    let body = async |line| String::from_utf8(ask(address, line, &[]).await.1).unwrap();

    let said = |text: &str| text.trim_end().strip_prefix("current log level is ").unwrap().to_owned();
    let (ours, theirs) = (said(&body("POST /logging").await), said(&recorded("admin-logging-post.txt")));
    assert!(differs(&theirs, "level"), "{theirs}");
    assert_eq!(ours, theirs.rsplit(',').next().unwrap());

    let (ours, theirs) = (body("GET /logging").await, recorded("admin-logging-get.txt"));
    assert_eq!(ours.lines().next(), theirs.lines().next(), "what is wrong");
    let (our_usage, their_usage) = (usages(&ours), usages(&theirs));
    assert!(their_usage.len() == 3 && their_usage.is_subset(&our_usage), "{their_usage:?} {our_usage:?}");
    for added in our_usage.difference(&their_usage) {
        assert!(differs(added, "usage"), "{added}");
    }
    let levels = |text: &str| -> BTreeSet<String> {
        let hint = text.lines().find(|line| line.starts_with("hint:") && line.contains("error")).unwrap().to_owned();
        hint.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| LEVELS.contains(w)).map(str::to_owned).collect()
    };
    assert_eq!(levels(&ours), levels(&theirs));
    assert_eq!(levels(&ours).len(), LEVELS.len());
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// The requests that a usage text names, without their explanations.
fn usages(text: &str) -> BTreeSet<String> {
    let request = |line: &str| -> Option<String> {
        let words: Vec<&str> = line.strip_prefix("usage: ")?.split_whitespace().take(2).collect();
        Some(words.join(" "))
    };
    text.lines().filter_map(request).collect()
}
