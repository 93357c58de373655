//! Prepare: from a claim's allocation to devices that a container can be given.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::sleep;

use super::{
    Answer, Driver, Error, Work,
    error::outcome,
    now,
    obtain::{failed, gone, live},
};
use crate::{
    metrics::Door,
    model::{
        DRIVER,
        claim::{Allocation, ClaimRef},
        device::{self, Target},
        ended::APART,
        gpu::{Gpu, GpuInstance, GpuUuid, Inventory},
        holder::Holder,
        plan::{self, Origin, Plan, PlannedDevice, Reason, Refusal},
        record::{self, Carving, Held, PreparedDevice, Record, State},
    },
    node::nvml::Nvml,
};

/// Set when the call that wanted the work is given up.
#[derive(Clone, Default)]
struct Cancelled(Arc<AtomicBool>);

/// A call that waits for its work; dropped, it has been given up.
struct Waiting {
    holder: Holder,
    cancelled: Cancelled,
    done: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.done {
            self.cancelled.0.store(true, Ordering::SeqCst);
            tracing::debug!(holder = %self.holder, "nobody waits for the call any more");
        }
    }
}

impl Driver {
    /// Makes a claim's devices ready and says what they are. Asked again, gives the same answer after
    /// checking that all is still there.
    ///
    /// Dropping the future before anything was changed ends the work; later, it runs to its end, and
    /// the next call finds it.
    ///
    /// # Errors
    /// Nothing of the claim is left on the machine then, or its record says what is.
    pub async fn prepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<Vec<Answer>, Error> {
        let timed = self.metrics.prepare(Door::Dra);
        let prepared = self.prepare_claim(claim).await;
        timed.end(outcome(&prepared));
        prepared
    }

    async fn prepare_claim(self: &Arc<Self>, claim: &ClaimRef) -> Result<Vec<Answer>, Error> {
        let work = self.begin()?;
        let object = self.cluster.claim(claim).await?;
        let allocation = Allocation::of(&object, DRIVER, &self.node)?;
        self.hold(work, allocation).await
    }

    /// Holds what was allocated. A container that has ended meanwhile is no reason to refuse: the device
    /// plugin is not told of ends. One that has not is named.
    pub(super) async fn hold(
        self: &Arc<Self>,
        work: Work,
        allocation: Allocation,
    ) -> Result<Vec<Answer>, Error> {
        match self.try_hold(work, allocation.clone()).await {
            Err(Error::Refusal(refusal)) if refusal.is_by_container() => {
                // An end is seen twice.
                if self.release_ended(true).await {
                    sleep(APART).await;
                    self.release_ended(true).await;
                }
                self.try_hold(self.begin()?, allocation).await
            }
            held => held,
        }
    }

    async fn try_hold(
        self: &Arc<Self>,
        work: Work,
        allocation: Allocation,
    ) -> Result<Vec<Answer>, Error> {
        self.refuse_hung(&self.gpus_of(&allocation.results, None), &allocation)?;
        let holder = allocation.holder.clone();
        let turn = self.claims.lock(holder.key()).await;
        let gpus = self.gpus_of(&allocation.results, self.ledger.get(holder.key()).as_ref());
        let guards = self.lock_gpus(&gpus).await;

        let cancelled = Cancelled::default();
        let mut waiting = Waiting { holder, cancelled: cancelled.clone(), done: false };
        let answer = self.off_thread(move |driver| {
            let _held = (work, turn, guards);
            driver.prepare_locked(&allocation, &gpus, &cancelled)
        });
        let answer = answer.await;
        waiting.done = true;
        answer
    }

    /// Reads a GPU as it is now, also one that did not answer before.
    fn look_at(&self, nvml: &Nvml, uuid: &GpuUuid, allocation: &Allocation) -> Result<(), Error> {
        let known = self.machine.inventory().gpu(uuid).is_some();
        // One that is not there at all is a matter of the plan.
        let Some(index) = self.machine.index(uuid) else { return Ok(()) };
        if self.machine.is_released(uuid) {
            return Err(Error::Device {
                device: self.device_on(uuid, allocation),
                reason: format!(
                    "GPU {index} is released, so that it can be reset; the kubelet will ask again"
                ),
            });
        }
        let (reason, lost) = match known {
            true => match self.machine.refresh(nvml, uuid) {
                Ok(()) => return Ok(()),
                Err(error) if error.driver_gone() => return Err(error.into()),
                Err(error) => (error.with_remedy(), error.lost()),
            },
            false => match self.machine.read_again(nvml, index) {
                Ok(_) => return Ok(()),
                Err(silent) => (silent.reason, silent.lost),
            },
        };
        // Without its driver, every GPU says that it is lost.
        nvml.versions()?;
        let else_to_do = match lost {
            true => ", or delete the pod so that it is scheduled again",
            false => "; the kubelet will ask again",
        };
        Err(Error::Device {
            device: self.device_on(uuid, allocation),
            reason: format!("GPU {index} does not answer: {reason}{else_to_do}"),
        })
    }

