//! Labels that say of a node which GPUs it has: names and values of NVIDIA's GPU feature discovery.

mod resources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    gpu::{DriverVersions, Gpu, Inventory},
    plugin::config::{Config, MigStrategy},
};

/// What labels tell of a node besides its GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The machine's product name; absent where firmware tells none.
    pub machine_type: Option<String>,
    /// Seconds since 1970; absent when it is not to be told.
    pub timestamp: Option<i64>,
    /// Absent where nothing tells.
    pub vgpu: Option<Vgpu>,
}

/// Whether the node's GPUs are virtual ones: parts that a hypervisor gives to its guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vgpu {
    /// They are not.
    Absent,
    /// They are, with the hypervisor's driver where they name it.
    Present(Option<HostDriver>),
}

/// The driver of a hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDriver {
    /// Such as `550.54.16`.
    pub version: String,
    /// Such as `r550_40`.
    pub branch: String,
}

/// The labels of a node by their full names. What is not known has no label, and a node without GPUs has
/// none that tell of GPUs.
pub fn labels(node: &Facts, inventory: &Inventory, config: &Config) -> BTreeMap<String, String> {
    let mut labels = Labels::default();
    if let Some(seconds) = node.timestamp {
        labels.set("gfd.timestamp", seconds);
    }
    if let Some(vgpu) = &node.vgpu {
        labels.vgpu(vgpu);
    }
    if !inventory.gpus.is_empty() {
        labels.set("gpu.machine", machine(node.machine_type.as_deref()));
        labels.versions(&inventory.driver);
        labels.capabilities(&inventory.gpus);
        labels.resources(&inventory.gpus, config);
    }
    labels.0
}

/// Labels by their full names.
#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    fn set(&mut self, name: &str, value: impl ToString) {
        self.0.insert(format!("nvidia.com/{name}"), value.to_string());
    }

    /// Under the names of today and those that GPU feature discovery has deprecated.
    fn versions(&mut self, versions: &DriverVersions) {
        let parts: Vec<&str> = versions.driver.split('.').collect();
        if let [major, minor, rest @ ..] = parts.as_slice()
            && rest.len() <= 1
        {
            let revision = rest.first().unwrap_or(&"");
            self.set("cuda.driver-version.full", &versions.driver);
            for (name, deprecated, part) in [
                ("major", "major", major),
                ("minor", "minor", minor),
                ("revision", "rev", revision),
            ] {
                self.set(&format!("cuda.driver-version.{name}"), part);
                self.set(&format!("cuda.driver.{deprecated}"), part);
            }
        }
        let (major, minor) = versions.cuda;
        self.set("cuda.runtime-version.full", format!("{major}.{minor}"));
        for (name, part) in [("major", major), ("minor", minor)] {
            self.set(&format!("cuda.runtime-version.{name}"), part);
            self.set(&format!("cuda.runtime.{name}"), part);
        }
    }

    fn capabilities(&mut self, gpus: &[Gpu]) {
        self.set("gpu.mode", mode(gpus));
        if let Some(clique) = clique(gpus) {
            self.set("gpu.clique", clique);
        }
        self.set("mig.capable", gpus.iter().any(|gpu| gpu.mig.is_some()));
        // Says whether NVIDIA's MPS daemon is to run here, and Kerf shares without one.
        self.set("mps.capable", false);
    }

    fn vgpu(&mut self, vgpu: &Vgpu) {
        self.set("vgpu.present", *vgpu != Vgpu::Absent);
        if let Vgpu::Present(Some(host)) = vgpu {
            self.set("vgpu.host-driver-version", &host.version);
            self.set("vgpu.host-driver-branch", &host.branch);
        }
    }

    fn resources(&mut self, gpus: &[Gpu], config: &Config) {
        self.gpus(gpus, &config.sharing);
        match config.mig_strategy {
            MigStrategy::None => {}
            MigStrategy::Single => {
                self.set("mig.strategy", "single");
                self.single(gpus, &config.sharing);
            }
            MigStrategy::Mixed => {
                self.set("mig.strategy", "mixed");
                self.mixed(gpus, &config.sharing);
            }
        }
    }
}

fn machine(product: Option<&str>) -> String {
    let name = sanitised(product.unwrap_or_default());
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// By the PCI class that all GPUs have in common.
fn mode(gpus: &[Gpu]) -> &'static str {
    let classes: BTreeSet<_> = gpus.iter().map(|gpu| gpu.pci_class.as_deref()).collect();
    match classes.first() {
        Some(Some(class)) if classes.len() == 1 && class.starts_with("0x0300") => "graphics",
        Some(Some(class)) if classes.len() == 1 && class.starts_with("0x0302") => "compute",
        _ => "unknown",
    }
}

/// The clique of all GPUs that are in one, if it is the same.
fn clique(gpus: &[Gpu]) -> Option<String> {
    let cliques: BTreeSet<_> = gpus.iter().filter_map(|gpu| gpu.fabric.as_ref()).collect();
    let only = if cliques.len() == 1 { cliques.first() } else { None };
    only.map(|fabric| format!("{}.{}", fabric.cluster, fabric.clique))
}

/// A text as a label's value: without characters that those have not, and with `-` for blanks.
fn sanitised(text: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c) || c.is_whitespace();
    let kept: String = text.chars().filter(allowed).collect();
    let value = kept.split_whitespace().collect::<Vec<_>>().join("-");
    // At both ends of a value there is a letter or a digit.
    value.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
