//! Proxies as a table.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Progress, Proxy};

const HEAD: [&str; 10] =
    ["PROXY", "NODE", "VERSION", "REPLICA", "CONNECTED", "CERTIFICATE", "TYPE", "STATE", "SENT/ACKED", "LAG"];

/// One row a proxy and type, and a line for each refusal.
pub(super) fn table(all: &[(String, Proxy)], now: OffsetDateTime) -> String {
    if all.is_empty() {
        return "no proxy is connected\n".to_owned();
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    let mut refusals = Vec::new();
    let mut sorted: Vec<&(String, Proxy)> = all.iter().collect();
    sorted.sort_by(|a, b| (&a.1.name, &a.0).cmp(&(&b.1.name, &b.0)));
    for (replica, proxy) in sorted {
        let left = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let since = span(proxy.connected_since.as_deref(), |at| now - at, "");
        let certificate = span(proxy.certificate_expiry.as_deref(), |at| at - now, "expired");
        let mut first =
            [proxy.name.clone(), left(&proxy.node), left(&proxy.version), replica.clone(), since, certificate];
        if proxy.types.is_empty() {
            rows.push(row(first.clone(), ["-", "-", "-", "-"].map(str::to_owned)));
        }
        for (type_url, progress) in &proxy.types {
            let name = type_url.rsplit(['/', '.']).next().unwrap_or(type_url).to_owned();
            rows.push(row(first, [name.clone(), progress.state.clone(), generations(progress), lag(progress)]));
            first = Default::default();
            if let Some(nack) = &progress.last_nack {
                let when = if progress.state == "REJECTED" { "refuses" } else { "refused" };
                refusals.push(format!("{} {when} {name} ({}): {}", proxy.name, nack.at, nack.reason));
            }
        }
    }
    let mut text = aligned(&rows);
    for refusal in refusals {
        text.push_str(&refusal);
        text.push('\n');
    }
    text
}

fn row(first: [String; 6], rest: [String; 4]) -> [String; 10] {
    let mut cells = first.into_iter().chain(rest);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

fn generations(progress: &Progress) -> String {
    let text = |generation: Option<u64>| generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string());
    format!("{}/{}", text(progress.sent), text(progress.acked))
}

fn lag(progress: &Progress) -> String {
    format!("{:.3}s", progress.lag_seconds)
}

/// A span of time as one unit; `over` if it is negative, and `-` if nothing is known.
fn span(at: Option<&str>, of: impl Fn(OffsetDateTime) -> time::Duration, over: &str) -> String {
    let Some(at) = at.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()) else { return "-".to_owned() };
    let seconds = of(at).whole_seconds();
    match seconds {
        ..0 if !over.is_empty() => over.to_owned(),
        ..120 => format!("{}s", seconds.max(0)),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn aligned(rows: &[[String; 10]]) -> String {
    let widths: [usize; 10] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}
