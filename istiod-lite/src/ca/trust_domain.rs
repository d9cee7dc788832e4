//! The mesh's trust domains, as the MeshConfig has them at the moment.

use std::sync::Arc;

use aquifer_core::identity::Identity;
use arc_swap::ArcSwap;

/// The domain of what is issued, and those whose certificates still count. Clones share it; it is read anew for every
/// certificate and every caller, so that a change needs no restart.
#[derive(Debug, Clone)]
pub struct TrustDomains(Arc<ArcSwap<Domains>>);

#[derive(Debug, PartialEq, Eq)]
struct Domains {
    own: Arc<str>,
    aliases: Vec<String>,
}

impl From<&str> for TrustDomains {
    fn from(own: &str) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Domains { own: own.into(), aliases: Vec::new() })))
    }
}

impl TrustDomains {
    /// The domain of every identity that is issued from now on.
    pub fn own(&self) -> Arc<str> {
        Arc::clone(&self.0.load().own)
    }

    /// Whether a caller of that domain is one of the mesh: the mesh's own domain and its aliases. A former domain counts
    /// as long as an alias names it and no longer, so that replicas and restarts agree.
    pub fn know(&self, domain: &str) -> bool {
        let domains = self.0.load();
        *domains.own == *domain || domains.aliases.iter().any(|alias| alias == domain)
    }

    /// From now on `own`, and callers of `aliases` besides. One that no identity can have changes nothing.
    pub fn set(&self, own: &str, aliases: &[String]) {
        if !is_domain(own) {
            tracing::error!(
                trust_domain = own,
                "CA: this is no trust domain; the last one stays: write a name as of DNS"
            );
            return;
        }
        let next = Domains { own: own.into(), aliases: aliases.to_vec() };
        let last = self.0.load_full();
        if *last == next {
            return;
        }
        tracing::info!(
            trust_domain = own,
            ?aliases,
            before = &*last.own,
            "CA: the trust domain of what is issued, and its aliases"
        );
        self.0.store(Arc::new(next));
    }
}

/// Whether an identity of it is read back as it was written.
fn is_domain(domain: &str) -> bool {
    let letter = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    let identity = Identity::new(domain, "namespace", "account");
    domain.bytes().all(letter) && identity.to_string().parse::<Identity>().is_ok_and(|read| read == identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_domain_counts_while_an_alias_names_it() {
        let domains = TrustDomains::from("old.test");
        let shared = domains.clone();
        domains.set("new.test", &["old.test".to_owned()]);
        assert_eq!(&*shared.own(), "new.test");
        assert_eq!(["new.test", "old.test", "other.test"].map(|d| shared.know(d)), [true, true, false]);
        domains.set("new.test", &[]);
        assert_eq!(["new.test", "old.test"].map(|d| shared.know(d)), [true, false]);
    }

    #[test]
    fn what_is_no_domain_changes_nothing() {
        let domains = TrustDomains::from("old.test");
        for bad in ["", "spiffe://new.test", "new.test/ns/x", "new test", "new\ntest", "*"] {
            domains.set(bad, &["other.test".to_owned()]);
            assert_eq!((&*domains.own(), domains.know("other.test")), ("old.test", false), "{bad:?}");
        }
    }
}
