//! A client and a server session in one thread: whatever happens on the way, the client ends with the server's set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use aquifer_xds::client::session::{Session as Client, Watch};
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};
use aquifer_xds::resource::{Resource, ResourceSet};
use aquifer_xds::server::session::{Answer, Session as Server};
use proptest::prelude::*;

const NODE: &str = "node1";

/// A body that the sink refuses.
const BAD: u8 = 9;

#[derive(Clone, Debug)]
enum Op {
    Address { name: u8, policy: Option<u8>, body: u8, alias: Option<u8>, follows: Option<u8>, here: bool },
    Policy { name: u8, body: u8 },
    RemoveAddress(u8),
    RemovePolicy(u8),
    Push,
    ToClient,
    ToServer,
    Demand(u8),
    DemandAlias(u8),
    Reconnect,
}

fn op() -> impl Strategy<Value = Op> {
    let address = (
        0..5_u8,
        proptest::option::of(0..3_u8),
        prop_oneof![4 => 0..3_u8, 1 => Just(BAD)],
        proptest::option::of(0..4_u8),
        proptest::option::of(0..5_u8),
        proptest::bool::weighted(0.2),
    );
    prop_oneof![
        4 => address.prop_map(|(name, policy, body, alias, follows, here)| {
            Op::Address { name, policy, body, alias, follows, here }
        }),
        2 => (0..3_u8, 0..3_u8).prop_map(|(name, body)| Op::Policy { name, body }),
        2 => (0..5_u8).prop_map(Op::RemoveAddress),
        1 => (0..3_u8).prop_map(Op::RemovePolicy),
        4 => Just(Op::Push),
        6 => Just(Op::ToClient),
        4 => Just(Op::ToServer),
        2 => (0..6_u8).prop_map(Op::Demand),
        2 => (0..4_u8).prop_map(Op::DemandAlias),
        1 => Just(Op::Reconnect),
    ]
}

fn address_name(n: u8) -> String {
    format!("Kubernetes//Pod/ns/p{n}")
}

fn policy_name(n: u8) -> String {
    format!("ns/policy{n}")
}

fn alias_name(n: u8) -> String {
    format!("/10.0.0.{n}")
}

#[derive(Default)]
struct Sink(BTreeMap<(String, String), Vec<u8>>);

impl ResourceSink for Sink {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for update in updates {
            match update {
                ResourceUpdate::Upsert { name, body, .. } if body[0] == BAD => {
                    rejected.push(Rejected { name, error: "bad".to_owned() });
                }
                ResourceUpdate::Upsert { name, body, .. } => {
                    self.0.insert((type_url.to_owned(), name), body.to_vec());
                }
                ResourceUpdate::Remove { name } => {
                    self.0.remove(&(type_url.to_owned(), name));
                }
            }
        }
        rejected
    }
}

struct World {
    /// What the operations wrote, and what the last push published of it.
    draft: ResourceSet,
    published: ResourceSet,
    client: Client,
    server: Server,
    sink: Sink,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    answered: BTreeSet<String>,
    demanded: BTreeSet<String>,
    /// Names, aliases included, that were ever published with a body that the sink refuses.
    ever_bad: BTreeSet<String>,
    on_demand: bool,
}

