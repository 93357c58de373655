//! Prepare: from a claim's allocation to devices that a container can be given.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Answer, Driver, Error, NAME, now};
use crate::{
    model::{
        cdi::{self, ClaimDevice, Spec},
        claim::{Allocation, ClaimRef},
        device::{self, Target},
        gpu::{Gpu, GpuInstance, GpuUuid, Inventory, Placement},
        plan::{self, Origin, Plan, PlannedDevice, Reason, Refusal},
        record::{self, Held, PreparedDevice, Record, State},
    },
    node::nvml::{self, Nvml},
};

/// Set when the call that wanted the work is given up.
#[derive(Clone, Default)]
struct Cancelled(Arc<AtomicBool>);

/// A call that waits for its work; dropped, it has been given up.
struct Waiting<'c> {
    claim: &'c ClaimRef,
    cancelled: Cancelled,
    done: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.cancelled.0.store(true, Ordering::SeqCst);
            tracing::debug!(claim = %self.claim, "nobody waits for the call any more");
        }
    }
}

/// A MIG device that exists.
struct Live {
    gpu_instance: u32,
    compute_instance: u32,
    uuid: String,
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
        let work = self.begin()?;
        let object = self.cluster.claim(claim).await?;
        let allocation = Allocation::of(&object, NAME, &self.node)?;

        self.refuse_hung(&self.gpus_of(&allocation.results, None), &allocation)?;
        let turn = self.claims.lock(&claim.uid).await;
        let gpus = self.gpus_of(&allocation.results, self.ledger.get(&claim.uid).as_ref());
        let guards = self.machine.locks.lock_gpus(&gpus).await;

