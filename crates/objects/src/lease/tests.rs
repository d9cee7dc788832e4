use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::*;

/// A lease in memory, and whether it can be reached.
#[derive(Clone, Debug, Default)]
struct Memory {
    held: Arc<Mutex<Option<(Record, u64)>>>,
    away: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
}

impl Memory {
    async fn reach(&self) -> Result<(), String> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        match self.away.load(Ordering::Relaxed) {
            true => Err("away".to_owned()),
            false => Ok(()),
        }
    }

    fn holder(&self) -> String {
        self.held.lock().as_ref().map(|(record, _)| record.holder.clone()).unwrap_or_default()
    }
}

impl Leases for Memory {
    async fn read(&self) -> Result<Option<Held>, String> {
        self.reach().await?;
        let held = self.held.lock().clone();
        Ok(held.map(|(record, version)| Held { record, version: version.to_string() }))
    }

    async fn write(&self, over: Option<&Held>, record: &Record) -> Result<bool, String> {
        self.reach().await?;
        let mut held = self.held.lock();
        let version = held.as_ref().map(|(_, version)| *version);
        if version.map(|version| version.to_string()) != over.map(|held| held.version.clone()) {
            return Ok(false);
        }
        *held = Some((record.clone(), version.unwrap_or_default() + 1));
        Ok(true)
    }
}

/// A running candidate; dropped, it is gone without a word.
struct Candidate {
    leading: watch::Receiver<bool>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Candidate {
    #[allow(clippy::disallowed_methods)] // A test's own task.
    fn start(memory: &Memory, identity: &str) -> Self {
        let (sender, leading) = watch::channel(false);
        let (end, ended) = tokio::sync::oneshot::channel();
        let lease = Lease::new(memory.clone(), identity.to_owned());
        let task = tokio::spawn(async move {
            lease
                .run(&sender, async {
                    let _ = ended.await;
                })
                .await;
        });
        Self { leading, end: Some(end), task }
    }

    async fn leads(&mut self) {
        self.leading.wait_for(|leads| *leads).await.unwrap();
    }

    fn kill(self) {
        self.task.abort();
        // Or it would hear its end.
        std::mem::forget(self.end);
    }

    async fn stop(mut self) {
        drop(self.end.take());
        self.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_next_takes_over_from_a_dead_one_when_its_lease_is_over() {
    let memory = Memory::default();
    let mut first = Candidate::start(&memory, "first");
    first.leads().await;
    let mut second = Candidate::start(&memory, "second");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(*first.leading.borrow() && !*second.leading.borrow());

    let killed = Instant::now();
    first.kill();
    second.leads().await;
    let waited = killed.elapsed();
    assert!(waited >= DURATION - RETRY && waited <= DURATION + RETRY * 3, "{waited:?}");
    assert_eq!(memory.holder(), "second");
    assert_eq!(memory.held.lock().as_ref().unwrap().0.transitions, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_gives_it_back_and_the_next_takes_over_at_once() {
    let memory = Memory::default();
    let mut first = Candidate::start(&memory, "first");
    first.leads().await;
    let mut second = Candidate::start(&memory, "second");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let ended = Instant::now();
    first.stop().await;
    assert_eq!(memory.holder(), "");
    second.leads().await;
    assert!(ended.elapsed() <= RETRY * 2, "{:?}", ended.elapsed());
}

#[tokio::test(start_paused = true)]
async fn never_two_whatever_fails() {
    for hang in [false, true] {
        let memory = Memory::default();
        let mut first = Candidate::start(&memory, "first");
        first.leads().await;
        // Only the first is cut off: it shares the record, but not the fault.
        let cut = Memory { held: Arc::clone(&memory.held), ..Memory::default() };
        let mut second = Candidate::start(&cut, "second");
        tokio::time::sleep(Duration::from_secs(30)).await;

        let since = Instant::now();
        if hang { &memory.hangs } else { &memory.away }.store(true, Ordering::Relaxed);
        first.leading.wait_for(|leads| !*leads).await.unwrap();
        let stepped_down = since.elapsed();
        assert!(stepped_down <= RENEW_DEADLINE, "{stepped_down:?}");
        assert!(!*second.leading.borrow(), "the other waits until the lease is over");
        second.leads().await;
        assert!(since.elapsed() >= stepped_down + Duration::from_secs(2), "{:?}", since.elapsed());

        // Back again, it follows.
        if hang { &memory.hangs } else { &memory.away }.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!*first.leading.borrow() && *second.leading.borrow());
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_that_start_together_one_leads_and_each_death_is_followed() {
    let memory = Memory::default();
    let mut candidates: Vec<Candidate> = (0..5).map(|n| Candidate::start(&memory, &format!("c{n}"))).collect();
    while !candidates.is_empty() {
        tokio::time::sleep(DURATION + RETRY * 3).await;
        let leading: Vec<usize> = (0..candidates.len()).filter(|&index| *candidates[index].leading.borrow()).collect();
        assert_eq!(leading.len(), 1, "of {}", candidates.len());
        candidates.remove(leading[0]).kill();
    }
}

#[tokio::test]
async fn a_folder_is_led_by_one_process_until_it_ends() {
    let root = tempfile::tempdir().unwrap();
    let source = Source::Folder(crate::Folder::new(root.path()));
    let lead = || Leadership::new(&source, "istio-system", "istiod-lite-leader", "me".to_owned());
    let (first, mut first_leads) = lead();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let first = first.run(async {
        let _ = ended.await;
    });
    let (second, mut second_leads) = lead();
    let second = second.run(std::future::pending());
    let mut second = std::pin::pin!(second);
    let story = async {
        first_leads.wait_for(|leads| *leads).await.unwrap();
        tokio::select! {
            () = &mut second => unreachable!(),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        assert!(!*second_leads.borrow());
        drop(end);
    };
    tokio::join!(first, story);
    tokio::select! {
        () = second => unreachable!(),
        leads = second_leads.wait_for(|leads| *leads) => assert!(*leads.unwrap()),
    }
}
