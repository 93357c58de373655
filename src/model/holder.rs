//! Who holds devices: a claim, or a container that the device plugin gave them to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::claim::ClaimRef;

/// Who holds devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Holder {
    /// A claim, through DRA.
    Claim(ClaimRef),
    /// A container, through the device plugin.
    Container(Container),
}

/// A container that has one device of an extended resource. The device plugin is not told which it is; the
/// kubelet says so afterwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// ID of the device, as the kubelet knows it: the key.
    pub id: String,
    /// Full name of the resource, such as `nvidia.com/gpu`.
    pub resource: String,
    /// Absent until the kubelet has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ContainerName>,
}

/// A container by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerName {
    /// Of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name in the pod.
    pub container: String,
}

impl Holder {
    /// What no other holder has: UID of a claim, device ID of a container.
    pub fn key(&self) -> &str {
        match self {
            Self::Claim(claim) => &claim.uid,
            Self::Container(container) => &container.id,
        }
    }

    /// The claim, if it is one.
    pub fn claim(&self) -> Option<&ClaimRef> {
        match self {
            Self::Claim(claim) => Some(claim),
            Self::Container(_) => None,
        }
    }

    /// The container, if it is one.
    pub fn container(&self) -> Option<&Container> {
        match self {
            Self::Claim(_) => None,
            Self::Container(container) => Some(container),
        }
    }

    /// Names without saying of what: `namespace/name`.
    pub fn label(&self) -> String {
        match self {
            Self::Claim(claim) => claim.to_string(),
            Self::Container(Container { name: Some(name), .. }) => {
                format!("{}/{}", name.namespace, name.pod)
            }
            Self::Container(container) => container.resource.clone(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(claim) => write!(f, "claim `{claim}`"),
            Self::Container(Container { name: Some(name), .. }) => {
                write!(f, "pod `{}/{}`", name.namespace, name.pod)
            }
            Self::Container(container) => write!(f, "a pod with `{}`", container.resource),
        }
    }
}

impl From<ClaimRef> for Holder {
    fn from(claim: ClaimRef) -> Self {
        Self::Claim(claim)
    }
}
