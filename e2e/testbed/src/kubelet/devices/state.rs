//! What the kubelet knows of device plugins and of the pods that use them, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

pub use kerf::proto::device_plugin::{ContainerAllocateResponse, DeviceSpec, Mount};

/// A pod by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// A resource of device plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Socket of the plugin that calls go to; none after a restart of the kubelet.
    pub endpoint: Option<PathBuf>,
    /// Whether calls go there: a stopped endpoint is kept, without being called, for five minutes.
    pub connected: bool,
    /// Whether its devices were ever listed. Until then pods that ask for it are admitted without.
    pub registered: bool,
    /// Those of the last list, by ID.
    pub devices: BTreeMap<String, PluginDevice>,
    /// IDs that are given to a pod, or about to be.
    pub allocated: BTreeSet<String>,
}

/// A device as its plugin lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginDevice {
    /// Whether the plugin said so, and its stream still runs.
    pub healthy: bool,
    /// NUMA nodes; none when there was no topology, which is not the same as an empty one.
    pub numa: Option<Vec<i64>>,
}

/// A pod that runs, or is about to.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Which.
    pub pod: PodRef,
    /// By name.
    pub containers: BTreeMap<String, Container>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    /// How many of each resource it asks for.
    pub requests: BTreeMap<String, usize>,
    /// What it was given, as the checkpoint keeps it.
    pub allocation: Allocation,
    /// Whether it was started.
    pub running: bool,
    /// Whether it is an init container that ends before the others start: pod resources never name it.
    pub init: bool,
}

/// What a container was given, by resource.
pub type Allocation = BTreeMap<String, Granted>;

/// Devices of one resource, and how to use them.
#[derive(Clone, Debug, PartialEq)]
pub struct Granted {
    /// NUMA nodes by device ID, as they were then.
    pub devices: BTreeMap<String, Vec<i64>>,
    /// What the plugin answered.
    pub answer: ContainerAllocateResponse,
}

/// What the runtime is told of a container's devices. Of two values for one name or path, one wins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunOptions {
    /// Environment.
    pub envs: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<DeviceSpec>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Fully qualified CDI names.
    pub cdi_devices: Vec<String>,
}

/// Why a pod was not admitted: the status that it ends with, whose reason is
/// `UnexpectedAdmissionError`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionError(pub String);

impl fmt::Display for AdmissionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pod was rejected: Allocate failed due to {}, which is unexpected", self.0)
    }
}

impl std::error::Error for AdmissionError {}

impl Resource {
    /// How many devices the node has.
    pub fn capacity(&self) -> usize {
        self.devices.len()
    }

    /// How many of them pods may use: those that are healthy.
    pub fn allocatable(&self) -> usize {
        self.healthy().len()
    }

    pub(super) fn healthy(&self) -> BTreeSet<String> {
        let healthy = self.devices.iter().filter(|(_, device)| device.healthy);
        healthy.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn mark_unhealthy(&mut self) {
        self.devices.values_mut().for_each(|device| device.healthy = false);
    }
}
