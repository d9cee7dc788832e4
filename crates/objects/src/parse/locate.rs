//! In which line of a YAML document a field stands.
//!
//! Block style is followed by indentation. In flow style (`{a: {b: 1}}`) the walk ends at the line where the flow
//! begins, unless the parts are on lines of their own. A field that is missing is located at its nearest parent.

/// One step of a field's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// The steps of a path such as `spec.rules[0].from`.
pub(super) fn segments(path: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        if let Some(key) = pieces.next().filter(|key| !key.is_empty()) {
            segments.push(Segment::Key(key.to_owned()));
        }
        segments.extend(pieces.filter_map(|piece| piece.trim_end_matches(']').parse().ok()).map(Segment::Index));
    }
    segments
}

/// The line (from 1) of the deepest part of the path that was found.
pub(super) fn line(text: &str, path: &[Segment]) -> usize {
    let lines: Vec<Line<'_>> = text.lines().map(Line::new).collect();
    let first = lines.iter().position(|line| !line.blank()).unwrap_or(0);
    let mut block =
        Block { start: first, end: lines.len(), column: lines.get(first).map_or(0, |line| line.columns[0]) };
    let mut found = first;
    for segment in path {
        let next = match segment {
            Segment::Key(key) => block.key(&lines, key),
            Segment::Index(index) => block.item(&lines, *index),
        };
        let Some((line, inner)) = next else {
            break;
        };
        found = line;
        block = inner;
    }
    found + 1
}

/// A line as a YAML reader sees it: the columns where something begins (each `- ` begins one more).
struct Line<'a> {
    columns: Vec<usize>,
    /// The text after all dashes.
    text: &'a str,
}

impl<'a> Line<'a> {
    fn new(raw: &'a str) -> Self {
        let mut text = raw.trim_start();
        let mut columns = vec![raw.len() - text.len()];
        while let Some(rest) = text.strip_prefix("- ") {
            text = rest.trim_start();
            columns.push(raw.len() - text.len());
        }
        Self { columns, text }
    }

    fn blank(&self) -> bool {
        self.text.is_empty() || self.text.starts_with('#')
    }

    fn is_key(&self, key: &str) -> bool {
        let unquoted = self.text.trim_start_matches(['"', '\'']);
        unquoted
            .strip_prefix(key)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
    }
}

/// The lines of one map or sequence, and the column at which its entries begin.
struct Block {
    start: usize,
    end: usize,
    column: usize,
}

impl Block {
    /// The line of a key of this map, and what lies below it.
    fn key(&self, lines: &[Line<'_>], key: &str) -> Option<(usize, Self)> {
        let at =
            (self.start..self.end).find(|&i| lines[i].columns.last() == Some(&self.column) && lines[i].is_key(key))?;
        // A sequence may stand at the column of the key that holds it.
        let below = |line: &Line<'_>| {
            line.columns[0] > self.column || (line.columns[0] == self.column && line.columns.len() > 1)
        };
        let end = (at + 1..self.end).find(|&i| !lines[i].blank() && !below(&lines[i])).unwrap_or(self.end);
        let start = (at + 1..end).find(|&i| !lines[i].blank()).unwrap_or(end);
        let column = lines.get(start).map_or(0, |line| line.columns[0]);
        Some((at, Self { start, end, column }))
    }

    /// The line of an item of this sequence, and what lies in it.
    fn item(&self, lines: &[Line<'_>], index: usize) -> Option<(usize, Self)> {
        let mut items = (self.start..self.end).filter(|&i| {
            let mut columns = lines[i].columns.iter();
            columns.any(|column| *column == self.column) && (columns.next().is_some() || lines[i].text == "-")
        });
        let at = items.nth(index)?;
        let end = items.next().unwrap_or(self.end);
        let depth = lines[at].columns.iter().position(|column| *column == self.column)?;
        let column = *lines[at].columns.get(depth + 1)?;
        Some((at, Self { start: at, end, column }))
    }
}
