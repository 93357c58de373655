//! What was carved for a record so far, so that undo takes away just that.
//!
//! A place does not tell whose an instance is: an administrator may have cut there first. What a create
//! returned does. It is in the record before the next step, so that after a crash one thing alone is open:
//! whether the create that was under way has made an instance. If it has, that has no compute instance yet.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Record, State};
use crate::model::{
    gpu::{Gpu, GpuInstance, GpuUuid, Inventory},
    plan::{Origin, Plan, PlannedDevice},
};

/// What carving for a plan has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Carving {
    /// The instances that were on the GPUs of the plan when it began: none of them was made for it.
    before: Vec<Present>,
    /// What was made, at most one entry a device.
    made: Vec<Made>,
    /// Set when no create is under way any more: what is not in `made` was not made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
}

/// An instance that was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Present {
    gpu: GpuUuid,
    id: u32,
    uuids: Vec<String>,
}

/// What a device's creates returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    /// The device's position in the plan.
    position: usize,
    /// The GPU instance's id; absent where NVML has made it and has not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    /// The MIG device's UUID, once there is a compute instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
}

impl Carving {
    /// More is to be made for the same plan, on GPUs as they are now.
    pub fn again(earlier: Option<Self>, inventory: &Inventory, plan: &Plan) -> Self {
        let made = earlier.unwrap_or_default().made;
        Self { made, ..Self::begin(inventory, plan) }
    }

    /// Nothing made yet, on GPUs as they are now.
    pub fn begin(inventory: &Inventory, plan: &Plan) -> Self {
        let carved = |gpu: &&Gpu| {
            let made = |device: &PlannedDevice| {
                device.origin == Origin::Made && *device.target.gpu() == gpu.uuid
            };
            plan.devices.iter().any(made)
        };
        let before = inventory.gpus.iter().filter(carved).flat_map(|gpu| {
            let instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
            instances.map(|instance| Present {
                gpu: gpu.uuid.clone(),
                id: instance.id,
                uuids: uuids(instance).cloned().collect(),
            })
        });
        Self { before: before.collect(), ..Self::default() }
    }

    fn of(&self, position: usize) -> Option<&Made> {
        self.made.iter().find(|made| made.position == position)
    }

    /// Whether a create that was under way can have made this instance.
    fn can_have_made(&self, gpu: &GpuUuid, instance: &GpuInstance) -> bool {
        let was_there = self.before.iter().any(|present| {
            present.gpu == *gpu
                && present.id == instance.id
                && present.uuids.iter().eq(uuids(instance))
        });
        !self.ended && instance.compute.is_empty() && !was_there
    }
}

impl Record {
    /// Notes that an instance was made for the device at `position`, and what is known of it.
    pub fn note_made(&mut self, position: usize, id: Option<u32>, uuid: Option<String>) {
        let carving = self.carving.get_or_insert_default();
        carving.made.retain(|made| made.position != position);
        carving.made.push(Made { position, id, uuid });
    }

    /// Notes that what was made for the device at `position` is destroyed.
    pub fn note_destroyed(&mut self, position: usize) {
        if let Some(carving) = &mut self.carving {
            carving.made.retain(|made| made.position != position);
        }
    }

    /// Notes that nothing more is made.
    pub fn end_carving(&mut self) {
        if let Some(carving) = &mut self.carving {
            carving.ended = true;
        }
    }

    /// What remains of the record of a holder that has ended: the devices at these positions, which could not
    /// be destroyed.
    pub fn left_over(mut self, positions: &BTreeSet<usize>) -> Self {
        let is_left = |position: &usize| positions.contains(position);
        self.plan.devices = chosen(self.plan.devices, is_left);
        if let State::Prepared { devices } = &mut self.state {
            *devices = chosen(std::mem::take(devices), is_left);
        }
        if let Some(carving) = &mut self.carving {
            carving.made.retain(|made| is_left(&made.position));
            for made in &mut carving.made {
                made.position = positions.range(..made.position).count();
            }
        }
        // Its pods have ended.
        self.plan.pods.clear();
        self.leftover = true;
        self
    }

    /// Whether the instance at the place of the device at `position` was made for it. In the record of a
    /// version that did not note what it made, the place decides.
    pub fn is_made(&self, position: usize, instance: &GpuInstance) -> bool {
        let Some(device) = self.plan.devices.get(position) else { return false };
        if device.origin != Origin::Made {
            return false;
        }
        // Without compute instance it is half destroyed, or half made.
        let has =
            |uuid: &String| instance.compute.is_empty() || uuids(instance).any(|is| is == uuid);
        if let Some(uuid) = self.prepared_uuid(position) {
            return has(uuid);
        }
        let Some(carving) = &self.carving else { return true };
        match carving.of(position) {
            Some(Made { id, uuid, .. }) => {
                id.is_none_or(|id| id == instance.id) && uuid.as_ref().is_none_or(has)
            }
            None => carving.can_have_made(device.target.gpu(), instance),
        }
    }

    /// The UUID under which a device was prepared, if it came to that.
    fn prepared_uuid(&self, position: usize) -> Option<&String> {
        match &self.state {
            State::Preparing => None,
            State::Prepared { devices } => devices.get(position)?.uuid.as_ref(),
        }
    }
}

/// The items at some positions, in their order.
fn chosen<T>(items: Vec<T>, is_chosen: impl Fn(&usize) -> bool) -> Vec<T> {
    let items = items.into_iter().enumerate().filter(|(position, _)| is_chosen(position));
    items.map(|(_, item)| item).collect()
}

fn uuids(instance: &GpuInstance) -> impl Iterator<Item = &String> {
    instance.compute.iter().map(|compute| &compute.uuid)
}

#[cfg(test)]
mod tests;
