//! Stacks as a flame graph: an SVG without script. Callers stand below what they call; a frame is as wide as its part of
//! the samples. Pointing at one says its name and share.

use std::collections::BTreeMap;

use super::fold::{KERNEL, Stacks, total};
use crate::report::escape;

const WIDTH: f64 = 1600.0;
const ROW: f64 = 17.0;
const TOP: f64 = 28.0;
/// Frames narrower than this are left out.
const NARROWEST: f64 = 0.4;
/// Width of a character.
const CHARACTER: f64 = 6.6;

#[derive(Debug, Default)]
struct Frame<'a> {
    count: u64,
    calls: BTreeMap<&'a str, Self>,
}

/// The picture.
pub(super) fn svg(title: &str, stacks: &Stacks) -> String {
    let mut root = Frame { count: total(stacks), ..Frame::default() };
    for (stack, count) in stacks {
        let mut at = &mut root;
        for frame in stack {
            at = at.calls.entry(frame).or_default();
            at.count += count;
        }
    }
    let scale = WIDTH / root.count.max(1) as f64;
    let rows = root.depth(scale);
    let height = TOP + rows as f64 * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" role=\"img\">\n\
         <style>text{{font:11px monospace;fill:#1f2933}}.title{{font:600 14px system-ui,sans-serif}}rect{{stroke:#fff;stroke-width:.5}}</style>\n\
         <text class=\"title\" x=\"4\" y=\"18\">{} ({} samples; callers below, kernel in blue)</text>\n",
        escape(title),
        root.count
    );
    root.draw("all", 0.0, height - ROW, &Scale { scale, all: root.count }, &mut svg);
    svg + "</svg>\n"
}

struct Scale {
    scale: f64,
    all: u64,
}

impl Frame<'_> {
    /// Rows that are drawn.
    fn depth(&self, scale: f64) -> usize {
        let drawn = self.calls.values().filter(|frame| frame.count as f64 * scale >= NARROWEST);
        1 + drawn.map(|frame| frame.depth(scale)).max().unwrap_or(0)
    }

    fn draw(&self, name: &str, x: f64, y: f64, of: &Scale, svg: &mut String) {
        let width = self.count as f64 * of.scale;
        if width < NARROWEST {
            return;
        }
        let share = 100.0 * self.count as f64 / of.all.max(1) as f64;
        *svg += &format!(
            "<g><title>{} ({} samples, {share:.2} %)</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{}\" fill=\"{}\"/>",
            escape(name),
            self.count,
            ROW - 1.0,
            color(name)
        );
        let fits = ((width - 6.0) / CHARACTER).max(0.0) as usize;
        if fits >= 3 {
            let text: String = name.chars().take(fits).collect();
            *svg += &format!("<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 3.0, y + 12.0, escape(&text));
        }
        *svg += "</g>\n";
        let mut at = x;
        for (name, frame) in &self.calls {
            frame.draw(name, at, y - ROW, of, svg);
            at += frame.count as f64 * of.scale;
        }
    }
}

/// Warm in the program, cold in the kernel, a shade for each name.
fn color(name: &str) -> String {
    let shade = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte))) % 40;
    match name.ends_with(KERNEL) {
        true => format!("hsl({} 55% {}%)", 195 + shade / 2, 68 + shade / 4),
        false => format!("hsl({} 80% {}%)", 15 + shade, 66 + shade / 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_wide_as_their_samples() {
        let stack = |frames: &[&str]| frames.iter().map(|frame| (*frame).to_owned()).collect::<Vec<_>>();
        let stacks = BTreeMap::from([(stack(&["main", "a<b>"]), 3), (stack(&["main", "tcp [k]"]), 1)]);
        let svg = svg("ztunnel", &stacks);
        assert!(svg.contains("ztunnel (4 samples"), "{svg}");
        // The root and `main` are whole, its calls three quarters and one.
        assert_eq!(svg.matches("width=\"1600.0\" height").count(), 2, "{svg}");
        assert!(svg.contains("<rect x=\"0.0\" y=\"28.0\" width=\"1200.0\""), "{svg}");
        assert!(svg.contains("<rect x=\"1200.0\" y=\"28.0\" width=\"400.0\" height=\"16\" fill=\"hsl(2"), "{svg}");
        assert!(svg.contains("a&lt;b&gt; (3 samples, 75.00 %)") && !svg.contains("a<b>"));
        assert!(!svg.contains("<script"));
    }

    #[test]
    fn slivers_are_left_out() {
        let stacks = BTreeMap::from([(vec!["wide".to_owned()], 100_000), (vec!["sliver".to_owned()], 1)]);
        let svg = svg("t", &stacks);
        assert!(svg.contains("wide") && !svg.contains("sliver"));
    }
}
