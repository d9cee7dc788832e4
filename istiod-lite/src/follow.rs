//! The MeshConfig beyond the translation: what follows it at once, and what stays as the process was told.

use crate::ca::trust_domain::TrustDomains;
use crate::config::MeshConfig;
use crate::translate::Mesh;

/// Hands the mesh on to the authority.
#[derive(Debug)]
pub struct Follow {
    trust_domains: TrustDomains,
    /// TRUST_DOMAIN.
    trust_domain: String,
    /// ROOT_NAMESPACE.
    root_namespace: String,
    said: Vec<String>,
}

impl Follow {
    /// Hands on to `trust_domains`; `config` is what the process was told.
    pub fn new(config: &MeshConfig, trust_domains: TrustDomains) -> Self {
        let (trust_domain, root_namespace) = (config.trust_domain.clone(), config.root_namespace.clone());
        Self { trust_domains, trust_domain, root_namespace, said: Vec::new() }
    }

    /// Takes a changed mesh in. What does not follow it is said once, by name.
    pub fn mesh(&mut self, mesh: &Mesh) {
        self.trust_domains.set(&mesh.trust_domain, &mesh.trust_domain_aliases);
        let stays = self.stays(mesh);
        for line in stays.iter().filter(|line| !self.said.contains(line)) {
            tracing::warn!("MeshConfig: {line}");
        }
        self.said = stays;
    }

    /// What stays as the process was told, in words for the log.
    fn stays(&self, mesh: &Mesh) -> Vec<String> {
        let mut lines = Vec::new();
        let own = &self.trust_domain;
        if mesh.trust_domain != *own {
            lines.push(format!(
                "trustDomain {:?} is not that of TRUST_DOMAIN ({own:?}), by which node proxies still name themselves: set \
                 TRUST_DOMAIN of the control plane and of the node proxies alike and restart them; a root that is made \
                 already keeps its subject",
                mesh.trust_domain
            ));
        }
        if !mesh.trust_domain_aliases.is_empty() {
            lines.push(
                "trustDomainAliases make callers of the control plane known, no more: policies, and node proxies among \
                 each other, take an alias for a foreign domain"
                    .to_owned(),
            );
        }
        let own = &self.root_namespace;
        if mesh.root_namespace != *own {
            lines.push(format!(
                "rootNamespace {:?} moves mesh-wide policies only: the CA's Secrets (cacerts, cacerts-next, \
                 istio-ca-secret), the requests and the state of a root's rotation, the Lease, the MeshConfig itself, the \
                 defaults of Gateway classes and the names in the control plane's certificate stay in {own:?}: to move \
                 them too, set ROOT_NAMESPACE and restart",
                mesh.root_namespace
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use aquifer_runtime::env::MapEnv;

    #[test]
    fn what_does_not_follow_is_named() {
        let env: MapEnv = [
            ("AQUIFER_MANIFESTS", "/m"),
            ("AQUIFER_DATA_DIR", "/d"),
            ("JWT_ISSUER", "lab"),
            ("JWKS_FILE", "/jwks.json"),
        ]
        .into_iter()
        .collect();
        let trust_domains = TrustDomains::from("cluster.local");
        let mut follow = Follow::new(&Config::from_env(&env).unwrap().mesh, trust_domains.clone());
        let mut mesh = Mesh::default();
        follow.mesh(&mesh);
        assert!(follow.said.is_empty(), "{:?}", follow.said);

        mesh.trust_domain = "new.test".to_owned();
        mesh.trust_domain_aliases = vec!["cluster.local".to_owned()];
        mesh.root_namespace = "policies".to_owned();
        follow.mesh(&mesh);
        assert_eq!(&*trust_domains.own(), "new.test");
        let said = follow.said.join("\n");
        for name in [
            "TRUST_DOMAIN",
            "\"new.test\"",
            "trustDomainAliases",
            "ROOT_NAMESPACE",
            "\"policies\"",
            "cacerts",
            "\"istio-system\"",
        ] {
            assert!(said.contains(name), "{name} is not in {said}");
        }
        // As the process was told, once more.
        follow.mesh(&Mesh::default());
        assert_eq!((&*trust_domains.own(), follow.said.len()), ("cluster.local", 0));
    }
}
