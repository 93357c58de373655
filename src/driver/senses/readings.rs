//! Readings: taken again and again, and soon after a sign.

use std::{collections::BTreeSet, future::pending, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::{
    driver::{Driver, machine::Library},
    model::{
        gpu::{Gpu, GpuUuid, Inventory, Unreadable},
        health::{Answer, Readings},
    },
};

/// How often every GPU's readings are taken.
const EVERY: Duration = Duration::from_secs(10);

/// How long after a sign a GPU is read again: the driver may take its time to say what it means.
const AFTER_SIGN: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];

/// How long one GPU's readings may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// `NVML_ERROR_GPU_IS_LOST`.
const LOST: u32 = 15;

impl Driver {
    /// Takes readings of all GPUs.
    pub(super) async fn take_readings(self: &Arc<Self>) {
        let mut machine = self.machine.watch();
        let mut asked = self.health.asked.lock().await;
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut soon: BTreeSet<(Instant, GpuUuid)> = BTreeSet::new();
        let mut loads = 0;
        loop {
            tokio::select! {
                _ = every.tick() => self.read_health_of_all().await,
                Ok(()) = machine.changed() => {
                    machine.mark_unchanged();
                    self.note_loads(&mut loads);
                    self.read_health_of_silent().await;
                }
                Some(gpu) = asked.recv() => {
                    soon.extend(AFTER_SIGN.map(|after| (Instant::now() + after, gpu.clone())));
                }
                () = reached(soon.first().map(|(at, _)| *at)) => {
                    if let Some((_, gpu)) = soon.pop_first() {
                        self.read_health_of(&gpu).await;
                    }
                }
                () = passed(self.health.due()) => {
                    self.change_health(|health| health.tick(Timestamp::now()));
                }
            }
        }
    }

    /// A driver that was loaded anew has started every GPU anew.
    fn note_loads(&self, noted: &mut u64) {
        let library = self.machine.watch().borrow().clone();
        let Library::Loaded(inventory) = library else { return };
        let loads = self.machine.loads();
        if *noted == 0 && loads > 0 {
            self.forget_replaced(&inventory);
        } else if *noted < loads {
            let now = Timestamp::now();
            self.change_health(|health| {
                inventory.known().iter().for_each(|gpu| health.reset(&gpu.uuid, now));
            });
        }
        *noted = loads;
    }

    /// What was known of GPUs that this boot has not seen is of no use any more.
    fn forget_replaced(&self, inventory: &Inventory) {
        let numbers = self.machine.numbers();
        self.change_health(|health| {
            for gpu in health.findings().0.keys() {
                if !numbers.contains_key(gpu) && inventory.gpu(gpu).is_none() {
                    health.replaced(gpu);
                }
            }
        });
    }

    async fn read_health_of_all(self: &Arc<Self>) {
        let inventory = self.machine.inventory();
        let gpus = inventory.gpus.iter().map(|gpu| self.clone().read_health(gpu.clone()));
        let reads: Vec<_> = gpus.map(tokio::spawn).collect();
        for read in reads {
            if let Err(panic) = read.await {
                tracing::error!(%panic, "readings not taken");
            }
        }
        self.read_health_of_silent().await;
        self.change_health(|health| health.tick(Timestamp::now()));
    }

    async fn read_health_of_silent(self: &Arc<Self>) {
        let inventory = self.machine.inventory();
        for silent in &inventory.unreadable {
            self.read_silent(silent).await;
        }
        if let Library::Missing(_) = &*self.machine.watch().borrow() {
            return;
        }
        let gone =
            |uuid: &&GpuUuid| inventory.gpu(uuid).is_none() && inventory.silence(uuid).is_none();
        for uuid in self.machine.numbers().keys().filter(gone) {
            self.diagnose(uuid, &Readings { answer: Answer::Gone, ..Readings::default() });
        }
    }

    async fn read_silent(self: &Arc<Self>, silent: &Unreadable) {
        let Some(uuid) = &silent.uuid else { return };
        let answer = if silent.lost {
            Answer::Error(LOST, silent.reason.clone())
        } else if let Some((_, call)) = self.machine.hung_on(uuid) {
            Answer::Hangs(call.to_string())
        } else {
            // What exactly it answers, the same calls on the GPU as it was tell.
            if let Some(gpu) = &silent.known {
                self.clone().read_health(Gpu::clone(gpu)).await;
            }
            return;
        };
        self.diagnose(uuid, &Readings { answer, ..Readings::default() });
    }

    pub(in crate::driver) async fn read_health_of(self: &Arc<Self>, uuid: &GpuUuid) {
        let inventory = self.machine.inventory();
        if let Some(gpu) = inventory.gpu(uuid) {
            self.clone().read_health(gpu.clone()).await;
        } else if let Some(silent) = inventory.silence(uuid) {
            self.read_silent(silent).await;
        }
    }

    /// Reads one GPU off the async threads. One that hangs is not asked again.
    async fn read_health(self: Arc<Self>, gpu: Gpu) {
        let uuid = gpu.uuid.clone();
        // It was let go: to ask it would open it again.
        if self.machine.is_released(&uuid) {
            return;
        }
        let readings = match self.machine.hung_on(&uuid) {
            Some((_, call)) => hangs(call.to_string()),
            None => {
                let Ok(nvml) = self.machine.nvml() else { return };
                let read = spawn_blocking(move || nvml.readings(&gpu));
                match timeout(PATIENCE, read).await {
                    Ok(Ok(readings)) => readings,
                    Ok(Err(panic)) => hangs(panic.to_string()),
                    // Not long enough to say that it hangs.
                    Err(_) => return,
                }
            }
        };
        if matches!(readings.answer, Answer::Error(LOST, _)) {
            self.machine.suspect();
        }
        self.diagnose(&uuid, &readings);
    }
}

fn hangs(line: String) -> Readings {
    Readings { answer: Answer::Hangs(line), ..Readings::default() }
}

/// Returns at this time; never if there is none.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Returns when this time of the clock is over; never if there is none.
async fn passed(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = at.duration_since(Timestamp::now());
            sleep(Duration::try_from(left).unwrap_or(Duration::ZERO)).await;
        }
        None => pending().await,
    }
}
