//! Who leads, by a Lease on a real API server, whose leaders are killed in turn.

use std::time::{Duration, Instant};

use aquifer_objects::Source;
use aquifer_objects::lease::{DURATION, Leadership, RENEW_DEADLINE, RETRY};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::harness::{ApiServer, Link, eventually};
use crate::source::source_of;

struct Replica {
    leads: watch::Receiver<bool>,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(source: &Source, namespace: &str, identity: &str) -> Self {
        let (leadership, leads) = Leadership::new(source, namespace, "istiod-lite-leader", identity.to_owned());
        let (end, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(leadership.run(async {
            // Dropped without a word it is killed, and hears nothing.
            if ended.await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        Self { leads, end: Some(end), task }
    }

    fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    fn kill(self) {
        self.task.abort();
    }

    async fn stop(mut self) {
        let _ = self.end.take().expect("it runs").send(());
        self.task.await.expect("its end");
    }
}

async fn one_leads<'a>(what: &str, bound: Duration, replicas: &[&'a Replica]) -> &'a Replica {
    eventually(what, bound, async || {
        let leading: Vec<&'a Replica> = replicas.iter().copied().filter(|replica| replica.leads()).collect();
        assert!(leading.len() <= 1, "two lead");
        leading.first().copied().ok_or_else(|| "nobody leads".to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_follow_each_other_as_leaders_are_killed() {
    let server = ApiServer::shared().await;
    let source = source_of(&server.kubeconfig()).await;
    let namespace = server.namespace("lease").await;
    let first = Replica::start(&source, &namespace, "first");
    one_leads("the first leads", Duration::from_secs(2), &[&first]).await;
    let second = Replica::start(&source, &namespace, "second");
    tokio::time::sleep(RETRY * 2).await;
    assert!(first.leads() && !second.leads());

    let killed = Instant::now();
    first.kill();
    one_leads("the second leads", DURATION + RETRY * 2, &[&second]).await;
    assert!(killed.elapsed() >= DURATION - RETRY * 3, "not before the lease is over: {:?}", killed.elapsed());

    // One that says good-bye is followed at once.
    let third = Replica::start(&source, &namespace, "third");
    tokio::time::sleep(RETRY).await;
    let (second_leads, stopped) = (second.leads.clone(), Instant::now());
    second.stop().await;
    assert!(!*second_leads.borrow());
    one_leads("the third leads", RETRY * 2, &[&third]).await;
    println!("after a good-bye: {:?}", stopped.elapsed());

    let lease =
        server.get("coordination.k8s.io/v1", "Lease", &namespace, "istiod-lite-leader").await.expect("the lease");
    assert_eq!(lease["spec"]["holderIdentity"], "third");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_steps_down_before_another_leads() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace("lease").await;
    let link = Link::to(&server.address()).await;
    let near = source_of(&server.kubeconfig()).await;
    let far = source_of(&server.through(&server.kubeconfig(), &link)).await;
    let first = Replica::start(&far, &namespace, "far");
    one_leads("the far one leads", Duration::from_secs(2), &[&first]).await;
    let second = Replica::start(&near, &namespace, "near");
    tokio::time::sleep(RETRY).await;
    let cut = Instant::now();
    link.cut();
    eventually("the far one steps down", RENEW_DEADLINE, async || {
        // The other first: once that one leads, the far one must have stepped down before.
        let followed = second.leads();
        if !first.leads() {
            return Ok(());
        }
        assert!(!followed, "two lead");
        Err("it leads".to_owned())
    })
    .await;
    let stepped_down = cut.elapsed();
    one_leads("the near one leads", DURATION + RETRY * 2, &[&first, &second]).await;
    assert!(
        cut.elapsed() > stepped_down + RETRY,
        "stepped down after {stepped_down:?}, followed after {:?}",
        cut.elapsed()
    );
    link.mend();
    tokio::time::sleep(RETRY * 2).await;
    assert!(!first.leads() && second.leads());
    second.stop().await;
    first.stop().await;
}
