//! Unprepare, and undo of what was begun: everything that a record says Kerf made, and nothing else.

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Driver, Error, error::outcome};
use crate::{
    metrics::Door,
    model::{
        claim::ClaimRef,
        device::Target,
        gpu::{Gpu, GpuInstance, GpuUuid},
        holder::Holder,
        plan::{Origin, PlannedDevice},
        record::{Record, State},
    },
    node::nvml::{self, Nvml},
};

/// How long an instance may stay in use: processes end a little after their container.
const TEARDOWN: Duration = Duration::from_secs(10);

impl Driver {
    pub(super) fn count_destroyed(&self, gpu: &Gpu, instance: &GpuInstance) {
        let profile = gpu.mig.as_ref().and_then(|mig| mig.profile(instance.profile));
        self.metrics.destroyed(profile.map_or("unknown", |profile| &profile.name));
    }

    /// Takes away what was made for a claim. A claim that is not known is no error, and no API server
    /// is asked: the claim may be gone.
    ///
    /// # Errors
    /// Its record stays then, so that the next call goes on.
    pub async fn unprepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<(), Error> {
        self.let_go(&Holder::Claim(claim.clone())).await
    }

    /// Takes away what was made for a holder.
    pub(super) async fn let_go(self: &Arc<Self>, holder: &Holder) -> Result<(), Error> {
        self.let_go_if(holder, |_| true).await
    }

    /// The same if it `is_so` when nobody else works for the holder.
    pub(super) async fn let_go_if(
        self: &Arc<Self>,
        holder: &Holder,
        is_so: impl FnOnce(&Self) -> bool + Send,
    ) -> Result<(), Error> {
        let timed = self.metrics.unprepare(Door::of(holder));
        let done = self.try_let_go(holder, is_so).await;
        match done {
            Ok(false) => timed.cancel(),
            _ => timed.end(outcome(&done)),
        }
        done.map(drop)
    }

    /// Whether it was so.
    async fn try_let_go(
        self: &Arc<Self>,
        holder: &Holder,
        is_so: impl FnOnce(&Self) -> bool + Send,
    ) -> Result<bool, Error> {
        let work = self.begin()?;
        let turn = self.claims.lock(holder.key()).await;
        if !is_so(self) {
            return Ok(false);
        }
        let record = self.ledger.get(holder.key());
        let gpus = record.as_ref().map(made_on).unwrap_or_default();
        let guards = self.lock_gpus(&gpus).await;
        let holder = holder.clone();
        self.off_thread(move |driver| {
            let _held = (work, turn, guards);
            let _files = driver.lock_files(&gpus)?;
            driver.acting()?;
            match record {
                Some(record) => driver.undo(&record)?,
                None if driver.let_go_later(&holder)? => {}
                None => driver.remove_spec(&holder)?,
            }
            Ok(true)
        })
        .await
    }

    /// Destroys what the record says Kerf made, then removes the CDI file, then the record. The caller
    /// holds the locks of the GPUs.
    pub(super) fn undo(&self, record: &Record) -> Result<(), Error> {
        // Nothing that was carved outlives a boot or a loaded driver.
        if record.boot_id == self.boot_id && !made_on(record).is_empty() && self.driver_loaded() {
            self.destroy_made(record)?;
        }
        let holder = &record.plan.holder;
        match holder {
            Holder::Claim(_) => {
                self.remove_spec(holder)?;
                Ok(self.ledger.forget(holder)?)
            }
            // The file of all names what records name.
            Holder::Container(_) => {
                self.ledger.forget(holder)?;
                self.remove_spec(holder)
            }
        }
    }

    fn driver_loaded(&self) -> bool {
        self.machine.nvml().is_ok()
            || self.machine.host().proc_root.join("driver/nvidia/version").exists()
    }

    fn destroy_made(&self, record: &Record) -> Result<(), Error> {
        let nvml = self.machine.nvml()?;
        for uuid in made_on(record) {
            let Some(gpu) = self.gpu_now(&nvml, &uuid)? else { continue };
            for (position, device) in record.plan.devices.iter().enumerate() {
                if device.origin == Origin::Made && *device.target.gpu() == uuid {
                    self.destroy_device(&nvml, &gpu, device, recorded_uuid(record, position))?;
                }
            }
            self.mig_off_if_empty(&nvml, &uuid);
        }
        Ok(())
    }

