//! Tables in text: what the terminal shows.

use crate::results::{Metric, Results, WorkResult};
use crate::stats::Summary;

/// One block a work: medians with their spread for each mode.
pub(crate) fn render(results: &Results) -> String {
    let mut text = String::new();
    for work in &results.works {
        text += &format!("{} ({})\n", work.title, work.id);
        for &mode in &results.modes {
            let Some(primary) = work.summary(mode, work.primary) else { continue };
            text += &format!("  {:<13} {:>18} {:<6}", mode, with_spread(&primary), work.primary.unit());
            for (name, metric) in beside(work) {
                if let Some(found) = work.summary(mode, metric) {
                    text += &format!("  {name} {} {}", number(found.median), metric.unit());
                }
            }
            text.push('\n');
        }
    }
    text
}

/// What stands beside a work's figure.
fn beside(work: &WorkResult) -> Vec<(&'static str, Metric)> {
    match work.primary {
        Metric::Gbits => {
            vec![("CPU/GiB machine", Metric::MachinePerGib), ("proxies", Metric::ProxiesPerGib)]
        }
        _ => vec![
            ("p50", Metric::P50),
            ("p99", Metric::P99),
            ("CPU/request machine", Metric::MachinePerRequest),
            ("proxies", Metric::ProxiesPerRequest),
            ("PSS", Metric::ProxiesPss),
        ],
    }
}

fn with_spread(summary: &Summary) -> String {
    format!("{} ± {}", number(summary.median), number(summary.spread))
}

/// Three figures that mean something, thousands apart.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
