//! What is to be done for a claim, decided before anything is changed.

mod check;
mod refusal;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use self::check::Site;
pub use self::check::{foreign_at, foreign_on, usable};
pub use self::refusal::{Extent, Instance, Reason, Refusal};
use crate::model::{
    claim::{Allocation, AllocationResult},
    config,
    device::{self, Device, Target},
    gpu::{GpuUuid, Inventory, Unreadable},
    holder::Holder,
    record::Held,
};

/// Everything that preparing a claim will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For whom.
    #[serde(flatten)]
    pub holder: Holder,
    /// Names of the pods that a claim is reserved for.
    pub pods: Vec<String>,
    /// One for each device, in the claim's order.
    pub devices: Vec<PlannedDevice>,
}

/// What becomes of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDevice {
    /// The claim's requests that it serves, without subrequests.
    pub requests: Vec<String>,
    /// Pool.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// Set when the device allows several allocations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
    /// What it is in hardware.
    pub target: Target,
    /// What Kerf does to have it, and so what it takes away afterwards.
    pub origin: Origin,
}

/// Whose work a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A MIG device that Kerf carves for the claim and destroys with it.
    Made,
    /// A whole GPU, or a MIG device that an administrator made: held, never destroyed.
    Found,
    /// Seen with admin access: neither held nor made nor destroyed.
    Observed,
}

/// Decides what preparing a claim will do, or why it cannot be done. Nothing is changed yet, and the
/// claim has no record: `held` is what others hold.
pub fn plan(
    inventory: &Inventory,
    held: &[Held<'_>],
    allocation: &Allocation,
) -> Result<Plan, Box<Refusal>> {
    let mut devices = Vec::new();
    for result in &allocation.results {
        add(&mut devices, inventory, held, allocation, result).map_err(Box::new)?;
    }
    Ok(Plan { holder: allocation.holder.clone(), pods: allocation.pods.clone(), devices })
}

impl Plan {
    /// The GPUs that it holds or changes; those that it only looks at are not among them.
    pub fn gpus(&self) -> BTreeSet<GpuUuid> {
        self.held().map(|device| device.target.gpu().clone()).collect()
    }

    /// Whether a GPU must have MIG mode on for it. The others of [`Plan::gpus`] must have it off.
    pub fn needs_mig(&self, gpu: &GpuUuid) -> bool {
        self.held().any(|device| matches!(&device.target, Target::Mig { gpu: of, .. } if of == gpu))
    }

    fn held(&self) -> impl Iterator<Item = &PlannedDevice> {
        self.devices.iter().filter(|device| device.origin != Origin::Observed)
    }
}

/// Adds what one result stands for: a device, or one more request for a device that is there.
fn add(
    devices: &mut Vec<PlannedDevice>,
    inventory: &Inventory,
    held: &[Held<'_>],
    allocation: &Allocation,
    result: &AllocationResult,
) -> Result<(), Refusal> {
    let device = allocated(inventory, allocation, result)?;
    let known = devices.iter().find(|planned| planned.is_for(result));
    let origin = match known.map(|planned| planned.origin) {
        _ if result.admin_access => Origin::Observed,
        Some(origin @ (Origin::Made | Origin::Found)) => origin,
        Some(Origin::Observed) | None => {
            let planned = devices.iter().filter(|planned| planned.origin != Origin::Observed);
            let site = Site { gpu: device.gpu, held, planned: planned.collect() };
            site.origin(&device, result.share_id.is_some())
                .map_err(|reason| refused(result, reason))?
        }
    };
    join(devices, PlannedDevice::new(result, device.target(), origin));
    Ok(())
}

/// The device that a result names, with the configuration that applies to it looked at.
pub(super) fn allocated<'i>(
    inventory: &'i Inventory,
    allocation: &Allocation,
    result: &AllocationResult,
) -> Result<Device<'i>, Refusal> {
    let device = find(inventory, &result.device).map_err(|reason| refused(result, reason))?;
    let checked = config::check(&allocation.configurations, &result.request, &device.part);
    checked.map_err(|unfit| refused(result, Reason::Config(unfit)))?;
    Ok(device)
}

fn refused(result: &AllocationResult, reason: Reason) -> Refusal {
    let (device, request) = (result.device.clone(), result.request.clone());
    Refusal { device, request, reason: Box::new(reason) }
}

/// Adds a device, or its requests to the same one that is there. What any request holds is held.
pub(super) fn join(devices: &mut Vec<PlannedDevice>, new: PlannedDevice) {
    let same =
        |known: &&mut PlannedDevice| known.device == new.device && known.share_id == new.share_id;
    let Some(known) = devices.iter_mut().find(same) else { return devices.push(new) };
    for request in new.requests {
        if !known.requests.contains(&request) {
            known.requests.push(request);
        }
    }
    if known.origin == Origin::Observed {
        known.origin = new.origin;
    }
}

impl PlannedDevice {
    /// What one result stands for.
    pub(super) fn new(result: &AllocationResult, target: Target, origin: Origin) -> Self {
        Self {
            requests: vec![result.base_request().to_owned()],
            pool: result.pool.clone(),
            device: result.device.clone(),
            share_id: result.share_id.clone(),
            target,
            origin,
        }
    }

    fn is_for(&self, result: &AllocationResult) -> bool {
        self.device == result.device && self.share_id == result.share_id
    }
}

/// The device with this name.
fn find<'i>(inventory: &'i Inventory, name: &str) -> Result<Device<'i>, Reason> {
    let Some(gpu) = inventory.gpus.iter().find(|gpu| device::is_of(name, gpu.number)) else {
        return Err(match inventory.unreadable.as_slice() {
            [] => Reason::Gone,
            some => Reason::Unreadable { unreadable: reasons(some) },
        });
    };
    let device = Device::all(gpu).find(|device| device.name() == name);
    device.ok_or(Reason::NotOffered { gpu: gpu.index })
}

/// The GPUs that do not answer. Which of them had the device is not known: they have no number.
fn reasons(unreadable: &[Unreadable]) -> String {
    let each = unreadable.iter().map(|gpu| format!("GPU {} does not: {}", gpu.index, gpu.reason));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
