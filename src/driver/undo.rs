//! Unprepare, and undo of what was begun: everything that a record says Kerf made, and nothing else.

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Driver, Error, error::outcome, locks::Guard};
use crate::{
    metrics::Door,
    model::{
        claim::ClaimRef,
        device::Target,
        gpu::{Gpu, GpuInstance, GpuUuid},
        holder::Holder,
        plan::Origin,
        record::Record,
    },
    node::nvml::{self, Nvml},
};

/// How long an instance may stay in use: processes end a little after their container.
const TEARDOWN: Duration = Duration::from_secs(10);

/// How often it is looked whether a GPU that is waited for hangs.
const LOOK_FOR_HUNG: Duration = Duration::from_secs(1);

/// What came of an undo.
#[derive(Debug)]
pub(super) enum Undone {
    /// Nothing is left.
    All,
    /// The holder has ended, and its record names what has to wait for a reset, and why.
    Leftover(String),
}

impl Undone {
    /// Nothing may be left.
    pub(super) fn check(self) -> Result<(), Error> {
        match self {
            Self::All => Ok(()),
            Self::Leftover(reason) => Err(Error::Leftover(reason)),
        }
    }
}

/// What could not be destroyed.
#[derive(Default)]
struct Left {
    /// Positions in the plan.
    positions: BTreeSet<usize>,
    /// Why; absent if nothing is left.
    reason: Option<String>,
}

impl Left {
    fn add(&mut self, positions: Vec<usize>, reason: String) {
        self.positions.extend(positions);
        self.reason.get_or_insert(reason);
    }
}

/// Why nothing more was destroyed on a GPU.
enum Failure {
    /// Nothing can be done on it before it is reset or its driver is loaded.
    Waits(String),
    /// Anything else, which may be gone the next time.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

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
    pub(super) async fn try_let_go(
        self: &Arc<Self>,
        holder: &Holder,
        is_so: impl FnOnce(&Self) -> bool + Send,
    ) -> Result<bool, Error> {
        let work = self.begin()?;
        let turn = self.turn_unless_hung(holder).await;
        if !is_so(self) {
            return Ok(false);
        }
        let Some(turn) = turn else {
            let holder = holder.clone();
            return self.off_thread(move |driver| driver.leave(&holder).map(|()| true)).await;
        };
        let record = self.ledger.get(holder.key());
        let gpus = record.as_ref().map(made_on).unwrap_or_default();
        let (gpus, guards) = self.lock_unless_hung(&gpus).await;
        let holder = holder.clone();
        self.off_thread(move |driver| {
            let _held = (work, turn, guards);
            let _files = driver.lock_files(&gpus)?;
            driver.acting()?;
            match record {
                Some(record) => drop(driver.undo(&record, &gpus)?),
                None if driver.let_go_later(&holder)? => {}
                None => driver.remove_spec(&holder)?,
            }
            Ok(true)
        })
        .await
    }

    /// A holder's turn; none while earlier work for it hangs on a GPU: a pod that waited for that would
    /// keep the node from being drained and the GPU from being reset.
    async fn turn_unless_hung(&self, holder: &Holder) -> Option<Guard> {
        let on = || self.ledger.get(holder.key()).as_ref().map(made_on).unwrap_or_default();
        tokio::select! {
            biased;
            turn = self.claims.lock(holder.key()) => Some(turn),
            () = self.while_none_hangs(on) => None,
        }
    }

    /// Locks these GPUs, but those that hang, and says which they are.
    async fn lock_unless_hung(&self, gpus: &BTreeSet<GpuUuid>) -> (BTreeSet<GpuUuid>, Vec<Guard>) {
        let (mut locked, mut guards) = (BTreeSet::new(), Vec::new());
        for gpu in gpus {
            let gpu = BTreeSet::from([gpu.clone()]);
            let lock = async {
                while gpu.iter().any(|gpu| self.machine.hung_on(gpu).is_some()) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                self.lock_gpus(&gpu).await
            };
            tokio::select! {
                biased;
                guard = lock => {
                    guards.extend(guard);
                    locked.extend(gpu.iter().cloned());
                }
                () = self.while_none_hangs(|| gpu.clone()) => {}
            }
        }
        (locked, guards)
    }

