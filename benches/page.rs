//! How long the page of metrics takes: a node with 8 GPUs, whole and cut into 7 instances each, all of them
//! held by claims; the shortest of several runs, in milliseconds, with the number of series and of bytes.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use kerf::model::{
    claim::ClaimRef,
    device::{Device, Target},
    exposition::{Format, page},
    gpu::{
        Capacity, ComputeInstance, DriverVersions, Gpu, GpuInstance, GpuUuid, Inventory, Mig,
        Placement, Profile,
    },
    health::Findings,
    holder::ContainerName,
    plan::{Origin, Plan, PlannedDevice},
    record::{PreparedDevice, Record, State, VERSION},
    sample::{Activity, EccCount, InstanceSample, MemoryUse, Sample, Samples, Taken, Violations},
    series::{HostnameLabel, Input, Options, families},
};

const RUNS: u32 = 50;
const GPUS: u32 = 8;
const NOW: f64 = 1.8e9;

/// Id, name, compute slices, how many fit, size and first memory slices.
type Row = (u32, &'static str, u32, u32, u32, &'static [u32]);

/// Of an H100.
const PROFILES: [Row; 7] = [
    (19, "1g.10gb", 1, 7, 1, &[0, 1, 2, 3, 4, 5, 6]),
    (20, "1g.10gb+me", 1, 1, 1, &[0, 1, 2, 3, 4, 5, 6]),
    (15, "1g.20gb", 1, 4, 2, &[0, 2, 4, 6]),
    (14, "2g.20gb", 2, 3, 2, &[0, 2, 4]),
    (9, "3g.40gb", 3, 2, 4, &[0, 4]),
    (5, "4g.40gb", 4, 1, 4, &[0]),
    (0, "7g.80gb", 7, 1, 8, &[0]),
];

fn main() {
    // `cargo test --benches` runs this too, to see that it runs.
    let runs = if std::env::args().any(|arg| arg == "--bench") { RUNS } else { 1 };
    println!("{:8}{:>10}{:>10}{:>12}{:>8}", "GPUs", "instances", "series", "bytes", "ms");
    for instances in [0, 7] {
        let node = Node::new(instances);
        let text = node.page();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        let milliseconds = shortest(runs, &node).as_secs_f64() * 1e3;
        let all = instances * GPUS;
        println!("{GPUS:<8}{all:>10}{series:>10}{:>12}{milliseconds:>8.2}", text.len());
    }
}

fn shortest(runs: u32, node: &Node) -> Duration {
    let times = (0..runs).map(|_| {
        let begin = Instant::now();
        black_box(black_box(node).page());
        begin.elapsed()
    });
    times.min().unwrap_or_default()
}

struct Node {
    inventory: Inventory,
    samples: Samples,
    records: Vec<Record>,
    containers: BTreeMap<(String, String), Vec<ContainerName>>,
    options: Options,
}

impl Node {
    fn new(instances: u32) -> Self {
        let gpus = (0..GPUS).map(|number| gpu(number, instances)).collect();
        let driver = DriverVersions { driver: "580.95.05".to_owned(), cuda: (13, 0) };
        let inventory = Inventory { driver, gpus, unreadable: Vec::new() };
        let taken = |gpu: &Gpu| {
            let taken = Taken { at: NOW, sample: Arc::new(sample(instances)) };
            (gpu.uuid.clone(), taken)
        };
        let records: Vec<_> = inventory.gpus.iter().flat_map(records).collect();
        let container = |record: &Record| {
            let claim = record.plan.holder.claim()?;
            let key = (claim.namespace.clone(), claim.name.clone());
            let name = ContainerName {
                namespace: claim.namespace.clone(),
                pod: record.plan.pods.first()?.clone(),
                container: "main".to_owned(),
            };
            Some((key, vec![name]))
        };
        Self {
            samples: Samples(inventory.gpus.iter().map(taken).collect()),
            containers: records.iter().filter_map(container).collect(),
            inventory,
            records,
            options: Options {
                hostname: "node-a.example".to_owned(),
                hostname_label: HostnameLabel::Lower,
                max_age: 60.0,
                xid_window: 300_000,
                clock_event_window: 300_000,
            },
        }
    }

    fn page(&self) -> String {
        let input = Input {
            inventory: &self.inventory,
            samples: &self.samples,
            records: &self.records,
            containers: &self.containers,
            findings: &Findings::default(),
            events: &BTreeMap::new(),
            now: NOW + 2.0,
            options: &self.options,
        };
        page(&families(&input), Format::Text)
    }
}

