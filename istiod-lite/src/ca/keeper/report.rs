//! What this replica knows of its proxies, for whoever leads.

use aquifer_proto::type_url::ROOT_BUNDLE;
use aquifer_xds::server::Clients;
use time::OffsetDateTime;

use super::{Keeper, REPEAT};
use crate::ca::rotation::observe::{Client, ClientTrust, Evidence, Report};

impl Keeper {
    /// Leaves word of what this replica knows.
    pub(super) async fn report(&mut self, now: i64) -> Result<(), String> {
        let active = self.authority.load();
        let report = Report {
            replica: self.settings.replica.clone(),
            at: now,
            follows: active.step.clone(),
            clients: clients(&self.clients, self.offered),
            evidence: Evidence(self.ledger.confirmed(now).into_iter().collect()),
        };
        let is_news = self
            .reported
            .as_ref()
            .is_none_or(|last| now - last.at >= REPEAT || *last != Report { at: last.at, ..report.clone() });
        if is_news {
            self.reports.save(&report).await?;
            self.reported = Some(report);
        }
        Ok(())
    }
}

/// Who is connected, and whether it has acknowledged what is offered since the generation `offered`.
fn clients(clients: &Clients, offered: u64) -> Vec<Client> {
    let mut all: Vec<Client> = clients
        .list()
        .into_iter()
        .map(|info| {
            let trust = match info.types.get(ROOT_BUNDLE) {
                None => ClientTrust::PerCertificate,
                Some(bundle) => {
                    let taken = bundle.last_answered.as_ref().is_some_and(|stamp| stamp.generation >= offered);
                    if taken && !bundle.is_rejected { ClientTrust::Adopted } else { ClientTrust::Behind }
                }
            };
            let since = OffsetDateTime::from(info.since).unix_timestamp();
            Client { name: pod_of(&info.node.id), trust, since }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// `kind~ip~name.namespace~domain` → `namespace/name`.
fn pod_of(node_id: &str) -> String {
    let name = node_id.split('~').nth(2).unwrap_or(node_id);
    // Names of pods may hold dots, namespaces don't.
    name.rsplit_once('.').map_or_else(|| name.to_owned(), |(name, namespace)| format!("{namespace}/{name}"))
}
