//! Deployments to pods. Pure but for the names, whose randomness is passed in.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use rand::{Rng, RngExt};
use serde_json::{Value, json};

/// Letters of generated names, as Kubernetes takes them: none that could spell a word.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";

/// A pod of a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnedPod {
    pub(super) name: String,
    pub(super) hash: String,
    pub(super) ready: bool,
    pub(super) terminating: bool,
    /// Failed or succeeded: counts no more.
    pub(super) finished: bool,
    /// Larger is newer.
    pub(super) age: u64,
}

/// What brings the pods closer to the Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Create this many pods of the present template.
    Create(usize),
    /// Delete this pod.
    Delete(String),
}

/// The next steps. A changed template first gets all its new pods; an old one goes for each new one that is ready.
pub(super) fn steps(replicas: usize, hash: &str, pods: &[OwnedPod]) -> Vec<Step> {
    let alive = || pods.iter().filter(|pod| !pod.terminating && !pod.finished);
    let (mut present, mut old): (Vec<_>, Vec<_>) = alive().partition(|pod| pod.hash == hash);
    // First to go: those that aren't ready, then the newest.
    present.sort_by_key(|pod| (pod.ready, std::cmp::Reverse(pod.age)));
    old.sort_by_key(|pod| (pod.ready, pod.age));
    let mut steps = Vec::new();
    if present.len() < replicas {
        steps.push(Step::Create(replicas - present.len()));
    }
    let surplus = present.len().saturating_sub(replicas);
    let ready = present.iter().filter(|pod| pod.ready).count().min(replicas);
    let keep_old = replicas - ready;
    let goes = old.len().saturating_sub(keep_old);
    let leaving = present.iter().take(surplus).chain(old.iter().take(goes));
    steps.extend(leaving.map(|pod| Step::Delete(pod.name.clone())));
    steps
}

/// How many pods the Deployment wants.
pub(super) fn replicas(deployment: &Deployment) -> usize {
    let wanted = deployment.spec.replicas.unwrap_or(1);
    usize::try_from(wanted).unwrap_or(0)
}

/// What stands for the template in names and labels.
pub(super) fn template_hash(deployment: &Deployment) -> String {
    let text = serde_json::to_string(&deployment.spec.template).unwrap_or_default();
    // FNV-1a: short, and stable over versions of the compiler.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let letter = |index: u32| char::from(LETTERS[((hash >> (index * 6)) % LETTERS.len() as u64) as usize]);
    (0..10).map(letter).collect()
}

/// A new pod of the Deployment, as a ReplicaSet would make it.
pub(super) fn new_pod(deployment: &Deployment, hash: &str, rng: &mut impl Rng) -> Value {
    let owner = deployment.metadata.name.as_deref().unwrap_or_default();
    let set = format!("{owner}-{hash}");
    let template = &deployment.spec.template;
    let metadata = template.metadata.as_ref();
    let mut labels: BTreeMap<String, String> =
        metadata.and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.to_owned());
    let mut spec = json!(template.spec);
    if spec["serviceAccountName"].is_null() {
        spec["serviceAccountName"] = json!("default");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{set}-{}", suffix(rng)),
            "generateName": format!("{set}-"),
            "namespace": deployment.metadata.namespace,
            "labels": labels,
            "annotations": metadata.and_then(|metadata| metadata.annotations.as_ref()),
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": deployment.metadata.uid.clone().unwrap_or_default(),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": spec,
    })
}

/// Five random letters, as generated names end in.
pub(super) fn suffix(rng: &mut impl Rng) -> String {
    (0..5).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// `a+` ready, `a-` not, `a*` terminating, `a!` finished; after `/` of the old template. Later ones are newer.
    fn pods(text: &str) -> Vec<OwnedPod> {
        let pod = |(age, word): (usize, &str)| {
            let (word, old) = word.strip_suffix("/").map_or((word, false), |word| (word, true));
            OwnedPod {
                name: word[..1].to_owned(),
                hash: if old { "old" } else { "new" }.to_owned(),
                ready: word.ends_with('+'),
                terminating: word.ends_with('*'),
                finished: word.ends_with('!'),
                age: age as u64,
            }
        };
        text.split_whitespace().enumerate().map(pod).collect()
    }

    #[test]
    fn steps_towards_what_is_wanted() {
        let cases = [
            (3, "", "+3"),
            (3, "a+ b- c+", ""),
            (3, "a+ b* c!", "+2"),
            (1, "a+ b- c+", "b c"),
            (0, "a+ b+", "b a"),
            // A new template: all new pods at once, then an old one for each new one that is ready.
            (2, "a+/ b+/", "+2"),
            (2, "a+/ b+/ c- d-", ""),
            (2, "a+/ b+/ c+ d-", "a"),
            (2, "b+/ c+ d+", "b"),
            (0, "a+/ c+", "c a"),
        ];
        for (replicas, have, expect) in cases {
            let steps = steps(replicas, "new", &pods(have));
            let text: Vec<String> = steps
                .iter()
                .map(|step| match step {
                    Step::Create(count) => format!("+{count}"),
                    Step::Delete(name) => name.clone(),
                })
                .collect();
            assert_eq!(text.join(" "), expect, "{replicas} wanted, have {have:?}");
        }
    }

    #[test]
    fn pods_look_as_a_replica_set_makes_them() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "d1"},
            "spec": {"selector": {}, "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}},
                "spec": {"containers": [{"name": "nginx", "image": "nginx"}]},
            }},
        }))
        .unwrap();
        let hash = template_hash(&deployment);
        let pod = new_pod(&deployment, &hash, &mut StdRng::seed_from_u64(1));
        let name = pod["metadata"]["name"].as_str().unwrap();
        let last = name.strip_prefix(&format!("web-{hash}-")).unwrap();
        assert!(last.len() == 5 && last.bytes().all(|byte| LETTERS.contains(&byte)), "{name}");
        assert_eq!(pod["metadata"]["labels"], json!({"app": "web", "pod-template-hash": hash}));
        assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        let mut scaled = deployment.clone();
        scaled.spec.replicas = Some(5);
        assert_eq!(template_hash(&scaled), hash, "scaling is no new template");
        scaled.spec.template.spec.as_mut().unwrap().containers[0].image = Some("v2".into());
        assert_ne!(template_hash(&scaled), hash);
    }
}
