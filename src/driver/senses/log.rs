//! The kernel's log: the worst errors need not be reported any other way.

use std::{convert::Infallible, io, path::Path, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::Pause;
use crate::{
    driver::{Driver, machine::Library},
    model::health::{
        Health,
        kernel_log::{self, LoggedXid},
    },
    node::kernel_log::{Entry, KernelLog},
};

/// As people know this source.
const SOURCE: &str = "kernel log";

impl Driver {
    /// Takes in what the kernel's log says of GPUs, from the start of the boot on.
    pub(super) async fn follow_log(self: &Arc<Self>) {
        let Some(path) = &self.health.kernel_log else { return };
        let mut pause = Pause::new();
        loop {
            let began = Instant::now();
            let problem = match self.read_log(path).await {
                Ok(never) => match never {},
                Err(error) => format!("`{}`: {error}", path.display()),
            };
            self.health.hears(SOURCE, Some(&problem));
            sleep(pause.after(began)).await;
        }
    }

    async fn read_log(&self, path: &Path) -> io::Result<Infallible> {
        let mut log = KernelLog::open(path)?;
        self.health.hears(SOURCE, None);
        loop {
            let entry = log.next().await?;
            if let Some(logged) = kernel_log::parse(&entry.text) {
                self.take_logged(&entry, &logged).await;
            } else if kernel_log::says_driver_loaded(&entry.text) {
                self.note_loaded(&entry);
            }
        }
    }

    async fn take_logged(&self, entry: &Entry, logged: &LoggedXid) {
        // The log may be read before the GPUs are.
        let mut machine = self.machine.watch();
        let loaded = machine.wait_for(|library| matches!(library, Library::Loaded(_))).await;
        let inventory = match loaded.as_deref() {
            Ok(Library::Loaded(inventory)) => inventory.clone(),
            _ => return,
        };
        match inventory.known().into_iter().find(|gpu| gpu.pci == logged.pci) {
            Some(gpu) => self.sense_logged(gpu, &logged.sign, entry, self.time_of(entry)),
            None => tracing::warn!(line = entry.text, "of a GPU that is not known"),
        }
    }

    /// What was before a load of the driver is over with it, also where nobody saw it.
    fn note_loaded(&self, entry: &Entry) {
        if self.has_read(entry) {
            return;
        }
        let at = self.time_of(entry);
        let gpus: Vec<_> = self.findings().0.keys().cloned().collect();
        if !gpus.is_empty() {
            let reset = |health: &mut Health| gpus.iter().for_each(|gpu| health.reset(gpu, at));
            self.change_kept(reset, Some(entry));
        }
    }

    /// When a line was written.
    fn time_of(&self, entry: &Entry) -> Timestamp {
        let now = Timestamp::now();
        let age = match self.machine.host().uptime() {
            Some(uptime) if entry.history => uptime.saturating_sub(entry.since_boot),
            _ => return now,
        };
        now.checked_sub(age).unwrap_or(now)
    }
}
