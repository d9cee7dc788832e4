//! Medians, their spread, and when two of them differ.

use serde::Serialize;

/// Makes a median absolute deviation comparable with a standard deviation (for normal noise).
const MAD_SCALE: f64 = 1.4826;

/// From how many values on the median absolute deviation says something; with fewer, half the range does.
const MAD_FROM: usize = 5;

/// What several rounds came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle value.
    pub(crate) median: f64,
    /// How far rounds lie from it: scaled median absolute deviation, or half the range of few rounds.
    pub(crate) spread: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
    /// How many.
    pub(crate) count: usize,
}

impl Summary {
    /// Of these values; `None` without any.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = median_of_sorted(&values);
        let spread = if values.len() >= MAD_FROM {
            let mut away: Vec<f64> = values.iter().map(|value| (value - median).abs()).collect();
            away.sort_by(f64::total_cmp);
            median_of_sorted(&away) * MAD_SCALE
        } else {
            (max - min) / 2.0
        };
        Some(Self { median, spread, min, max, count: values.len() })
    }

    /// Whether the difference to the other lies within the noise of both.
    pub(crate) fn ties_with(&self, other: &Self) -> bool {
        (self.median - other.median).abs() <= self.spread + other.spread
    }

    /// This median relative to the other's, with the noise of the ratio; `None` if the other is zero.
    pub(crate) fn relative_to(&self, other: &Self) -> Option<Ratio> {
        if other.median == 0.0 {
            return None;
        }
        let value = self.median / other.median;
        let part = |summary: &Self| if summary.median == 0.0 { 0.0 } else { summary.spread / summary.median.abs() };
        Some(Ratio { value, noise: value.abs() * (part(self) + part(other)), tie: self.ties_with(other) })
    }
}

/// One median relative to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Ratio {
    /// The quotient.
    pub(crate) value: f64,
    /// How far the spreads of both could move it.
    pub(crate) noise: f64,
    /// Whether the difference lies within the noise.
    pub(crate) tie: bool,
}

fn median_of_sorted(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// A straight line through points, by least squares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Where it begins.
    pub(crate) base: f64,
    /// What each step adds.
    pub(crate) slope: f64,
}

impl Line {
    /// Through these points; `None` with fewer than two different places.
    pub(crate) fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let across: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        if across == 0.0 || points.is_empty() {
            return None;
        }
        let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / across;
        Some(Self { base: mean_y - slope * mean_x, slope })
    }

    /// Its height there.
    pub(crate) fn at(&self, x: f64) -> f64 {
        self.base + self.slope * x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: &[f64]) -> Summary {
        Summary::of(values.iter().copied()).unwrap()
    }

    #[test]
    fn medians_and_spreads() {
        let few = summary(&[30.0, 10.0, 14.0]);
        assert_eq!((few.median, few.spread, few.min, few.max, few.count), (14.0, 10.0, 10.0, 30.0, 3));
        assert_eq!(summary(&[1.0, 3.0]).median, 2.0);
        // One wild round of five moves neither.
        let many = summary(&[100.0, 101.0, 99.0, 102.0, 5000.0]);
        assert_eq!(many.median, 101.0);
        assert!((many.spread - MAD_SCALE).abs() < 1e-9, "{many:?}");
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN]), None);
    }

    #[test]
    fn a_difference_within_the_noise_is_a_tie() {
        let a = summary(&[100.0, 104.0, 108.0]);
        assert!(a.ties_with(&summary(&[106.0, 109.0, 112.0])));
        assert!(!a.ties_with(&summary(&[120.0, 121.0, 122.0])));
    }

    #[test]
    fn ratios_carry_the_noise_of_both() {
        let ratio = summary(&[198.0, 200.0, 202.0]).relative_to(&summary(&[99.0, 100.0, 101.0])).unwrap();
        assert!((ratio.value - 2.0).abs() < 1e-9 && (ratio.noise - 0.04).abs() < 1e-9 && !ratio.tie, "{ratio:?}");
        assert_eq!(summary(&[1.0]).relative_to(&summary(&[0.0])), None);
    }

    #[test]
    fn lines_go_through_what_was_measured() {
        let line = Line::fit(&[(2.0, 9.0), (10.0, 13.0), (20.0, 18.0)]).unwrap();
        assert!((line.base - 8.0).abs() < 1e-9 && (line.slope - 0.5).abs() < 1e-9);
        assert!((line.at(500.0) - 258.0).abs() < 1e-9);
        assert_eq!(Line::fit(&[(3.0, 1.0), (3.0, 2.0)]), None);
        assert_eq!(Line::fit(&[]), None);
    }
}
