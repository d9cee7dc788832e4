//! Sections for a terminal, and as Markdown.

use super::document::{Block, Section, Table};

/// For a terminal.
pub(crate) fn terminal(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        text += &format!("\n{}\n", section.title);
        for block in &section.blocks {
            match block {
                Block::Text(line) => text += &format!("  {line}\n"),
                Block::Table(table) => text += &aligned(table, "  ", "  ", false),
                Block::Chart(_) => {}
            }
        }
    }
    text
}

/// As Markdown.
pub(crate) fn markdown(title: &str, sections: &[Section]) -> String {
    let mut text = format!("# {title}\n");
    for section in sections {
        text += &format!("\n## {}\n", section.title);
        for block in &section.blocks {
            match block {
                Block::Text(line) => text += &format!("\n{line}\n"),
                Block::Table(table) => text += &format!("\n{}", aligned(table, "| ", " | ", true)),
                Block::Chart(_) => {}
            }
        }
    }
    text
}

/// Columns below each other: the first from the left, figures from the right.
fn aligned(table: &Table, first: &str, between: &str, markdown: bool) -> String {
    let widths = table.widths();
    let line = |cells: &[String]| {
        let mut text = first.to_owned();
        for (index, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let blanks = " ".repeat(width - cell.chars().count());
            text += if index > 0 { between } else { "" };
            text += &if index > 0 { blanks + cell } else { cell.clone() + &blanks };
        }
        if markdown { text + " |\n" } else { text.trim_end().to_owned() + "\n" }
    };
    let mut text = line(&table.header);
    if markdown {
        text += "|";
        for (index, width) in widths.iter().enumerate() {
            text += &"-".repeat(width + 1);
            text += if index > 0 { ":|" } else { "-|" };
        }
        text.push('\n');
    }
    table.rows.iter().fold(text, |text, row| text + &line(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let mut table = Table::new(["work", "none", "ours"]);
        table.row(["bulk", "15.2", "6.40"]);
        table.row(["µ", "1", "–"]);
        Section::new("Works").text("Said.").table(table).table(Table::new(["empty"]))
    }

    #[test]
    fn terminals_get_columns() {
        let expect = "\nWorks\n  Said.\n  work  none  ours\n  bulk  15.2  6.40\n  µ        1     –\n";
        assert_eq!(terminal(&[section()]), expect);
    }

    #[test]
    fn markdown_gets_pipes() {
        let expect = "# Report\n\n## Works\n\nSaid.\n\n\
            | work | none | ours |\n|------|-----:|-----:|\n| bulk | 15.2 | 6.40 |\n| µ    |    1 |    – |\n";
        assert_eq!(markdown("Report", &[section()]), expect);
    }
}
