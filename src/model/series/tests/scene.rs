//! Nodes with samples, holders and findings, for the tests of this folder.

use std::{collections::BTreeMap, sync::Arc};

use crate::model::{
    claim::ClaimRef,
    device::{Device, Target},
    exposition::{Format, page},
    fixtures::gpus::node,
    gpu::{Gpu, GpuUuid, Inventory},
    health::{Class, Extent, Finding, Findings, Severity},
    holder::{Container, ContainerName, Holder},
    plan::{Origin, Plan, PlannedDevice},
    record::{PreparedDevice, Record, State, VERSION},
    sample::{
        Activity, EccCount, InstanceSample, MemoryUse, NvlinkErrors, RetiredPages, Sample, Samples,
        Taken, Violations,
    },
    series::{GpuEvents, HostnameLabel, Input, Options, families},
};

/// When pages are made.
pub(super) const NOW: f64 = 1_800_000_000.0;

/// A node, with all that a page is made from.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) inventory: Inventory,
    pub(super) samples: Samples,
    pub(super) records: Vec<Record>,
    pub(super) containers: BTreeMap<(String, String), Vec<ContainerName>>,
    pub(super) findings: Findings,
    pub(super) events: BTreeMap<GpuUuid, GpuEvents>,
    pub(super) options: Options,
}

impl Scene {
    /// A node with these GPUs, each sampled 2 s ago, on which nothing runs.
    pub(super) fn new(gpus: impl IntoIterator<Item = Gpu>) -> Self {
        let inventory = node(gpus);
        let taken = |gpu: &Gpu| {
            let taken = Taken { at: NOW - 2.0, sample: Arc::new(sample(gpu)) };
            (gpu.uuid.clone(), taken)
        };
        Self {
            samples: Samples(inventory.gpus.iter().map(taken).collect()),
            inventory,
            records: Vec::new(),
            containers: BTreeMap::new(),
            findings: Findings::default(),
            events: BTreeMap::new(),
            options: Options {
                hostname: "node-a".to_owned(),
                hostname_label: HostnameLabel::Lower,
                max_age: 60.0,
                xid_window: 300_000,
                clock_event_window: 300_000,
            },
        }
    }

    /// Gives a device to a claim `namespace/name` of these pods.
    pub(super) fn claim(&mut self, claim: &str, pods: &[&str], device: &str, share: Option<&str>) {
        let (namespace, name) = claim.split_once('/').unwrap();
        let claim = ClaimRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{namespace}-{name}"),
        };
        self.hold(claim.into(), pods, device, share);
    }

    /// Gives a device to a container that is named if the kubelet has said its name.
    pub(super) fn container(&mut self, id: &str, name: Option<[&str; 3]>, device: &str) {
        let name = name.map(|[namespace, pod, container]| names(namespace, pod, container));
        let resource = "nvidia.com/gpu".to_owned();
        let holder = Holder::Container(Container { id: id.to_owned(), resource, name });
        let share = id.contains("::").then_some(id);
        self.hold(holder, &[], device, share);
    }

    fn hold(&mut self, holder: Holder, pods: &[&str], name: &str, share: Option<&str>) {
        let devices = self.inventory.gpus.iter().flat_map(Device::all);
        let target = devices.into_iter().find(|device| device.name() == name).unwrap().target();
        let uuid = match &target {
            Target::Gpu { gpu } => Some(gpu.0.clone()),
            Target::Mig { gpu, profile, placement, .. } => {
                let instance = self.inventory.gpu(gpu).unwrap().instance(*profile, *placement);
                instance.and_then(|instance| Some(instance.device()?.uuid.clone()))
            }
        };
        let planned = PlannedDevice {
            requests: vec!["gpu".to_owned()],
            pool: "node-a".to_owned(),
            device: name.to_owned(),
            share_id: share.map(str::to_owned),
            target,
            origin: Origin::Found,
        };
        let pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
        self.records.push(Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            since: "2026-11-29T00:00:00Z".to_owned(),
            plan: Plan { holder, pods, devices: vec![planned] },
            state: State::Prepared { devices: vec![PreparedDevice { uuid, cdi: Vec::new() }] },
            carving: None,
            leftover: false,
        });
    }

    pub(super) fn finding(&mut self, gpu: usize, severity: Severity, class: Class, extent: Extent) {
        let finding = Finding {
            severity,
            class,
            reason: "xid-94".to_owned(),
            extent,
            since: "2026-11-29T00:00:00Z".parse().unwrap(),
            message: "contained ECC error (XID 94)".to_owned(),
            action: "restart the program".to_owned(),
            keeps_running_work: false,
        };
        let uuid = self.inventory.gpus[gpu].uuid.clone();
        self.findings.0.entry(uuid).or_default().push(finding);
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input {
            inventory: &self.inventory,
            samples: &self.samples,
            records: &self.records,
            containers: &self.containers,
            findings: &self.findings,
            events: &self.events,
            now: NOW,
            options: &self.options,
        }
    }

    pub(super) fn page(&self, format: Format) -> String {
        page(&families(&self.input()), format)
    }

    /// The page's lines that begin with one of these names, without help and types.
    pub(super) fn lines(&self, names: &[&str]) -> String {
        let page = self.page(Format::Text);
        let named = |line: &&str| names.iter().any(|name| line.starts_with(name));
        page.lines().filter(named).map(|line| format!("{line}\n")).collect()
    }
}

