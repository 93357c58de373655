//! What a container is given: the answer to Allocate, in the words of NVIDIA's device plugin.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    cdi::{self, DeviceNode},
    plugin::config::{Config, IdStrategy, ListStrategy},
};

/// Where NVIDIA's container runtime looks for devices named by mounts.
const MOUNTS: &str = "/var/run/nvidia-container-devices";

/// A device that a container holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Device ID without the share.
    pub id: String,
    /// Whether it was carved for the container, and is known by its CDI name alone.
    pub carved: bool,
    /// `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// NVML's index, where devices go by that: `0` or `0:1`.
    pub index: Option<String>,
    /// What opens it.
    pub nodes: Vec<DeviceNode>,
}

/// The answer for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Environment.
    pub envs: BTreeMap<String, String>,
    /// Host path by path in the container.
    pub mounts: BTreeMap<String, String>,
    /// Device nodes: host path by path in the container.
    pub devices: BTreeMap<String, String>,
    /// Annotations of the container.
    pub annotations: BTreeMap<String, String>,
    /// CDI names.
    pub cdi: Vec<String>,
}

/// The answer for a container with these devices. `control` are the nodes that all GPUs share.
pub fn response(config: &Config, given: &[Given], control: &[DeviceNode]) -> Response {
    let mut response = Response::default();
    let names = names(config, given);
    for strategy in strategies(config, given) {
        match strategy {
            ListStrategy::Envvar => add_envs(&mut response, config, &names),
            ListStrategy::VolumeMounts => add_mounts(&mut response, config, &names),
            ListStrategy::CdiAnnotations => add_annotation(&mut response, config, &names),
            ListStrategy::CdiCri => response.cdi = cdi_names(&names),
        }
    }
    if config.pass_device_specs && !is_cdi_only(config, given) {
        add_nodes(&mut response, given, control);
    }
    for (enabled, name) in
        [(config.gds, "GDS"), (config.mofed, "MOFED"), (config.gdrcopy, "GDRCOPY")]
    {
        if enabled {
            response.envs.insert(format!("NVIDIA_{name}"), "enabled".to_owned());
        }
    }
    response
}

/// How the container is told: of what was carved for it, only CDI knows.
fn strategies(config: &Config, given: &[Given]) -> BTreeSet<ListStrategy> {
    if !given.iter().any(|given| given.carved) {
        return config.list_strategies.clone();
    }
    let cdi = config.list_strategies.iter().copied().filter(|strategy| strategy.is_cdi());
    let cdi: BTreeSet<_> = cdi.collect();
    if cdi.is_empty() { BTreeSet::from([ListStrategy::CdiCri]) } else { cdi }
}

fn is_cdi_only(config: &Config, given: &[Given]) -> bool {
    strategies(config, given).into_iter().all(ListStrategy::is_cdi)
}

impl ListStrategy {
    /// Whether a container runtime is asked for CDI devices.
    pub fn is_cdi(self) -> bool {
        matches!(self, Self::CdiAnnotations | Self::CdiCri)
    }
}

/// What the devices are called, each once: shares of one are one.
fn names(config: &Config, given: &[Given]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let named = given.iter().map(|given| match (config.id_strategy, &given.index) {
        _ if given.carved => given.id.clone(),
        (IdStrategy::Index, Some(index)) => index.clone(),
        _ => given.uuid.clone(),
    });
    named.filter(|name| seen.insert(name.clone())).collect()
}

fn add_envs(response: &mut Response, config: &Config, names: &[String]) {
    response.envs.insert("NVIDIA_VISIBLE_DEVICES".to_owned(), names.join(","));
    if !config.imex_channels.is_empty() {
        let channels: Vec<_> = config.imex_channels.iter().map(u32::to_string).collect();
        response.envs.insert("NVIDIA_IMEX_CHANNELS".to_owned(), channels.join(","));
    }
}

fn add_mounts(response: &mut Response, config: &Config, names: &[String]) {
    response.envs.insert("NVIDIA_VISIBLE_DEVICES".to_owned(), MOUNTS.to_owned());
    let channels = config.imex_channels.iter().map(|channel| format!("imex/{channel}"));
    for name in names.iter().cloned().chain(channels) {
        response.mounts.insert(format!("{MOUNTS}/{name}"), "/dev/null".to_owned());
    }
}

fn add_annotation(response: &mut Response, config: &Config, names: &[String]) {
    // Two resources of one container have keys of their own.
    let key = format!("{}nvidia-device-plugin_{:016x}", config.cdi_annotation_prefix, hash(names));
    response.annotations.insert(key, cdi_names(names).join(","));
}

fn cdi_names(names: &[String]) -> Vec<String> {
    names.iter().map(|name| cdi::plugin_name(name)).collect()
}

fn add_nodes(response: &mut Response, given: &[Given], control: &[DeviceNode]) {
    let nodes = control.iter().chain(given.iter().flat_map(|given| &given.nodes));
    // As NVIDIA's plugin: no DRM nodes.
    for node in nodes.filter(|node| node.path.starts_with("/dev/nvidia")) {
        let host = node.host_path.clone().unwrap_or_else(|| node.path.clone());
        response.devices.insert(node.path.clone(), host);
    }
}

/// FNV-1a.
fn hash(names: &[String]) -> u64 {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([b',']));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
