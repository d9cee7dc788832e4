//! `aquifer lab apply` and `aquifer lab delete`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aquifer_lab::{Lab, manifest_files};
use aquifer_objects::crds::{AuthorizationPolicy, PolicyCondition};
use aquifer_objects::parse::parse_manifest;
use aquifer_objects::{Kind, Object, ObjectKey};
use clap::Args;

/// How long the control plane may take to say what it thinks of a policy.
const VERDICT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The object's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// What the manifests name: files, folders, or `-` for standard input
    #[arg(short, long = "filename")]
    files: Vec<PathBuf>,
    /// `pod x`, `deployment/x`, `authorizationpolicy x`, …
    #[arg(num_args = 1.., required_unless_present = "files", conflicts_with = "files")]
    object: Vec<String>,
}

/// Applies manifests, and says what of them can have no effect.
pub(crate) async fn apply(lab: &Lab, files: &[PathBuf]) -> Result<()> {
    let before = policies(lab).await?;
    let mut applied = Vec::new();
    for file in files {
        let keys =
            if file == Path::new("-") { lab.apply(&standard_input()?).await? } else { lab.apply_path(file).await? };
        keys.iter().for_each(|key| println!("{key} applied"));
        applied.extend(keys);
    }
    missing_namespaces(lab, &applied).await?;
    verdicts(lab, &applied, &before).await
}

/// Deletes objects; the exit code, which is 1 if one could not be deleted.
pub(crate) async fn delete(lab: &Lab, delete: &Delete) -> Result<u8> {
    let mut keys = Vec::new();
    for file in &delete.files {
        keys.extend(keys_of(file)?);
    }
    keys.extend(named(&delete.namespace, &delete.object)?);
    // What was made last goes first: a namespace would take the rest along.
    keys.reverse();
    let mut code = 0;
    for key in keys {
        match lab.delete(key.kind.as_str(), &key.namespace, &key.name).await {
            Ok(()) => println!("{key} deleted"),
            Err(error) => {
                eprintln!("error: {error}");
                code = 1;
            }
        }
    }
    Ok(code)
}

/// `kind name…` or `kind/name…`
fn named(namespace: &str, words: &[String]) -> Result<Vec<ObjectKey>> {
    let key = |kind: &str, name: &str| Ok::<_, anyhow::Error>(ObjectKey::new(kind.parse()?, namespace, name));
    match words {
        [] => Ok(Vec::new()),
        [first, ..] if first.contains('/') => words
            .iter()
            .map(|word| {
                let (kind, name) = word.split_once('/').with_context(|| format!("`{word}` is not `kind/name`"))?;
                key(kind, name)
            })
            .collect(),
        [_] => bail!("say what to delete: a kind and a name, `kind/name`, or -f with a file"),
        [kind, names @ ..] => names.iter().map(|name| key(kind, name)).collect(),
    }
}

fn keys_of(path: &Path) -> Result<Vec<ObjectKey>> {
    let keys = |name: &Path, text: &str| {
        let objects = parse_manifest(name, text)?;
        Ok::<_, anyhow::Error>(objects.iter().map(Object::key).collect::<Vec<_>>())
    };
    if path == Path::new("-") {
        return keys(Path::new(""), &standard_input()?);
    }
    let mut all = Vec::new();
    for file in manifest_files(path)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        all.extend(keys(&file, &text)?);
    }
    Ok(all)
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
    Ok(text)
}

async fn missing_namespaces(lab: &Lab, applied: &[ObjectKey]) -> Result<()> {
    let there: BTreeSet<String> =
        lab.objects(&[Kind::Namespace]).await?.iter().map(|object| object.name().to_owned()).collect();
    let named: BTreeSet<&str> = applied.iter().map(|key| &*key.namespace).filter(|name| !name.is_empty()).collect();
    for namespace in named.into_iter().filter(|name| !there.contains(*name)) {
        eprintln!("note: there is no namespace `{namespace}`; what was applied to it waits for one");
    }
    Ok(())
}

type Policies = BTreeMap<ObjectKey, std::sync::Arc<AuthorizationPolicy>>;

