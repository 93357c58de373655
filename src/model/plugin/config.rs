//! How the device plugin is configured: what NVIDIA's v1 configuration file says, as values.

mod file;
mod name;

use std::collections::BTreeSet;

pub use self::{file::Error, name::full_name};

/// What annotations with CDI names begin with if nothing else is said.
pub const CDI_ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

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
    /// IMEX channels that containers get: 0, or none.
    pub imex_channels: Vec<u32>,
    /// Resource names by product and profile.
    pub names: Names,
    /// Devices that several containers may have at once.
    pub sharing: Sharing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mig_strategy: MigStrategy::default(),
            // NVIDIA's default, the environment, means something to NVIDIA's container runtime only.
            list_strategies: BTreeSet::from([ListStrategy::CdiCri]),
            id_strategy: IdStrategy::default(),
            pass_device_specs: false,
            gdrcopy: false,
            gds: false,
            mofed: false,
            cdi_annotation_prefix: CDI_ANNOTATION_PREFIX.to_owned(),
            shared_policy: SharedPolicy::default(),
            imex_channels: Vec::new(),
            names: Names::default(),
            sharing: Sharing::default(),
        }
    }
}

impl Config {
    /// Reads a configuration file. What `overrides` say wins over it.
    ///
    /// # Errors
    /// What the file may not say, in one line.
    pub fn read(text: &str, overrides: &Overrides) -> Result<Self, Error> {
        file::read(text).map(|config| config.with(overrides))
    }

    /// The same, but for what `overrides` say.
    #[must_use]
    pub fn with(self, overrides: &Overrides) -> Self {
        let Overrides { list_strategies, cdi_annotation_prefix, imex_channels, .. } =
            overrides.clone();
        Self {
            mig_strategy: overrides.mig_strategy.unwrap_or(self.mig_strategy),
            list_strategies: list_strategies.unwrap_or(self.list_strategies),
            id_strategy: overrides.id_strategy.unwrap_or(self.id_strategy),
            pass_device_specs: overrides.pass_device_specs.unwrap_or(self.pass_device_specs),
            gdrcopy: overrides.gdrcopy.unwrap_or(self.gdrcopy),
            gds: overrides.gds.unwrap_or(self.gds),
            mofed: overrides.mofed.unwrap_or(self.mofed),
            cdi_annotation_prefix: cdi_annotation_prefix.unwrap_or(self.cdi_annotation_prefix),
            shared_policy: overrides.shared_policy.unwrap_or(self.shared_policy),
            imex_channels: imex_channels.unwrap_or(self.imex_channels),
            names: self.names,
            sharing: self.sharing,
        }
    }
}

/// What flags and environment say, whatever the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// For [`Config::mig_strategy`].
    pub mig_strategy: Option<MigStrategy>,
    /// For [`Config::list_strategies`]; not empty.
    pub list_strategies: Option<BTreeSet<ListStrategy>>,
    /// For [`Config::id_strategy`].
    pub id_strategy: Option<IdStrategy>,
    /// For [`Config::pass_device_specs`].
    pub pass_device_specs: Option<bool>,
    /// For [`Config::gdrcopy`].
    pub gdrcopy: Option<bool>,
    /// For [`Config::gds`].
    pub gds: Option<bool>,
    /// For [`Config::mofed`].
    pub mofed: Option<bool>,
    /// For [`Config::cdi_annotation_prefix`].
    pub cdi_annotation_prefix: Option<String>,
    /// For [`Config::shared_policy`].
    pub shared_policy: Option<SharedPolicy>,
    /// For [`Config::imex_channels`].
    pub imex_channels: Option<Vec<u32>>,
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

impl MigStrategy {
    /// As the file, flags and environment spell it.
    pub const WORDS: [(&str, Self); 3] =
        [("none", Self::None), ("single", Self::Single), ("mixed", Self::Mixed)];
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

impl ListStrategy {
    /// As the file, flags and environment spell it.
    pub const WORDS: [(&str, Self); 4] = [
        ("envvar", Self::Envvar),
        ("volume-mounts", Self::VolumeMounts),
        ("cdi-annotations", Self::CdiAnnotations),
        ("cdi-cri", Self::CdiCri),
    ];
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

impl IdStrategy {
    /// As the file, flags and environment spell it.
    pub const WORDS: [(&str, Self); 2] = [("uuid", Self::Uuid), ("index", Self::Index)];
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

impl SharedPolicy {
    /// As the file, flags and environment spell it.
    pub const WORDS: [(&str, Self); 2] =
        [("distributed", Self::Distributed), ("packed", Self::Packed)];
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
    /// What is shared; where two name one device, the first counts.
    pub resources: Vec<Replicated>,
    /// Full names of resources that are to be shared through MPS. Nothing here serves that, and without it
    /// their containers would not have the limits that they are meant to have: they are not offered.
    pub by_mps: BTreeSet<String>,
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
    /// Shares of each device, 2 to 512.
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

/// A boolean as Go spells it, and YAML 1.1.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "y" | "yes" | "on" => Some(true),
        "0" | "f" | "false" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