    /// The device of the claim that is on a GPU.
    fn device_on(&self, uuid: &GpuUuid, allocation: &Allocation) -> String {
        let numbers = self.machine.numbers();
        let on_gpu = |name: &str| numbers.get(uuid).is_some_and(|&n| device::is_of(name, n));
        let result = allocation.results.iter().find(|result| on_gpu(&result.device));
        result.map(|result| result.device.clone()).unwrap_or_default()
    }

    /// A GPU that hangs is not waited for.
    fn refuse_hung(&self, gpus: &BTreeSet<GpuUuid>, allocation: &Allocation) -> Result<(), Error> {
        for uuid in gpus {
            let Some((index, call)) = self.machine.hung_on(uuid) else { continue };
            return Err(Error::Device {
                device: self.device_on(uuid, allocation),
                reason: format!("GPU {index}: {call}; drain the node and reset the GPU"),
            });
        }
        Ok(())
    }

    fn prepare_locked(
        &self,
        allocation: &Allocation,
        gpus: &BTreeSet<GpuUuid>,
        cancelled: &Cancelled,
    ) -> Result<Vec<Answer>, Error> {
        let _files = self.lock_files(gpus)?;
        let nvml = self.machine.nvml()?;
        for gpu in gpus {
            self.look_at(&nvml, gpu, allocation)?;
        }
        if cancelled.0.load(Ordering::SeqCst) {
            return Err(Error::Cancelled);
        }
        self.acting()?;
        if let Some(record) = self.ledger.get(allocation.holder.key()) {
            match &record.state {
                _ if record.boot_id != self.boot_id => {}
                State::Prepared { devices }
                    if !record.leftover && is_for(&record.plan, allocation) =>
                {
                    let record = self.named(&record, &allocation.holder)?;
                    return self.prepare_again(&nvml, &record, devices);
                }
                _ => self.undo(&record, gpus)?.check()?,
            }
        }
        let inventory = self.machine.inventory();
        self.refuse_withheld(&inventory, allocation)?;
        let others = self.ledger.others(allocation.holder.key());
        let held: Vec<Held<'_>> = others.iter().flat_map(Record::held).collect();
        let plan = plan::plan(&inventory, &held, allocation)?;
        self.prepare_anew(&nvml, plan, gpus)
    }

    fn prepare_anew(
        &self,
        nvml: &Nvml,
        plan: Plan,
        locked: &BTreeSet<GpuUuid>,
    ) -> Result<Vec<Answer>, Error> {
        let carving = Carving::begin(&self.machine.inventory(), &plan);
        let mut record = Record { carving: Some(carving), ..self.record(plan, State::Preparing) };
        self.ledger.save(record.clone())?;
        let nothing = vec![None; record.plan.devices.len()];
        let prepared = self.carry_out(nvml, &mut record, &nothing);
        match prepared.and_then(|devices| self.commit(&record.plan, devices)) {
            Ok(answers) => Ok(answers),
            Err(error) => {
                record.end_carving();
                if let Err(left) = self.undo(&record, locked) {
                    tracing::warn!(holder = %record.plan.holder, error = %left, "undo is not complete");
                }
                Err(error)
            }
        }
    }

    /// The record under the claim's names, which one that was taken over may not have.
    fn named(&self, record: &Record, holder: &Holder) -> Result<Record, Error> {
        let mut named = record.clone();
        named.plan.holder.clone_from(holder);
        if named != *record {
            self.ledger.save(named.clone())?;
        }
        Ok(named)
    }