/// An H100, cut into so many of its smallest instances.
fn gpu(number: u32, instances: u32) -> Gpu {
    let profile = |&(id, name, slices, max_instances, size, starts): &Row| {
        let capacity = Capacity { memory: (10 << 30) * u64::from(size), ..Capacity::default() };
        let placements = starts.iter().map(|&start| Placement { start, size }).collect();
        Profile {
            index: id,
            id,
            name: name.to_owned(),
            slices,
            max_instances,
            capacity,
            placements,
        }
    };
    let instance = |start| GpuInstance {
        id: 7 + start,
        profile: 19,
        placement: Placement { start, size: 1 },
        compute: vec![ComputeInstance {
            id: 0,
            uuid: format!("MIG-5a2b1c00-0000-4000-800{number}-{start:012}"),
            fills: true,
        }],
    };
    Gpu {
        number,
        index: number,
        minor: number,
        uuid: GpuUuid(format!("GPU-5a2b1c00-0000-4000-8000-{number:012}")),
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        brand: "Nvidia".to_owned(),
        architecture: "Hopper".to_owned(),
        compute_capability: (9, 0),
        memory: Some(80 << 30),
        pci: format!("0000:{:02x}:00.0", 0x1b + number),
        pcie_root: None,
        pci_class: None,
        numa_node: None,
        addressing_mode: None,
        fabric: None,
        mig: Some(Mig {
            enabled: instances > 0,
            pending: instances > 0,
            switches_without_reset: true,
            profiles: PROFILES.iter().map(profile).collect(),
            instances: (0..instances).map(instance).collect(),
        }),
    }
}

/// A claim for each instance, or for the GPU.
fn records(gpu: &Gpu) -> Vec<Record> {
    if gpu.mig.as_ref().is_none_or(|mig| !mig.enabled) {
        return Device::all(gpu).take(1).map(|whole| record(&whole)).collect();
    }
    let carved = Device::all(gpu).filter(|device| match device.target() {
        Target::Mig { profile, placement, .. } => gpu.instance(profile, placement).is_some(),
        Target::Gpu { .. } => false,
    });
    carved.map(|device| record(&device)).collect()
}

fn record(device: &Device<'_>) -> Record {
    let name = device.name();
    let claim = ClaimRef {
        namespace: "machine-learning".to_owned(),
        name: format!("training-{name}"),
        uid: name.clone(),
    };
    let planned = PlannedDevice {
        requests: vec!["gpu".to_owned()],
        pool: "node-a.example".to_owned(),
        device: name.clone(),
        share_id: None,
        target: device.target(),
        origin: Origin::Made,
    };
    let pods = vec![format!("training-{name}-0")];
    let prepared = PreparedDevice { uuid: Some(format!("MIG-{name}")), cdi: Vec::new() };
    Record {
        version: VERSION,
        boot_id: String::new(),
        since: String::new(),
        plan: Plan { holder: claim.into(), pods, devices: vec![planned] },
        state: State::Prepared { devices: vec![prepared] },
        carving: None,
        leftover: false,
    }
}

/// All that a GPU of this kind says.
fn sample(instances: u32) -> Sample {
    let memory = MemoryUse { total: 80 << 30, free: 60 << 30, used: 19 << 30, reserved: 1 << 30 };
    let activity = Activity {
        graphics: Some(0.123_456),
        sm: Some(0.123_456),
        sm_occupancy: Some(0.123_456),
        tensor: Some(0.123_456),
        tensor_hmma: Some(0.123_456),
        dram: Some(0.123_456),
        fp64: Some(0.123_456),
        fp32: Some(0.123_456),
        fp16: Some(0.123_456),
        integer: Some(0.123_456),
        pcie_sent: Some(1e9),
        pcie_received: Some(1e9),
        nvlink_received: Some(1e9),
        nvlink_sent: Some(1e9),
        ..Activity::default()
    };
    let ecc = EccCount { volatile: Some(0), aggregate: Some(0) };
    let instance =
        |start| InstanceSample { id: 7 + start, memory: Some(memory), activity: Some(activity) };
    Sample {
        sm_clock: Some(1980),
        memory_clock: Some(2619),
        temperature: Some(41),
        memory_temperature: Some(52),
        power: Some(118_525),
        energy: Some(90_071_992_547),
        pcie_replays: Some(0),
        memory: Some(memory),
        uncorrectable_remapped_rows: Some(0),
        correctable_remapped_rows: Some(0),
        row_remap_failure: Some(false),
        row_remap_pending: Some(false),
        ecc_single: ecc,
        ecc_double: ecc,
        violations: Violations { power: Some(0), thermal: Some(0), ..Violations::default() },
        clocks_event_reasons: Some(1),
        activity: Some(activity),
        instances: (0..instances).map(instance).collect(),
        ..Sample::default()
    }
}
