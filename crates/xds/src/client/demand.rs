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

#[derive(Debug)]
pub(super) struct Demand {
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

impl Demander {
    /// Ends when the server has answered for `name`: the sink has it by then, or it doesn't exist.
    /// `false` if the client is gone. Callers bound the wait themselves.
    pub async fn demand(&self, type_url: &str, name: &str) -> bool {
        let (tx, rx) = oneshot::channel();
        let demand = Demand { type_url: type_url.to_owned(), name: name.to_owned(), answered: tx };
        self.asks.send(demand).await.is_ok() && rx.await.is_ok()
    }
}