    /// Returns once a call hangs on one of the GPUs, though it was given time to end.
    async fn while_none_hangs(&self, gpus: impl Fn() -> BTreeSet<GpuUuid>) {
        loop {
            tokio::time::sleep(LOOK_FOR_HUNG).await;
            if gpus().iter().any(|gpu| self.machine.hung_on(gpu).is_some()) {
                return;
            }
        }
    }

    /// What the work that hangs comes to is destroyed once it has ended.
    fn leave(&self, holder: &Holder) -> Result<(), Error> {
        let Some(record) = self.ledger.get(holder.key()) else { return Ok(()) };
        if !record.leftover {
            self.warn_of_leftover(holder, "it hangs");
            self.ledger.save(Record { leftover: true, ..record })?;
        }
        Ok(())
    }

    /// Destroys what the record says Kerf made, then removes the CDI file, then the record. What cannot be
    /// destroyed before a reset is kept in mind, since its pods would keep the GPU from being reset. The
    /// caller has `locked` the GPUs on which something was made, but those that hang.
    pub(super) fn undo(
        &self,
        record: &Record,
        locked: &BTreeSet<GpuUuid>,
    ) -> Result<Undone, Error> {
        let mut record = record.clone();
        // Nothing that was carved outlives a boot or a loaded driver.
        let carved = record.boot_id == self.boot_id && self.driver_loaded();
        let left =
            if carved { self.destroy_made(&mut record, locked) } else { Ok(Left::default()) };
        let left = left.inspect_err(|_| self.keep_what_is_left(&record))?;
        let holder = record.plan.holder.clone();
        if let Some(reason) = left.reason {
            if !record.leftover {
                self.warn_of_leftover(&holder, &reason);
            }
            let is_claim = holder.claim().is_some();
            self.ledger.save(record.left_over(&left.positions))?;
            if is_claim {
                self.remove_spec(&holder)?;
            }
            return Ok(Undone::Leftover(reason));
        }
        match &holder {
            Holder::Claim(_) => {
                self.remove_spec(&holder)?;
                self.ledger.forget(&holder)?;
            }
            // The file of all names what records name.
            Holder::Container(_) => {
                self.ledger.forget(&holder)?;
                self.remove_spec(&holder)?;
            }
        }
        Ok(Undone::All)
    }

    /// So that what was destroyed is not taken for ours when somebody else has cut there.
    fn keep_what_is_left(&self, record: &Record) {
        if self.ledger.get(record.plan.holder.key()).as_ref() != Some(record)
            && let Err(error) = self.ledger.save(record.clone())
        {
            tracing::warn!(holder = %record.plan.holder, %error, "what is left is not noted");
        }
    }

    fn warn_of_leftover(&self, holder: &Holder, reason: &str) {
        let note = format!(
            "{holder} has ended, and what was made for it cannot be destroyed yet: {reason}"
        );
        tracing::warn!("{note}");
        self.events.warn_node("NotDestroyedYet", &note);
    }

    fn driver_loaded(&self) -> bool {
        self.machine.nvml().is_ok()
            || self.machine.host().proc_root.join("driver/nvidia/version").exists()
    }

    fn destroy_made(&self, record: &mut Record, locked: &BTreeSet<GpuUuid>) -> Result<Left, Error> {
        let mut left = Left::default();
        for uuid in made_on(record) {
            let destroyed = match locked.contains(&uuid) {
                true => self.destroy_made_on(&uuid, record),
                false => Err(Failure::Waits("it hangs".to_owned())),
            };
            if let Err(error) = destroyed {
                let reason = self.until_reset(&uuid, error)?;
                left.add(made_positions(record, &uuid), reason);
            }
        }
        Ok(left)
    }

