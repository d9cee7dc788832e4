//! The client's side of delta discovery, without IO.

mod held;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use bytes::Bytes;

pub use self::held::Held;
use super::{Rejected, ResourceSink, ResourceUpdate};

const WILDCARD: &str = "*";

/// A type to watch.
///
/// Servers answer the first requests of a stream in their order. Real ztunnels ask for addresses first; a client that
/// asks for authorizations first never sees, after a reconnect, a workload that names a policy which is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The type.
    pub type_url: String,
    /// Whether each resource is asked for singly, instead of all of them at once.
    pub on_demand: bool,
    /// Whether it is asked for only where the server says that it has it.
    pub if_served: bool,
}

impl Watch {
    /// Watches all resources of a type.
    pub fn wildcard(type_url: &str) -> Self {
        Self { type_url: type_url.to_owned(), on_demand: false, if_served: false }
    }

    /// Watches the resources of a type that are asked for.
    pub fn on_demand(type_url: &str) -> Self {
        Self { type_url: type_url.to_owned(), on_demand: true, if_served: false }
    }

    /// Watches all resources of a type of our own, which other servers don't know.
    pub fn if_served(type_url: &str) -> Self {
        Self { if_served: true, ..Self::wildcard(type_url) }
    }
}

/// What the client holds of each type, across streams.
#[derive(Debug)]
pub struct Session {
    node: Node,
    types: Vec<TypeState>,
}

#[derive(Debug)]
struct TypeState {
    watch: Watch,
    /// Name to version of what the sink has taken.
    held: Held,
    /// Names asked for singly that the server may have.
    demanded: BTreeSet<String>,
    /// Those not answered yet, and those answered since they were last asked about.
    unanswered: BTreeSet<String>,
    answered: Vec<String>,
    synced: bool,
    /// What is held is not told, and the next response is all that there is.
    whole: bool,
}

impl Session {
    /// A client that is `node`, watches these types in this order, and holds nothing.
    pub fn new(types: impl IntoIterator<Item = Watch>, node: Node) -> Self {
        let types = types.into_iter().map(TypeState::new).collect();
        Self { node, types }
    }

    /// The first requests of a stream, one a type: who asks, for what, and what is held already.
    pub fn initial_requests(&self) -> Vec<DeltaDiscoveryRequest> {
        let asked = self.types.iter().filter(|state| !state.watch.if_served);
        asked.map(|state| state.initial_request(&self.node)).collect()
    }

    /// The further requests of a stream whose server says that it has `served`. What is held of types that it has
    /// not goes: nobody keeps it up to date.
    pub fn served(&mut self, served: &[&str], sink: &mut dyn ResourceSink) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for state in self.types.iter_mut().filter(|state| state.watch.if_served) {
            if served.contains(&state.watch.type_url.as_str()) {
                requests.push(state.initial_request(&self.node));
                continue;
            }
            let held: Vec<String> = state.held.iter().map(|(name, _)| name).collect();
            if !held.is_empty() {
                state.apply(Vec::new(), held, sink);
            }
        }
        requests
    }

    /// Applies a response through `sink` and gives the ACK, or the NACK that names what was refused.
    pub fn handle(&mut self, response: DeltaDiscoveryResponse, sink: &mut dyn ResourceSink) -> DeltaDiscoveryRequest {
        let DeltaDiscoveryResponse { type_url, nonce, resources, removed_resources, .. } = response;
        let state = self.types.iter_mut().find(|state| state.watch.type_url == type_url);
        let rejected = match state {
            Some(state) => state.apply(resources, removed_resources, sink),
            None => vec![Rejected { name: type_url.clone(), error: "type not asked for".into() }],
        };
        let error_detail = (!rejected.is_empty()).then(|| Status {
            // Istio's clients leave the code at 0; that an error is there at all is what says NACK.
            message: nack_message(&rejected),
            ..Status::default()
        });
        DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() }
    }

    /// Asks for one more resource of an on-demand type. `None` if nothing needs to be sent.
    pub fn demand(&mut self, type_url: &str, name: &str) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.iter_mut().find(|s| s.watch.type_url == type_url)?;
        if !state.watch.on_demand {
            // All of the type is coming anyway; whether this one exists is known when the type is synced.
            state.answered.push(name.to_owned());
            return None;
        }
        state.demanded.insert(name.to_owned());
        state.unanswered.insert(name.to_owned()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            ..Default::default()
        })
    }

    /// Names asked for that were answered since the last call, each with its type.
    pub fn take_answered(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for state in &mut self.types {
            let type_url = &state.watch.type_url;
            all.extend(state.answered.drain(..).map(|name| (type_url.clone(), name)));
        }
        all
    }

    /// The stream has ended. What is held stays held; the next stream begins with [`Session::initial_requests`].
    pub fn reconnect(&mut self) {
        for state in &mut self.types {
            // The next first request asks for all demanded names again, so their answers are still to come.
            state.unanswered = state.unanswered.intersection(&state.demanded).cloned().collect();
        }
    }

    /// The server takes no request that tells all that is held: the next ones tell nothing, so that it sends all there is
    /// once more. What it does not send then is gone.
    pub fn start_over(&mut self) {
        for state in self.types.iter_mut().filter(|state| !state.watch.on_demand) {
            state.whole = true;
        }
    }

    /// Whether every type was answered at least once, but for those that a server need not have. Stays true across
    /// streams.
    pub fn synced(&self) -> bool {
        self.types.iter().all(|state| state.synced || state.watch.if_served)
    }

    /// Name to version of what is held of a type.
    pub fn held(&self, type_url: &str) -> Option<&Held> {
        self.types.iter().find(|s| s.watch.type_url == type_url).map(|s| &s.held)
    }
}

