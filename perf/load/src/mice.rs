//! Mice and an elephant: what small requests at a constant rate suffer from a neighbour.

use anyhow::{Context, Result};

use crate::neighbour::Neighbour;
use crate::open_loop::{Options, Ready};
use crate::tally::{Report, Window};

/// Runs the mice, and the neighbour beside them for all of their time. The report is that of the mice, with the
/// neighbour's under `elephant` or `neighbour`.
///
/// # Errors
/// When the mice's connections cannot be opened.
pub fn run(mice: &Options, neighbour: &Neighbour) -> Result<Report> {
    let ready = Ready::new(mice)?;
    let window = Window::new(mice.warmup, mice.seconds);
    std::thread::scope(|scope| {
        let busy = scope.spawn(move || neighbour.run(window));
        let report = ready.run("mice-and-elephant", window)?;
        let busy = busy.join().expect("the neighbour's thread does not panic").context("the neighbour")?;
        Ok(match busy {
            Some((key, told)) => report.with(key, told),
            None => report,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::neighbour::Kind;
    use crate::serve::tests::start;

    fn beside(kind: Kind) -> Report {
        let target = start(&[crate::serve::Kind::Auto])[0];
        let timeout = Duration::from_secs(20);
        let mice = Options {
            target,
            sources: Vec::new(),
            path: "/".into(),
            rate: 200.0,
            connections: 4,
            seconds: 0.4,
            warmup: 0.1,
            timeout,
            seed: 1,
        };
        let report = run(&mice, &Neighbour { kind, target, seconds: 0.4, timeout, seed: 1 }).unwrap();
        assert_eq!((report.requests, report.errors), (80, 0), "{report:?}");
        report
    }

    #[test]
    fn the_elephant_is_told_beside_the_mice() {
        let report = beside(Kind::Bulk);
        assert!(report.more["elephant"]["gbit_per_s"].as_f64().unwrap() > 0.0, "{report:?}");
        assert_eq!(report.more["elephant"]["errors"], 0);
    }

    #[test]
    fn so_is_a_neighbour_that_connects() {
        let report = beside(Kind::Connections(20));
        let told = &report.more["neighbour"];
        assert!(told["rounds"].as_u64().unwrap() > 0 && told["opened"].as_u64().unwrap() > 20, "{report:?}");
        assert_eq!(told["errors"], 0);
    }

    #[test]
    fn and_none_is_the_measure_without() {
        let report = beside(Kind::None);
        assert!(!report.more.contains_key("elephant") && !report.more.contains_key("neighbour"));
    }
}
