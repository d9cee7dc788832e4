//! The server's side of delta discovery for one client, without IO.
//!
//! A wildcard type costs a few pointers a client: the snapshot that it was last sent. An on-demand type costs the names
//! that the client asked for and what it was sent.

mod demand;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use aquifer_proto::type_url;
use aquifer_proto::xds::DeltaDiscoveryRequest;

use self::demand::OnDemand;
pub use super::answer::Answer;
use super::answer::{Content, Half, Own};
use crate::resource::{Resource, ResourceSet, TypeSet, Version};

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
    outstanding: VecDeque<u64>,
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
#[derive(Clone, Debug)]
pub struct Handled {
    /// What it was.
    pub note: Note,
    /// What to send now.
    pub responses: Vec<Answer>,
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
    pub fn push(&mut self, set: &ResourceSet) -> Vec<Answer> {
        let order = self.order.clone();
        let (named, naming): (Vec<_>, Vec<_>) =
            order.into_iter().partition(|type_url| type_url == type_url::AUTHORIZATION);
        let upserts = named.iter().map(|t| (t, Half::Upserts));
        let both = naming.iter().map(|t| (t, Half::Both));
        let removals = named.iter().map(|t| (t, Half::Removals));
        upserts.chain(both).chain(removals).filter_map(|(t, half)| self.diff(t, set, half)).collect()
    }

    fn first(&mut self, request: DeltaDiscoveryRequest, current: &TypeSet) -> Answer {
        let held = request.initial_resource_versions;
        let names = request.resource_names_subscribe;
        let gives_back = request.resource_names_unsubscribe.iter().any(|n| n == WILDCARD);
        let is_wildcard = !gives_back && (names.is_empty() || names.iter().any(|n| n == WILDCARD));
        let type_url = request.type_url;
        let (watched, content) = if is_wildcard {
            let content = match held.is_empty() {
                true => Content::All(current.clone()),
                false => Content::Own(difference(held.iter().map(|(n, v)| (n.as_str(), Version::parse(v))), current)),
            };
            (Watched::Wildcard(current.clone()), content)
        } else {
            let mut on_demand = OnDemand::new(self.node_name.clone(), held);
            let own = on_demand.subscribe(names, current);
            (Watched::OnDemand(on_demand), Content::Own(own))
        };
        if !self.order.contains(&type_url) {
            self.order.push(type_url.clone());
        }
        let state = TypeState { watched, outstanding: VecDeque::new() };
        self.types.insert(type_url, state);
        self.respond(current, content)
    }

    fn acknowledge(&mut self, request: &DeltaDiscoveryRequest) -> Note {
        let Some(state) = self.types.get_mut(&request.type_url) else {
            return Note::Stale;
        };
        if !request.response_nonce.is_empty() {
            let nonce: Option<u64> = request.response_nonce.parse().ok();
            let Some(at) = state.outstanding.iter().position(|n| Some(*n) == nonce) else {
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

    fn change_subscription(&mut self, request: DeltaDiscoveryRequest, current: &TypeSet) -> Option<Answer> {
        let state = self.types.get_mut(&request.type_url)?;
        let mut subscribe = request.resource_names_subscribe;
        let mut unsubscribe = request.resource_names_unsubscribe;
        let takes = remove_wildcard(&mut subscribe);
        let gives_back = remove_wildcard(&mut unsubscribe);
        let own = match &mut state.watched {
            Watched::Wildcard(_) if gives_back => {
                let mut on_demand = OnDemand::new(self.node_name.clone(), BTreeMap::new());
                let own = on_demand.subscribe(subscribe, current);
                state.watched = Watched::OnDemand(on_demand);
                own
            }
            Watched::Wildcard(sent) => {
                if subscribe.is_empty() {
                    return None;
                }
                // It has them, but an explicit question gets an answer.
                named(&subscribe, sent)
            }
            Watched::OnDemand(on_demand) if takes && !gives_back => {
                let own = difference(on_demand.held().iter().map(|(n, v)| (&**n, *v)), current);
                state.watched = Watched::Wildcard(current.clone());
                own
            }
            Watched::OnDemand(on_demand) => {
                on_demand.unsubscribe(&unsubscribe, current);
                if subscribe.is_empty() {
                    return None;
                }
                on_demand.subscribe(subscribe, current)
            }
        };
        Some(self.respond(current, Content::Own(own)))
    }

    fn diff(&mut self, type_url: &str, set: &ResourceSet, half: Half) -> Option<Answer> {
        let current = set.of_type(type_url)?;
        let state = self.types.get_mut(type_url)?;
        let content = match &mut state.watched {
            Watched::Wildcard(sent) => {
                if sent.same(current) {
                    return None;
                }
                let delta = current.since(sent);
                // The removals follow in this same push; until then `sent` is older than what the client has.
                if half != Half::Upserts {
                    *sent = current.clone();
                }
                let is_empty = match half {
                    Half::Both => delta.is_empty(),
                    Half::Upserts => delta.upserts.is_empty(),
                    Half::Removals => delta.removed.is_empty(),
                };
                (!is_empty).then_some(Content::Shared(delta, half))?
            }
            Watched::OnDemand(on_demand) => {
                let mut own = on_demand.diff(current, half != Half::Upserts);
                match half {
                    Half::Both => {}
                    Half::Upserts => own.removed.clear(),
                    Half::Removals => own.upserts.clear(),
                }
                (!own.is_empty()).then_some(Content::Own(own))?
            }
        };
        Some(self.respond(current, content))
    }

    fn respond(&mut self, of: &TypeSet, content: Content) -> Answer {
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        if let Some(state) = self.types.get_mut(&**of.type_url()) {
            state.outstanding.push_back(nonce);
            // A client that never acknowledges must not cost memory without end.
            if state.outstanding.len() > MAX_OUTSTANDING {
                state.outstanding.pop_front();
            }
        }
        Answer { type_url: Arc::clone(of.type_url()), nonce: nonce.to_string(), content }
    }
}

const MAX_OUTSTANDING: usize = 1024;

fn remove_wildcard(names: &mut Vec<String>) -> bool {
    let before = names.len();
    names.retain(|name| name != WILDCARD);
    names.len() < before
}

/// What leads from what a client says it holds to all of `current`.
fn difference<'a>(held: impl Iterator<Item = (&'a str, Option<Version>)>, current: &TypeSet) -> Own {
    // What is held as it is: by address, which is 8 bytes for each instead of a name.
    let (mut same, mut removed) = (HashSet::new(), Vec::new());
    for (name, version) in held {
        match current.get(name) {
            Some(resource) if version == Some(resource.version) => drop(same.insert(Arc::as_ptr(resource))),
            Some(_) => {}
            None => removed.push(name.to_owned()),
        }
    }
    let changed = current.iter().filter(|r| !same.contains(&Arc::as_ptr(r)));
    let mut upserts: Vec<_> = changed.map(|r| (r.name.clone(), Arc::clone(r))).collect();
    upserts.sort_by(|a, b| a.0.cmp(&b.0));
    Own { upserts, removed, with_aliases: false }
}

/// An answer about these names alone.
fn named(names: &[String], current: &TypeSet) -> Own {
    let mut own = Own::default();
    for name in names {
        let before = own.upserts.len();
        let mut found: Vec<&Arc<Resource>> = current.get(name).into_iter().collect();
        found.extend(current.by_alias(name));
        own.upserts.extend(found.into_iter().map(|r| (r.name.clone(), Arc::clone(r))));
        if own.upserts.len() == before {
            own.removed.push(name.clone());
        }
    }
    own
}

#[cfg(test)]
mod tests;
