//! A background task that ends with its owner.

use tokio::task::JoinHandle;

/// Aborted when dropped.
#[derive(Debug)]
pub(super) struct Task(Option<JoinHandle<()>>);

impl Task {
    /// Runs `work` on the current runtime.
    pub(super) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(tokio::spawn(work)))
    }

    /// Aborts it and returns when it has ended, with all that it owned dropped.
    pub(super) async fn end(mut self) {
        if let Some(handle) = self.0.take() {
            handle.abort();
            // Cancelled is what was asked for; a panic has printed itself.
            let _ended = handle.await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}
