//! Looking at the GPUs again and again: administrators make MIG devices too, and drivers come and go.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use super::agent::Ready;
use crate::{
    cluster::events::Events,
    driver::{Driver, machine::Library},
    model::gpu::Inventory,
    node::{host, memory, store::Numbers},
};

/// How often all GPUs are read again: administrators make MIG devices too.
const RESCAN: Duration = Duration::from_secs(10);

/// How often a driver that is not there is looked for.
pub(super) const LOOK_FOR_DRIVER: Duration = Duration::from_secs(1);

impl Ready {
    /// Reads the GPUs again and again, and takes up a driver that comes back.
    pub(super) async fn rescan(&self, driver: &Arc<Driver>, events: &Events) {
        loop {
            let missing = matches!(&*self.machine.watch().borrow(), Library::Missing(_));
            tokio::select! {
                () = sleep(if missing { LOOK_FOR_DRIVER } else { RESCAN }) => {}
                () = self.machine.suspected(), if !missing => {}
            }
            self.look(driver, events).await;
            driver.clear_leftovers().await;
            memory::give_back();
            let found = matches!(&*self.machine.watch().borrow(), Library::Loaded(_));
            if missing && found {
                tracing::info!("the NVIDIA driver is there");
                driver.recover().await;
            }
        }
    }

    /// One look at the machine; numbers of GPUs that are new are kept for the rest of the boot.
    pub(super) async fn look(&self, driver: &Driver, events: &Events) {
        for warning in self.reporter.warn(host::bypasses(&self.host_root)) {
            tracing::warn!("{warning}");
            events.warn_node("ClaimsBypassed", &warning);
        }
        let known = self.machine.inventory();
        self.machine.read().await;
        tell_of_gpus(&known, &self.machine.inventory(), events);
        let (gpus, described) = (self.machine.numbers(), self.machine.described());
        let numbers = Numbers { boot_id: driver.boot_id().to_owned(), gpus, described };
        self.keep_numbers(numbers).await;
    }

    /// Writes the numbers unless they are written; what fails is tried again at the next look.
    async fn keep_numbers(&self, numbers: Numbers) {
        if *self.kept_numbers.borrow() == numbers {
            return;
        }
        let (store, kept) = (self.store.clone(), numbers.clone());
        match spawn_blocking(move || store.save_numbers(&kept)).await {
            Ok(Ok(())) => drop(self.kept_numbers.send_replace(numbers)),
            Ok(Err(error)) => tracing::error!(%error, "numbers of GPUs not kept"),
            Err(panic) => tracing::error!(%panic, "numbers of GPUs not kept"),
        }
    }
}

/// Says which GPUs have stopped to answer since `before`, and which answer again.
fn tell_of_gpus(before: &Inventory, now: &Inventory, events: &Events) {
    let silent = |of: &Inventory, index| of.unreadable.iter().any(|gpu| gpu.index == index);
    for gpu in now.unreadable.iter().filter(|gpu| !silent(before, gpu.index)) {
        let note = format!("GPU {} is not served: {}", gpu.index, gpu.reason);
        tracing::warn!("{note}");
        // Of one that is known its health tells.
        if gpu.uuid.is_none() {
            events.warn_node("GpuNotServed", &note);
        }
    }
    for gpu in now.gpus.iter().filter(|gpu| silent(before, gpu.index)) {
        tracing::info!(gpu = gpu.index, "served again");
    }
}
