//! Why a claim's device cannot be prepared, in words for the person who reads the pod's events.

use std::fmt;

use crate::model::{
    config::Unfit,
    device::Target,
    gpu::{Gpu, GpuInstance, Placement},
    holder::Holder,
    record::Held,
};

/// A device of a claim that cannot be prepared, decided before anything was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The device's name.
    pub device: String,
    /// The request that it was chosen for.
    pub request: String,
    /// Why.
    pub reason: Box<Reason>,
}

impl Refusal {
    /// Whether what stands in the way is held by a container.
    pub fn is_by_container(&self) -> bool {
        match &*self.reason {
            Reason::Held { by } | Reason::Occupied { by, .. } => by.container().is_some(),
            _ => false,
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, request, reason } = self;
        match **reason {
            Reason::Config(unfit) => {
                write!(f, "opaque configuration for request `{request}`: {unfit}")
            }
            _ => write!(f, "device `{device}`: {reason}"),
        }
    }
}

/// Why. GPUs go by NVML's index, which `nvidia-smi -i` takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No GPU of the node has the device, and all GPUs answer.
    #[error("not on this node any more; {RESCHEDULE}")]
    Gone,
    /// The GPU does not have the profile or placement.
    #[error("GPU {gpu} does not offer it any more; {RESCHEDULE}")]
    NotOffered {
        /// Index.
        gpu: u32,
    },
    /// No GPU that answers has the device, but some do not answer.
    #[error("not on any GPU that answers, and {unreadable}; repair the GPU or {RESCHEDULE}")]
    Unreadable {
        /// The GPUs that do not, with their reasons.
        unreadable: String,
    },
    /// The configuration that applies cannot be applied.
    #[error(transparent)]
    Config(Unfit),
    /// Another holder has it.
    #[error("held by {by}; wait until that is released, or {RESCHEDULE}")]
    Held {
        /// Which.
        by: Box<Holder>,
    },
    /// Another holder has what it lies on.
    #[error("{what} used by `{device}` of {by}; wait until that is released, or {RESCHEDULE}")]
    Occupied {
        /// Memory slices or the whole GPU, and a verb.
        what: Extent,
        /// The other device.
        device: String,
        /// Whose it is.
        by: Box<Holder>,
    },
    /// What was made for a holder that has ended could not be destroyed.
    #[error(
        "`{device}` of {by}, which has ended, could not be destroyed before GPU {gpu} is reset; run `kerf release-gpu \
         {gpu}` and reset it, or {RESCHEDULE}"
    )]
    Leftover {
        /// Index.
        gpu: u32,
        /// The device that is still there.
        device: String,
        /// Whose it was.
        by: Box<Holder>,
    },
    /// A record that cannot be read may say that somebody has it.
    #[error("{why}")]
    Withheld {
        /// Which, why, and what to do.
        why: String,
    },
    /// The claim has another device that it overlaps.
    #[error("overlaps device `{device}` of the same claim; claim one of them")]
    Itself {
        /// The other device.
        device: String,
    },
    /// A whole GPU with MIG instances.
    #[error(
        "GPU {gpu} has MIG instances that Kerf did not make ({instances}); delete them with `nvidia-smi mig -i \
         {gpu} -dci && nvidia-smi mig -i {gpu} -dgi`, or claim a MIG device"
    )]
    ForeignInstances {
        /// Index.
        gpu: u32,
        /// Profiles and places.
        instances: String,
    },
    /// An instance where another one is to be.
    #[error(
        "{what} used by a MIG instance that Kerf did not make ({}); delete it with `{}`, or {RESCHEDULE}",
        instance.label, instance.delete
    )]
    ForeignInstance {
        /// Its memory slices.
        what: Extent,
        /// What it is.
        instance: Instance,
    },
    /// The right instance, without one compute instance that fills it.
    #[error(
        "GPU instance {} on GPU {gpu}, which Kerf did not make, is not filled by one compute instance; delete it \
         with `{}`, or {RESCHEDULE}",
        instance.id, instance.delete
    )]
    Unfilled {
        /// Index.
        gpu: u32,
        /// What it is.
        instance: Instance,
    },
    /// The mode changes with the next reset.
    #[error(
        "MIG mode of GPU {gpu} waits for a reset to be switched {}; drain the node and run `nvidia-smi -r -i \
         {gpu}`, or {RESCHEDULE}",
        on_off(*pending)
    )]
    Pending {
        /// Index.
        gpu: u32,
        /// The mode after the reset.
        pending: bool,
    },
    /// The mode is not the one that the device needs, and only a reset changes it.
    #[error(
        "MIG mode of GPU {gpu} is {} and cannot be switched {} without a reset; drain the node and run \
         `nvidia-smi -i {gpu} -mig {} && nvidia-smi -r -i {gpu}`, or {}",
        on_off(!*needed), on_off(*needed), u8::from(*needed), if *needed { RESCHEDULE } else { "claim a MIG device" }
    )]
    NeedsReset {
        /// Index.
        gpu: u32,
        /// The mode that the device needs.
        needed: bool,
    },
    /// Too little is left of what a GPU's instances share out, though the memory slices are free.
    #[error("GPU {gpu} has {free} of {total} {what} left and it needs {needs}; {RESCHEDULE}")]
    Short {
        /// Index.
        gpu: u32,
        /// In the plural, such as `compute slices`.
        what: &'static str,
        /// Not used by what exists or is held.
        free: u32,
        /// The GPU's.
        total: u32,
        /// The device's.
        needs: u32,
    },
    /// The GPU takes no more instances of the profile.
    #[error(
        "GPU {gpu} takes at most {most} of profile `{profile}`, used up by {users}; {RESCHEDULE}"
    )]
    Instances {
        /// Index.
        gpu: u32,
        /// At most.
        most: u32,
        /// Name.
        profile: String,
        /// Where those are.
        users: String,
    },
}

