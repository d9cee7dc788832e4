//! How long a run will take, so that nobody waits in the dark. Rough: measured on two cores.

use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::work::{Kind, Work};
use crate::{control_plane, pods};

/// A lab with its pods, up and down again.
const LAB: f64 = 0.8;
/// The same with sidecars.
const SIDECAR_LAB: f64 = 1.0;
/// What a run takes beside its own length.
const AROUND: f64 = 0.2;
/// Memory by pods, of one mode.
const PODS: f64 = 3.0;
const QUICK_PODS: f64 = 2.0;
/// The control plane, of one mode.
const CONTROL_PLANE: f64 = 35.0;
/// Six meshes of different sizes, each read, followed and let go.
const SCALE: f64 = 90.0;

/// What will be done, in seconds.
#[derive(Debug)]
pub(crate) struct Plan {
    begin: f64,
    works: Vec<f64>,
    end: f64,
}

impl Plan {
    /// Of these works in these modes.
    pub(crate) fn of(works: &[&Work], modes: &[Mode], options: &BenchOptions) -> Self {
        let modes: Vec<Mode> = modes.iter().copied().filter(|mode| *mode != Mode::Waypoint).collect();
        let begin = if works.is_empty() { 0.0 } else { modes.iter().copied().map(lab).sum() };
        let works = works.iter().map(|work| of_work(work, &modes, options)).collect();
        let mut end = 0.0;
        if options.wants(pods::NAME) {
            let each = if options.quick { QUICK_PODS } else { PODS };
            end += modes.iter().filter(|mode| **mode != Mode::None).count() as f64 * each;
        }
        if options.wants(control_plane::NAME) {
            end += modes.iter().filter(|mode| mode.is_mesh()).count() as f64 * CONTROL_PLANE;
        }
        if options.wants(control_plane::scale::NAME) {
            end += SCALE;
        }
        Self { begin, works, end }
    }

    /// All of it.
    pub(crate) fn seconds(&self) -> f64 {
        self.begin + self.left(0)
    }

    /// From the beginning of this work on.
    pub(crate) fn left(&self, work: usize) -> f64 {
        self.works.iter().skip(work).sum::<f64>() + self.end
    }
}

fn of_work(work: &Work, modes: &[Mode], options: &BenchOptions) -> f64 {
    let seconds = f64::from(options.seconds());
    let length = match work.kind {
        // Alone, then beside the neighbour.
        Kind::Neighbour { .. } => 2.0 * seconds + 1.5,
        Kind::Idle { connections } => 1.0 + f64::from(connections) / 3000.0,
        Kind::Memory { .. } => seconds + 5.0,
        Kind::Workloads { count } => 14.0 + f64::from(count) / 2500.0,
        _ => seconds,
    };
    let rounds = options.rounds.unwrap_or_else(|| work.rounds(options.quick));
    let suited = modes.iter().copied().filter(|mode| work.suits(*mode));
    let round: f64 = suited.map(|mode| length + AROUND + if work.is_fresh() { lab(mode) } else { 0.0 }).sum();
    round * f64::from(rounds)
}

fn lab(mode: Mode) -> f64 {
    if mode.sidecars().is_some() { SIDECAR_LAB } else { LAB }
}

/// As a person says it.
pub(crate) fn minutes(seconds: f64) -> String {
    match seconds {
        short if short < 90.0 => format!("{:.0} s", short.max(1.0)),
        long => format!("{:.0} min", (long / 60.0).ceil()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::work::WORKS;

    fn options(args: &[&str]) -> BenchOptions {
        let command = BenchOptions::augment_args(clap::Command::new("bench"));
        BenchOptions::from_arg_matches(&command.get_matches_from([&["bench"], args].concat())).unwrap()
    }

    #[test]
    fn a_quick_run_is_expected_within_three_minutes_and_a_whole_one_within_twenty() {
        let modes = [Mode::None, Mode::Ambient, Mode::SidecarTcp];
        let works: Vec<&Work> = WORKS.iter().filter(|work| work.target).collect();
        let quick = Plan::of(&works, &modes, &options(&["--quick"])).seconds();
        assert!((90.0..=180.0).contains(&quick), "{quick}");
        let works: Vec<&Work> = WORKS.iter().collect();
        let whole = Plan::of(
            &works,
            &[Mode::None, Mode::Ambient, Mode::Waypoint, Mode::SidecarTcp, Mode::SidecarHttp],
            &options(&[]),
        )
        .seconds();
        assert!((600.0..=1200.0).contains(&whole), "{whole}");
    }

    #[test]
    fn what_is_left_shrinks_to_what_comes_after_the_works() {
        let works: Vec<&Work> = WORKS.iter().filter(|work| work.id.starts_with("http")).collect();
        let plan = Plan::of(&works, &[Mode::None, Mode::Ambient], &options(&["--works", "http1,pods"]));
        assert!(plan.left(1) < plan.left(0) && plan.left(0) < plan.seconds());
        assert_eq!(plan.left(works.len()), PODS);
        assert_eq!([minutes(0.2), minutes(75.0), minutes(601.0)], ["1 s", "75 s", "11 min"]);
    }
}
