use std::net::{Ipv4Addr, SocketAddr};

use aquifer_core::authz::Connection;
use aquifer_core::identity::Identity;
use aquifer_core::reason::Reason;
use aquifer_core::state::Update;
use aquifer_core::store;
use aquifer_proto::security::{Action, Scope};
use aquifer_tls::CertManager;
use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::*;
use crate::certs::Identities;
use crate::inpod::zds::PodUid;
use crate::mesh::{MeshSink, grace};
use crate::proxy::conn_table::{ConnTable, View};
use crate::testing::{namespace_policy, pod, policy, workload};

const WAIT: Duration = Duration::from_secs(2);

/// A pod `web` of this node, and somebody who connects to it.
struct Fixture {
    sink: MeshSink,
    state: store::Reader,
    published: watch::Receiver<u64>,
    changes: mpsc::UnboundedReceiver<crate::mesh::Change>,
    table: ConnTable,
}

impl Fixture {
    fn new(settings: grace::Settings) -> Self {
        let (writer, state) = store::store();
        let (published, published_rx) = watch::channel(0);
        let (changes, changes_rx) = mpsc::unbounded_channel();
        let identities = Identities::new("node1", CertManager::new());
        let sink = MeshSink::new(writer, identities, published, changes).with_grace(settings);
        Self { sink, state, published: published_rx, changes: changes_rx, table: ConnTable::default() }
    }

    fn publish(&mut self, update: Update) {
        self.sink.publish(vec![update]);
    }

    /// The workload, naming these policies.
    fn name(&mut self, policies: &[&str]) {
        let mut web = pod("shop", "web", [10, 0, 0, 1]);
        web.authorization_policies = policies.iter().map(|name| (*name).to_owned()).collect();
        self.publish(Update::Workload(workload(web)));
    }

    fn policy(&mut self, name: &str, action: Action, callers: &[&str]) {
        let mut selected = namespace_policy("shop", name, action, callers);
        selected.scope = Scope::WorkloadSelector as i32;
        self.publish(Update::Policy(policy(&selected)));
    }

    fn connect(&self, from: &str) -> Guard {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let view = View { src: addr, original_dst: None, actual_dst: addr, protocol: "HBONE" };
        let judged = Connection {
            destination: self.state.load().workload_by_uid("Kubernetes//Pod/shop/web").unwrap().clone(),
            identity: Some(Identity::new("cluster.local", from, "sa")),
            source_ip: Ipv4Addr::new(10, 0, 0, 9).into(),
            destination_addr: SocketAddr::from(([10, 0, 0, 1], 80)),
        };
        self.table.open_inbound(&PodUid::new("1"), view, judged)
    }

    async fn admit(&self, guard: &Guard) -> Result<(), Failure> {
        admit(guard, || self.state.load(), self.published.clone(), WAIT, false).await
    }

    /// What the control thread does after each publication.
    fn judge_again(&mut self) -> usize {
        let mut cut = 0;
        while let Ok(change) = self.changes.try_recv() {
            cut += self.table.reauthorize(&self.state.load(), change.policies);
        }
        cut
    }
}

