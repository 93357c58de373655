//! What is to be done for a claim, decided before anything is changed.

mod check;
mod refusal;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use self::check::Site;
pub use self::check::{foreign_at, foreign_on};
pub use self::refusal::{Extent, Instance, Reason, Refusal};
use crate::model::{
    claim::{Allocation, AllocationResult, ClaimRef},
    config,
    device::{self, Device, Target},
    gpu::{GpuUuid, Inventory, Unreadable},
    record::Held,
};

/// Everything that preparing a claim will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For whom.
    pub claim: ClaimRef,
    /// Names of the pods that it is reserved for.
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
        add(&mut devices, inventory, held, allocation, result).map_err(|reason| {
            Box::new(Refusal {
                device: result.device.clone(),
                request: result.request.clone(),
                reason: Box::new(reason),
            })
        })?;
    }
    Ok(Plan { claim: allocation.claim.clone(), pods: allocation.pods.clone(), devices })
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
) -> Result<(), Reason> {
    let device = find(inventory, &result.device)?;
    config::check(&allocation.configurations, &result.request, &device.part)
        .map_err(Reason::Config)?;
    let same =
        |other: &PlannedDevice| other.device == result.device && other.share_id == result.share_id;
    let known = devices.iter().position(same);
    let origin = match known.map(|at| devices[at].origin) {
        _ if result.admin_access => Origin::Observed,
        Some(origin @ (Origin::Made | Origin::Found)) => origin,
        Some(Origin::Observed) | None => {
            let planned = devices.iter().filter(|planned| planned.origin != Origin::Observed);
            Site { gpu: device.gpu, held, planned: planned.collect() }.origin(&device)?
        }
    };
    let request = result.base_request().to_owned();
    match known {
        Some(at) => devices[at].also(request, origin),
        None => devices.push(PlannedDevice {
            requests: vec![request],
            pool: result.pool.clone(),
            device: result.device.clone(),
            share_id: result.share_id.clone(),
            target: device.target(),
            origin,
        }),
    }
    Ok(())
}

impl PlannedDevice {
    /// Serves another request; a device that any request holds is held.
    fn also(&mut self, request: String, origin: Origin) {
        if !self.requests.contains(&request) {
            self.requests.push(request);
        }
        if self.origin == Origin::Observed {
            self.origin = origin;
        }
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
