//! What an agent says about itself and what claims hold: the document behind `kerf status`.
//!
//! An agent writes it to whoever connects to its socket, and programs read it from `-o json`: names
//! of fields stay. Times are RFC 3339.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{
    claim::ClaimRef,
    device::Target,
    gpu::GpuUuid,
    health::Finding,
    holder::ContainerName,
    plan::{Origin, PlannedDevice},
    record::{PreparedDevice, Record, State},
    sample::Sample,
};

/// A node's state. What only an agent knows is absent when none answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The agent that answered.
    pub agent: Option<AgentStatus>,
    /// Why this is not an agent's word, in one line.
    pub error: Option<String>,
    /// Absent while the agent has no door open to the kubelet.
    pub kubelet: Option<KubeletStatus>,
    /// Absent where there is no API server, and until the agent serves.
    pub published: Option<Published>,
    /// GPUs that no claim can use now.
    pub not_served: Vec<NotServed>,
    /// What somebody should see to on this node, one line each.
    pub warnings: Vec<String>,
    /// The GPUs that have answered, by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuStatus>,
    /// One for each claim and device, by claim.
    pub claims: Vec<ClaimStatus>,
    /// Extended resources, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<ResourceStatus>,
    /// One for each device that a container has through the device plugin, by container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerStatus>,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Of the program.
    pub version: String,
    /// Process id, in the agent's own PID namespace.
    pub pid: u32,
    /// When it started.
    pub started_at: String,
    /// What it does.
    #[serde(flatten)]
    pub state: AgentState,
}

/// What an agent does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum AgentState {
    /// Prepares claims.
    Serving,
    /// Ready to take over from the agent that acts on this node.
    StandingBy {
        /// Who acts.
        reason: String,
    },
    /// There is no driver to ask yet.
    WaitingForDriver {
        /// What loading it said.
        reason: String,
    },
}

/// How the agent stands with the kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeletStatus {
    /// Whether the kubelet knows the agent.
    pub registered: bool,
    /// When `registered` became what it is.
    pub since: Option<String>,
    /// What the kubelet last complained about.
    pub last_error: Option<String>,
}

/// What the API server has from the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Number of slices.
    pub slices: u32,
    /// The pool's generation.
    pub generation: i64,
    /// When the last write succeeded; absent before the first.
    pub at: Option<String>,
    /// Why the last write failed; absent after one that succeeded.
    pub error: Option<String>,
    /// Optional fields of slices that the server keeps.
    pub features: Vec<String>,
}

/// A GPU that no claim can use now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotServed {
    /// NVML's index, as `nvidia-smi` shows it.
    pub index: u32,
    /// Where known.
    pub uuid: Option<GpuUuid>,
    /// One line: which call failed, or does not come back.
    pub reason: String,
}

/// A GPU, how it is and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuStatus {
    /// NVML's index, as `nvidia-smi` shows it.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: GpuUuid,
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub product: String,
    /// Whether it answers.
    pub served: bool,
    /// What is wrong with it, worst first.
    pub findings: Vec<Finding>,
    /// What it does; absent before the first look, and where nobody looks.
    pub load: Option<Load>,
}

/// What a GPU does. A value that it does not give is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Percent of time that something ran.
    pub utilization: Option<u32>,
    /// Bytes of memory that programs have.
    pub memory_used_bytes: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// °C.
    pub temperature: Option<u32>,
    /// Milliwatts.
    pub power_milliwatts: Option<u32>,
}

impl From<&Sample> for Load {
    fn from(sample: &Sample) -> Self {
        // In MIG mode there is no other word on the whole GPU.
        let active = sample.activity.and_then(|activity| activity.graphics);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let active = active.map(|ratio| (ratio.clamp(0.0, 1.0) * 100.0).round() as u32);
        Self {
            utilization: sample.utilization.or(active),
            memory_used_bytes: sample.memory.map(|memory| memory.used),
            memory_bytes: sample.memory.map(|memory| memory.total),
            temperature: sample.temperature,
            power_milliwatts: sample.power,
        }
    }
}

/// A device of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimStatus {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    /// UID of the claim.
    pub uid: String,
    /// Names of the pods that the claim is reserved for.
    pub pods: Vec<String>,
    /// The claim's requests that the device serves.
    pub requests: Vec<String>,
    /// Device name.
    pub device: String,
    /// UUID of the GPU that the device is, or is a part of.
    pub gpu: GpuUuid,
    /// `GPU-…` or `MIG-…`; absent for a MIG device that is not carved.
    pub uuid: Option<String>,
    /// How far it is.
    pub state: ClaimState,
    /// When the state was reached.
    pub since: String,
    /// Whose work the device is.
    pub origin: Origin,
    /// Qualified CDI names.
    pub cdi: Vec<String>,
}

