//! `aquifer lab label`.

use anyhow::{Result, bail};
use aquifer_lab::Lab;
use aquifer_objects::{Kind, ObjectKey};
use clap::Args;
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub(crate) struct Label {
    /// The object's namespace, unless it is a namespace itself
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Taken for kubectl's sake: a label is always replaced
    #[arg(long, hide = true)]
    overwrite: bool,
    /// The namespace (`shop`, `namespace shop`) or another object (`pod x`, `pod/x`), then `key=value` or `key-`
    #[arg(required = true, num_args = 2..)]
    words: Vec<String>,
}

pub(crate) async fn run(lab: &Lab, label: &Label) -> Result<()> {
    let (key, changes) = read(&label.namespace, &label.words)?;
    lab.patch_user(key.kind, &key.namespace, &key.name, json!({"metadata": {"labels": changes}})).await?;
    println!("{key} labelled");
    Ok(())
}

fn read(namespace: &str, words: &[String]) -> Result<(ObjectKey, Map<String, Value>)> {
    let (key, labels) = match words {
        [kind, name, labels @ ..] if !is_change(name) => (ObjectKey::new(kind.parse()?, namespace, name), labels),
        [object, labels @ ..] => match object.split_once('/') {
            Some((kind, name)) => (ObjectKey::new(kind.parse()?, namespace, name), labels),
            None => (ObjectKey::new(Kind::Namespace, "", object), labels),
        },
        [] => bail!("say what to label"),
    };
    if labels.is_empty() {
        bail!("say which label: `key=value` sets it, `key-` removes it");
    }
    let mut changes = Map::new();
    for label in labels {
        let (key, value) = match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) => (key, json!(value)),
            (None, Some(key)) => (key, Value::Null),
            (None, None) => bail!("`{label}` is neither `key=value` nor `key-`"),
        };
        changes.insert(key.to_owned(), value);
    }
    Ok((key, changes))
}

/// No name of an object has these.
fn is_change(word: &str) -> bool {
    word.contains('=') || word.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_kubectl_and_our_own() {
        let cases = [
            ("shop a=b", "Namespace/shop", json!({"a": "b"})),
            ("namespace shop a=b c-", "Namespace/shop", json!({"a": "b", "c": null})),
            ("ns/shop a=b", "Namespace/shop", json!({"a": "b"})),
            ("namespace a=b", "Namespace/namespace", json!({"a": "b"})),
            ("pod x istio.io/dataplane-mode=none", "Pod/web/x", json!({"istio.io/dataplane-mode": "none"})),
            ("pod/x a=", "Pod/web/x", json!({"a": ""})),
        ];
        for (text, key, changes) in cases {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            let (found, found_changes) = read("web", &words).unwrap();
            assert_eq!((found.to_string().as_str(), Value::Object(found_changes)), (key, changes), "{text}");
        }
        for text in ["shop", "namespace shop", "nothing x a=b", "shop a=b c"] {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            assert!(read("web", &words).is_err(), "{text}");
        }
    }
}
