//! Where signs of health come from: NVML's events, the kernel's log, and readings. Each may be missing.

mod events;
mod log;
mod readings;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Driver;

/// How long to wait before a source that failed is tried again: longer each time, until it has worked for a
/// while.
struct Pause(Duration);

impl Pause {
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(30);

    fn new() -> Self {
        Self(Self::LEAST)
    }

    /// After an attempt that began then.
    fn after(&mut self, began: Instant) -> Duration {
        let pause = if began.elapsed() > Self::MOST { Self::LEAST } else { self.0 };
        self.0 = (pause * 2).min(Self::MOST);
        pause
    }
}

impl Driver {
    /// Watches over the GPUs' health for as long as it is polled.
    pub async fn watch_health(self: &Arc<Self>) {
        tokio::join!(self.hear_events(), self.follow_log(), self.take_readings());
    }
}
