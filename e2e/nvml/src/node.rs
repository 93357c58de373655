//! Node descriptions: which GPUs are plugged in where, as data that tests and demos can keep in a file.

use serde::{Deserialize, Serialize};

/// A node: its driver and its GPUs, which NVML counts in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Driver version, such as `580.95.05`.
    pub driver: String,
    /// CUDA version, 1000 times the major plus 10 times the minor.
    pub cuda: u32,
    /// At most 16.
    pub gpus: Vec<GpuDescription>,
    /// Whether real containers are to run on it, with device nodes that open and a library that answers
    /// inside. Such a machine has no display: neither `nvidia-modeset` nor DRM.
    #[serde(default)]
    pub for_containers: bool,
    /// The NVLink fabric that its GPUs have joined, of those that join one: Hopper and later on boards with
    /// NVSwitches. Without one they say that they support none.
    #[serde(default)]
    pub fabric: Option<FabricDescription>,
}

/// An NVLink fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricDescription {
    /// UUID of the machines that it connects; absent for a fabric that ends with its machine.
    #[serde(default)]
    pub cluster: Option<String>,
    /// The part of it that the GPUs are in.
    pub clique: u32,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuDescription {
    /// What it is.
    pub model: Model,
    /// Whether MIG mode is on when the machine is made.
    #[serde(default)]
    pub mig_enabled: bool,
    /// NUMA node that it is near; absent as on a machine with one.
    #[serde(default)]
    pub numa: Option<u32>,
    /// Its PCIe root complex, such as `pci0000:16`; absent where sysfs shows none, as in some virtual
    /// machines.
    #[serde(default)]
    pub pcie_root: Option<String>,
    /// The N of `/dev/nvidiaN`; its index if absent.
    #[serde(default)]
    pub minor: Option<u32>,
    /// `GPU-…`; made from model and index if absent.
    #[serde(default)]
    pub uuid: Option<String>,
}

/// A GPU model that the simulation has the numbers of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Model {
    /// A30 with 24 GB.
    #[serde(rename = "A30")]
    A30,
    /// A100 with 40 GB.
    #[serde(rename = "A100-40GB")]
    A100_40,
    /// A100 with 80 GB.
    #[serde(rename = "A100-80GB")]
    A100_80,
    /// H100 with 80 GB.
    #[serde(rename = "H100-80GB")]
    H100_80,
    /// H200 with 141 GB.
    #[serde(rename = "H200-141GB")]
    H200_141,
    /// B200 with 180 GB.
    #[serde(rename = "B200")]
    B200,
    /// RTX PRO 6000, Blackwell Server Edition, with 96 GB.
    #[serde(rename = "RTX-PRO-6000")]
    RtxPro6000,
    /// L4, which has no MIG.
    #[serde(rename = "L4")]
    L4,
    /// T4, which has no MIG.
    #[serde(rename = "T4")]
    T4,
}

impl Model {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::A30,
        Self::A100_40,
        Self::A100_80,
        Self::H100_80,
        Self::H200_141,
        Self::B200,
        Self::RtxPro6000,
        Self::L4,
        Self::T4,
    ];

    /// Whether it can be cut.
    pub fn has_mig(self) -> bool {
        self.spec().mig.is_some()
    }

    /// What NVML calls it, such as `NVIDIA H100 80GB HBM3`.
    pub fn product(self) -> &'static str {
        self.spec().name
    }
}

impl NodeDescription {
    /// `count` GPUs of one model, 1 to 16, on two NUMA nodes, each on a PCIe root of its own.
    pub fn uniform(model: Model, count: usize) -> Self {
        Self::mixed(&vec![model; count])
    }

    /// These GPUs, 1 to 16, on two NUMA nodes, each on a PCIe root of its own, MIG mode off.
    pub fn mixed(models: &[Model]) -> Self {
        let on_first = models.len().div_ceil(2);
        let gpu = |(index, &model): (usize, &Model)| GpuDescription {
            model,
            mig_enabled: false,
            numa: Some(u32::from(index >= on_first)),
            pcie_root: Some(format!("pci0000:{:02x}", bus(index) - 1)),
            minor: None,
            uuid: None,
        };
        let gpus = models.iter().enumerate().map(gpu).collect();
        let driver = "580.95.05".to_owned();
        Self { driver, cuda: 13000, gpus, for_containers: false, fabric: None }
    }

    /// The driver's branch and version in it, such as 580 and 95; 0 for what is no number.
    pub(crate) fn driver_version(&self) -> (u32, u32) {
        let mut numbers = self.driver.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// The driver's branch, such as 580.
    pub(crate) fn driver_branch(&self) -> u32 {
        self.driver_version().0
    }

    /// The same with MIG mode on wherever there is MIG.
    pub fn with_mig_enabled(mut self) -> Self {
        for gpu in &mut self.gpus {
            gpu.mig_enabled = gpu.model.has_mig();
        }
        self
    }

    /// The same with its GPUs in an NVLink fabric.
    pub fn in_fabric(self, fabric: FabricDescription) -> Self {
        Self { fabric: Some(fabric), ..self }
    }

    /// The same for real containers, which only root can make.
    pub fn for_containers(self) -> Self {
        Self { for_containers: true, ..self }
    }
}

/// PCI bus of the GPU with this index: NVML counts GPUs in the order of their addresses.
pub(crate) fn bus(index: usize) -> usize {
    0x07 + 0x0e * index
}
