//! What is seen of the mesh while a rotation is under way: each replica reports what it knows, the leader puts the reports
//! together with the pods that exist.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aquifer_core::identity::Identity;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Observed, Proxy, Replica, Rotation, Step, Trust};
use crate::ca::ledger::holder;
use crate::ca::pods::PodFacts;

/// A replica without a pod of its own is taken for gone after this many seconds of silence.
const SILENCE: i64 = 60;

/// What one replica knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its pod, or its host.
    pub replica: String,
    /// When it was made, in Unix seconds.
    pub at: i64,
    /// The step that the replica publishes and signs by.
    pub follows: Option<Step>,
    /// Who is connected to it.
    pub clients: Vec<Client>,
    /// Holders that surely have a certificate of this step.
    pub evidence: Evidence,
}

/// A proxy that is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// `namespace/pod`, or whatever its node id holds there.
    pub name: String,
    /// What is known of its trust; never [`Trust::Absent`].
    pub trust: ClientTrust,
    /// Since when it is connected, in Unix seconds.
    pub since: i64,
}

/// What a connection shows of a proxy's trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientTrust {
    /// It has acknowledged the present bundle.
    Adopted,
    /// It has not.
    Behind,
    /// It does not ask for bundles.
    PerCertificate,
}

/// Holders, as eight bytes each in base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence(pub BTreeSet<u64>);

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|holder| holder.to_le_bytes()).collect();
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let holders = bytes.chunks_exact(8).map(|b| b.try_into().map(u64::from_le_bytes).unwrap_or_default());
        Ok(Self(holders.collect()))
    }
}

/// The mesh as far as it matters here.
#[derive(Debug)]
pub struct Mesh<'a> {
    /// Every pod: namespace, name, facts.
    pub pods: &'a [(String, String, PodFacts)],
    /// Accounts of node proxies: namespace and name.
    pub node_accounts: &'a [(String, String)],
    /// The mesh's trust domain.
    pub trust_domain: &'a str,
    /// Where the control plane's own pods are.
    pub root_namespace: &'a str,
}

/// Puts reports and pods together.
pub fn observe(rotation: &Rotation, reports: &[Report], mesh: &Mesh<'_>, now: i64) -> Observed {
    let present = step_reports(rotation, reports);
    let evidence: HashSet<u64> = present.iter().flat_map(|r| r.evidence.0.iter().copied()).collect();
    let mut connected: BTreeMap<&str, (Trust, i64)> = BTreeMap::new();
    for client in present.iter().flat_map(|r| &r.clients) {
        let trust = match client.trust {
            ClientTrust::Adopted => Trust::Adopted,
            ClientTrust::Behind => Trust::Behind,
            ClientTrust::PerCertificate => Trust::PerCertificate,
        };
        // Two replicas, or two streams, may both count it: the worse word holds.
        let known = connected.entry(&client.name).or_insert((trust, client.since));
        if known.0 == Trust::Adopted {
            *known = (trust, client.since);
        }
    }
    let missing = |uid: &str, identities: BTreeSet<String>| -> Vec<String> {
        identities.into_iter().filter(|identity| !evidence.contains(&holder(uid, identity))).collect()
    };
    let identity = |namespace: &str, account: &str| Identity::new(mesh.trust_domain, namespace, account).to_string();
    let mut proxies = Vec::new();
    for (namespace, name, pod) in mesh.pods {
        let full = format!("{namespace}/{name}");
        let known = connected.remove(full.as_str());
        let account = (namespace.clone(), pod.service_account.clone());
        let serves_node = mesh.node_accounts.contains(&account) && !pod.failed && !pod.node.is_empty();
        let identities = if serves_node {
            let neighbours = mesh.pods.iter().filter(|(.., p)| p.captured && p.node == pod.node);
            neighbours.map(|(namespace, _, p)| identity(namespace, &p.service_account)).collect()
        } else if known.is_some() {
            BTreeSet::from([identity(namespace, &pod.service_account)])
        } else {
            continue;
        };
        let (trust, since) = known.unwrap_or((Trust::Absent, rotation.since));
        proxies.push(Proxy { name: full, trust, since, missing: missing(&pod.uid, identities) });
    }
    // Connected, but no pod that we know of.
    proxies.extend(connected.into_iter().map(|(name, (trust, since))| Proxy {
        name: name.to_owned(),
        trust,
        since,
        missing: vec!["its own identity (no pod of that name is known)".into()],
    }));
    proxies.sort_by(|a, b| a.name.cmp(&b.name));
    Observed { replicas: replicas(reports, mesh, now), proxies }
}

fn step_reports<'a>(rotation: &Rotation, reports: &'a [Report]) -> Vec<&'a Report> {
    let step = rotation.step();
    reports.iter().filter(|r| r.follows.as_ref() == Some(&step)).collect()
}

