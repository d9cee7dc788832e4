//! The files that a path means, and their text.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The largest manifest that is read, in bytes. What an API server takes at once is far less.
pub(super) const LARGEST: u64 = 64 << 20;

/// A file, or all manifests of a folder and its folders in the order of their names. Names that begin with a dot are
/// left out, and no folder is read twice, whatever links lead to it.
pub(super) fn manifests(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    walk(path, &mut BTreeSet::new(), &mut found)?;
    if found.is_empty() {
        bail!("{} holds no .yaml, .yml or .json file", path.display());
    }
    Ok(found)
}

fn walk(folder: &Path, seen: &mut BTreeSet<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    if !seen.insert(fs::canonicalize(folder).with_context(reading)?) {
        return Ok(());
    }
    let entries: Result<Vec<_>, _> = fs::read_dir(folder).with_context(reading)?.collect();
    let mut paths: Vec<PathBuf> = entries.with_context(reading)?.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_manifest = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        if hidden {
            continue;
        } else if path.is_dir() {
            walk(&path, seen, found)?;
        } else if is_manifest && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The text of a file, or of standard input; or what is wrong with it.
pub(super) fn text(file: &Path) -> Result<Result<String, String>> {
    let mut bytes = Vec::new();
    let reading = || format!("reading {}", file.display());
    let read = if file == Path::new("-") {
        std::io::stdin().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        let open = fs::File::open(file).with_context(reading)?;
        open.take(LARGEST + 1).read_to_end(&mut bytes)
    };
    read.with_context(reading)?;
    if bytes.len() as u64 > LARGEST {
        return Ok(Err(format!("larger than {} MiB: split it", LARGEST >> 20)));
    }
    Ok(String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        format!("is not text: byte {at} is not UTF-8. Leave it out, or save it as UTF-8.")
    }))
}
