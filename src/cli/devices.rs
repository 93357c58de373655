//! A GPU as a document: everything that is known of it, and each of its devices with its fate.

use serde::Serialize;

use crate::{
    cli::cut::Cut,
    model::{
        device::{Device, Part},
        gpu::{Gpu, Placement},
        record::Held,
    },
};

/// A GPU with its devices.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GpuDevices<'a> {
    #[serde(flatten)]
    gpu: &'a Gpu,
    devices: Vec<DeviceState<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceState<'a> {
    /// As published.
    name: String,
    /// Absent for a whole GPU.
    profile: Option<&'a str>,
    /// Absent for a whole GPU.
    placement: Option<Placement>,
    /// Absent for a MIG device that is not carved.
    uuid: Option<&'a str>,
    /// `held`, `carved` (without a claim), `free` or `blocked` (by what overlaps it).
    state: Fate,
    /// `namespace/name` of the claim that holds it.
    claim: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
enum Fate {
    Held,
    Carved,
    Free,
    Blocked,
}

impl<'a> GpuDevices<'a> {
    /// The devices of `gpu`, of which `held` is held.
    pub(super) fn of(gpu: &'a Gpu, held: &'a [Held<'a>]) -> Self {
        let cut = Cut::new(gpu, held);
        let devices = Device::all(gpu).map(|device| DeviceState::of(&device, cut));
        Self { gpu, devices: devices.collect() }
    }
}

impl<'a> DeviceState<'a> {
    fn of(device: &Device<'a>, cut: Cut<'a>) -> Self {
        let (profile, placement) = match device.part {
            Part::Whole => (None, None),
            Part::Mig(profile, placement) => (Some(profile), Some(placement)),
        };
        let instance = profile
            .zip(placement)
            .and_then(|(profile, placement)| device.gpu.instance(profile.id, placement));
        let uuid = match device.part {
            Part::Whole => Some(device.gpu.uuid.0.as_str()),
            Part::Mig(..) => instance.and_then(|instance| Some(instance.device()?.uuid.as_str())),
        };
        let holder = cut.holder(device);
        let state = match holder {
            Some(_) => Fate::Held,
            None if instance.is_some() => Fate::Carved,
            None if cut.fits(device) => Fate::Free,
            None => Fate::Blocked,
        };
        let profile = profile.map(|profile| profile.name.as_str());
        let claim = holder.map(|held| held.by.label());
        Self { name: device.name(), profile, placement, uuid, state, claim }
    }
}