impl World {
    fn new(on_demand: bool) -> Self {
        let set = ResourceSet::of_types([ADDRESS, AUTHORIZATION]);
        let addresses = if on_demand { Watch::on_demand(ADDRESS) } else { Watch::wildcard(ADDRESS) };
        let client = Client::new([addresses, Watch::wildcard(AUTHORIZATION)], Node::default());
        let to_server = client.initial_requests().into();
        Self {
            draft: set.clone(),
            published: set,
            client,
            server: Server::new(Some(NODE.to_owned())),
            sink: Sink::default(),
            to_server,
            to_client: VecDeque::new(),
            answered: BTreeSet::new(),
            demanded: BTreeSet::new(),
            ever_bad: BTreeSet::new(),
            on_demand,
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Address { name, policy, body, alias, follows, here } => {
                let value = vec![*body, policy.map_or(255, |p| p)];
                let mut resource = Resource::from_bytes(ADDRESS, address_name(*name), value)
                    .with_aliases(alias.iter().map(|a| alias_name(*a)).collect())
                    .with_follows(follows.iter().map(|f| address_name(*f).into()).collect());
                if *here {
                    resource = resource.with_node(NODE);
                }
                self.draft.upsert(resource);
            }
            Op::Policy { name, body } => {
                let name = policy_name(*name);
                self.draft.upsert(Resource::from_bytes(AUTHORIZATION, name, vec![*body]));
            }
            Op::RemoveAddress(name) => {
                self.draft.remove(ADDRESS, &address_name(*name));
            }
            Op::RemovePolicy(name) => {
                self.draft.remove(AUTHORIZATION, &policy_name(*name));
            }
            Op::Push => self.push(),
            Op::ToClient => self.deliver_to_client(),
            Op::ToServer => self.deliver_to_server(),
            Op::Demand(name) => self.demand(address_name(*name)),
            Op::DemandAlias(alias) => self.demand(alias_name(*alias)),
            Op::Reconnect => self.reconnect(),
        }
    }

    /// Publishes the draft, without addresses that name a policy that isn't there.
    fn push(&mut self) {
        let mut set = self.draft.clone();
        let dangling: Vec<_> = set
            .of_type(ADDRESS)
            .unwrap()
            .iter()
            .filter(|r| r.body[1] != 255)
            .filter(|r| set.get(AUTHORIZATION, &policy_name(r.body[1])).is_none())
            .map(|r| r.name.clone())
            .collect();
        for name in dangling {
            set.remove(ADDRESS, &name);
        }
        for bad in set.of_type(ADDRESS).unwrap().iter().filter(|r| r.body[0] == BAD) {
            self.ever_bad.insert(bad.name.to_string());
            self.ever_bad.extend(bad.aliases.iter().map(|a| a.to_string()));
        }
        self.published = set;
        self.to_client.extend(self.server.push(&self.published).iter().map(Answer::to_message));
    }

    fn deliver_to_client(&mut self) {
        let Some(response) = self.to_client.pop_front() else {
            return;
        };
        self.answered.insert(response.type_url.clone());
        self.to_server.push_back(self.client.handle(response, &mut self.sink));
        // From the first answers on, a workload never names a policy that the client lacks.
        if self.answered.len() == 2 {
            for ((type_url, name), body) in &self.sink.0 {
                let is_named = type_url == ADDRESS && body[1] != 255;
                let policy = (AUTHORIZATION.to_owned(), policy_name(body.get(1).map_or(255, |p| *p)));
                // A refused change leaves the old workload behind, with the policy that it named.
                let is_refused = self.ever_bad.contains(name);
                assert!(!is_named || is_refused || self.sink.0.contains_key(&policy), "{name}");
            }
        }
    }

