//! The server's side of delta discovery for one client, without IO.
//!
//! A wildcard type costs one pointer a client: the snapshot that it was last sent. An on-demand type costs the names
//! that the client asked for and what it was sent.

mod demand;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use aquifer_proto::type_url;
use aquifer_proto::xds::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use self::demand::{Delta, OnDemand};
use crate::resource::{Resource, ResourceSet, TypeSet};

pub(super) const WILDCARD: &str = "*";

/// One client's stream.
#[derive(Debug)]
pub struct Session {
    node_name: Option<String>,
    types: BTreeMap<String, TypeState>,
    /// Types in the order in which they were first asked for.
    order: Vec<String>,
    last_nonce: u64,
}

#[derive(Debug)]
struct TypeState {
    watched: Watched,
    /// Nonces of responses that are not acknowledged yet, oldest first.
    outstanding: VecDeque<String>,
}

#[derive(Debug)]
enum Watched {
    /// Everything of the type, as of this snapshot.
    Wildcard(TypeSet),
    OnDemand(OnDemand),
}

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It asked for something.
    Subscribed,
    /// It took a response.
    Acked,
    /// It refused resources of a response, for this reason. They are not sent again before they change.
    Nacked(String),
    /// It acknowledged a response that this stream never sent.
    Stale,
}

/// What a request leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Handled {
    /// What it was.
    pub note: Note,
    /// What to send now.
    pub responses: Vec<DeltaDiscoveryResponse>,
}

/// A request that ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It names no type.
    #[error("missing type URL")]
    NoType,
    /// It asks for a type that isn't served.
    #[error("type {0:?} is not served")]
    UnknownType(String),
}

/// Which half of a type's difference to send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Both,
    Upserts,
    Removals,
}

impl Session {
    /// A client on this Kubernetes node that has asked for nothing yet.
    pub fn new(node_name: Option<String>) -> Self {
        Self { node_name, types: BTreeMap::new(), order: Vec::new(), last_nonce: 0 }
    }

    /// Answers a request from the current set.
    pub fn handle(&mut self, request: DeltaDiscoveryRequest, set: &ResourceSet) -> Result<Handled, Refused> {
        if request.type_url.is_empty() {
            return Err(Refused::NoType);
        }
        let Some(current) = set.of_type(&request.type_url) else {
            return Err(Refused::UnknownType(request.type_url));
        };
        let asks_nothing = request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
        let is_first = !self.types.contains_key(&request.type_url);
        // A request that neither acknowledges nor names anything asks for the type as a new stream would.
        let starts_over = asks_nothing && request.response_nonce.is_empty();
        if is_first || (starts_over && request.error_detail.is_none()) {
            let response = self.first(request, current);
            return Ok(Handled { note: Note::Subscribed, responses: vec![response] });
        }
        let note = self.acknowledge(&request);
        let responses = self.change_subscription(request, current).into_iter().collect();
        Ok(Handled { note, responses })
    }

    /// What to send now that `set` is current. Nothing if the client has it all.
    ///
    /// New policies go first and removed ones last, so that no workload ever names a policy that the client lacks.
    pub fn push(&mut self, set: &ResourceSet) -> Vec<DeltaDiscoveryResponse> {
        let order = self.order.clone();
        let (named, naming): (Vec<_>, Vec<_>) =
            order.into_iter().partition(|type_url| type_url == type_url::AUTHORIZATION);
        let upserts = named.iter().map(|t| (t, Half::Upserts));
        let both = naming.iter().map(|t| (t, Half::Both));
        let removals = named.iter().map(|t| (t, Half::Removals));
        upserts.chain(both).chain(removals).filter_map(|(t, half)| self.diff(t, set, half)).collect()
    }

    fn first(&mut self, request: DeltaDiscoveryRequest, current: &TypeSet) -> DeltaDiscoveryResponse {
        let held = request.initial_resource_versions;
        let names = request.resource_names_subscribe;
        let gives_back = request.resource_names_unsubscribe.iter().any(|n| n == WILDCARD);
        let is_wildcard = !gives_back && (names.is_empty() || names.iter().any(|n| n == WILDCARD));
        let type_url = request.type_url;
        let (watched, delta) = if is_wildcard {
            (Watched::Wildcard(current.clone()), difference(&held, current))
        } else {
            let mut on_demand = OnDemand::new(self.node_name.clone(), held);
            let delta = on_demand.subscribe(names, current);
            (Watched::OnDemand(on_demand), delta)
        };
        if !self.order.contains(&type_url) {
            self.order.push(type_url.clone());
        }
        let state = TypeState { watched, outstanding: VecDeque::new() };
        self.types.insert(type_url.clone(), state);
        self.respond(&type_url, delta)
    }

    fn acknowledge(&mut self, request: &DeltaDiscoveryRequest) -> Note {
        let Some(state) = self.types.get_mut(&request.type_url) else {
            return Note::Stale;
        };
        if !request.response_nonce.is_empty() {
            let sent = state.outstanding.iter().position(|n| *n == request.response_nonce);
            let Some(at) = sent else {
                return Note::Stale;
            };
            state.outstanding.drain(..=at);
        }
        match &request.error_detail {
            // Present is what counts: Istio's clients leave the code at 0.
            Some(error) => Note::Nacked(error.message.clone()),
            None if request.response_nonce.is_empty() => Note::Subscribed,
            None => Note::Acked,
        }
    }