    /// Checks what was prepared and makes again what is missing. What is still there is not touched:
    /// a container may be using it.
    fn prepare_again(
        &self,
        nvml: &Nvml,
        record: &Record,
        devices: &[PreparedDevice],
    ) -> Result<Vec<Answer>, Error> {
        let inventory = self.machine.inventory();
        let found: Vec<Option<String>> = record
            .plan
            .devices
            .iter()
            .zip(devices)
            .enumerate()
            .map(|(position, (planned, device))| {
                let is_made = |instance: &_| record.is_made(position, instance);
                still_there(&inventory, planned, device, is_made)
            })
            .collect::<Result<_, _>>()?;
        let planned = record.plan.devices.iter();
        // A record without UUID is one of a repair that was begun and not ended.
        let complete = planned.zip(found.iter().zip(devices)).all(|(planned, (found, device))| {
            *found == device.uuid && (found.is_some() || planned.origin == Origin::Observed)
        });
        if complete && self.has_spec(&record.plan.holder)? {
            return Ok(answers(&record.plan, devices));
        }
        let mut repaired = record.clone();
        if !complete {
            // Without their UUIDs, devices are to be made again.
            let mut expected = devices.to_vec();
            for (device, found) in expected.iter_mut().zip(&found) {
                device.uuid.clone_from(found);
            }
            let state = State::Prepared { devices: expected };
            let carving = Carving::again(record.carving.clone(), &inventory, &record.plan);
            repaired = Record { carving: Some(carving), ..self.record(record.plan.clone(), state) };
            self.ledger.save(repaired.clone())?;
        }
        let devices = self.carry_out(nvml, &mut repaired, &found);
        devices.and_then(|devices| self.commit(&repaired.plan, devices)).inspect_err(|_| {
            // What was made stays for the next call.
            repaired.end_carving();
            if let Err(error) = self.ledger.save(repaired) {
                tracing::warn!(holder = %record.plan.holder, %error, "what was repaired is not noted");
            }
        })
    }

    fn commit(&self, plan: &Plan, devices: Vec<PreparedDevice>) -> Result<Vec<Answer>, Error> {
        let answers = answers(plan, &devices);
        self.ledger.save(self.record(plan.clone(), State::Prepared { devices }))?;
        Ok(answers)
    }

    fn record(&self, plan: Plan, state: State) -> Record {
        Record {
            version: record::VERSION,
            boot_id: self.boot_id.clone(),
            since: now(),
            plan,
            state,
            carving: None,
            leftover: false,
        }
    }
}

/// Whether a record's plan is for this allocation: the claim may have been given other devices since.
fn is_for(plan: &Plan, allocation: &Allocation) -> bool {
    let planned: BTreeSet<(&str, &str)> = plan
        .devices
        .iter()
        .flat_map(|device| {
            device.requests.iter().map(|request| (request.as_str(), device.device.as_str()))
        })
        .collect();
    let allocated =
        allocation.results.iter().map(|result| (result.base_request(), result.device.as_str()));
    planned == allocated.collect()
}

/// The UUID of a prepared device if it is still what was prepared; `None` if it is to be made again.
fn still_there(
    inventory: &Inventory,
    planned: &PlannedDevice,
    prepared: &PreparedDevice,
    is_made: impl Fn(&GpuInstance) -> bool,
) -> Result<Option<String>, Error> {
    let Some(gpu) = inventory.gpu(planned.target.gpu()) else {
        return Err(failed(planned, format!("{} does not answer", planned.target.gpu())));
    };
    let Target::Mig { profile, placement, .. } = &planned.target else {
        return whole_still_there(gpu, planned);
    };
    let ours = gpu.instance(*profile, *placement).is_some_and(is_made);
    match (planned.origin, live(gpu, *profile, *placement)) {
        // What an administrator made again is the same device with a new UUID.
        (Origin::Found, None) => Err(gone(planned)),
        (Origin::Found | Origin::Observed, live) => Ok(live.map(|live| live.uuid)),
        (Origin::Made, Some(live)) if ours => Ok(Some(live.uuid)),
        // Half of one, at its place, is left by a repair that was killed.
        (Origin::Made, None) if ours && prepared.uuid.is_none() => Ok(None),
        (Origin::Made, _) => match plan::foreign_at(gpu, *placement) {
            Some(reason) => Err(refused(planned, reason)),
            None => Ok(None),
        },
    }
}

/// A whole GPU that somebody has cut since is not the one that was prepared.
fn whole_still_there(gpu: &Gpu, planned: &PlannedDevice) -> Result<Option<String>, Error> {
    let held = planned.origin != Origin::Observed;
    match &gpu.mig {
        Some(mig) if held && mig.enabled => match plan::foreign_on(gpu) {
            Some(reason) => Err(refused(planned, reason)),
            None => Ok(None),
        },
        _ => Ok(Some(gpu.uuid.0.clone())),
    }
}

fn refused(planned: &PlannedDevice, reason: Reason) -> Error {
    Error::Refusal(Box::new(Refusal {
        device: planned.device.clone(),
        request: planned.requests.first().cloned().unwrap_or_default(),
        reason: Box::new(reason),
    }))
}

fn answers(plan: &Plan, devices: &[PreparedDevice]) -> Vec<Answer> {
    let devices = plan.devices.iter().zip(devices);
    let answers = devices.map(|(planned, prepared)| Answer {
        requests: planned.requests.clone(),
        pool: planned.pool.clone(),
        device: planned.device.clone(),
        cdi: prepared.cdi.clone(),
        share_id: planned.share_id.clone(),
    });
    answers.collect()
}
