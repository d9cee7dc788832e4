//! Who of several replicas writes. All of them serve.

use aquifer_objects::Source;
use aquifer_objects::lease::Leadership;
use aquifer_runtime::{Cancel, Tracker};
use tokio::sync::watch;

use crate::config::MeshConfig;

/// Whether this process leads its revision, now and later. At the end the leadership is given back, so that the next
/// replica need not wait until it runs out.
pub fn follow(source: &Source, mesh: &MeshConfig, tracker: &Tracker, cancel: &Cancel) -> watch::Receiver<bool> {
    // A pod that is restarted in place keeps its name, and is another candidate all the same.
    let identity = format!("{}_{:016x}", mesh.pod_name, rand::random::<u64>());
    let (leadership, leader) = Leadership::new(source, &mesh.root_namespace, &mesh.revision.lease(), identity);
    let cancel = cancel.clone();
    tracker.spawn("leader", async move { leadership.run(cancel.drained()).await });
    leader
}
