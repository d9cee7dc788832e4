//! What we tell people to type must be understood.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use crate::{Cli, demo, lab};

/// README and everything in `docs/`.
fn docs() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let files = folder.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|ext| ext == "md"));
    files.filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect()
}

/// The commands of a text: lines of code blocks and words in backticks that begin with our name.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.trim().to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    // With its path, or a value in front.
    let ours =
        |line: &String| Some(line[line.find("aquifer ")?..].to_owned()).filter(|command| names_a_subcommand(command));
    found.iter().filter_map(ours).collect()
}

/// A sentence may name the command alone.
fn names_a_subcommand(command: &str) -> bool {
    let mut words = command.split_whitespace().skip(1);
    let word = words.next().unwrap_or_default();
    let is_complete = words.next().is_some() || ["demo", "analyze", "status", "rotate-root", "bench"].contains(&word);
    is_complete && Cli::command().find_subcommand(word).is_some()
}

/// As a shell would: no comment, no pipe, no quotes. `<something>` stands for one word.
fn words(command: &str) -> Vec<String> {
    let mut plain = command.to_owned();
    while let Some((before, (_, after))) = plain.split_once('<').and_then(|(a, b)| Some((a, b.split_once('>')?))) {
        plain = format!("{before}something{after}");
    }
    let plain = plain.split(['#', '|', '>']).next().unwrap_or_default();
    plain.split_whitespace().map(|word| word.trim_matches(['\'', '"']).to_owned()).collect()
}

#[track_caller]
fn understood(command: &str) {
    if let Err(error) = Cli::try_parse_from(words(command)) {
        panic!("{command}: {error}");
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_docs_show() {
    let mut count = 0;
    for (path, text) in docs() {
        for command in commands(&text) {
            // A sentence may name the process of a lab's pid 1.
            if command == "aquifer lab init" {
                continue;
            }
            println!("{}: {command}", path.display());
            understood(&command);
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} commands were found");
}

#[test]
fn what_the_demo_and_the_lab_show() {
    for command in demo::commands("demo-1") {
        understood(&format!("aquifer {command}"));
    }
    let alone = lab::next("a", &["a".to_owned()]);
    let beside = lab::next("a", &["a".to_owned(), "b".to_owned()]);
    assert_eq!((&*alone[0], &*beside[0]), ("aquifer lab status", "aquifer lab --name a status"));
    alone.iter().chain(&beside).for_each(|command| understood(command));
}

#[test]
fn the_name_may_stand_before_and_after_the_subcommand() {
    let lines = [
        "aquifer lab --name x status",
        "aquifer lab status --name x",
        "aquifer lab --name x up --nodes 1",
        "aquifer lab up --name x --foreground",
        "aquifer lab --name x exec -n shop deploy/orders -- curl -s --name y http://payments/",
        "aquifer lab delete --name x -f examples/shop/policies",
        "aquifer lab delete -n shop authorizationpolicy payments-only-from-orders",
        "aquifer lab label namespace shop istio.io/dataplane-mode-",
        "aquifer lab label shop istio.io/dataplane-mode=ambient --overwrite",
        "aquifer lab scale -n shop deployment/orders --replicas 3",
        "aquifer lab logs ztunnel --node node1 --name x",
        "aquifer lab logs -n shop deploy/orders -f",
        "aquifer lab list",
    ];
    lines.iter().for_each(|line| understood(line));
    for wrong in ["aquifer lab delete", "aquifer lab delete pod x -f y.yaml", "aquifer lab label shop"] {
        assert!(Cli::try_parse_from(words(wrong)).is_err(), "{wrong}");
    }
}
