//! Until when the certificates last that each proxy was given.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;

/// More proxies are not remembered; the page says nothing of the others.
const MOST: usize = 10_000;

/// By proxy, as `<pod>.<namespace>`. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct Expiries(Arc<Mutex<BTreeMap<String, BTreeMap<u64, OffsetDateTime>>>>);

impl Expiries {
    /// A proxy got a certificate for an identity.
    pub fn issued(&self, pod: &str, namespace: &str, identity: &str, until: OffsetDateTime) {
        let mut all = self.0.lock();
        let proxy = format!("{pod}.{namespace}");
        if all.len() >= MOST && !all.contains_key(&proxy) {
            return;
        }
        let now = OffsetDateTime::now_utc();
        let of_proxy = all.entry(proxy).or_default();
        // Identities that left the node are not renewed.
        of_proxy.retain(|_, until| *until > now);
        of_proxy.insert(xxhash_rust::xxh64::xxh64(identity.as_bytes(), 0), until);
    }

    /// The end of the certificate that ends first; `None` if none is known.
    pub fn first(&self, proxy: &str) -> Option<OffsetDateTime> {
        self.0.lock().get(proxy)?.values().min().copied()
    }

    /// Forgets proxies that are gone.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|proxy, _| is_there(proxy));
    }
}