fn giving_up(sink: &MeshSink) -> impl Future<Output = ()> + use<> {
    sink.clone().give_up_policies()
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_comes_late_cuts_and_refuses_nobody_whom_it_allows() {
    for (action, callers, good, bad) in
        [(Action::Allow, "good", true, false), (Action::Deny, "bad", true, false), (Action::Deny, "good", false, true)]
    {
        let mut f = Fixture::new(grace::Settings::default());
        f.name(&[]);
        let open = ["good", "bad"].map(|from| f.connect(from));
        for guard in &open {
            assert_eq!(f.admit(guard).await, Ok(()));
        }
        // The workload comes first, as from Istio.
        f.name(&["shop/late"]);
        assert_eq!(f.judge_again(), 0);
        let new = ["good", "bad"].map(|from| f.connect(from));
        let mut give_up = Box::pin(giving_up(&f.sink));
        {
            let both = async { tokio::join!(f.admit(&new[0]), f.admit(&new[1])) };
            tokio::pin!(both);
            tokio::select! {
                decided = &mut both => panic!("{decided:?} before the policy was there"),
                () = &mut give_up => unreachable!(),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            let mut sink = f.sink.clone();
            let mut late = namespace_policy("shop", "late", action, &[callers]);
            late.scope = Scope::WorkloadSelector as i32;
            sink.publish(vec![Update::Policy(policy(&late))]);
            let (first, second) = both.await;
            assert_eq!((first.is_ok(), second.is_ok()), (good, bad), "{action:?} {callers}");
        }
        f.judge_again();
        let is_open = |guard: &Guard| guard.cut().now_or_never().is_none();
        assert_eq!((is_open(&open[0]), is_open(&open[1])), (good, bad), "{action:?} {callers}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_never_comes_denies_when_its_time_is_up() {
    let mut f = Fixture::new(grace::Settings::default());
    f.name(&[]);
    let open = f.connect("good");
    f.admit(&open).await.unwrap();
    f.name(&["shop/never"]);
    let begin = Instant::now();
    let give_up = giving_up(&f.sink);
    let (early, late) = (f.connect("good"), f.connect("good"));
    let decided = async {
        let early = f.admit(&early);
        let late = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            f.admit(&late).await
        };
        let (early, late) = tokio::join!(early, late);
        for failure in [early.unwrap_err(), late.unwrap_err()] {
            assert_eq!((failure.reason, failure.policy.as_deref()), (Reason::PolicyUnknown, Some("shop/never")));
        }
        // The policy's time, not the connection's.
        assert_eq!(begin.elapsed(), WAIT);
    };
    tokio::select! {
        biased;
        () = decided => {}
        () = give_up => unreachable!(),
    }
    drop((early, late));
    assert_eq!(f.judge_again(), 1);
    let failure = open.cut().now_or_never().unwrap();
    assert_eq!((failure.reason, failure.policy.as_deref()), (Reason::PolicyChanged, Some("shop/never")));
    // From now on at once; and when it comes after all, it counts.
    let now = f.connect("good");
    assert!(f.admit(&now).now_or_never().unwrap().is_err());
    f.policy("never", Action::Allow, &["good"]);
    assert_eq!(f.admit(&now).now_or_never(), Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_no_longer_than_the_grace_whatever_is_named_meanwhile() {
    let mut f = Fixture::new(grace::Settings::default());
    f.name(&["shop/a"]);
    let guard = f.connect("good");
    let begin = Instant::now();
    let (state, published) = (f.state.clone(), f.published.clone());
    let waiting = admit(&guard, || state.load(), published, WAIT, false);
    let flapping = async {
        for n in 0.. {
            tokio::time::sleep(Duration::from_millis(300)).await;
            f.name(&[&format!("shop/{n}")]);
        }
    };
    tokio::select! {
        refused = waiting => assert_eq!(refused.unwrap_err().reason, Reason::PolicyUnknown),
        () = flapping => unreachable!(),
    }
    assert_eq!(begin.elapsed(), WAIT);
}

#[tokio::test(start_paused = true)]
async fn each_workload_and_policy_has_its_own_time_and_a_new_naming_a_new_one() {
    let mut f = Fixture::new(grace::Settings { wait: Duration::from_secs(4), skip: false });
    let awaited = |f: &Fixture| {
        let state = f.state.load();
        let web = state.workload_by_uid("Kubernetes//Pod/shop/web").unwrap();
        let late = |key: &&aquifer_core::policy::PolicyKey| {
            state.unknown_policy(web, key) == aquifer_core::state::UnknownPolicy::Await
        };
        web.authorization_policies.iter().filter(late).map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let mut give_up = Box::pin(giving_up(&f.sink));
    let seconds = async |n: u64, give_up: &mut std::pin::Pin<Box<_>>| {
        tokio::select! {
            biased;
            () = give_up => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(n)) => {}
        }
    };
    f.name(&["shop/a"]);
    seconds(3, &mut give_up).await;
    f.name(&["shop/a", "shop/b"]);
    assert_eq!(awaited(&f), "shop/a shop/b");
    seconds(1, &mut give_up).await;
    assert_eq!(awaited(&f), "shop/b");
    // Another change of the workload gives no more time; taking the name back and giving it again does.
    f.name(&["shop/b", "shop/a"]);
    assert_eq!(awaited(&f), "shop/b");
    f.name(&["shop/b"]);
    f.name(&["shop/b", "shop/a"]);
    assert_eq!(awaited(&f), "shop/b shop/a");
    seconds(3, &mut give_up).await;
    assert_eq!(awaited(&f), "shop/a");
    // One that is taken away while it is named is missed just as well.
    f.policy("a", Action::Allow, &["good"]);
    assert_eq!(awaited(&f), "");
    f.publish(Update::RemovePolicy("shop/a".into()));
    assert_eq!(awaited(&f), "shop/a");
    seconds(4, &mut give_up).await;
    assert_eq!(awaited(&f), "");
    assert_eq!(f.sink.clone().give_up_policies().now_or_never(), None, "nothing left to wait for");
}

#[tokio::test(start_paused = true)]
async fn as_istio_does_if_told_so() {
    let mut f = Fixture::new(grace::Settings { wait: WAIT, skip: true });
    f.name(&["shop/never"]);
    let guard = f.connect("good");
    assert_eq!(f.admit(&guard).now_or_never(), Some(Ok(())));
    f.name(&["shop/never", "shop/neither"]);
    assert_eq!(f.judge_again(), 0);
    // Without a grace: at once.
    let mut f = Fixture::new(grace::Settings { wait: Duration::ZERO, skip: false });
    f.name(&["shop/never"]);
    let guard = f.connect("good");
    assert_eq!(f.admit(&guard).now_or_never().unwrap().unwrap_err().reason, Reason::PolicyUnknown);
}