fn replicas(reports: &[Report], mesh: &Mesh<'_>, now: i64) -> Vec<Replica> {
    let exists = |report: &&Report| {
        let pod =
            mesh.pods.iter().any(|(ns, name, p)| ns == mesh.root_namespace && *name == report.replica && !p.failed);
        pod || now - report.at < SILENCE
    };
    let replica = |r: &Report| Replica { name: r.replica.clone(), follows: r.follows.clone(), heard: r.at };
    reports.iter().filter(exists).map(replica).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::fingerprint::Fingerprint;

    fn pod(namespace: &str, name: &str, account: &str, node: &str) -> (String, String, PodFacts) {
        let facts = PodFacts {
            uid: format!("uid-{name}"),
            service_account: account.into(),
            node: node.into(),
            captured: namespace != "istio-system",
            ..PodFacts::default()
        };
        (namespace.into(), name.into(), facts)
    }

    fn rotation() -> Rotation {
        Rotation::begin("r".into(), Fingerprint("1".into()), Fingerprint("2".into()), 100)
    }

    fn report(replica: &str, clients: &[(&str, ClientTrust)], evidence: &[(&str, &str)]) -> Report {
        let client = |(name, trust): &(&str, ClientTrust)| Client { name: (*name).into(), trust: *trust, since: 50 };
        let identity = |sa: &str| format!("spiffe://cluster.local/ns/shop/sa/{sa}");
        Report {
            replica: replica.into(),
            at: 200,
            follows: Some(rotation().step()),
            clients: clients.iter().map(client).collect(),
            evidence: Evidence(evidence.iter().map(|(pod, sa)| holder(&format!("uid-{pod}"), &identity(sa))).collect()),
        }
    }

    fn look(reports: &[Report]) -> Observed {
        let pods = [
            pod("istio-system", "zt-1", "ztunnel", "node1"),
            pod("istio-system", "zt-2", "ztunnel", "node2"),
            pod("istio-system", "istiod-a", "istiod", "node1"),
            pod("shop", "orders-1", "orders", "node1"),
            pod("shop", "orders-2", "orders", "node1"),
            pod("shop", "cart-1", "cart", "node1"),
            pod("shop", "cart-2", "cart", "node2"),
            pod("shop", "waypoint-1", "waypoint", ""),
        ];
        let node_accounts = [("istio-system".to_owned(), "ztunnel".to_owned())];
        let mesh = Mesh {
            pods: &pods,
            node_accounts: &node_accounts,
            trust_domain: "cluster.local",
            root_namespace: "istio-system",
        };
        observe(&rotation(), reports, &mesh, 210)
    }

    fn lines(observed: &Observed) -> Vec<String> {
        observed.proxies.iter().map(|p| format!("{} {:?} {}", p.name, p.trust, p.missing.join(","))).collect()
    }

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
    const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

    #[test]
    fn node_proxies_are_expected_whether_they_are_connected_or_not() {
        assert_eq!(
            lines(&look(&[])),
            [format!("istio-system/zt-1 Absent {CART},{ORDERS}"), format!("istio-system/zt-2 Absent {CART}")]
        );
    }

    #[test]
    fn reports_of_replicas_add_up() {
        use ClientTrust::{Adopted, Behind, PerCertificate};
        let a = report(
            "istiod-a",
            &[("istio-system/zt-1", Adopted), ("shop/waypoint-1", PerCertificate)],
            &[("zt-1", "orders"), ("zt-2", "orders")],
        );
        let b = report("istiod-b", &[("istio-system/zt-2", PerCertificate), ("x/vm", Behind)], &[("zt-1", "cart")]);
        let expect = [
            "istio-system/zt-1 Adopted ".to_owned(),
            format!("istio-system/zt-2 PerCertificate {CART}"),
            "shop/waypoint-1 PerCertificate spiffe://cluster.local/ns/shop/sa/waypoint".to_owned(),
            "x/vm Behind its own identity (no pod of that name is known)".to_owned(),
        ];
        assert_eq!(lines(&look(&[a.clone(), b.clone()])), expect);

        // The worse of two words, in either order.
        let c = report("istiod-b", &[("istio-system/zt-1", Behind)], &[]);
        for reports in [[a.clone(), c.clone()], [c, a.clone()]] {
            assert!(lines(&look(&reports))[0].starts_with("istio-system/zt-1 Behind"));
        }
        // What was reported of another step is no evidence of this one.
        let old = Report { follows: None, ..a };
        assert!(lines(&look(&[old]))[0].starts_with(&format!("istio-system/zt-1 Absent {CART},{ORDERS}")));
    }

    #[test]
    fn a_replica_counts_while_its_pod_exists_or_it_speaks() {
        let at = |replica: &str, at| Report { at, ..report(replica, &[], &[]) };
        let names = |reports: &[Report]| look(reports).replicas.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&[at("istiod-a", 0), at("gone", 100), at("laptop", 160)]), ["istiod-a", "laptop"]);
    }

    #[test]
    fn reports_are_read_as_they_were_written() {
        let report = report("a", &[("x/y", ClientTrust::Behind)], &[("zt-1", "cart"), ("zt-2", "cart")]);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.len() < 300, "{text}");
    }
}
