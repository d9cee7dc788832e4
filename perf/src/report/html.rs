//! Sections as one HTML file that needs nothing else.

use super::chart::color;
use super::document::{Block, Section, Table};
use crate::mode::Mode;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#1f2933}\
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}\
th,td{border-bottom:1px solid #d9e2ec;padding:.25em .8em;text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{background:#f0f4f8}\
.met{color:#0a7d33}.missed{color:#b42318;font-weight:600}\
svg{max-width:100%;height:auto;margin:.5em 0}svg text{font:12px system-ui,sans-serif;fill:#1f2933}\
svg .title{font-weight:600;font-size:14px}svg .figure{fill:#52606d}svg .range{stroke:#1f2933;stroke-width:1.5}\
.key span{display:inline-block;margin-right:1.2em}.key i{display:inline-block;width:.9em;height:.9em;margin-right:.4em}";

/// The whole file.
pub(crate) fn page(title: &str, modes: &[Mode], sections: &[Section]) -> String {
    let key: String = modes
        .iter()
        .map(|mode| format!("<span><i style=\"background:{}\"></i>{}</span>", color(*mode), escape(mode.title())))
        .collect();
    let body: String = sections.iter().map(section).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<p class=\"key\">{key}</p>\n{body}</body></html>\n",
        title = escape(title)
    )
}

fn section(section: &Section) -> String {
    let mut html = format!("<h2>{}</h2>\n", escape(&section.title));
    for block in &section.blocks {
        match block {
            Block::Text(text) => html += &format!("<p>{}</p>\n", escape(text)),
            Block::Table(found) => html += &table(found),
            Block::Chart(chart) => html += &chart.svg(),
        }
    }
    html
}

fn table(table: &Table) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells: String =
            cells.iter().map(|cell| format!("<{tag}{}>{}</{tag}>", class(cell), escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = table.rows.iter().map(|row| line(row, "td")).collect();
    format!("<table>\n<thead>{}</thead>\n<tbody>{rows}</tbody></table>\n", line(&table.header, "th"))
}

/// Verdicts stand out.
fn class(cell: &str) -> &'static str {
    match cell {
        "met" => " class=\"met\"",
        _ if cell.to_lowercase().starts_with("missed") => " class=\"missed\"",
        _ => "",
    }
}

/// Text that is no markup.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_stands_alone() {
        let mut rows = Table::new(["work", "verdict"]);
        rows.row(["a & b", "met"]);
        rows.row(["c", "MISSED"]);
        let html = page("R <1>", &[Mode::None], &[Section::new("S").text("1 < 2").table(rows)]);
        for part in [
            "<title>R &lt;1&gt;</title>",
            "<h2>S</h2>",
            "<p>1 &lt; 2</p>",
            "<tr><td>a &amp; b</td><td class=\"met\">met</td></tr>",
            "<td class=\"missed\">MISSED</td>",
            "no mesh</span>",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        assert!(!html.contains("<script") && !html.contains("src="));
    }
}