/// An extended resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceStatus {
    /// Full name.
    pub name: String,
    /// Number of devices.
    pub devices: usize,
    /// How many of them the kubelet may give out or has given out.
    pub healthy: usize,
    /// How many of them containers have.
    pub taken: usize,
    /// Whether the kubelet knows the resource.
    pub registered: bool,
    /// Why not.
    pub error: Option<String>,
}

/// A device that a container has through the device plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// The container; absent until the kubelet has said which it is.
    pub container: Option<ContainerName>,
    /// Full name of the resource.
    pub resource: String,
    /// Device ID.
    pub id: String,
    /// Device name, as it is published for claims.
    pub device: String,
    /// UUID of the GPU that the device is, or is a part of.
    pub gpu: GpuUuid,
    /// `GPU-…` or `MIG-…`; absent for a MIG device that is not carved.
    pub uuid: Option<String>,
    /// How far it is.
    pub state: ClaimState,
    /// When the state was reached.
    pub since: String,
    /// Whose work the device is.
    pub origin: Origin,
}

/// How far a claim's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClaimState {
    /// Begun.
    Preparing,
    /// Done.
    Prepared,
    /// Held since before the machine was started: nothing is carved until the kubelet asks again.
    EarlierBoot,
    /// The holder has ended; what was made for it is destroyed as soon as its GPU was reset.
    Leftover,
}

impl Status {
    /// What records say where no agent does; `error` is why.
    pub fn of_records(records: &[Record], boot_id: &str, error: String) -> Self {
        let claims = ClaimStatus::of(records, boot_id);
        let containers = ContainerStatus::of(records, boot_id);
        Self { claims, containers, error: Some(error), ..Self::default() }
    }
}

impl ClaimStatus {
    /// The devices of all claims in `records`, by namespace and name, as they are in the boot with
    /// this id.
    pub fn of(records: &[Record], boot_id: &str) -> Vec<Self> {
        let claims =
            records.iter().filter_map(|record| Some((record.plan.holder.claim()?, record)));
        let claims: BTreeMap<_, _> = claims.collect();
        let claims = claims.into_iter();
        claims.flat_map(|(claim, record)| Self::of_record(claim, record, boot_id)).collect()
    }

    fn of_record(claim: &ClaimRef, record: &Record, boot_id: &str) -> impl Iterator<Item = Self> {
        let (state, prepared) = progress(record, boot_id);
        let planned = record.plan.devices.iter().enumerate();
        planned
            .map(move |(i, device)| Self::of_device(claim, record, state, device, prepared.get(i)))
    }

    fn of_device(
        claim: &ClaimRef,
        record: &Record,
        state: ClaimState,
        planned: &PlannedDevice,
        prepared: Option<&PreparedDevice>,
    ) -> Self {
        // A GPU keeps its UUID, whether prepared or not.
        let of_gpu = match &planned.target {
            Target::Gpu { gpu } => Some(gpu.0.clone()),
            Target::Mig { .. } => None,
        };
        Self {
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
            uid: claim.uid.clone(),
            pods: record.plan.pods.clone(),
            requests: planned.requests.clone(),
            device: planned.device.clone(),
            gpu: planned.target.gpu().clone(),
            uuid: prepared.and_then(|device| device.uuid.clone()).or(of_gpu),
            state,
            since: record.since.clone(),
            origin: planned.origin,
            cdi: prepared.map(|device| device.cdi.clone()).unwrap_or_default(),
        }
    }
}

impl ContainerStatus {
    /// What containers have by `records`, as it is in the boot with this id.
    pub fn of(records: &[Record], boot_id: &str) -> Vec<Self> {
        let mut containers: Vec<_> = records
            .iter()
            .filter_map(|record| {
                let container = record.plan.holder.container()?;
                let planned = record.plan.devices.first()?;
                let (state, prepared) = progress(record, boot_id);
                let of_gpu = match &planned.target {
                    Target::Gpu { gpu } => Some(gpu.0.clone()),
                    Target::Mig { .. } => None,
                };
                Some(Self {
                    container: container.name.clone(),
                    resource: container.resource.clone(),
                    id: container.id.clone(),
                    device: planned.device.clone(),
                    gpu: planned.target.gpu().clone(),
                    uuid: prepared.first().and_then(|device| device.uuid.clone()).or(of_gpu),
                    state,
                    since: record.since.clone(),
                    origin: planned.origin,
                })
            })
            .collect();
        containers.sort_by(|a, b| (&a.container, &a.id).cmp(&(&b.container, &b.id)));
        containers
    }
}

/// How far a record is in the boot with this id, and its devices.
fn progress<'r>(record: &'r Record, boot_id: &str) -> (ClaimState, &'r [PreparedDevice]) {
    match &record.state {
        _ if record.boot_id != boot_id => (ClaimState::EarlierBoot, &[]),
        _ if record.leftover => (ClaimState::Leftover, &[]),
        State::Preparing => (ClaimState::Preparing, &[]),
        State::Prepared { devices } => (ClaimState::Prepared, devices),
    }
}