pub(super) fn names(namespace: &str, pod: &str, container: &str) -> ContainerName {
    let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
    ContainerName { namespace, pod, container }
}

/// What a GPU in its architecture and mode says: Ampere has no GPM, and nothing has utilization in MIG mode.
pub(super) fn sample(gpu: &Gpu) -> Sample {
    let mig = gpu.mig.as_ref().filter(|mig| mig.enabled);
    let gpm = gpu.compute_capability >= (9, 0);
    let activity = |share: f64| gpm.then(|| activity(share));
    let percent = |value: u32| mig.is_none().then_some(value);
    let total = gpu.memory.unwrap_or_default();
    let instances = mig.iter().flat_map(|mig| &mig.instances).map(|instance| InstanceSample {
        id: instance.id,
        memory: Some(memory(10 << 30, u64::from(instance.id) << 30)),
        activity: activity(f64::from(instance.id) / 8.0),
    });
    Sample {
        sm_clock: Some(1980),
        memory_clock: Some(2619),
        temperature: Some(41),
        memory_temperature: Some(52),
        power: Some(118_525),
        energy: Some(90_071_992_547),
        pcie_replays: Some(3),
        utilization: percent(87),
        memory_utilization: percent(35),
        encoder_utilization: percent(0),
        decoder_utilization: percent(0),
        memory: Some(memory(total, 5 << 30)),
        nvlink_throughput: Some(123_456_789),
        vgpu_licensed: None,
        uncorrectable_remapped_rows: Some(1),
        correctable_remapped_rows: Some(0),
        row_remap_failure: Some(false),
        row_remap_pending: Some(true),
        ecc_single: EccCount { volatile: Some(0), aggregate: Some(2) },
        ecc_double: EccCount { volatile: Some(0), aggregate: Some(1) },
        retired_pages: RetiredPages::default(),
        violations: Violations {
            power: Some(5_000_000),
            thermal: Some(0),
            sync_boost: Some(0),
            board_limit: Some(0),
            low_utilization: None,
            reliability: Some(0),
        },
        clocks_event_reasons: Some(4),
        nvlink_errors: NvlinkErrors {
            crc_flit: Some(0),
            crc_data: Some(0),
            replay: Some(0),
            recovery: Some(0),
        },
        activity: activity(0.5),
        instances: instances.collect(),
    }
}

fn memory(total: u64, used: u64) -> MemoryUse {
    let reserved = 1 << 28;
    MemoryUse { total, free: total - used - reserved, used, reserved }
}

fn activity(share: f64) -> Activity {
    Activity {
        graphics: Some(share),
        sm: Some(share),
        sm_occupancy: Some(share / 2.0),
        tensor: Some(share / 4.0),
        dram: Some(share),
        fp64: Some(f64::NAN),
        pcie_sent: Some(1024.0),
        pcie_received: Some(2048.0),
        ..Activity::default()
    }
}
