//! What is wrong with devices: what all who read health are told.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    device::Target,
    gpu::{GpuUuid, Placement},
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Work goes on, and somebody should look.
    Warning,
    /// New work must not be put there.
    Unhealthy,
}

impl Severity {
    /// As people and queries read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What kind of fault it is; policies speak of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// A program's own error.
    Application,
    /// The driver, and what it says has to be done.
    Driver,
    /// On-chip microcontrollers, GSP among them.
    Firmware,
    /// ECC, remapped rows.
    Memory,
    /// NVLink, its fabric, chip-to-chip links.
    Link,
    /// PCIe; a GPU that is lost.
    Bus,
    /// Power supply.
    Power,
    /// Temperature.
    Thermal,
    /// Confidential computing.
    Security,
    /// Nobody knows.
    Unknown,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Application,
        Self::Driver,
        Self::Firmware,
        Self::Memory,
        Self::Link,
        Self::Bus,
        Self::Power,
        Self::Thermal,
        Self::Security,
        Self::Unknown,
    ];

    /// As flags, files and queries spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Driver => "driver",
            Self::Firmware => "firmware",
            Self::Memory => "memory",
            Self::Link => "link",
            Self::Bus => "bus",
            Self::Power => "power",
            Self::Thermal => "thermal",
            Self::Security => "security",
            Self::Unknown => "unknown",
        }
    }
}

/// How much of a GPU is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Extent {
    /// All of it, with every part.
    Gpu,
    /// The GPU instance that lies there.
    Instance(Placement),
}

/// Something that is wrong with a GPU or with a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of fault it is.
    pub class: Class,
    /// One word that programs compare, a valid label value: `xid-79`, `recovery-action-2`, `gpu-lost`.
    pub reason: String,
    /// How much of the GPU is concerned.
    pub extent: Extent,
    /// When it began.
    pub since: Timestamp,
    /// What it is, one line without a stop: `GPU has fallen off the bus (XID 79)`.
    pub message: String,
    /// What a person can do, one line without a stop: `reboot the node, then check seating and power`.
    pub action: String,
    /// Whether what runs there may go on: then pods must not be moved, whatever the policy.
    pub keeps_running_work: bool,
}

impl Finding {
    /// Whether this concerns the device.
    pub fn concerns(&self, target: &Target) -> bool {
        match (self.extent, target) {
            (Extent::Instance(place), Target::Mig { placement, .. }) => place.overlaps(*placement),
            (Extent::Gpu | Extent::Instance(_), _) => true,
        }
    }

    /// What it is and what can be done, in one line.
    pub fn line(&self) -> String {
        format!("{}; {}", self.message, self.action)
    }
}

/// The classes of faults that pods are moved from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evicted(pub BTreeSet<Class>);

impl Evicted {
    /// Whether pods are moved from a device because of this.
    pub fn because_of(&self, finding: &Finding) -> bool {
        finding.severity == Severity::Unhealthy
            && !finding.keeps_running_work
            && self.0.contains(&finding.class)
    }
}

/// All that is wrong on a node, worst first for each GPU. A GPU without an entry is healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Findings(pub BTreeMap<GpuUuid, Vec<Finding>>);

impl Findings {
    /// Nothing is wrong.
    pub const NONE: Self = Self(BTreeMap::new());

    /// What is wrong with a GPU, or with any part of it.
    pub fn of_gpu(&self, gpu: &GpuUuid) -> &[Finding] {
        self.0.get(gpu).map(Vec::as_slice).unwrap_or_default()
    }

    /// What is wrong with a device, worst first.
    pub fn of(&self, target: &Target) -> impl Iterator<Item = &Finding> {
        self.of_gpu(target.gpu()).iter().filter(move |finding| finding.concerns(target))
    }

    /// Why new work must not be put on a device; absent where it may.
    pub fn unhealthy(&self, target: &Target) -> Option<&Finding> {
        self.of(target).find(|finding| finding.severity == Severity::Unhealthy)
    }
}
