//! Devices: the whole GPUs and MIG placements that Kerf publishes, and their names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::gpu::{Gpu, GpuUuid, Placement, Profile};

/// A device as published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'g> {
    /// The GPU that it is, or is a part of.
    pub gpu: &'g Gpu,
    /// How much of it.
    pub part: Part<'g>,
}

/// How much of a GPU a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'g> {
    /// All of it.
    Whole,
    /// A MIG device, carved already or not.
    Mig(&'g Profile, Placement),
}

impl<'g> Device<'g> {
    /// All devices of a GPU: the whole, then each placement of each profile.
    pub fn all(gpu: &'g Gpu) -> impl Iterator<Item = Self> {
        let profiles = gpu.mig.iter().flat_map(|mig| &mig.profiles);
        let parts = profiles.flat_map(|profile| {
            profile.placements.iter().map(move |&placement| Part::Mig(profile, placement))
        });
        std::iter::once(Part::Whole).chain(parts).map(move |part| Self { gpu, part })
    }

    /// The published name, a DNS label: `gpu-0`, or `gpu-0-mig-1g10gb-19-4` with profile, profile id
    /// and first memory slice.
    pub fn name(&self) -> String {
        let number = self.gpu.number;
        match self.part {
            Part::Whole => format!("gpu-{number}"),
            Part::Mig(profile, placement) => {
                let text = profile_label(&profile.name);
                format!("gpu-{number}-mig-{text}-{}-{}", profile.id, placement.start)
            }
        }
    }

    /// What stays true of the device when the GPU is read again.
    pub fn target(&self) -> Target {
        let gpu = self.gpu.uuid.clone();
        match self.part {
            Part::Whole => Target::Gpu { gpu },
            Part::Mig(profile, placement) => Target::Mig {
                gpu,
                profile: profile.id,
                profile_name: profile.name.clone(),
                placement,
            },
        }
    }
}

/// Whether a device of this name is the GPU with this number, or a part of it.
pub fn is_of(name: &str, number: u32) -> bool {
    let rest = name.strip_prefix(&format!("gpu-{number}"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The number of the GPU that a device of this name is, or is a part of.
pub fn number_in(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("gpu-")?;
    rest.split('-').next()?.parse().ok()
}

/// A profile's name as part of a DNS label: lower case, dots left out, all else a dash.
fn profile_label(name: &str) -> String {
    let kept = name.chars().filter(|&c| c != '.').map(|c| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '-',
    });
    kept.collect()
}

/// A device by what identifies it in hardware, in plans and records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Target {
    /// A whole GPU.
    Gpu {
        /// Its UUID.
        gpu: GpuUuid,
    },
    /// A MIG device. Its GPU instance is known by where it lies: ids and UUIDs change.
    Mig {
        /// UUID of the parent GPU.
        gpu: GpuUuid,
        /// Profile id.
        profile: u32,
        /// Profile name, for people.
        #[serde(rename = "profileName")]
        profile_name: String,
        /// Where it lies.
        placement: Placement,
    },
}

impl Target {
    /// The GPU that it is, or is a part of.
    pub fn gpu(&self) -> &GpuUuid {
        match self {
            Self::Gpu { gpu } | Self::Mig { gpu, .. } => gpu,
        }
    }

    /// Whether both cannot be held at once.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.gpu() == other.gpu()
            && match (self, other) {
                (Self::Mig { placement: a, .. }, Self::Mig { placement: b, .. }) => a.overlaps(*b),
                _ => true,
            }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu { gpu } => write!(f, "{gpu}"),
            Self::Mig { gpu, profile_name, placement, .. } => {
                write!(f, "{profile_name} at {} of {gpu}", placement.start)
            }
        }
    }
}
