//! What a plan says, done: MIG mode, instances, and what a container needs for each device.

use super::{Driver, Error, spec::cdi_name};
use crate::{
    model::{
        cdi::ClaimDevice,
        device::Target,
        gpu::{Gpu, GpuInstance, Placement},
        plan::{Origin, PlannedDevice},
        record::{PreparedDevice, Record},
    },
    node::nvml::{self, Nvml},
};

/// A MIG device that exists.
pub(super) struct Live {
    gpu_instance: u32,
    compute_instance: u32,
    pub(super) uuid: String,
}

/// A device of a plan that is to be had.
#[derive(Clone, Copy)]
struct Place<'p> {
    device: &'p PlannedDevice,
    /// In the plan.
    position: usize,
    /// Whether it is there already.
    found: bool,
}

impl Driver {
    /// Does what the record's plan says: MIG mode, instances, CDI file. `found` are the UUIDs of what is
    /// there already. What is made is noted in the record.
    pub(super) fn carry_out(
        &self,
        nvml: &Nvml,
        record: &mut Record,
        found: &[Option<String>],
    ) -> Result<Vec<PreparedDevice>, Error> {
        let plan = record.plan.clone();
        let mut prepared = Vec::new();
        let mut described = Vec::new();
        for (position, (device, found)) in plan.devices.iter().zip(found).enumerate() {
            let place = Place { device, position, found: found.is_some() };
            let (uuid, claim_device) = self.obtain(nvml, record, place)?;
            let name = cdi_name(&plan.holder, device);
            if claim_device.is_none() {
                let note = format!("admin access to `{}`: it is not carved now", device.device);
                tracing::warn!(holder = %plan.holder, "{note}");
                if let Some(claim) = plan.holder.claim() {
                    self.events.warn_claim(claim, "NotCarved", &note);
                }
            }
            let cdi = claim_device.iter().map(|_| name.clone()).collect();
            prepared.push(PreparedDevice { uuid, cdi });
            described.extend(claim_device);
        }
        self.write_spec(&plan.holder, &described)?;
        Ok(prepared)
    }

    /// One device: its UUID and what a container needs for it.
    fn obtain(
        &self,
        nvml: &Nvml,
        record: &mut Record,
        place: Place<'_>,
    ) -> Result<(Option<String>, Option<ClaimDevice>), Error> {
        let device = place.device;
        let gpu = self.gpu(device)?;
        match (&device.target, device.origin) {
            (Target::Gpu { .. }, Origin::Observed) => self.whole(device, &gpu),
            (Target::Gpu { .. }, _) => {
                let gpu = self.switch_mig(nvml, device, gpu, false)?;
                self.whole(device, &gpu)
            }
            (Target::Mig { profile, placement, .. }, Origin::Made) if !place.found => {
                let gpu = self.switch_mig(nvml, device, gpu, true)?;
                let live = self.carve(nvml, record, place, &gpu, (*profile, *placement))?;
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
        let nodes = self.nodes(gpu, None)?;
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
        record: &mut Record,
        place: Place<'_>,
        gpu: &Gpu,
        (profile, placement): (u32, Placement),
    ) -> Result<Live, Error> {
        let Place { device, position, .. } = place;
        // Half of one, left by a repair that was killed.
        let half = gpu.instance(profile, placement);
        if let Some(half) = half.filter(|half| record.is_made(position, half)) {
            nvml.destroy(gpu, half).map_err(|error| failed(device, error.to_string()))?;
            self.machine.remove_instance(&gpu.uuid, half.id);
            self.count_destroyed(gpu, half);
            record.note_destroyed(position);
        }
        let profile = gpu.mig.as_ref().and_then(|mig| mig.profile(profile));
        let profile = profile.ok_or_else(|| gone(device))?;
        let failed = |error| failed_call(device, error, "carve");
        let made = nvml.create_instance(gpu, profile, placement).map_err(failed)?;
        record.note_made(position, None, None);
        let id = made.id().map_err(failed)?;
        record.note_made(position, Some(id), None);
        self.ledger.save(record.clone())?;
        let compute = made.fill(profile).map_err(failed)?;
        record.note_made(position, Some(id), Some(compute.uuid.clone()));
        self.ledger.save(record.clone())?;
        let carved = GpuInstance { id, profile: profile.id, placement, compute: vec![compute] };
        self.machine.add_instance(&gpu.uuid, carved.clone());
        self.metrics.carved(&profile.name);
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

pub(super) fn live(gpu: &Gpu, profile: u32, placement: Placement) -> Option<Live> {
    live_in(gpu.instance(profile, placement)?)
}

pub(super) fn live_in(instance: &GpuInstance) -> Option<Live> {
    let device = instance.device()?;
    Some(Live { gpu_instance: instance.id, compute_instance: device.id, uuid: device.uuid.clone() })
}

pub(super) fn failed(device: &PlannedDevice, reason: String) -> Error {
    Error::Device { device: device.device.clone(), reason }
}

/// An NVML failure, kept as such when it concerns more than this device.
pub(super) fn failed_call(device: &PlannedDevice, error: nvml::Error, what: &str) -> Error {
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

pub(super) fn gone(device: &PlannedDevice) -> Error {
    failed(
        device,
        "the MIG device is not there any more; delete the pod, so that it is scheduled anew"
            .to_owned(),
    )
}
