//! What the order of devices is worth: the share of slices that a node turns away, and what keeping
//! the order costs in writes.
//!
//! Eight 8-slice GPUs are asked for MIG devices at random times and for random times, at an offered
//! load of 70 % of their compute slices. What does not fit is turned away. Three orders are compared
//! on the same requests: by name, as NVIDIA's driver publishes; the best order that never changes; and
//! Kerf's, written by its rule and at most once in ten seconds for each slice.

use std::collections::BTreeMap;

use kerf::model::{
    claim::ClaimRef,
    device::{Device, Part, Target},
    gpu::{Capacity, Gpu, GpuUuid, Inventory, Mig, Placement, Profile},
    holder::Holder,
    plan::Origin,
    pool::{self, Features, PoolInput, SliceContent},
    record::Held,
};

const GPUS: u32 = 8;
const LOAD: f64 = 0.7;
/// Seconds between two writes of a slice.
const REST: f64 = 10.0;
/// Mean seconds that a pod lives.
const LIFE: f64 = 600.0;
const REQUESTS: usize = 4_000;

/// Profile, id, compute slices, first and number of memory slices.
type Row = (&'static str, u32, u32, &'static [u32], u32);

const PROFILES: [Row; 7] = [
    ("1g.10gb", 19, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
    ("2g.20gb", 14, 2, &[0, 2, 4], 2),
    ("3g.40gb", 9, 3, &[0, 4], 4),
    ("4g.40gb", 5, 4, &[0], 4),
    ("7g.80gb", 0, 7, &[0], 8),
    // Not asked for, but what they would take counts in the order.
    ("1g.10gb+me", 20, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
    ("1g.20gb", 15, 1, &[0, 2, 4, 6], 2),
];

/// How often each profile is asked for.
const MIXES: [(&str, [u32; 5]); 3] =
    [("equal", [1, 1, 1, 1, 1]), ("mixed", [8, 6, 4, 2, 1]), ("mostly small", [16, 4, 2, 1, 0])];

fn main() {
    // `cargo test --benches` runs this too, to see that it runs.
    let requests = if std::env::args().any(|arg| arg == "--bench") { REQUESTS } else { 50 };
    println!("{requests} requests, {GPUS} GPUs, {:.0} % load", LOAD * 100.0);
    println!("{:14}{:24}{:>14}{:>16}", "sizes", "order", "turned away", "writes per pod");
    for (name, weights) in MIXES {
        let requests = requests_of(&weights, requests);
        for order in [Order::ByName, Order::Fixed, Order::Kept] {
            let (turned_away, writes) = Run::new(order).all(&requests);
            let order = order.to_string();
            println!("{name:14}{order:24}{:>12.1} %{writes:>16.2}", turned_away * 100.0);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    ByName,
    Fixed,
    Kept,
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::ByName => "by name",
            Self::Fixed => "best fixed order",
            Self::Kept => "as built",
        })
    }
}

/// A pod that wants one device.
struct Request {
    at: f64,
    life: f64,
    profile: u32,
    slices: u32,
}

fn requests_of(weights: &[u32; 5], count: usize) -> Vec<Request> {
    let mut random = Random(1);
    let total: u32 = weights.iter().sum();
    let offered: u32 = weights.iter().zip(PROFILES).map(|(weight, row)| weight * row.2).sum();
    let mean_slices = f64::from(offered) / f64::from(total);
    let gap = LIFE * mean_slices / (LOAD * f64::from(GPUS * 7));
    let mut at = 0.0;
    let mut requests = Vec::with_capacity(count);
    for _ in 0..count {
        at += random.exponential(gap);
        let mut pick = random.below(total);
        let index = weights.iter().position(|&weight| {
            let here = pick < weight;
            pick = pick.wrapping_sub(weight);
            here
        });
        let (_, profile, slices, ..) = PROFILES[index.expect("the pick is below the total")];
        requests.push(Request { at, life: random.exponential(LIFE), profile, slices });
    }
    requests
}

/// A node under load.
struct Run {
    order: Order,
    node: Inventory,
    devices: BTreeMap<String, (u32, Target)>,
    wanted: Vec<SliceContent>,
    published: Vec<SliceContent>,
    written: Vec<f64>,
    waiting: Vec<bool>,
    writes: u32,
    held: Vec<(f64, Holder, String)>,
}

impl Run {
    fn new(order: Order) -> Self {
        let node = Inventory { gpus: (0..GPUS).map(gpu).collect(), ..Inventory::default() };
        let profile = |device: &Device| match device.part {
            Part::Whole => u32::MAX,
            Part::Mig(profile, _) => profile.id,
        };
        let devices = node.gpus.iter().flat_map(Device::all);
        let devices =
            devices.map(|device| (device.name(), (profile(&device), device.target()))).collect();
        let mut published = pool::slices(&input(&node, &[], order == Order::Kept));
        if order == Order::ByName {
            for slice in &mut published {
                slice.devices.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
        let written = vec![f64::NEG_INFINITY; published.len()];
        let waiting = vec![false; published.len()];
        let wanted = published.clone();
        let held = Vec::new();
        Self { order, node, devices, wanted, published, written, waiting, writes: 0, held }
    }

    /// The share of compute slices that was turned away, and writes per pod.
    fn all(mut self, requests: &[Request]) -> (f64, f64) {
        let (mut asked, mut refused) = (0, 0);
        for request in requests {
            self.pass(request.at);
            asked += request.slices;
            if !self.take(request) {
                refused += request.slices;
            }
        }
        let pods = u32::try_from(requests.len()).expect("few requests");
        (f64::from(refused) / f64::from(asked), f64::from(self.writes) / f64::from(pods))
    }

    /// Everything that happens until `now`: pods end, and orders that waited are written.
    fn pass(&mut self, now: f64) {
        loop {
            let ends = self.held.iter().map(|held| held.0);
            let due = self.written.iter().zip(&self.waiting);
            let due = due.filter(|(_, waits)| **waits).map(|(written, _)| written + REST);
            let next = ends.chain(due).fold(f64::INFINITY, f64::min);
            if next > now {
                return;
            }
            let before = self.held.len();
            self.held.retain(|held| held.0 > next);
            if self.held.len() < before {
                self.reorder();
            }
            self.write(next);
        }
    }

    /// First fit, as the scheduler does.
    fn take(&mut self, request: &Request) -> bool {
        let free = |name: &String| {
            let (profile, target) = &self.devices[name];
            *profile == request.profile
                && !self.held.iter().any(|held| self.devices[&held.2].1.overlaps(target))
        };
        let mut names = self.published.iter().flat_map(|slice| &slice.devices);
        let Some(device) = names.find(|device| free(&device.name)) else { return false };
        let uid = request.at.to_string();
        let claim = ClaimRef { namespace: String::new(), name: uid.clone(), uid };
        self.held.push((request.at + request.life, claim.into(), device.name.clone()));
        self.reorder();
        self.write(request.at);
        true
    }

    fn reorder(&mut self) {
        if self.order != Order::Kept {
            return;
        }
        let held = self.held.iter().map(|(_, claim, device)| Held {
            by: claim,
            device,
            target: &self.devices[device].1,
            origin: Origin::Made,
            shared: false,
            leftover: false,
        });
        let held: Vec<Held> = held.collect();
        let input = input(&self.node, &held, true);
        if pool::needs_reorder(&self.wanted, &input) {
            self.wanted = pool::slices_after(&self.wanted, &input);
            let both = self.wanted.iter().zip(&self.published);
            self.waiting = both.map(|(wanted, published)| wanted != published).collect();
        }
    }

    fn write(&mut self, now: f64) {
        for index in 0..self.published.len() {
            if self.waiting[index] && now >= self.written[index] + REST {
                self.published[index] = self.wanted[index].clone();
                self.written[index] = now;
                self.waiting[index] = false;
                self.writes += 1;
            }
        }
    }
}

/// Slices by size are what is built; GPU by GPU is the order of NVIDIA's driver and, with the best
/// order for an idle GPU in each, the best that never changes.
fn input<'a>(inventory: &'a Inventory, held: &'a [Held<'a>], by_size: bool) -> PoolInput<'a> {
    let features = Features { counters: true, taints: true, separate_counter_slices: by_size };
    PoolInput { held, ..PoolInput::of("node", inventory, features) }
}

