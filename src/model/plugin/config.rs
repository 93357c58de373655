//! How the device plugin is configured: what NVIDIA's v1 configuration file says, as values.

use std::collections::BTreeSet;

/// What the device plugin offers and how it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Under which names MIG devices are offered.
    pub mig_strategy: MigStrategy,
    /// How a container is told of its devices; at least one.
    pub list_strategies: BTreeSet<ListStrategy>,
    /// What devices are called in answers.
    pub id_strategy: IdStrategy,
    /// Whether answers list device nodes, which the CPU manager's updates of a container keep.
    pub pass_device_specs: bool,
    /// Whether containers get GPUDirect RDMA copies.
    pub gdrcopy: bool,
    /// Whether containers get GPUDirect Storage.
    pub gds: bool,
    /// Whether containers get InfiniBand's devices.
    pub mofed: bool,
    /// What annotations with CDI names begin with.
    pub cdi_annotation_prefix: String,
    /// Which GPU a share is taken from.
    pub shared_policy: SharedPolicy,
    /// IMEX channels that containers get.
    pub imex_channels: Vec<u32>,
    /// Resource names by product and profile.
    pub names: Names,
    /// Devices that several containers may have at once.
    pub sharing: Sharing,
}

/// Under which names MIG devices are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigStrategy {
    /// Not at all: every GPU is offered as a whole.
    #[default]
    None,
    /// As `nvidia.com/gpu`: all of one profile.
    Single,
    /// Each profile as a resource of its own.
    Mixed,
}

/// How a container is told of its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListStrategy {
    /// `NVIDIA_VISIBLE_DEVICES`.
    Envvar,
    /// Mounts of `/dev/null` named after the devices.
    VolumeMounts,
    /// Annotations with CDI names.
    CdiAnnotations,
    /// CDI names in the kubelet's own field.
    CdiCri,
}

/// What devices are called in answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdStrategy {
    /// By UUID.
    #[default]
    Uuid,
    /// By NVML's index: `0`, or `0:1` for a MIG device.
    Index,
}

/// Which GPU a share is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharedPolicy {
    /// The one with the fewest shares taken.
    #[default]
    Distributed,
    /// The one with the most.
    Packed,
}

/// Resource names by product and profile; the first pattern that matches counts. Without any, `gpu` and
/// `mig-<profile>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// For whole GPUs, by product.
    pub gpus: Vec<Pattern>,
    /// For MIG devices, by profile.
    pub mig: Vec<Pattern>,
}

/// A pattern and the resource name for what matches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// `*` stands for any characters.
    pub pattern: String,
    /// Full name, such as `nvidia.com/gpu`.
    pub name: String,
}

/// Devices that several containers may have at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Whether a container may have one share only.
    pub fail_requests_greater_than_one: bool,
    /// One for each resource that is shared.
    pub resources: Vec<Replicated>,
}

/// A resource that is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicated {
    /// Full name of the resource as it would be without sharing, such as `nvidia.com/gpu`.
    pub name: String,
    /// Full name under which the shares are offered.
    pub rename: String,
    /// Which of its devices are shared; the others are offered as they are.
    pub devices: SharedDevices,
    /// Shares of each device, at least 2.
    pub replicas: u32,
}

/// Which devices of a resource are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedDevices {
    /// All.
    All,
    /// The first so many.
    Count(u32),
    /// These.
    Listed(Vec<DeviceRef>),
}

/// A device as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRef {
    /// NVML's index of a GPU.
    Gpu(u32),
    /// NVML's index of a GPU, and of a MIG device on it.
    Mig(u32, u32),
    /// `GPU-…` or `MIG-…`.
    Uuid(String),
}
