//! What is kept on disk for each claim: `claims/<uid>.json` in the plugin's data directory.
//!
//! Written before the first change (`preparing`) and after the last (`prepared`), so that a crash at
//! any point leaves enough to undo exactly what was begun. Fields are only ever added, and an older
//! agent reads a newer one's record: unknown fields are ignored.

mod carving;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::carving::Carving;
use crate::model::{
    device::{self, Target},
    gpu::{GpuUuid, Placement},
    holder::Holder,
    plan::{Origin, Plan},
};

/// Format of the records that this program writes.
pub const VERSION: u32 = 1;

/// One claim's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// The boot in which it was written: MIG devices do not outlive one.
    pub boot_id: String,
    /// When the state was reached, RFC 3339.
    pub since: String,
    /// What was intended.
    pub plan: Plan,
    /// How far it came.
    #[serde(flatten)]
    pub state: State,
    /// What was made on the way; absent once all is, and in what earlier versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carving: Option<Carving>,
    /// Nobody holds it any more, but what was made for it could not be destroyed: its GPU has to be reset, or
    /// its driver loaded, first. It keeps the place until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leftover: bool,
}

/// How far a claim's preparation came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum State {
    /// Begun. Found at start, it is a crash.
    Preparing,
    /// Done.
    Prepared {
        /// One for each planned device, in its order.
        devices: Vec<PreparedDevice>,
    },
}

/// What a device turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedDevice {
    /// `GPU-…` or `MIG-…`; absent for a MIG device that admin access found not carved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Qualified CDI names, as the kubelet was told.
    pub cdi: Vec<String>,
}

/// A device that a claim holds, as others must respect it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<'r> {
    /// By whom.
    pub by: &'r Holder,
    /// Device name, as published.
    pub device: &'r str,
    /// What it is in hardware.
    pub target: &'r Target,
    /// Whether Kerf made it.
    pub origin: Origin,
    /// Whether it is a share, beside which others may be held.
    pub shared: bool,
    /// Whether nobody holds it any more and it could not be destroyed yet.
    pub leftover: bool,
}

/// A file that is no record; it is to be set aside, not deleted.
#[derive(Debug, thiserror::Error)]
#[error("not a claim record: {0}")]
pub struct Unreadable(serde_json::Error);

impl Record {
    /// Reads a record, of this or a newer program. Fields that are not known are ignored; a state or a
    /// kind of device that is not known makes the record unreadable.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        serde_json::from_slice(bytes).map_err(Unreadable)
    }

    /// What Kerf made for the claim, or began to: GPU, profile id and place. All else is not to be
    /// destroyed.
    pub fn made(&self) -> impl Iterator<Item = (&GpuUuid, u32, Placement)> {
        let made = self.plan.devices.iter().filter(|device| device.origin == Origin::Made);
        made.filter_map(|device| match &device.target {
            Target::Mig { gpu, profile, placement, .. } => Some((gpu, *profile, *placement)),
            Target::Gpu { .. } => None,
        })
    }

    /// What the claim holds, or what is left over of it; devices seen with admin access are not held.
    pub fn held(&self) -> impl Iterator<Item = Held<'_>> {
        let devices = self.plan.devices.iter();
        devices.filter(|device| device.origin != Origin::Observed).map(|device| Held {
            by: &self.plan.holder,
            device: &device.device,
            target: &device.target,
            origin: device.origin,
            shared: device.share_id.is_some(),
            leftover: self.leftover,
        })
    }
}

/// The numbers of GPUs by which devices are named in records of this boot.
pub fn numbers_in(records: &[Record], boot_id: &str) -> BTreeMap<GpuUuid, u32> {
    let devices = records.iter().filter(|record| record.boot_id == boot_id);
    let devices = devices.flat_map(|record| &record.plan.devices);
    let numbers = devices.filter_map(|device| {
        Some((device.target.gpu().clone(), device::number_in(&device.device)?))
    });
    numbers.collect()
}

#[cfg(test)]
mod tests;