        let cancelled = Cancelled::default();
        let mut waiting = Waiting { claim, cancelled: cancelled.clone(), done: false };
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
        if let Some(record) = self.ledger.get(&allocation.claim.uid) {
            match &record.state {
                _ if record.boot_id != self.boot_id => {}
                State::Prepared { devices } if is_for(&record.plan, allocation) => {
                    let record = self.named(&record, &allocation.claim)?;
                    return self.prepare_again(&nvml, &record, devices);
                }
                _ => self.undo(&record)?,
            }
        }
        let others = self.ledger.others(&allocation.claim.uid);
        let held: Vec<Held<'_>> = others.iter().flat_map(Record::held).collect();
        let plan = plan::plan(&self.machine.inventory(), &held, allocation)?;
        self.prepare_anew(&nvml, plan)
    }

    fn prepare_anew(&self, nvml: &Nvml, plan: Plan) -> Result<Vec<Answer>, Error> {
        let record = self.record(plan, State::Preparing);
        self.ledger.save(record.clone())?;
        let nothing = vec![None; record.plan.devices.len()];
        match self.carry_out(nvml, &record.plan, &nothing) {
            Ok(devices) => self.commit(record.plan, devices),
            Err(error) => {
                if let Err(left) = self.undo(&record) {
                    tracing::warn!(claim = %record.plan.claim, error = %left, "undo is not complete");
                }
                Err(error)
            }
        }
    }

    /// The record under the claim's names, which one that was taken over may not have.
    fn named(&self, record: &Record, claim: &ClaimRef) -> Result<Record, Error> {
        let mut named = record.clone();
        named.plan.claim.clone_from(claim);
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
            .map(|(planned, device)| still_there(&inventory, planned, device))
            .collect::<Result<_, _>>()?;
        let planned = record.plan.devices.iter();
        // A record without UUID is one of a repair that was begun and not ended.
        let complete = planned.zip(found.iter().zip(devices)).all(|(planned, (found, device))| {
            *found == device.uuid && (found.is_some() || planned.origin == Origin::Observed)
        });
        if complete && self.ledger.store().has_spec(&record.plan.claim.uid)? {
            return Ok(answers(&record.plan, devices));
        }
        if !complete {
            // Named without its UUID, what is made next at its place is known as ours after a crash.
            let mut expected = devices.to_vec();
            for (device, found) in expected.iter_mut().zip(&found) {
                device.uuid.clone_from(found);
            }
            let state = State::Prepared { devices: expected };
            self.ledger.save(self.record(record.plan.clone(), state))?;
        }
        let devices = self.carry_out(nvml, &record.plan, &found)?;
        self.commit(record.plan.clone(), devices)
    }

    fn commit(&self, plan: Plan, devices: Vec<PreparedDevice>) -> Result<Vec<Answer>, Error> {
        let answers = answers(&plan, &devices);
        self.ledger.save(self.record(plan, State::Prepared { devices }))?;
        Ok(answers)
    }

    fn record(&self, plan: Plan, state: State) -> Record {
        Record {
            version: record::VERSION,
            boot_id: self.boot_id.clone(),
            since: now(),
            plan,
            state,
        }
    }

    /// Does what the plan says: MIG mode, instances, CDI file. `found` are the UUIDs of what is there
    /// already.
    fn carry_out(
        &self,
        nvml: &Nvml,
        plan: &Plan,
        found: &[Option<String>],
    ) -> Result<Vec<PreparedDevice>, Error> {
        let mut prepared = Vec::new();
        let mut described = Vec::new();
        for (device, found) in plan.devices.iter().zip(found) {
            let (uuid, claim_device) = self.obtain(nvml, device, found.is_some())?;
            let name = cdi::qualified_name(&plan.claim.uid, &device.device);
            if claim_device.is_none() {
                let note = format!("admin access to `{}`: it is not carved now", device.device);
                tracing::warn!(claim = %plan.claim, "{note}");
                self.events.warn_claim(&plan.claim, "NotCarved", &note);
            }
            let cdi = claim_device.iter().map(|_| name.clone()).collect();
            prepared.push(PreparedDevice { uuid, cdi });
            described.extend(claim_device);
        }
        self.write_spec(&plan.claim, &described)?;
        Ok(prepared)
    }

    /// A claim whose every device is missing (admin access) has no CDI file: an empty one is invalid.
    pub(super) fn write_spec(
        &self,
        claim: &ClaimRef,
        devices: &[ClaimDevice],
    ) -> Result<(), Error> {
        if devices.is_empty() {
            return Ok(());
        }
        let spec = self.spec(&claim.uid, devices)?;
        self.ledger.store().write_spec(&claim.uid, &spec)?;
        Ok(())
    }

    pub(super) fn spec(&self, uid: &str, devices: &[ClaimDevice]) -> Result<Spec, Error> {
        let files = self.machine.host().refreshed(&*self.machine.files()?)?;
        Ok(cdi::claim_spec(uid, devices, &files, self.hook.as_deref()))
    }

    /// One device: its UUID and what a container needs for it.
    fn obtain(
        &self,
        nvml: &Nvml,
        device: &PlannedDevice,
        found: bool,
    ) -> Result<(Option<String>, Option<ClaimDevice>), Error> {
        let gpu = self.gpu(device)?;
        match (&device.target, device.origin) {
            (Target::Gpu { .. }, Origin::Observed) => self.whole(device, &gpu),
            (Target::Gpu { .. }, _) => {
                let gpu = self.switch_mig(nvml, device, gpu, false)?;
                self.whole(device, &gpu)
            }
            (Target::Mig { profile, placement, .. }, Origin::Made) if !found => {
                let gpu = self.switch_mig(nvml, device, gpu, true)?;
                let live = self.carve(nvml, device, &gpu, *profile, *placement)?;
                self.partition(device, &gpu, live)
            }
            (Target::Mig { profile, placement, .. }, origin) => {
                match live(&gpu, *profile, *placement) {
                    Some(live) => self.partition(device, &gpu, live),
                    None if origin == Origin::Observed => {
                        tracing::warn!(
                            device = device.device,
                            "admin access to what is not carved"
                        );
                        Ok((None, None))
                    }
                    None => Err(gone(device)),
                }
            }
        }
    }

    fn gpu(&self, device: &PlannedDevice) -> Result<Gpu, Error> {
        let inventory = self.machine.inventory();
        let gpu = inventory.gpu(device.target.gpu()).cloned();
        gpu.ok_or_else(|| failed(device, format!("{} does not answer", device.target.gpu())))
    }

    fn whole(
        &self,
        device: &PlannedDevice,
        gpu: &Gpu,
    ) -> Result<(Option<String>, Option<ClaimDevice>), Error> {
        let nodes = self.machine.host().gpu_nodes(gpu.minor, &gpu.pci)?;
        let described = ClaimDevice { name: device.device.clone(), nodes, env: Vec::new() };
        Ok((Some(gpu.uuid.0.clone()), Some(described)))
    }

    fn partition(
        &self,
        device: &PlannedDevice,
        gpu: &Gpu,
        live: Live,
    ) -> Result<(Option<String>, Option<ClaimDevice>), Error> {
        let host = self.machine.host();
        let mut nodes = host.gpu_nodes(gpu.minor, &gpu.pci)?;
        nodes.extend(host.mig_nodes(gpu.minor, live.gpu_instance, live.compute_instance)?);
        let described = ClaimDevice { name: device.device.clone(), nodes, env: Vec::new() };
        Ok((Some(live.uuid), Some(described)))
    }

    fn carve(
        &self,
        nvml: &Nvml,
        device: &PlannedDevice,
        gpu: &Gpu,
        profile: u32,
        placement: Placement,
    ) -> Result<Live, Error> {
        let mig = gpu.mig.as_ref();
        // Half of one, left by a repair that was killed.
        if let Some(half) = mig.and_then(|mig| mig.instance(profile, placement)) {
            nvml.destroy(gpu, half).map_err(|error| failed(device, error.to_string()))?;
            self.machine.remove_instance(&gpu.uuid, half.id);
        }
        let profile = mig.and_then(|mig| mig.profile(profile)).ok_or_else(|| gone(device))?;
        let carved = nvml.carve(gpu, profile, placement);
        let carved = carved.map_err(|error| failed_call(device, error, "carve"))?;
        self.machine.add_instance(&gpu.uuid, carved.clone());
        live_in(&carved).ok_or_else(|| gone(device))
    }

    /// Sees to the MIG mode that the device needs; the GPU as it is then.
    fn switch_mig(
        &self,
        nvml: &Nvml,
        device: &PlannedDevice,
        gpu: Gpu,
        on: bool,
    ) -> Result<Gpu, Error> {
        if gpu.mig.as_ref().is_none_or(|mig| mig.enabled == on) {
            return Ok(gpu);
        }
        let direction = if on { "on" } else { "off" };
        match nvml.set_mig_mode(&gpu, on) {
            Ok(true) => {}
            Ok(false) => {
                let index = gpu.index;
                return Err(failed(
                    device,
                    format!(
                        "MIG mode of GPU {index} is to be {direction} but waits for a reset; \
                         drain the node and run `nvidia-smi -r -i {index}`"
                    ),
                ));
            }
            Err(error) if error.in_use() => {
                let users = self.users(nvml, &gpu);
                return Err(failed(
                    device,
                    format!(
                        "MIG mode of GPU {} cannot be switched {direction} while {users} uses it; \
                         stop the process or drain the node",
                        gpu.index
                    ),
                ));
            }
            Err(error) => return Err(failed_call(device, error, "switch MIG mode")),
        }
        self.machine.refresh(nvml, &gpu.uuid)?;
        self.gpu(device)
    }

    /// Who uses a GPU, as far as this process can see: `pid 4242 (python3)`.
    pub(super) fn users(&self, nvml: &Nvml, gpu: &Gpu) -> String {
        let pids = nvml.processes(gpu).unwrap_or_default();
        let named = pids.iter().map(|&pid| match self.machine.host().process_name(pid) {
            Some(name) => format!("pid {pid} ({name})"),
            None => format!("pid {pid}"),
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() {
            "a process that this agent cannot see".to_owned()
        } else {
            named.join(", ")
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
) -> Result<Option<String>, Error> {
    let Some(gpu) = inventory.gpu(planned.target.gpu()) else {
        return Err(failed(planned, format!("{} does not answer", planned.target.gpu())));
    };
    let Target::Mig { profile, placement, .. } = &planned.target else {
        return whole_still_there(gpu, planned);
    };
    match (planned.origin, live(gpu, *profile, *placement)) {
        // What an administrator made again is the same device with a new UUID.
        (Origin::Found, None) => Err(gone(planned)),
        (Origin::Found | Origin::Observed, live) => Ok(live.map(|live| live.uuid)),
        (Origin::Made, Some(live))
            if prepared.uuid.as_ref().is_none_or(|uuid| *uuid == live.uuid) =>
        {
            Ok(Some(live.uuid))
        }
        // Half of one, at its place, is left by a repair that was killed.
        (Origin::Made, None) if prepared.uuid.is_none() => Ok(None),
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

fn live(gpu: &Gpu, profile: u32, placement: Placement) -> Option<Live> {
    live_in(gpu.mig.as_ref()?.instance(profile, placement)?)
}

fn live_in(instance: &GpuInstance) -> Option<Live> {
    let device = instance.device()?;
    Some(Live { gpu_instance: instance.id, compute_instance: device.id, uuid: device.uuid.clone() })
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

fn failed(device: &PlannedDevice, reason: String) -> Error {
    Error::Device { device: device.device.clone(), reason }
}

/// An NVML failure, kept as such when it concerns more than this device.
fn failed_call(device: &PlannedDevice, error: nvml::Error, what: &str) -> Error {
    if error.driver_gone() {
        return error.into();
    }
    let else_to_do = match error.lost() {
        true => ", or delete the pod so that it is scheduled again",
        false => {
            "; the kubelet will ask again, and if that does not help, drain the node and reset the GPU"
        }
    };
    failed(device, format!("{what}: {}{else_to_do}", error.with_remedy()))
}

fn gone(device: &PlannedDevice) -> Error {
    failed(
        device,
        "the MIG device is not there any more; delete the pod, so that it is scheduled anew"
            .to_owned(),
    )
}
