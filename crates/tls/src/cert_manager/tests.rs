use super::*;
use crate::bundle::BundleError;
use crate::testing::*;
use aquifer_runtime::Tracker;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::sync::Semaphore;

mod rotation;

/// Answers as told: one permit for each fetch that may go on.
#[derive(Clone)]
struct FakeCa(Arc<Fake>);

struct Fake {
    ca: TestCa,
    gate: Semaphore,
    fail: parking_lot::Mutex<bool>,
    refused: parking_lot::Mutex<Option<Identity>>,
    ttl: i64,
    calls: parking_lot::Mutex<Vec<Identity>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl CaClient for FakeCa {
    async fn fetch(&self, identity: &Identity) -> Result<CertBundle, CaError> {
        let fake = &self.0;
        fake.calls.lock().push(identity.clone());
        fake.most.fetch_max(fake.running.fetch_add(1, SeqCst) + 1, SeqCst);
        fake.gate.acquire().await.unwrap().forget();
        fake.running.fetch_sub(1, SeqCst);
        if *fake.fail.lock() || fake.refused.lock().as_ref() == Some(identity) {
            return Err(BundleError::TooShort(0).into());
        }
        Ok(fake.ca.bundle(identity, fake.ttl))
    }
}

struct Bench {
    manager: CertManager,
    ca: FakeCa,
    cancel: Cancel,
}

fn bench(permits: usize) -> Bench {
    let fake = Fake {
        ca: TestCa::new(),
        gate: Semaphore::new(permits),
        fail: false.into(),
        refused: None.into(),
        ttl: 24 * 3600,
        calls: Vec::new().into(),
        running: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    };
    let (manager, ca, cancel) = (CertManager::new(), FakeCa(Arc::new(fake)), Cancel::new());
    let (m, c, t) = (manager.clone(), ca.clone(), cancel.clone());
    Tracker::new().spawn("cert-manager", async move { m.run(c, t).await });
    Bench { manager, ca, cancel }
}

impl Bench {
    fn calls(&self) -> usize {
        self.ca.0.calls.lock().len()
    }

