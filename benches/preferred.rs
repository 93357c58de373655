//! How long the choice of GPUs for a container takes: whole GPUs of a node that is all free, for each
//! number of them, in microseconds.
//!
//! Prints a table. On a bridged node GPUs are on two NUMA nodes and joined in pairs; on a switched one
//! each reaches all others by 18 NVLinks; the links of an arbitrary one follow no pattern, which is the
//! most work.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use kerf::model::{
    gpu::GpuUuid,
    plugin::{
        config::SharedPolicy,
        prefer::{Candidate, Part, preferred},
    },
    topology::{Link, Links, PcieLevel},
};

const RUNS: u32 = 20;

type Join = fn(u32, u32, u32) -> Link;

fn main() {
    // `cargo test --benches` runs this too, to see that it runs.
    let runs = if std::env::args().any(|arg| arg == "--bench") { RUNS } else { 1 };
    println!("{:12}{:>6}  µs for 1, 2, 3, … GPUs", "links", "GPUs");
    let nodes: [(&str, Join); 3] =
        [("bridged", bridged), ("switched", switched), ("arbitrary", arbitrary)];
    for (name, join) in nodes {
        for count in [8, 16] {
            let (gpus, links) = node(count, join);
            let times = (1..=gpus.len()).map(|size| shortest(runs, &gpus, size, &links));
            let times = times.map(|time| format!("{:>6.1}", time.as_secs_f64() * 1e6));
            println!("{name:12}{count:>6}  {}", times.collect::<String>());
        }
    }
}

fn shortest(runs: u32, gpus: &[Candidate], size: usize, links: &Links) -> Duration {
    let times = (0..runs).map(|_| {
        let begin = Instant::now();
        black_box(preferred(black_box(gpus), &[], size, links, SharedPolicy::Distributed));
        begin.elapsed()
    });
    times.min().unwrap_or_default()
}

fn node(count: u32, join: Join) -> (Vec<Candidate>, Links) {
    let uuid = |number: u32| GpuUuid(format!("GPU-5a2b1c00-0000-4000-8000-{number:012}"));
    let gpu = |number| Candidate {
        id: uuid(number).0,
        gpu: uuid(number),
        numa: Some(u32::from(number >= count / 2)),
        part: Part::Whole,
    };
    let mut links = Links::default();
    for one in 0..count {
        for other in one + 1..count {
            links.insert(uuid(one), uuid(other), join(count, one, other));
        }
    }
    ((0..count).map(gpu).collect(), links)
}

fn level(count: u32, one: u32, other: u32) -> Option<PcieLevel> {
    let near = (one < count / 2) == (other < count / 2);
    Some(if near { PcieLevel::Node } else { PcieLevel::System })
}

fn bridged(count: u32, one: u32, other: u32) -> Link {
    let nvlinks = if one / 2 == other / 2 { 4 } else { 0 };
    Link { pcie: level(count, one, other), nvlinks }
}

fn switched(count: u32, one: u32, other: u32) -> Link {
    Link { pcie: level(count, one, other), nvlinks: 18 }
}

fn arbitrary(count: u32, one: u32, other: u32) -> Link {
    let mixed = (one * 64 + other + 1).wrapping_mul(0x9e37_79b9);
    Link { pcie: level(count, one, other), nvlinks: (mixed ^ mixed >> 15) % 5 }
}
