use super::*;
use crate::fixtures;

#[test]
fn numbers_are_short() {
    for (value, expect) in [
        (0.0, "0.00"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.5, "1 234"),
        (1_234_567.0, "1 234 567"),
        (-53_214.2, "-53 214"),
    ] {
        assert_eq!(number(value), expect);
    }
}

#[test]
fn the_report_says_what_was_measured_against_its_target() {
    let text = text::markdown(TITLE, &sections(&fixtures::results()));
    for line in [
        "| HTTP/1.1 keep-alive, 32 connections, /s     | 40 000 ± 100 | 15 000 ± 100 | 10 000 ± 100 | 1.50 ± 0.03 | ≥ 1.45 |     met |",
        "| proxies' CPU per request, 32 connections, µs |  0.00 ± 0.00 |  30.0 ± 0.00 |  40.0 ± 0.00 | 0.75 ± 0.00 | ≤ 0.60 |  MISSED |",
        "| ambient: ztunnel          |  2: 10.2, 12: 11.2 |     10.0 |   0.100 |    11.0 |     20.0 |     60.0 |",
        "| sidecar-tcp: all sidecars | 2: 100, 12: 600 |     0.00 |  50.000 |     500 |    5 000 |   25 000 |",
        "| waypoint | Aquifer ambient with waypoint | not measured: Aquifer has no waypoint yet |",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.lines().any(|found| squeezed(found) == squeezed(line)), "{line}\nin\n{text}");
    }
    // What was not measured is left out.
    assert!(!text.contains("bulk TCP") && !text.contains("Failed runs"));
}

#[test]
fn the_page_escapes_the_command() {
    let results = fixtures::results();
    let html = html::page(TITLE, &results.modes, &sections(&results));
    assert!(html.contains("aquifer bench &lt;all&gt;") && html.contains("<svg"));
}

#[test]
fn all_three_files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = fixtures::results();
    results.failures.push("http32 ambient round 2: ListenDrops grew by 3 in pod far".into());
    write(&results, folder.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&read("results.json")).unwrap();
    assert_eq!(json["summaries"]["http32"]["ambient"]["rate"]["median"], 15_000.0);
    assert_eq!(json["results"]["works"][0]["samples"]["sidecar-tcp"][1]["outcome"]["requests"], 10_000);
    let verdict = json["targets"].as_array().unwrap().iter().find(|row| row["unit"] == "µs").unwrap();
    assert_eq!(verdict["verdict"], "missed");
    assert!(read("report.md").contains("ListenDrops grew by 3"));
    assert!(read("report.html").starts_with("<!DOCTYPE html>"));
}
