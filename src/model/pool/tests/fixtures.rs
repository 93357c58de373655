//! GPUs as NVML describes them, for the tests of this module.

use crate::model::gpu::{
    Capacity, ComputeInstance, DriverVersions, Gpu, GpuInstance, GpuUuid, Inventory, Mig,
    Placement, Profile,
};

/// A GPU model; what is not known of one is as on its nearest relative.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) product: &'static str,
    architecture: &'static str,
    compute_capability: (u32, u32),
    memory_mib: u64,
    switches_without_reset: bool,
    rows: &'static [Row],
}

/// Name, id, index, compute slices, how many fit, MiB, then multiprocessors, copy engines, decoders,
/// encoders, JPEG and OFA engines, then the starts and the size of the placements.
type Row = (&'static str, u32, u32, u32, u32, u64, [u32; 6], &'static [u32], u32);

pub(crate) const MODELS: [&Model; 7] = [&A30, &A100_40, &A100_80, &H100, &B200, &RTX_PRO_6000, &L4];

const EACH_OF_7: &[u32] = &[0, 1, 2, 3, 4, 5, 6];

pub(crate) const A30: Model = Model {
    product: "NVIDIA A30",
    architecture: "Ampere",
    compute_capability: (8, 0),
    memory_mib: 24576,
    switches_without_reset: false,
    rows: &[
        ("1g.6gb", 14, 0, 1, 4, 5952, [14, 1, 1, 0, 0, 0], &[0, 1, 2, 3], 1),
        ("2g.12gb", 5, 1, 2, 2, 11968, [28, 2, 2, 0, 0, 0], &[0, 2], 2),
        ("4g.24gb", 0, 3, 4, 1, 24000, [56, 4, 4, 0, 1, 1], &[0], 4),
        ("1g.6gb+me", 21, 7, 1, 1, 5952, [14, 1, 1, 0, 1, 1], &[0, 1, 2, 3], 1),
        ("2g.12gb+me", 6, 8, 2, 1, 11968, [28, 2, 2, 0, 1, 1], &[0, 2], 2),
    ],
};

pub(crate) const A100_40: Model = Model {
    product: "NVIDIA A100-SXM4-40GB",
    architecture: "Ampere",
    compute_capability: (8, 0),
    memory_mib: 40960,
    switches_without_reset: false,
    rows: &[
        ("1g.5gb", 19, 0, 1, 7, 4864, [14, 1, 0, 0, 0, 0], EACH_OF_7, 1),
        ("2g.10gb", 14, 1, 2, 3, 9984, [28, 2, 1, 0, 0, 0], &[0, 2, 4], 2),
        ("3g.20gb", 9, 2, 3, 2, 20096, [42, 3, 2, 0, 0, 0], &[0, 4], 4),
        ("4g.20gb", 5, 3, 4, 1, 20096, [56, 4, 2, 0, 0, 0], &[0], 4),
        ("7g.40gb", 0, 4, 7, 1, 40192, [98, 7, 5, 0, 1, 1], &[0], 8),
        ("1g.5gb+me", 20, 7, 1, 1, 4864, [14, 1, 1, 0, 1, 1], EACH_OF_7, 1),
        ("1g.10gb", 15, 9, 1, 4, 9984, [14, 1, 1, 0, 0, 0], &[0, 2, 4, 6], 2),
    ],
};

pub(crate) const A100_80: Model = Model {
    product: "NVIDIA A100-SXM4-80GB",
    architecture: "Ampere",
    compute_capability: (8, 0),
    memory_mib: 81920,
    switches_without_reset: false,
    rows: &[
        ("1g.10gb", 19, 0, 1, 7, 9856, [14, 1, 0, 0, 0, 0], EACH_OF_7, 1),
        ("2g.20gb", 14, 1, 2, 3, 19968, [28, 2, 1, 0, 0, 0], &[0, 2, 4], 2),
        ("3g.40gb", 9, 2, 3, 2, 40192, [42, 3, 2, 0, 0, 0], &[0, 4], 4),
        ("4g.40gb", 5, 3, 4, 1, 40192, [56, 4, 2, 0, 0, 0], &[0], 4),
        ("7g.80gb", 0, 4, 7, 1, 80384, [98, 7, 5, 0, 1, 1], &[0], 8),
        ("1g.10gb+me", 20, 7, 1, 1, 9856, [14, 1, 1, 0, 1, 1], EACH_OF_7, 1),
        ("1g.20gb", 15, 9, 1, 4, 19968, [14, 1, 1, 0, 0, 0], &[0, 2, 4, 6], 2),
    ],
};

