//! What the GPUs do, looked at in the background again and again: who reads it asks no GPU.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::Driver;
use crate::{
    model::{
        gpu::{Gpu, GpuUuid},
        health::xid_name,
        sample::{self, Samples, Taken},
        series::{GpuEvents, GpuHistory, LastXid, Options},
    },
    node::nvml::Gpm,
};

impl Driver {
    /// What the GPUs did when they were last looked at.
    pub fn samples(&self) -> Arc<Samples> {
        self.samples.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at every GPU at this interval for as long as it is polled. One that hangs is not looked at
    /// again, and keeps nobody from the others.
    pub async fn take_samples(self: &Arc<Self>, every: Duration) {
        let mut looks: BTreeMap<GpuUuid, Arc<Mutex<Gpm>>> = BTreeMap::new();
        let mut interval = interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let inventory = self.machine.inventory();
            looks.retain(|uuid, _| inventory.gpu(uuid).is_some());
            for gpu in &inventory.gpus {
                let seen = looks.entry(gpu.uuid.clone()).or_default();
                if self.machine.hung_on(&gpu.uuid).is_none() {
                    tokio::spawn(self.clone().take_sample(gpu.clone(), seen.clone()));
                }
            }
            let known: Vec<_> = inventory.known().iter().map(|gpu| gpu.uuid.clone()).collect();
            self.change_samples(|samples| samples.0.retain(|uuid, _| known.contains(uuid)));
        }
    }

    async fn take_sample(self: Arc<Self>, gpu: Gpu, seen: Arc<Mutex<Gpm>>) {
        // A look before this one has not come back yet.
        let (Ok(mut seen), Ok(nvml)) = (seen.try_lock_owned(), self.machine.nvml()) else { return };
        let uuid = gpu.uuid.clone();
        if self.machine.is_released(&uuid) {
            return;
        }
        let sample = spawn_blocking(move || nvml.sample(&gpu, &mut seen));
        match sample.await {
            Ok(Ok(sample)) => {
                let at = sample::seconds(Timestamp::now());
                let taken = Taken { at, sample: Arc::new(sample) };
                if let Some(reasons) = taken.sample.clocks_event_reasons {
                    self.note(&uuid, |history| history.clock_events(at, reasons));
                }
                self.change_samples(|samples| drop(samples.0.insert(uuid, taken)));
            }
            Ok(Err(error)) => {
                tracing::debug!(%uuid, %error, "not looked at");
                self.machine.suspect();
            }
            Err(panic) => tracing::error!(%uuid, %panic, "not looked at"),
        }
    }

    /// Notes an XID, for those who count them.
    pub(super) fn note_xid(&self, gpu: &GpuUuid, code: u32, at: Timestamp) {
        let xid = LastXid { code, message: xid_name(code) };
        self.note(gpu, |history| history.xid(sample::seconds(at), xid));
    }

    /// What happened to the GPUs, counted in the windows of the options.
    pub fn gpu_events(&self, now: f64, options: &Options) -> BTreeMap<GpuUuid, GpuEvents> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.iter().map(|(uuid, history)| (uuid.clone(), history.events(now, options))).collect()
    }

    fn note(&self, gpu: &GpuUuid, what: impl FnOnce(&mut GpuHistory)) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        what(history.entry(gpu.clone()).or_default());
    }

    fn change_samples(&self, change: impl FnOnce(&mut Samples)) {
        let mut samples = self.samples.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut samples));
    }
}
