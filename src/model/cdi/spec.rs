//! A CDI document as it stands in a file, as far as Kerf writes such, and the version it needs.
//!
//! Keys and versions: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>.
//! Reading is strict, as it is in container runtimes: a key that is not here is an error.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// All versions of the specification that runtimes still read, rising.
pub(super) const VERSIONS: [&str; 8] =
    ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A CDI file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The version that its content needs, and no higher: an older runtime refuses what it does not
    /// know.
    pub cdi_version: Cow<'static, str>,
    /// `vendor/class`.
    pub kind: String,
    /// At least one.
    pub devices: Vec<Device>,
    /// Done once for a container that uses any of the devices.
    #[serde(default, skip_serializing_if = "ContainerEdits::is_empty")]
    pub container_edits: ContainerEdits,
}

/// A device of a CDI file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Unique in the file.
    pub name: String,
    /// Not empty.
    pub container_edits: ContainerEdits,
}

/// What is done to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    /// `KEY=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes to be made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<NodeEdit>,
    /// Programs to be run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Files of the host to be mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Groups that the container's process joins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// A device node to be made in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeEdit {
    /// In the container.
    pub path: String,
    /// On the host, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// `b`, `c`, `u` or `p`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<Cow<'static, str>>,
    /// Major number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// Minor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// What the container's device cgroup allows: some of `r`, `w`, `m`, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Cow<'static, str>>,
    /// Owning group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A program that the runtime runs at a point of a container's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// Which point, in the words of the OCI runtime specification.
    pub hook_name: Cow<'static, str>,
    /// On the host, absolute.
    pub path: String,
    /// All of `argv`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `KEY=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<Cow<'static, str>>,
}

/// A file or directory of the host to be seen in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// Of `mount`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Cow<'static, str>>,
}

impl Spec {
    /// A document of the lowest version that its content needs, but at least 0.5.0, which every
    /// runtime that has CDI reads.
    pub fn new(kind: String, devices: Vec<Device>, container_edits: ContainerEdits) -> Self {
        let mut spec = Self { cdi_version: "0.5.0".into(), kind, devices, container_edits };
        if spec.required_version() > "0.5.0" {
            spec.cdi_version = spec.required_version().into();
        }
        spec
    }

    /// The lowest version that knows everything that the document has.
    pub(super) fn required_version(&self) -> &'static str {
        let edits = self.devices.iter().map(|device| &device.container_edits);
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let has = |test: fn(&ContainerEdits) -> bool| {
            test(&self.container_edits) || edits.clone().any(test)
        };
        if has(|edits| !edits.additional_gids.is_empty()) {
            "0.7.0"
        } else if class.contains('.') {
            "0.6.0"
        } else if has(|edits| edits.device_nodes.iter().any(|node| node.host_path.is_some()))
            || self
                .devices
                .iter()
                .any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()))
        {
            "0.5.0"
        } else {
            "0.3.0"
        }
    }
}

impl ContainerEdits {
    /// Whether nothing is done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
