//! The documents say what the code does: reasons, links, and nothing of how the project was made.

use std::path::{Path, PathBuf};

use aquifer_core::reason::Reason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The table of all reasons, as docs/troubleshooting.md holds it.
fn table() -> String {
    let mut table = String::from("| reason | HTTP status | response_flags |\n|---|---|---|\n");
    for reason in Reason::ALL {
        let (code, status, flag) = (reason.code(), reason.http_status(), reason.response_flag());
        table.push_str(&format!("| [{code}](#{code}) | {status} | {flag} |\n"));
    }
    table
}

#[test]
fn every_reason_has_its_entry_in_troubleshooting() {
    const PATH: &str = "docs/troubleshooting.md";
    let text = read(PATH);
    let begin = text.find("--test docs -->\n").expect("the marker before the table") + "--test docs -->\n".len();
    let end = text.find("<!-- /reasons -->").expect("the marker after the table");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let updated = format!("{}{}{}", &text[..begin], table(), &text[end..]);
        std::fs::write(root().join(PATH), updated).expect("to write the document");
    } else {
        assert_eq!(&text[begin..end], table(), "run with UPDATE_DOCS=1");
    }
    let mut entries: Vec<(&str, &str)> = Vec::new();
    for section in text.split("\n### ").skip(1) {
        entries.push(section.split_once('\n').expect("a title and a body"));
    }
    for reason in Reason::ALL {
        let entry = entries.iter().find(|(title, _)| *title == reason.code());
        let (_, body) = entry.unwrap_or_else(|| panic!("{reason} has no entry"));
        for part in ["**What happened**: ", "**Who**: ", "**Check**: ", "**Mend**: "] {
            let said = body.lines().find_map(|line| line.strip_prefix("- ")?.strip_prefix(part));
            assert!(said.is_some_and(|said| said.len() > 4), "{reason} does not say {part}");
        }
    }
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
    let stale: Vec<_> = entries.iter().map(|(title, _)| *title).filter(|title| !known.contains(title)).collect();
    assert!(stale.is_empty(), "entries without a reason: {stale:?}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut pages: Vec<PathBuf> = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    pages.extend(std::fs::read_dir(root().join("docs")).expect("docs").flatten().map(|entry| entry.path()));
    let mut dead = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(page).expect("a readable page");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or("");
            if target.contains("://") || file.is_empty() {
                continue;
            }
            if !page.parent().expect("a folder").join(file).exists() {
                dead.push(format!("{} → {target}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}