impl TypeState {
    fn new(watch: Watch) -> Self {
        Self {
            watch,
            held: Held::default(),
            demanded: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            answered: Vec::new(),
            synced: false,
            whole: false,
        }
    }

    fn initial_request(&self, node: &Node) -> DeltaDiscoveryRequest {
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        if self.watch.on_demand {
            // No names at all would mean all of them: "nothing yet" is said by taking the wildcard and giving it back.
            subscribe.push(WILDCARD.to_owned());
            subscribe.extend(self.demanded.iter().cloned());
            unsubscribe.push(WILDCARD.to_owned());
        }
        DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.watch.type_url.clone(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: if self.whole { BTreeMap::new() } else { self.held.iter().collect() },
            ..Default::default()
        }
    }

    fn apply(
        &mut self,
        resources: Vec<Resource>,
        mut removed: Vec<String>,
        sink: &mut dyn ResourceSink,
    ) -> Vec<Rejected> {
        if std::mem::take(&mut self.whole) {
            let sent: HashSet<&str> = resources.iter().map(|resource| &*resource.name).collect();
            removed.extend(self.held.iter().map(|(name, _)| name).filter(|name| !sent.contains(&**name)));
        }
        let (mut updates, mut rejected) = (Vec::new(), Vec::new());
        let (mut changes, mut versions) = (Vec::new(), Vec::new());
        for resource in resources {
            self.answer(&resource.name);
            for alias in &resource.aliases {
                self.answer(alias);
            }
            versions.push((resource.name.clone(), resource.version.clone()));
            match body(resource, &self.watch.type_url) {
                Ok(update) => updates.push(update),
                Err(refused) => rejected.push(refused),
            }
        }
        for name in &removed {
            self.answer(name);
            // Asked for and not there: asking again on each stream would remember every address ever scanned.
            self.demanded.remove(name);
        }
        // Named twice, once good and once not: the sink gets the good one, so it must be held by some version.
        let bad: BTreeSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        let good = updates.iter().filter_map(|update| match update {
            ResourceUpdate::Upsert { name, .. } => Some(name),
            ResourceUpdate::Remove { .. } => None,
        });
        let twice: Vec<String> = good.filter(|name| bad.contains(name.as_str())).cloned().collect();
        updates.extend(removed.iter().map(|name| ResourceUpdate::Remove { name: name.clone() }));
        if !updates.is_empty() {
            let refused = sink.apply(&self.watch.type_url, updates);
            let taken =
                twice.into_iter().filter(|name| refused.iter().all(|r| r.name != *name) && !removed.contains(name));
            changes.extend(taken.map(|name| (name, Some(String::new()))));
            rejected.extend(refused);
        }
        let refused: BTreeSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        // A refused resource stays in `held` with the version that the sink still has: the server sends the new one
        // again after a reconnect, and says so if it is gone by then.
        let versions = versions.into_iter().map(|(name, version)| (name, Some(version)));
        let removed = removed.into_iter().map(|name| (name, None));
        changes.extend(versions.chain(removed).filter(|(name, _)| !refused.contains(name.as_str())));
        self.held.change(changes);
        self.synced = true;
        rejected
    }

    fn answer(&mut self, name: &str) {
        if self.unanswered.remove(name) {
            self.answered.push(name.to_owned());
        }
    }
}

fn body(resource: Resource, type_url: &str) -> Result<ResourceUpdate, Rejected> {
    let Resource { name, version, aliases, resource } = resource;
    match resource {
        Some(any) if any.type_url == type_url => {
            Ok(ResourceUpdate::Upsert { name, version, aliases, body: Bytes::from(any.value) })
        }
        Some(any) => Err(Rejected { name, error: format!("is of type {:?}", any.type_url) }),
        None => Err(Rejected { name, error: "has no body".into() }),
    }
}

/// Bytes of a NACK's text, but for the last resource's. istiod takes requests of 4 MiB, and ends the stream at a longer
/// one: it would be sent again, and again be refused.
const NACK: usize = 16 * 1024;

fn nack_message(rejected: &[Rejected]) -> String {
    let mut message = String::new();
    for (told, rejected_one) in rejected.iter().enumerate() {
        if message.len() >= NACK {
            message.push_str(&format!("; and {} more", rejected.len() - told));
            break;
        }
        let separator = if told == 0 { "" } else { "; " };
        message.push_str(&format!("{separator}{}: {}", rejected_one.name, rejected_one.error));
    }
    message
}

#[cfg(test)]
mod tests;