pub(crate) const H100: Model = Model {
    product: "NVIDIA H100 80GB HBM3",
    architecture: "Hopper",
    compute_capability: (9, 0),
    memory_mib: 81559,
    switches_without_reset: true,
    rows: &[
        ("1g.10gb", 19, 0, 1, 7, 9984, [16, 1, 1, 0, 1, 0], EACH_OF_7, 1),
        ("2g.20gb", 14, 1, 2, 3, 20096, [32, 2, 2, 0, 2, 0], &[0, 2, 4], 2),
        ("3g.40gb", 9, 2, 3, 2, 40448, [60, 3, 3, 0, 3, 0], &[0, 4], 4),
        ("4g.40gb", 5, 3, 4, 1, 40448, [64, 4, 4, 0, 4, 0], &[0], 4),
        ("7g.80gb", 0, 4, 7, 1, 81152, [132, 8, 7, 0, 7, 1], &[0], 8),
        ("1g.10gb+me", 20, 7, 1, 1, 9984, [16, 1, 1, 0, 1, 1], EACH_OF_7, 1),
        ("1g.20gb", 15, 9, 1, 4, 20096, [26, 1, 1, 0, 1, 0], &[0, 2, 4, 6], 2),
    ],
};

pub(crate) const B200: Model = Model {
    product: "NVIDIA B200",
    architecture: "Blackwell",
    compute_capability: (10, 0),
    memory_mib: 183_359,
    switches_without_reset: true,
    rows: &[
        ("1g.23gb", 19, 0, 1, 7, 22528, [18, 2, 1, 0, 1, 0], EACH_OF_7, 1),
        ("2g.45gb", 14, 1, 2, 3, 45312, [36, 4, 2, 0, 2, 0], &[0, 2, 4], 2),
        ("3g.90gb", 9, 2, 3, 2, 91136, [70, 6, 3, 0, 3, 0], &[0, 4], 4),
        ("4g.90gb", 5, 3, 4, 1, 91136, [72, 8, 4, 0, 4, 0], &[0], 4),
        ("7g.180gb", 0, 4, 7, 1, 182_784, [148, 16, 7, 0, 7, 1], &[0], 8),
        ("1g.23gb+me", 20, 7, 1, 1, 22528, [18, 2, 1, 0, 1, 1], EACH_OF_7, 1),
        ("1g.45gb", 15, 9, 1, 4, 45312, [30, 2, 1, 0, 1, 0], &[0, 2, 4, 6], 2),
    ],
};

pub(crate) const RTX_PRO_6000: Model = Model {
    product: "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    architecture: "Blackwell",
    compute_capability: (12, 0),
    memory_mib: 97887,
    switches_without_reset: true,
    rows: &[
        ("1g.24gb", 14, 0, 1, 4, 24192, [46, 1, 1, 1, 1, 0], &[0, 3, 6, 9], 3),
        ("2g.48gb", 5, 1, 2, 2, 48512, [94, 2, 2, 2, 2, 0], &[0, 6], 6),
        ("4g.96gb", 0, 3, 4, 1, 97408, [188, 4, 4, 4, 4, 1], &[0], 12),
        ("1g.24gb+me", 21, 7, 1, 1, 24192, [46, 1, 1, 1, 1, 1], &[0, 3, 6, 9], 3),
        ("1g.24gb+gfx", 47, 10, 1, 4, 24192, [46, 1, 1, 1, 1, 0], &[0, 3, 6, 9], 3),
        ("2g.48gb+gfx", 35, 11, 2, 2, 48512, [94, 2, 2, 2, 2, 0], &[0, 6], 6),
        ("4g.96gb+gfx", 32, 12, 4, 1, 97408, [188, 4, 4, 4, 4, 1], &[0], 12),
        ("1g.24gb-me", 67, 13, 1, 4, 24192, [46, 1, 0, 0, 0, 0], &[0, 3, 6, 9], 3),
        ("2g.48gb-me", 66, 14, 2, 2, 48512, [94, 2, 0, 0, 0, 0], &[0, 6], 6),
        ("1g.24gb+me.all", 65, 15, 1, 1, 24192, [46, 1, 4, 4, 4, 1], &[0, 3, 6, 9], 3),
        ("2g.48gb+me.all", 64, 16, 2, 1, 48512, [94, 2, 4, 4, 4, 1], &[0, 6], 6),
    ],
};