    fn fail(&self, fail: bool) {
        *self.ca.0.fail.lock() = fail;
    }
}

/// Lets everything run until nothing can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

const HOUR: Duration = Duration::from_secs(3600);

/// When even these tests don't wait any longer.
fn late() -> Instant {
    Instant::now() + 48 * HOUR
}

#[tokio::test(start_paused = true)]
async fn get_waits_for_the_first_and_then_does_not() {
    let b = bench(0);
    assert!(matches!(b.manager.get(&server_id(), late()).await, Err(CertError::NotWanted(_))));
    b.manager.want(&server_id());
    settle().await;
    assert!(b.manager.current(&server_id()).is_none());
    assert!(matches!(b.manager.dump()[0].state, CertState::Initializing));
    let wanted = server_id();
    let get = b.manager.get(&wanted, late());
    tokio::pin!(get);
    assert!(tokio::time::timeout(HOUR, &mut get).await.is_err());
    b.ca.0.gate.add_permits(100);
    let configs = get.await.unwrap();
    assert_eq!((configs.identity(), configs.generation), (&server_id(), 1));
    assert_eq!(b.manager.current(&server_id()).unwrap().generation, 1);
    assert!(matches!(b.manager.dump()[0].state, CertState::Available));
    assert_eq!((configs.chain().len(), configs.roots().len()), (1, 1));
    assert_eq!(b.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_more_time_is_told_whose_certificate_is_missing_and_why() {
    let b = bench(0);
    b.manager.want(&server_id());
    let since = Instant::now();
    let error = b.manager.get(&server_id(), since + Duration::from_secs(10)).await.err().unwrap();
    assert_eq!(since.elapsed(), Duration::from_secs(10));
    assert_eq!(error.reason(), aquifer_core::reason::Reason::IdentityUnavailable);
    let expected = format!("no certificate for {}: the certificate authority has not answered for 10s", server_id());
    assert_eq!(error.to_string(), expected);
    b.ca.0.gate.add_permits(1);
    b.manager.get(&server_id(), Instant::now() + HOUR).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_an_authority_nobody_waits() {
    let manager = CertManager::without_authority(TlsOptions::default());
    manager.want(&server_id());
    let since = Instant::now();
    let error = manager.get(&server_id(), since + HOUR).await.err().unwrap();
    assert_eq!(since.elapsed(), Duration::ZERO);
    assert_eq!(error.reason(), aquifer_core::reason::Reason::IdentityUnavailable);
    assert!(
        error.to_string().contains(&server_id().to_string()) && error.to_string().contains("CA_ADDRESS"),
        "{error}"
    );
    assert!(matches!(manager.dump()[0].state, CertState::Unavailable(CertError::NoAuthority(_))));
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life_and_keeps_the_old_one_through_failures() {
    let b = bench(1000);
    b.manager.want(&server_id());
    let first = b.manager.get(&server_id(), late()).await.unwrap();
    tokio::time::sleep(10 * HOUR).await;
    assert_eq!(b.calls(), 1);
    b.fail(true);
    tokio::time::sleep(4 * HOUR).await;
    assert!(b.calls() > 10, "it keeps trying");
    assert!(Arc::ptr_eq(&first, &b.manager.get(&server_id(), late()).await.unwrap()), "nobody notices");
    assert!(matches!(b.manager.dump()[0].state, CertState::Available));
    b.fail(false);
    tokio::time::sleep(Duration::from_secs(200)).await;
    let second = b.manager.get(&server_id(), late()).await.unwrap();
    assert!(second.generation > first.generation);
    assert_ne!(second.leaf().serial, first.leaf().serial);
    assert!(!Arc::ptr_eq(&second.server, &first.server));
}

#[tokio::test(start_paused = true)]
async fn without_a_certificate_the_error_comes_at_once() {
    let b = bench(1000);
    b.fail(true);
    b.manager.want(&server_id());
    let error = b.manager.get(&server_id(), late()).await.err().unwrap();
    assert!(matches!(&error, CertError::Fetch { identity, .. } if *identity == server_id()));
    assert_eq!(error.reason(), aquifer_core::reason::Reason::IdentityUnavailable);
    tokio::time::sleep(HOUR).await;
    let start = Instant::now();
    assert!(b.manager.get(&server_id(), late()).await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(matches!(b.manager.dump()[0].state, CertState::Unavailable(_)));
    // The next attempt works, and the error is gone.
    b.fail(false);
    tokio::time::sleep(Duration::from_secs(200)).await;
    b.manager.get(&server_id(), late()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_first_failure_is_retried_within_a_moment() {
    let b = bench(1000);
    b.fail(true);
    b.manager.want(&server_id());
    settle().await;
    b.fail(false);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(b.manager.current(&server_id()).is_some());
}

#[tokio::test(start_paused = true)]
async fn whose_certificate_cannot_be_had_is_reported_and_holds_up_nobody() {
    let b = bench(1000);
    *b.ca.0.refused.lock() = Some(server_id());
    b.manager.want(&server_id());
    let others: Vec<_> = (0..20).map(|n| Identity::new("cluster.local", "shop", format!("s{n}"))).collect();
    others.iter().for_each(|other| b.manager.want(other));
    settle().await;
    assert!(others.iter().all(|other| b.manager.current(other).is_some()));
    for status in b.manager.dump() {
        let unavailable = matches!(status.state, CertState::Unavailable(_));
        assert_eq!(unavailable, status.identity == server_id(), "{}", status.identity);
    }
    tokio::time::sleep(HOUR).await;
    let tries = b.ca.0.calls.lock().iter().filter(|who| **who == server_id()).count();
    assert!((20..60).contains(&tries), "{tries} in an hour: it is tried on, and not all the time");
    *b.ca.0.refused.lock() = None;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(b.manager.current(&server_id()).is_some());
}

#[tokio::test(start_paused = true)]
async fn eight_fetches_at_once() {
    let b = bench(0);
    for n in 0..30 {
        b.manager.want(&Identity::new("cluster.local", "shop", format!("s{n}")));
    }
    settle().await;
    assert_eq!((b.calls(), b.ca.0.running.load(SeqCst)), (8, 8));
    b.ca.0.gate.add_permits(1000);
    settle().await;
    assert_eq!((b.calls(), b.ca.0.most.load(SeqCst)), (30, 8));
    assert!(b.manager.dump().iter().all(|c| matches!(c.state, CertState::Available)));
}

#[tokio::test(start_paused = true)]
async fn wants_are_counted_and_the_forgotten_are_dropped() {
    let b = bench(1000);
    b.manager.want(&server_id());
    b.manager.want(&server_id());
    b.manager.get(&server_id(), late()).await.unwrap();
    b.manager.forget(&server_id());
    assert!(b.manager.current(&server_id()).is_some());
    b.manager.forget(&server_id());
    assert!(b.manager.current(&server_id()).is_none() && b.manager.dump().is_empty());
    tokio::time::sleep(48 * HOUR).await;
    assert_eq!(b.calls(), 1, "no renewal");
    b.manager.forget(&server_id());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_forgotten_identity_is_told() {
    let b = bench(0);
    b.manager.want(&server_id());
    let (manager, id) = (b.manager.clone(), server_id());
    let get = tokio::join!(manager.get(&id, late()), async {
        settle().await;
        b.manager.forget(&server_id());
    });
    assert!(matches!(get.0, Err(CertError::NotWanted(_))));
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_the_process() {
    let b = bench(1000);
    b.manager.want(&server_id());
    b.manager.get(&server_id(), late()).await.unwrap();
    b.cancel.drain();
    tokio::time::sleep(48 * HOUR).await;
    assert_eq!(b.calls(), 1);
    assert!(b.manager.current(&server_id()).is_some(), "what runs keeps its certificate");
}

/// Workers are threads with runtimes of their own.
#[test]
fn get_works_from_another_runtime() {
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let b = control.block_on(async { bench(0) });
    b.manager.want(&server_id());
    let manager = b.manager.clone();
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { manager.get(&server_id(), late()).await.map(|c| c.generation) })
    });
    b.ca.0.gate.add_permits(1);
    assert_eq!(worker.join().unwrap().unwrap(), 1);
}

#[test]
fn an_expired_certificate_is_none() {
    let ca = TestCa::new();
    let expired = Some(Arc::new(ca.configs(&server_id(), -60)));
    let cert = Cert { configs: expired.clone(), error: None };
    assert!(matches!(cert.outcome(&server_id()), Some(Err(CertError::Expired(_)))));
    let error = Some(Arc::new(CaError::from(BundleError::TooShort(1))));
    let cert = Cert { configs: expired, error: error.clone() };
    assert!(matches!(cert.outcome(&server_id()), Some(Err(CertError::Fetch { .. }))));
    assert!(matches!(cert.status(&server_id()).state, CertState::Unavailable(_)));
    let valid = Some(Arc::new(ca.configs(&server_id(), 60)));
    assert!(matches!(Cert { configs: valid, error }.outcome(&server_id()), Some(Ok(_))));
}

/// A handshake takes what is there: between two renewals everybody is handed the same finished configurations.
#[tokio::test(start_paused = true)]
async fn a_handshake_builds_nothing() {
    let b = bench(1000);
    b.manager.want(&server_id());
    let first = b.manager.get(&server_id(), late()).await.unwrap();
    let (server, client) = (first.server.clone(), first.client_config(&[client_id()]));
    for _ in 0..100 {
        let configs = b.manager.get(&server_id(), late()).await.unwrap();
        assert!(Arc::ptr_eq(&configs.server, &server) && Arc::ptr_eq(&configs.client_config(&[client_id()]), &client));
        assert!(Arc::ptr_eq(server.crypto_provider(), client.crypto_provider()), "both ends' share one provider");
        let (_, far) = shake(b.ca.0.ca.configs(&client_id(), 60).client_config(&[server_id()]), server.clone()).await;
        far.unwrap();
    }
    // Half of a day, and the jitter's tenth.
    tokio::time::sleep(14 * HOUR).await;
    let renewed = b.manager.get(&server_id(), late()).await.unwrap();
    assert!(!Arc::ptr_eq(&renewed.server, &server) && !Arc::ptr_eq(&renewed.client_config(&[client_id()]), &client));
}
