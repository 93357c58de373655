//! Where signs of health come from: NVML's events, the kernel's log, and readings. Each may be missing.

mod events;
mod log;
mod readings;

use std::{sync::Arc, time::Duration};

use super::Driver;

/// Between attempts at a source that fails: at least and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Driver {
    /// Watches over the GPUs' health for as long as it is polled.
    pub async fn watch_health(self: &Arc<Self>) {
        tokio::join!(self.hear_events(), self.follow_log(), self.take_readings());
    }
}