fn gpu(number: u32) -> Gpu {
    let profile = |&(name, id, slices, starts, size): &Row| Profile {
        index: id,
        id,
        name: name.to_owned(),
        slices,
        max_instances: 7,
        capacity: Capacity { multiprocessors: slices * 16, ..Capacity::default() },
        placements: starts.iter().map(|&start| Placement { start, size }).collect(),
    };
    Gpu {
        number,
        index: number,
        minor: number,
        uuid: GpuUuid(format!("GPU-{number}")),
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        brand: "Nvidia".to_owned(),
        architecture: "Hopper".to_owned(),
        compute_capability: (9, 0),
        memory: None,
        pci: format!("0000:{number:02x}:00.0"),
        pcie_root: None,
        pci_class: None,
        numa_node: None,
        addressing_mode: None,
        fabric: None,
        mig: Some(Mig {
            enabled: true,
            pending: true,
            switches_without_reset: true,
            profiles: PROFILES.iter().map(profile).collect(),
            instances: Vec::new(),
        }),
    }
}

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bits(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).expect("32 bits are left")
    }

    /// Less than `end`; the bias of a few in four thousand million is of no matter here.
    fn below(&mut self, end: u32) -> u32 {
        self.bits() % end
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        let uniform = (f64::from(self.bits()) + 1.0) / (f64::from(u32::MAX) + 1.0);
        -mean * uniform.ln()
    }
}