    /// The GPU as it is now; `None` for one that is gone, and with it all that was carved.
    fn gpu_now(&self, nvml: &Nvml, uuid: &GpuUuid) -> Result<Option<Gpu>, Error> {
        match self.machine.refresh(nvml, uuid) {
            Err(error) if error.lost() => return Ok(None),
            refreshed => refreshed?,
        }
        let inventory = self.machine.inventory();
        if let Some(gpu) = inventory.gpu(uuid) {
            return Ok(Some(gpu.clone()));
        }
        // One that has not told its UUID may be this one.
        let silent = inventory
            .unreadable
            .iter()
            .filter(|gpu| !gpu.lost && gpu.uuid.as_ref().is_none_or(|known| known == uuid));
        for gpu in silent {
            match self.machine.read_again(nvml, gpu.index) {
                Ok(gpu) if gpu.uuid == *uuid => return Ok(Some(gpu)),
                Ok(_) => {}
                Err(gpu) if gpu.lost => {}
                Err(gpu) => {
                    let reason = format!("GPU {} does not answer: {}", gpu.index, gpu.reason);
                    return Err(Error::Device { device: uuid.0.clone(), reason });
                }
            }
        }
        Ok(None)
    }

    fn destroy_device(
        &self,
        nvml: &Nvml,
        gpu: &Gpu,
        device: &PlannedDevice,
        recorded: Option<&str>,
    ) -> Result<(), Error> {
        let Target::Mig { profile, placement, .. } = &device.target else { return Ok(()) };
        let instance = gpu.instance(*profile, *placement);
        let Some(instance) = instance else { return Ok(()) };
        if let (Some(recorded), Some(live)) = (recorded, instance.device())
            && live.uuid != recorded
        {
            tracing::warn!(
                device = device.device,
                live = live.uuid,
                "not the instance that Kerf made"
            );
            return Ok(());
        }
        let destroyed = self.destroy_when_idle(nvml, gpu, instance);
        if destroyed.is_ok() {
            self.machine.remove_instance(&gpu.uuid, instance.id);
            self.count_destroyed(gpu, instance);
        }
        destroyed.map_err(|error| {
            if error.driver_gone() {
                return error.into();
            }
            let users = if error.in_use() { self.users(nvml, gpu) } else { String::new() };
            let reason = match users.as_str() {
                "" => error.to_string(),
                users => format!("it is still in use by {users}; the kubelet will ask again"),
            };
            Error::Device { device: device.device.clone(), reason }
        })
    }

    fn destroy_when_idle(
        &self,
        nvml: &Nvml,
        gpu: &Gpu,
        instance: &GpuInstance,
    ) -> Result<(), nvml::Error> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(20);
        loop {
            match nvml.destroy(gpu, instance) {
                Err(error) if error.in_use() && begin.elapsed() + pause < TEARDOWN => {
                    sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                done => return done,
            }
        }
    }

    /// A GPU without MIG mode can be given as a whole. Where it cannot be switched off now, that says
    /// so when it is wanted.
    fn mig_off_if_empty(&self, nvml: &Nvml, uuid: &GpuUuid) {
        let inventory = self.machine.inventory();
        let Some(gpu) = inventory.gpu(uuid) else { return };
        let empty = gpu.mig.as_ref().is_some_and(|mig| {
            mig.enabled && mig.switches_without_reset && mig.instances.is_empty()
        });
        if !empty {
            return;
        }
        let switched = nvml.set_mig_mode(gpu, false).and_then(|_| self.machine.refresh(nvml, uuid));
        if let Err(error) = switched {
            tracing::debug!(gpu = gpu.index, %error, "MIG mode stays on");
        }
    }
}

/// The GPUs on which a record made something.
pub(super) fn made_on(record: &Record) -> BTreeSet<GpuUuid> {
    let devices = record.plan.devices.iter();
    devices
        .filter(|device| device.origin == Origin::Made)
        .map(|device| device.target.gpu().clone())
        .collect()
}

/// The UUID under which a device was prepared, if it came to that.
fn recorded_uuid(record: &Record, position: usize) -> Option<&str> {
    match &record.state {
        State::Preparing => None,
        State::Prepared { devices } => devices.get(position)?.uuid.as_deref(),
    }
}
