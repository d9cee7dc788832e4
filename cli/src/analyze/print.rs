//! Findings as text for people and as JSON for programs.

use std::fmt::Write as _;

use aquifer_istiod_lite::analyze::Level;
use serde_json::{Value, json};

use super::Line;

/// A line for each finding, errors first, and a count.
pub(super) fn text(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "nothing found\n".to_owned();
    }
    let mut sorted: Vec<&Line> = lines.iter().collect();
    sorted.sort_by_key(|line| line.code.level);
    let mut out = String::new();
    for line in sorted {
        let level = line.code.level.as_str();
        let object = line.object.as_ref().map(|object| format!(" {object}")).unwrap_or_default();
        let place = match &line.place {
            Some(place) if line.object.is_some() => format!(" ({}:{})", place.file.display(), place.line),
            Some(place) => format!(" {}:{}", place.file.display(), place.line),
            None => String::new(),
        };
        let _ = writeln!(out, "{level} {}{object}{place}: {}", line.code.code, line.message);
    }
    let count = |level| lines.iter().filter(|line| line.code.level == level).count();
    let _ = writeln!(out, "{} errors, {} warnings", count(Level::Error), count(Level::Warning));
    out
}

/// A list of findings.
pub(super) fn json(lines: &[Line]) -> Value {
    lines.iter().map(one).collect()
}

fn one(line: &Line) -> Value {
    let mut fields = json!({
        "code": line.code.code,
        "name": line.code.name,
        "level": line.code.level.as_str(),
        "message": line.message,
    });
    if let Some(object) = &line.object {
        fields["apiVersion"] = object.kind.api_version().into();
        fields["kind"] = object.kind.manifest_name().into();
        fields["namespace"] = Value::from(&*object.namespace);
        fields["object"] = Value::from(&*object.name);
    }
    if let Some(place) = &line.place {
        fields["file"] = place.file.display().to_string().into();
        fields["line"] = place.line.into();
    }
    fields
}