pub(crate) const L4: Model = Model {
    product: "NVIDIA L4",
    architecture: "Ada",
    compute_capability: (8, 9),
    memory_mib: 23034,
    switches_without_reset: false,
    rows: &[],
};

/// A GPU of a model, in MIG mode if it has one.
pub(crate) fn gpu(model: &Model, number: u32) -> Gpu {
    let mig = || Mig {
        enabled: true,
        pending: true,
        switches_without_reset: model.switches_without_reset,
        profiles: model.rows.iter().map(profile).collect(),
        instances: Vec::new(),
    };
    Gpu {
        number,
        index: number,
        minor: number,
        uuid: GpuUuid(format!("GPU-00000000-0000-0000-0000-{number:012}")),
        product: model.product.to_owned(),
        brand: "Nvidia".to_owned(),
        architecture: model.architecture.to_owned(),
        compute_capability: model.compute_capability,
        memory: Some(model.memory_mib << 20),
        pci: format!("0000:{:02x}:00.0", 0x1b + number),
        pcie_root: Some(format!("pci0000:{:02x}", 0x1a + number)),
        numa_node: Some(number / 4),
        addressing_mode: Some("None".to_owned()),
        mig: (!model.rows.is_empty()).then(mig),
    }
}

fn profile(&(name, id, index, slices, max_instances, mib, engines, starts, size): &Row) -> Profile {
    let [multiprocessors, copy_engines, decoders, encoders, jpeg_engines, ofa_engines] = engines;
    Profile {
        index,
        id,
        name: name.to_owned(),
        slices,
        max_instances,
        capacity: Capacity {
            multiprocessors,
            copy_engines,
            decoders,
            encoders,
            jpeg_engines,
            ofa_engines,
            memory: mib << 20,
        },
        placements: starts.iter().map(|&start| Placement { start, size }).collect(),
    }
}

/// A node with these GPUs, numbered in their order.
pub(crate) fn node(gpus: impl IntoIterator<Item = Gpu>) -> Inventory {
    let driver = DriverVersions { driver: "580.95.05".to_owned(), cuda: (13, 0) };
    Inventory { driver, gpus: gpus.into_iter().collect(), unreadable: Vec::new() }
}

/// A shape that a GPU instance may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One compute instance that fills it.
    Filled,
    /// No compute instance.
    Empty,
    /// Two compute instances.
    Split,
}

/// Puts an instance on a GPU.
pub(crate) fn carve(gpu: &mut Gpu, profile: u32, placement: Placement, shape: Shape) {
    let number = gpu.number;
    let mig = gpu.mig.as_mut().unwrap();
    let id = u32::try_from(mig.instances.len()).unwrap() + 1;
    let compute = |ci: u32, fills| ComputeInstance {
        id: ci,
        uuid: format!("MIG-00000000-0000-{number:04}-{id:04}-{ci:012}"),
        fills,
    };
    let compute = match shape {
        Shape::Filled => vec![compute(0, true)],
        Shape::Empty => Vec::new(),
        Shape::Split => vec![compute(0, false), compute(1, false)],
    };
    mig.instances.push(GpuInstance { id, profile, placement, compute });
}