    /// Why a GPU has to be reset, or its driver loaded, before anything on it can be destroyed; any other
    /// failure may be gone the next time.
    fn until_reset(&self, uuid: &GpuUuid, failure: Failure) -> Result<String, Error> {
        let reason = match failure {
            Failure::Waits(reason) => reason,
            Failure::Other(error) => return Err(error),
        };
        // Without its driver, every GPU says that it is lost.
        if let Ok(nvml) = self.machine.nvml() {
            nvml.versions()?;
        }
        Ok(format!("{}: {reason}", self.gpu_name(uuid)))
    }

    fn destroy_made_on(&self, uuid: &GpuUuid, record: &mut Record) -> Result<(), Failure> {
        if self.machine.is_released(uuid) {
            return Err(Failure::Waits("released, so that it can be reset".to_owned()));
        }
        if let Some(reason) = self.machine.missing() {
            // The pods of a node without library keep its driver from being loaded anew.
            return Err(Failure::Waits(reason));
        }
        let nvml = self.machine.nvml().map_err(Error::from)?;
        let gpu = self.gpu_now(&nvml, uuid)?;
        for position in made_positions(record, uuid) {
            self.destroy_device(&nvml, &gpu, record, position)?;
            record.note_destroyed(position);
        }
        self.mig_off_if_empty(&nvml, uuid);
        Ok(())
    }

    /// The GPU as it is now.
    fn gpu_now(&self, nvml: &Nvml, uuid: &GpuUuid) -> Result<Gpu, Failure> {
        match self.machine.refresh(nvml, uuid) {
            Err(error) if error.until_reset() => return Err(Failure::Waits(error.to_string())),
            refreshed => refreshed.map_err(Error::from)?,
        }
        let inventory = self.machine.inventory();
        if let Some(gpu) = inventory.gpu(uuid) {
            return Ok(gpu.clone());
        }
        // One that has not told its UUID may be this one.
        let silent = inventory
            .unreadable
            .iter()
            .filter(|gpu| !gpu.lost && gpu.uuid.as_ref().is_none_or(|known| known == uuid));
        for gpu in silent {
            match self.machine.read_again(nvml, gpu.index) {
                Ok(gpu) if gpu.uuid == *uuid => return Ok(gpu),
                Ok(_) => {}
                Err(gpu) if gpu.lost => {}
                Err(gpu) => {
                    let reason = format!("GPU {} does not answer: {}", gpu.index, gpu.reason);
                    return Err(Error::Device { device: uuid.0.clone(), reason }.into());
                }
            }
        }
        Err(Failure::Waits("it is lost or gone".to_owned()))
    }

    fn destroy_device(
        &self,
        nvml: &Nvml,
        gpu: &Gpu,
        record: &Record,
        position: usize,
    ) -> Result<(), Failure> {
        let device = &record.plan.devices[position];
        let Target::Mig { profile, placement, .. } = &device.target else { return Ok(()) };
        let Some(instance) = gpu.instance(*profile, *placement) else { return Ok(()) };
        if !record.is_made(position, instance) {
            tracing::warn!(
                device = device.device,
                id = instance.id,
                "not an instance that Kerf made"
            );
            return Ok(());
        }
        let destroyed = self.destroy_when_idle(nvml, gpu, instance);
        if destroyed.is_ok() {
            self.machine.remove_instance(&gpu.uuid, instance.id);
            self.count_destroyed(gpu, instance);
        }
        destroyed.map_err(|error| {
            if error.until_reset() {
                return Failure::Waits(error.to_string());
            }
            if error.driver_gone() {
                return Failure::Other(error.into());
            }
            let users = if error.in_use() { self.users(nvml, gpu) } else { String::new() };
            let reason = match users.as_str() {
                "" => error.to_string(),
                users => format!("it is still in use by {users}; the kubelet will ask again"),
            };
            Failure::Other(Error::Device { device: device.device.clone(), reason })
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

/// The positions of the devices that a record made on a GPU.
fn made_positions(record: &Record, uuid: &GpuUuid) -> Vec<usize> {
    let devices = record.plan.devices.iter().enumerate();
    let made =
        devices.filter(|(_, device)| device.origin == Origin::Made && device.target.gpu() == uuid);
    made.map(|(position, _)| position).collect()
}