async fn policies(lab: &Lab) -> Result<Policies> {
    let objects = lab.objects(&[Kind::AuthorizationPolicy]).await?;
    let policy = |object| match object {
        Object::AuthorizationPolicy(policy) => Some((Object::AuthorizationPolicy(policy.clone()).key(), policy)),
        _ => None,
    };
    Ok(objects.into_iter().filter_map(policy).collect())
}

/// Waits for what the control plane says of the policies, and prints what is no plain yes.
async fn verdicts(lab: &Lab, applied: &[ObjectKey], before: &Policies) -> Result<()> {
    let mut waiting: BTreeSet<&ObjectKey> =
        applied.iter().filter(|key| key.kind == Kind::AuthorizationPolicy).collect();
    if waiting.is_empty() || lab.status().await?.components.is_empty() {
        return Ok(());
    }
    let begin = Instant::now();
    loop {
        let now = policies(lab).await?;
        let late = begin.elapsed() > VERDICT;
        waiting.retain(|key| {
            let Some(policy) = now.get(key) else { return false };
            let settled = late || is_settled(before.get(key).map(|old| &**old), policy);
            if settled {
                conditions(policy).iter().filter_map(warning).for_each(|text| eprintln!("warning: {key}: {text}"));
            }
            !settled
        });
        if waiting.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the conditions are about the policy as it is now: new ones, or those of one that did not change.
fn is_settled(old: Option<&AuthorizationPolicy>, new: &AuthorizationPolicy) -> bool {
    let changed = old.is_none_or(|old| old.spec != new.spec);
    let said = !conditions(new).is_empty();
    said && (!changed || old.is_none_or(|old| conditions(old) != conditions(new)))
}

fn conditions(policy: &AuthorizationPolicy) -> &[PolicyCondition] {
    policy.status.as_ref().map_or(&[], |status| &status.conditions)
}

fn warning(condition: &PolicyCondition) -> Option<String> {
    let accepted = condition.status == "True" && condition.reason != "UnsupportedValue";
    let ours = condition.type_.ends_with("Accepted");
    (ours && !accepted).then(|| format!("{}={}: {}", condition.type_, condition.status, condition.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(action: &str, condition: Option<(&str, &str)>) -> AuthorizationPolicy {
        let mut object = serde_json::json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "a", "namespace": "shop"}, "spec": {"action": action},
        });
        if let Some((status, reason)) = condition {
            object["status"] = serde_json::json!({"conditions": [
                {"type": "ZtunnelAccepted", "status": status, "reason": reason, "message": "no effect"},
            ]});
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn only_words_on_the_present_policy_count() {
        let yes = Some(("True", "Accepted"));
        let no = Some(("False", "UnsupportedValue"));
        let cases = [
            (None, policy("DENY", None), false),
            (None, policy("DENY", no), true),
            (Some(policy("DENY", no)), policy("DENY", no), true),
            (Some(policy("ALLOW", yes)), policy("DENY", yes), false),
            (Some(policy("ALLOW", yes)), policy("DENY", no), true),
        ];
        for (old, new, expect) in cases {
            assert_eq!(is_settled(old.as_ref(), &new), expect, "{old:?} {new:?}");
        }
    }

    #[test]
    fn what_is_no_plain_yes_is_told() {
        let cases = [
            (("True", "Accepted"), None),
            (("True", "UnsupportedValue"), Some("ZtunnelAccepted=True: no effect")),
            (("False", "UnsupportedValue"), Some("ZtunnelAccepted=False: no effect")),
        ];
        for (condition, expect) in cases {
            let policy = policy("DENY", Some(condition));
            assert_eq!(warning(&conditions(&policy)[0]).as_deref(), expect);
        }
    }

    #[test]
    fn objects_are_named_as_with_kubectl() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let keys = |text: &str| {
            named("shop", &words(text)).map(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(keys("pod a b").unwrap(), "Pod/shop/a Pod/shop/b");
        assert_eq!(keys("deploy/a svc/b ns/c").unwrap(), "Deployment/shop/a Service/shop/b Namespace/c");
        for wrong in ["pod", "nothing a", "pod/a b"] {
            assert!(keys(wrong).is_err(), "{wrong}");
        }
    }
}
