//! Bars as SVG: no script, no font of its own.

use super::html::escape;
use super::number;
use crate::mode::Mode;

/// Bars of several modes, in groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) groups: Vec<Group>,
}

/// Bars that are compared with each other.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) label: String,
    pub(crate) bars: Vec<Bar>,
}

/// A median with the range of its rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    pub(crate) mode: Mode,
    pub(crate) value: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 250.0;
const FIGURES: f64 = 90.0;
const BAR: f64 = 15.0;
const GAP: f64 = 14.0;
const TOP: f64 = 30.0;

impl Chart {
    /// The picture. Each group has a scale of its own: figures are compared within a group.
    pub(crate) fn svg(&self) -> String {
        let bars: usize = self.groups.iter().map(|group| group.bars.len()).sum();
        let height = TOP + bars as f64 * BAR + self.groups.len() as f64 * GAP;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" role=\"img\">\n\
             <text x=\"0\" y=\"16\" class=\"title\">{}, {}</text>\n",
            escape(&self.title),
            escape(self.unit)
        );
        let mut y = TOP;
        for group in &self.groups {
            let longest = group.bars.iter().map(|bar| bar.max.max(bar.value)).fold(0.0, f64::max);
            let scale = if longest > 0.0 { (WIDTH - LABELS - FIGURES) / longest } else { 0.0 };
            svg += &format!("<text x=\"0\" y=\"{:.0}\">{}</text>\n", y + BAR - 3.0, escape(&group.label));
            for bar in &group.bars {
                let width = bar.value * scale;
                let middle = y + BAR / 2.0 - 1.0;
                svg += &format!(
                    "<rect x=\"{LABELS}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" fill=\"{}\"><title>{}: {}</title></rect>\n",
                    BAR - 2.0,
                    color(bar.mode),
                    escape(bar.mode.title()),
                    number(bar.value)
                );
                let (from, to) = (LABELS + bar.min * scale, LABELS + bar.max * scale);
                svg += &format!(
                    "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" class=\"range\"/>\n\
                     <text x=\"{:.1}\" y=\"{:.0}\" class=\"figure\">{}</text>\n",
                    LABELS + width.max(bar.max * scale) + 5.0,
                    y + BAR - 4.0,
                    number(bar.value)
                );
                y += BAR;
            }
            y += GAP;
        }
        svg + "</svg>\n"
    }
}

/// Each mode's own, told apart without colour vision too by their order and brightness.
pub(super) fn color(mode: Mode) -> &'static str {
    match mode {
        Mode::None => "#9aa5b1",
        Mode::Ambient => "#0b6e99",
        Mode::Base => "#56b4e9",
        Mode::Waypoint => "#009e73",
        Mode::SidecarTcp => "#e69f00",
        Mode::SidecarHttp => "#d55e00",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_its_group() {
        let bar = |mode, value| Bar { mode, value, min: value, max: value };
        let bars = vec![bar(Mode::None, 200.0), bar(Mode::Ambient, 50.0)];
        let groups = vec![Group { label: "a < b".into(), bars }];
        let svg = Chart { title: "T".into(), unit: "/s", groups }.svg();
        assert!(svg.contains("width=\"420.0\"") && svg.contains("width=\"105.0\""), "{svg}");
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"));
        assert!(svg.ends_with("</svg>\n") && svg.matches("<rect").count() == 2);
    }

    #[test]
    fn nothing_measured_draws_nothing_wide() {
        let bars = vec![Bar { mode: Mode::None, value: 0.0, min: 0.0, max: 0.0 }];
        let svg = Chart { title: "T".into(), unit: "/s", groups: vec![Group { label: "x".into(), bars }] }.svg();
        assert!(svg.contains("width=\"0.0\"") && !svg.contains("NaN"), "{svg}");
    }
}
