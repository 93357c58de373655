//! What NVIDIA's DRA driver keeps of the claims that it prepares: its `checkpoint.json`.
//!
//! One document with a part for each version of its format. `v2` has everything; `v1`, for older
//! programs, only what is prepared. Fields that are not known are ignored, and what Kerf needs must be
//! there. The checksums are of what NVIDIA's program makes of its own structures when it writes them
//! again, which no other program can repeat: they are not looked at.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::ResourceClaimStatus;
use serde::Deserialize;
use serde_json::Value;

use super::{Reason, Refusal};
use crate::model::{claim::ClaimRef, gpu::GpuUuid};

/// The claims of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The boot in which they were prepared; absent in files of older programs, which trusted them.
    pub boot_id: Option<String>,
    /// In the order of their UIDs.
    pub claims: Vec<KeptClaim>,
}

/// A claim that was prepared, or begun to be.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptClaim {
    /// The file drops the names when a claim is prepared, and nothing else in it has them: they are
    /// `unknown` and the UID then.
    pub claim: ClaimRef,
    /// As the API server had it, with what was allocated and for whom.
    pub status: ResourceClaimStatus,
    /// What was prepared; absent while that had only begun.
    pub prepared: Option<Vec<KeptDevice>>,
}

/// A prepared device. GPU and compute instance are known by ids too, which are used again and so
/// tell nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDevice {
    /// Device name.
    pub device: String,
    /// Qualified CDI names, as the kubelet was told.
    pub cdi: Vec<String>,
    /// The GPU that it is, or is a part of.
    pub gpu: GpuUuid,
    /// `MIG-…`; absent for a whole GPU.
    pub mig: Option<String>,
}

/// The newest format that is known, as the file's `version` names it.
const NEWEST: &str = "v2";

#[derive(Deserialize)]
struct Document {
    version: Option<String>,
    v1: Option<Part>,
    v2: Option<Part>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(rename = "nodeBootID")]
    boot_id: Option<String>,
    prepared_claims: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    checkpoint_state: Option<String>,
    status: ResourceClaimStatus,
    prepared_devices: Option<Vec<Group>>,
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    devices: Option<Vec<Device>>,
    #[serde(default)]
    config_state: ConfigState,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigState {
    #[serde(rename = "mpsControlDaemonID")]
    mps_daemon: Option<String>,
    mps_applied: Option<bool>,
}

/// One field of these is not null.
#[derive(Deserialize)]
struct Device {
    gpu: Option<Gpu>,
    mig: Option<Mig>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Gpu {
    info: Info,
    device: Named,
}

#[derive(Deserialize)]
struct Info {
    uuid: GpuUuid,
}

#[derive(Deserialize)]
struct Mig {
    concrete: Concrete,
    device: Named,
}

#[derive(Deserialize)]
struct Concrete {
    #[serde(rename = "parentUUID")]
    parent: GpuUuid,
    #[serde(rename = "migUUID")]
    uuid: String,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "DeviceName")]
    name: String,
    #[serde(rename = "CDIDeviceIDs")]
    cdi: Option<Vec<String>>,
}

impl Checkpoint {
    /// Reads the file's content.
    ///
    /// # Errors
    /// A format that is not known, or a claim with something that Kerf does not know or do.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| Refusal::Unreadable(error.to_string()))?;
        if let Some(format) = document.newer() {
            return Err(Refusal::Format(format));
        }
        let (part, completed) = match (document.v2, document.v1) {
            (Some(part), _) => (part, false),
            (None, Some(part)) => (part, true),
            (None, None) => return Err(Refusal::Format("without `v1` and `v2`".to_owned())),
        };
        let claims = part.prepared_claims.into_iter().flatten();
        let claims = claims.map(|(uid, claim)| KeptClaim::parse(uid, claim, completed));
        let boot_id = part.boot_id.filter(|id| !id.is_empty());
        Ok(Self { boot_id, claims: claims.collect::<Result<_, _>>()? })
    }
}

impl Document {
    /// The format, if it is not one of those that are known.
    fn newer(&self) -> Option<String> {
        let is_version =
            |key: &str| key.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
        let named = self.version.clone().filter(|version| !["v1", NEWEST].contains(&&**version));
        named.or_else(|| self.others.keys().find(|key| is_version(key)).cloned())
    }
}

impl KeptClaim {
    /// Reads a claim; in a part that has no states all are `completed`.
    fn parse(uid: String, claim: Value, completed: bool) -> Result<Self, Refusal> {
        let unnamed =
            ClaimRef { namespace: "unknown".to_owned(), name: uid.clone(), uid: uid.clone() };
        let claim: Claim = serde_json::from_value(claim).map_err(|error| {
            Refusal::of(&unnamed.clone().into(), Reason::Unreadable(error.to_string()))
        })?;
        let named = match (claim.namespace, claim.name) {
            (Some(namespace), Some(name)) => ClaimRef { namespace, name, uid },
            _ => unnamed,
        };
        let groups = claim.prepared_devices.unwrap_or_default();
        let prepared = match claim.checkpoint_state.as_deref() {
            Some("PrepareCompleted") => devices(groups).map(Some),
            None if completed => devices(groups).map(Some),
            Some("PrepareStarted") => Ok(None),
            other => Err(Reason::State(other.unwrap_or_default().to_owned())),
        };
        let prepared = prepared.map_err(|reason| Refusal::of(&named.clone().into(), reason))?;
        Ok(Self { claim: named, status: claim.status, prepared })
    }
}

fn devices(groups: Vec<Group>) -> Result<Vec<KeptDevice>, Reason> {
    let mut devices = Vec::new();
    for group in groups {
        let ConfigState { mps_daemon, mps_applied } = group.config_state;
        if mps_daemon.is_some_and(|id| !id.is_empty()) || mps_applied == Some(true) {
            return Err(Reason::Mps);
        }
        for device in group.devices.unwrap_or_default() {
            devices.push(KeptDevice::of(device)?);
        }
    }
    Ok(devices)
}

impl KeptDevice {
    fn of(device: Device) -> Result<Self, Reason> {
        let mut others = device.others.into_iter().filter(|(_, value)| !value.is_null());
        match (device.gpu, device.mig, others.next()) {
            (Some(Gpu { info, device }), None, None) => Ok(Self::named(device, info.uuid, None)),
            (None, Some(Mig { concrete, device }), None) => {
                Ok(Self::named(device, concrete.parent, Some(concrete.uuid)))
            }
            (_, _, Some((kind, _))) => Err(Reason::Kind(kind)),
            (Some(_), Some(_), None) => Err(Reason::Kind("gpu and mig".to_owned())),
            (None, None, None) => Err(Reason::Kind(String::new())),
        }
    }

    fn named(Named { name, cdi }: Named, gpu: GpuUuid, mig: Option<String>) -> Self {
        Self { device: name, cdi: cdi.unwrap_or_default(), gpu, mig }
    }
}