const RESCHEDULE: &str = "delete the pod so that it is scheduled again";

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// How much of a GPU something occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Index.
    pub gpu: u32,
    /// Memory slices; absent for all of the GPU.
    pub slices: Option<Placement>,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gpu = self.gpu;
        match self.slices {
            None => write!(f, "GPU {gpu} is"),
            Some(Placement { start, size: 0 | 1 }) => {
                write!(f, "memory slice {start} of GPU {gpu} is")
            }
            Some(run) => {
                let last = run.end().saturating_sub(1);
                write!(f, "memory slices {}-{last} of GPU {gpu} are", run.start)
            }
        }
    }
}

/// A MIG instance that Kerf did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// NVML's id.
    pub id: u32,
    /// Profile and place: `3g.40gb at 4`.
    pub label: String,
    /// The command that deletes it.
    pub delete: String,
}

impl Instance {
    /// Puts one of a GPU's instances in words.
    pub(super) fn of(gpu: &Gpu, instance: &GpuInstance) -> Self {
        let (index, id) = (gpu.index, instance.id);
        let smi = |verb| format!("nvidia-smi mig -i {index} -gi {id} {verb}");
        let delete = match instance.compute.as_slice() {
            [] => smi("-dgi"),
            _ => format!("{} && {}", smi("-dci"), smi("-dgi")),
        };
        Self { id, label: label(gpu, instance.profile, instance.placement), delete }
    }
}

/// Profile and place: `3g.40gb at 4`.
pub(super) fn label(gpu: &Gpu, profile: u32, placement: Placement) -> String {
    match gpu.mig.as_ref().and_then(|mig| mig.profile(profile)) {
        Some(profile) => format!("{} at {}", profile.name, placement.start),
        None => format!("profile {profile} at {}", placement.start),
    }
}

impl Reason {
    /// Another holder's device in the way.
    pub(super) fn occupied(gpu: &Gpu, held: &Held<'_>) -> Self {
        let slices = match held.target {
            Target::Gpu { .. } => None,
            Target::Mig { placement, .. } => Some(*placement),
        };
        let what = Extent { gpu: gpu.index, slices };
        Self::Occupied { what, device: held.device.to_owned(), by: Box::new(held.by.clone()) }
    }
}
