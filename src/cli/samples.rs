//! GPUs and claims as tests want them.

use crate::model::{
    claim::ClaimRef,
    device::{Device, Part, Target},
    gpu::{
        Capacity, ComputeInstance, DriverVersions, Gpu, GpuInstance, GpuUuid, Inventory, Mig,
        Placement, Profile,
    },
    plan::{Origin, Plan, PlannedDevice},
    record::{PreparedDevice, Record, State, VERSION},
};

pub(super) const BOOT: &str = "4c7c2f0e";

/// Id, name, compute slices, how many at most, size, first memory slices.
type Row = (u32, &'static str, u32, u32, u32, &'static [u32]);

const H100: &[Row] = &[
    (19, "1g.10gb", 1, 7, 1, &[0, 1, 2, 3, 4, 5, 6]),
    (20, "1g.10gb+me", 1, 1, 1, &[0, 1, 2, 3, 4, 5, 6]),
    (15, "1g.20gb", 1, 4, 2, &[0, 2, 4, 6]),
    (14, "2g.20gb", 2, 3, 2, &[0, 2, 4]),
    (9, "3g.40gb", 3, 2, 4, &[0, 4]),
    (5, "4g.40gb", 4, 1, 4, &[0]),
    (0, "7g.80gb", 7, 1, 8, &[0]),
];

const A30: &[Row] = &[
    (14, "1g.6gb", 1, 4, 1, &[0, 1, 2, 3]),
    (21, "1g.6gb+me", 1, 1, 1, &[0, 1, 2, 3]),
    (5, "2g.12gb", 2, 2, 2, &[0, 2]),
    (0, "4g.24gb", 4, 1, 4, &[0]),
];

const RTX_PRO_6000: &[Row] = &[
    (14, "1g.24gb", 1, 4, 3, &[0, 3, 6, 9]),
    (47, "1g.24gb+gfx", 1, 4, 3, &[0, 3, 6, 9]),
    (67, "1g.24gb-me", 1, 4, 3, &[0, 3, 6, 9]),
    (5, "2g.48gb", 2, 2, 6, &[0, 6]),
    (0, "4g.96gb", 4, 1, 12, &[0]),
];

pub(super) fn h100(index: u32) -> Gpu {
    with_mig(gpu(index, "NVIDIA H100 80GB HBM3"), H100)
}

pub(super) fn a30(index: u32) -> Gpu {
    with_mig(gpu(index, "NVIDIA A30"), A30)
}

pub(super) fn rtx(index: u32) -> Gpu {
    with_mig(gpu(index, "NVIDIA RTX PRO 6000 Blackwell Server Edition"), RTX_PRO_6000)
}

pub(super) fn l4(index: u32) -> Gpu {
    gpu(index, "NVIDIA L4")
}

fn gpu(index: u32, product: &str) -> Gpu {
    Gpu {
        number: index,
        index,
        minor: index,
        uuid: GpuUuid(format!("GPU-{index:x}d1c2f0e-0a3b-4c5d-8e9f-00112233445{index:x}")),
        product: product.to_owned(),
        brand: "Nvidia".to_owned(),
        architecture: "Hopper".to_owned(),
        compute_capability: (9, 0),
        memory: Some(80 << 30),
        pci: format!("0000:{:02x}:00.0", 0x1b + index),
        pcie_root: Some(format!("pci0000:{:02x}", 0x1a + index)),
        pci_class: None,
        numa_node: Some(index / 4),
        addressing_mode: Some("None".to_owned()),
        fabric: None,
        mig: None,
    }
}

fn with_mig(gpu: Gpu, rows: &[Row]) -> Gpu {
    let profiles =
        (0..).zip(rows).map(|(index, &(id, name, slices, most, size, starts))| Profile {
            index,
            id,
            name: name.to_owned(),
            slices,
            max_instances: most,
            capacity: Capacity { memory: u64::from(size) << 33, ..Capacity::default() },
            placements: starts.iter().map(|&start| Placement { start, size }).collect(),
        });
    let mig = Mig {
        enabled: false,
        pending: false,
        switches_without_reset: true,
        profiles: profiles.collect(),
        instances: Vec::new(),
    };
    Gpu { mig: Some(mig), ..gpu }
}

/// The GPU with MIG on and instances of these profiles at these memory slices, one compute instance
/// in each.
pub(super) fn cut(mut gpu: Gpu, instances: &[(&str, u32)]) -> Gpu {
    let mig = gpu.mig.as_mut().unwrap();
    (mig.enabled, mig.pending) = (true, true);
    for (id, (name, start)) in (1..).zip(instances) {
        let (profile, placement) = find(mig, name, *start);
        let uuid = format!("MIG-{:x}7c3d0f{id}-1b2c-4d5e-9f00-aabbccddeeff", gpu.index);
        let compute = vec![ComputeInstance { id: 0, uuid, fills: true }];
        mig.instances.push(GpuInstance { id, profile, placement, compute });
    }
    gpu
}

fn find(mig: &Mig, name: &str, start: u32) -> (u32, Placement) {
    let profile = mig.profiles.iter().find(|profile| profile.name == name).unwrap();
    let placement = profile.placements.iter().find(|placement| placement.start == start);
    (profile.id, *placement.unwrap())
}

/// The device of a GPU for a claim: a profile at a memory slice, or all of it.
pub(super) fn target(gpu: &Gpu, part: Option<(&str, u32)>) -> (String, Target) {
    let device = match part {
        None => Device { gpu, part: Part::Whole },
        Some((name, start)) => {
            let mig = gpu.mig.as_ref().unwrap();
            let (id, placement) = find(mig, name, start);
            Device { gpu, part: Part::Mig(mig.profile(id).unwrap(), placement) }
        }
    };
    (device.name(), device.target())
}

/// A prepared claim `namespace/name` for one device.
pub(super) fn record(claim: &str, gpu: &Gpu, part: Option<(&str, u32)>, origin: Origin) -> Record {
    let (namespace, name) = claim.split_once('/').unwrap();
    let (device, target) = target(gpu, part);
    let uuid = match &target {
        Target::Gpu { gpu } => Some(gpu.0.clone()),
        Target::Mig { profile, placement, .. } => {
            let instance = gpu.instance(*profile, *placement);
            instance.map(|instance| instance.compute[0].uuid.clone())
        }
    };
    let cdi = vec![format!("k8s.gpu.nvidia.com/claim=uid-{name}-{device}")];
    let planned = PlannedDevice {
        requests: vec!["gpu".to_owned()],
        pool: "gpu-7".to_owned(),
        device,
        share_id: None,
        target,
        origin,
    };
    let claim = ClaimRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
    };
    let pods = vec![format!("{name}-0")];
    Record {
        version: VERSION,
        boot_id: BOOT.to_owned(),
        since: "2026-03-04T11:48:00Z".to_owned(),
        plan: Plan { holder: claim.into(), pods, devices: vec![planned] },
        state: State::Prepared { devices: vec![PreparedDevice { uuid, cdi }] },
        carving: None,
        leftover: false,
    }
}

/// The record of a claim whose preparation has begun.
pub(super) fn preparing(claim: &str, gpu: &Gpu, part: Option<(&str, u32)>) -> Record {
    Record { state: State::Preparing, ..record(claim, gpu, part, Origin::Made) }
}

pub(super) fn inventory(gpus: Vec<Gpu>) -> Inventory {
    let driver = DriverVersions { driver: "580.95.05".to_owned(), cuda: (13, 0) };
    Inventory { driver, gpus, unreadable: Vec::new() }
}
