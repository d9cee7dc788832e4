//! SPIFFE identities in the one form that the mesh uses: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, str::FromStr, sync::Arc};

/// Who a workload is, as its certificate says.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub trust_domain: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

/// The text is not exactly `spiffe://<td>/ns/<ns>/sa/<sa>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an identity of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {0:?}")]
pub struct InvalidIdentity(pub String);

impl Identity {
    /// An identity of these parts. They come from Kubernetes names, which hold no slash.
    pub fn new(
        trust_domain: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self { trust_domain: trust_domain.into(), namespace: namespace.into(), service_account: service_account.into() }
    }

    /// The form that policies compare: the URI without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidIdentity(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Identity> {
    let mut parts = text.strip_prefix("spiffe://")?.split('/');
    let trust_domain = parts.next().filter(|part| !part.is_empty())?;
    parts.next().filter(|part| *part == "ns")?;
    let namespace = parts.next().filter(|part| !part.is_empty())?;
    parts.next().filter(|part| *part == "sa")?;
    let service_account = parts.next().filter(|part| !part.is_empty())?;
    parts.next().is_none().then(|| Identity::new(trust_domain, namespace, service_account))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_exact_form_is_an_identity() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "td/ns/a/sa/b",
            "spiffe://td/sa/a/ns/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
        let id: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id, Identity::new("cluster.local", "shop", "web"));
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/web");
    }

    proptest! {
        #[test]
        fn round_trips(td in "[a-z.]{1,9}", ns in "[a-z-]{1,9}", sa in "[a-z0-9]{1,9}") {
            let id = Identity::new(td, ns, sa);
            prop_assert_eq!(id.to_string().parse::<Identity>().unwrap(), id);
        }

        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = text.parse::<Identity>();
        }
    }
}