    fn deliver_to_server(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            let handled = self.server.handle(request, &self.published).unwrap();
            self.to_client.extend(handled.responses.iter().map(Answer::to_message));
        }
    }

    fn demand(&mut self, name: String) {
        self.to_server.extend(self.client.demand(ADDRESS, &name));
        self.demanded.insert(name);
    }

    fn reconnect(&mut self) {
        self.client.reconnect();
        self.server = Server::new(Some(NODE.to_owned()));
        self.to_client.clear();
        self.to_server = self.client.initial_requests().into();
        self.answered.clear();
        self.demanded.clear();
    }

    /// Pushes and delivers everything that is under way.
    fn settle(&mut self) {
        self.push();
        while !self.to_client.is_empty() || !self.to_server.is_empty() {
            self.deliver_to_server();
            self.deliver_to_client();
        }
    }

    fn check(&self) {
        for type_url in [ADDRESS, AUTHORIZATION] {
            let set = self.published.of_type(type_url).unwrap();
            let wildcard = !(self.on_demand && type_url == ADDRESS);
            for resource in set.iter().filter(|r| r.body[0] != BAD) {
                let got = self.sink.0.get(&(type_url.to_owned(), resource.name.to_string()));
                if wildcard || self.must_have(resource) {
                    assert_eq!(got.map(Vec::as_slice), Some(&resource.body[..]), "{}", resource.name);
                    let held = self.client.held(type_url).unwrap().get(&resource.name);
                    assert_eq!(held.as_deref(), Some(resource.version.to_string().as_str()));
                }
            }
            // What was refused is not reported as held: after a reconnect it is offered again.
            for resource in set.iter().filter(|r| r.body[0] == BAD) {
                let held = self.client.held(type_url).unwrap().get(&resource.name);
                assert_ne!(held.as_deref(), Some(resource.version.to_string().as_str()));
            }
            // And nothing that the server doesn't have, or no longer has so.
            for ((held_type, name), body) in &self.sink.0 {
                if held_type == type_url {
                    let mut same = set.get(name).into_iter().chain(set.by_alias(name));
                    let is_current = same.any(|r| r.body == *body || r.body[0] == BAD);
                    assert!(is_current, "stale {name}");
                }
            }
        }
    }

    /// The oracle of on-demand: asked for on this stream by name or alias, following such a one, or on this node.
    fn must_have(&self, resource: &Resource) -> bool {
        let set = self.published.of_type(ADDRESS).unwrap();
        let is_asked = |r: &Resource| {
            let by_alias = r.aliases.iter().any(|alias| self.demanded.contains(&**alias));
            self.demanded.contains(&*r.name) || by_alias
        };
        let leaders = resource.follows.iter().filter_map(|name| set.get(name));
        resource.node.is_some() || is_asked(resource) || leaders.into_iter().any(|r| is_asked(r))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_client_ends_with_the_servers_set(
        ops in proptest::collection::vec(op(), 0..80),
        on_demand: bool,
    ) {
        let mut world = World::new(on_demand);
        for op in &ops {
            world.run(op);
        }
        world.settle();
        world.check();
        // With everything delivered, there is nothing more to say, and a new stream changes nothing.
        assert!(world.server.push(&world.published).is_empty());
        world.reconnect();
        world.settle();
        world.check();
    }

    #[test]
    fn a_set_that_grew_equals_one_that_was_built(ops in proptest::collection::vec(op(), 0..60)) {
        let mut world = World::new(false);
        let mut past = Vec::new();
        for op in &ops {
            past.push(world.draft.clone());
            world.run(op);
        }
        let grown = &world.draft;
        let mut built = ResourceSet::of_types([ADDRESS, AUTHORIZATION]);
        for type_url in [ADDRESS, AUTHORIZATION] {
            for resource in grown.of_type(type_url).unwrap().iter() {
                built.upsert((**resource).clone());
            }
        }
        assert_eq!(&built, grown);
        let (new, old) = (built.of_type(ADDRESS).unwrap(), grown.of_type(ADDRESS).unwrap());
        let names = |set: Vec<&str>| set.into_iter().map(str::to_owned).collect::<Vec<_>>();
        for n in 0..6 {
            let of = |set: &aquifer_xds::resource::TypeSet| {
                (
                    names(set.by_alias(&alias_name(n)).iter().map(|r| &*r.name).collect()),
                    names(set.followers(&address_name(n)).iter().map(|r| &*r.name).collect()),
                    names(set.on_node(NODE).iter().map(|r| &*r.name).collect()),
                )
            };
            assert_eq!(of(new), of(old));
        }
        assert_eq!(new.len(), old.len());
        // The difference to any earlier snapshot leads from it to here.
        for earlier in past {
            let mut replayed = earlier.clone();
            let from = earlier.of_type(ADDRESS).unwrap();
            let to = grown.of_type(ADDRESS).unwrap();
            let delta = to.since(from);
            let expect_gone: BTreeSet<&str> = from
                .iter()
                .map(|r| &*r.name)
                .filter(|name| to.get(name).is_none())
                .collect();
            assert_eq!(delta.removed.iter().map(|r| &*r.name).collect::<BTreeSet<_>>(), expect_gone);
            for resource in &delta.upserts {
                replayed.upsert((**resource).clone());
            }
            for resource in &delta.removed {
                replayed.remove(ADDRESS, &resource.name);
            }
            let versions = |set: &ResourceSet| {
                let all = set.of_type(ADDRESS).unwrap().iter();
                all.map(|r| (r.name.clone(), r.version)).collect::<BTreeMap<_, _>>()
            };
            assert_eq!(versions(&replayed), versions(grown));
        }
    }
}
