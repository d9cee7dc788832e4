//! Who leads a folder: the process that holds the lock of a file in it. The kernel takes it from one that died.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::RETRY;

#[derive(Debug)]
pub(super) struct FileLock {
    path: PathBuf,
}

impl FileLock {
    pub(super) fn new(root: &Path, name: &str) -> Self {
        // Readers of the folder pass over names that begin with a dot.
        Self { path: root.join(format!(".{name}.lock")) }
    }

    pub(super) async fn run(self, leading: &watch::Sender<bool>, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let held = loop {
            match self.take() {
                Ok(held) => break held,
                Err(()) => tokio::select! {
                    biased;
                    () = &mut end => return,
                    () = tokio::time::sleep(RETRY) => {}
                },
            }
        };
        leading.send_replace(true);
        end.await;
        leading.send_replace(false);
        drop(held);
    }

    /// The lock, or nothing where none can be had and we lead all the same; fails while another holds it.
    fn take(&self) -> Result<Option<File>, ()> {
        let locked = File::options().create(true).truncate(false).write(true).open(&self.path).map(|file| {
            let locked = file.try_lock();
            (file, locked)
        });
        match locked {
            Ok((file, Ok(()))) => Ok(Some(file)),
            Ok((_, Err(TryLockError::WouldBlock))) => Err(()),
            Ok((_, Err(TryLockError::Error(error)))) | Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot be locked: leading without");
                Ok(None)
            }
        }
    }
}