    fn change_subscription(
        &mut self,
        request: DeltaDiscoveryRequest,
        current: &TypeSet,
    ) -> Option<DeltaDiscoveryResponse> {
        let state = self.types.get_mut(&request.type_url)?;
        let mut subscribe = request.resource_names_subscribe;
        let mut unsubscribe = request.resource_names_unsubscribe;
        let takes = remove_wildcard(&mut subscribe);
        let gives_back = remove_wildcard(&mut unsubscribe);
        let delta = match &mut state.watched {
            Watched::Wildcard(_) if gives_back => {
                let mut on_demand = OnDemand::new(self.node_name.clone(), BTreeMap::new());
                let delta = on_demand.subscribe(subscribe, current);
                state.watched = Watched::OnDemand(on_demand);
                delta
            }
            Watched::Wildcard(sent) => {
                if subscribe.is_empty() {
                    return None;
                }
                // It has them, but an explicit question gets an answer.
                let sent = sent.clone();
                named(&subscribe, &sent)
            }
            Watched::OnDemand(on_demand) if takes && !gives_back => {
                let delta = difference(&on_demand.held(), current);
                state.watched = Watched::Wildcard(current.clone());
                delta
            }
            Watched::OnDemand(on_demand) => {
                on_demand.unsubscribe(&unsubscribe, current);
                if subscribe.is_empty() {
                    return None;
                }
                on_demand.subscribe(subscribe, current)
            }
        };
        Some(self.respond(&request.type_url, delta))
    }

    fn diff(&mut self, type_url: &str, set: &ResourceSet, half: Half) -> Option<DeltaDiscoveryResponse> {
        let empty = TypeSet::default();
        let current = set.of_type(type_url).unwrap_or(&empty);
        let state = self.types.get_mut(type_url)?;
        let delta = match &mut state.watched {
            Watched::Wildcard(sent) => {
                if sent.same(current) {
                    return None;
                }
                let (changed, gone) = current.since(sent);
                let delta = Delta::of(changed, gone.into_iter().map(str::to_owned).collect());
                // The removals follow in this same push; until then `sent` is older than what the client has.
                if half != Half::Upserts {
                    *sent = current.clone();
                }
                delta
            }
            Watched::OnDemand(on_demand) => on_demand.diff(current, half != Half::Upserts),
        };
        let delta = match half {
            Half::Both => delta,
            Half::Upserts => Delta { removed: Vec::new(), ..delta },
            Half::Removals => Delta { upserts: Vec::new(), ..delta },
        };
        (!delta.is_empty()).then(|| self.respond(type_url, delta))
    }

    fn respond(&mut self, type_url: &str, delta: Delta) -> DeltaDiscoveryResponse {
        self.last_nonce += 1;
        let nonce = self.last_nonce.to_string();
        let mut with_aliases = false;
        if let Some(state) = self.types.get_mut(type_url) {
            state.outstanding.push_back(nonce.clone());
            // A client that never acknowledges must not cost memory without end.
            if state.outstanding.len() > MAX_OUTSTANDING {
                state.outstanding.pop_front();
            }
            with_aliases = matches!(state.watched, Watched::OnDemand(_));
        }
        let to_wire = |(name, resource)| wire(name, resource, with_aliases);
        DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce,
            resources: delta.upserts.into_iter().map(to_wire).collect(),
            removed_resources: delta.removed,
            ..Default::default()
        }
    }
}

const MAX_OUTSTANDING: usize = 1024;

fn remove_wildcard(names: &mut Vec<String>) -> bool {
    let before = names.len();
    names.retain(|name| name != WILDCARD);
    names.len() < before
}

/// What leads from what a client says it holds to all of `current`.
fn difference(held: &BTreeMap<String, String>, current: &TypeSet) -> Delta {
    let mut changed: Vec<_> =
        current.iter().filter(|r| held.get(&*r.name).is_none_or(|version| **version != *r.version)).collect();
    changed.sort_by(|a, b| a.name.cmp(&b.name));
    let gone = held.keys().filter(|name| current.get(name).is_none()).cloned().collect();
    Delta::of(changed, gone)
}

/// An answer about these names alone.
fn named(names: &[String], current: &TypeSet) -> Delta {
    let mut delta = Delta::default();
    for name in names {
        let before = delta.upserts.len();
        let found = current.get(name).into_iter().chain(current.by_alias(name));
        delta.upserts.extend(found.map(|r| (r.name.clone(), r.clone())));
        if delta.upserts.len() == before {
            delta.removed.push(name.clone());
        }
    }
    delta
}

/// Only on-demand clients get aliases: the others have no use for them, and istiod sends them none.
fn wire(name: Arc<str>, resource: Arc<Resource>, with_aliases: bool) -> xds::Resource {
    xds::Resource {
        version: resource.version.to_string(),
        resource: Some(resource.body.clone()),
        name: name.to_string(),
        aliases: if with_aliases { resource.aliases.clone() } else { Vec::new() },
    }
}

#[cfg(test)]
mod tests;
