//! Asking for single resources from elsewhere in the process (on-demand mode).

use tokio::sync::{mpsc, oneshot};

/// Asks for resources; clones share one client.
#[derive(Clone, Debug)]
pub struct Demander {
    asks: mpsc::Sender<Demand>,
}

/// The driver's end.
#[derive(Debug)]
pub struct Demands {
    pub(super) asks: mpsc::Receiver<Demand>,
}

/// One question.
#[derive(Debug)]
pub struct Demand {
    pub(super) type_url: String,
    pub(super) name: String,
    pub(super) answered: oneshot::Sender<()>,
}

// More askers than this wait for a place: each is a connection that cannot go on without its answer anyway.
const PENDING: usize = 1024;

/// A pair of ends.
pub fn channel() -> (Demander, Demands) {
    let (tx, rx) = mpsc::channel(PENDING);
    (Demander { asks: tx }, Demands { asks: rx })
}

impl Demands {
    /// The next question; none when nobody is left who could ask.
    pub async fn next(&mut self) -> Option<Demand> {
        self.asks.recv().await
    }
}

impl Demand {
    /// The type and name that are asked for.
    pub fn wanted(&self) -> (&str, &str) {
        (&self.type_url, &self.name)
    }

    /// Tells who asked that the answer is there.
    pub fn answer(self) {
        // Whoever asked may have given up.
        let _ = self.answered.send(());
    }
}

impl Demander {
    /// Ends when the server has answered for `name`: the sink has it by then, or it doesn't exist.
    /// `false` if the client is gone. Callers bound the wait themselves.
    pub async fn demand(&self, type_url: &str, name: &str) -> bool {
        let (tx, rx) = oneshot::channel();
        let demand = Demand { type_url: type_url.to_owned(), name: name.to_owned(), answered: tx };
        self.asks.send(demand).await.is_ok() && rx.await.is_ok()
    }
}
