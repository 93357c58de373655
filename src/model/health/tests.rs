//! A node of two H100, each cut in two halves: ids 1 and 2.

mod cases;
mod ends;
mod laws;

use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::model::{
    fixtures::gpus::{self, Shape},
    gpu::{Gpu, Placement},
};

const LOWER: Placement = Placement { start: 0, size: 4 };
const UPPER: Placement = Placement { start: 4, size: 4 };

fn cut(number: u32) -> Gpu {
    let mut gpu = gpus::gpu(&gpus::H100, number);
    for placement in [LOWER, UPPER] {
        gpus::carve(&mut gpu, 9, placement, Shape::Filled);
    }
    gpu
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn xid(code: u32) -> Sign {
    of(code, Attribution::Gpu)
}

fn of(code: u32, attribution: Attribution) -> Sign {
    Sign::Xid { code, attribution, link: None }
}

fn action(value: u32) -> Readings {
    Readings { recovery_action: Some(value), ..Readings::default() }
}

fn answer(code: u32) -> Readings {
    Readings { answer: Answer::Error(code, "failed".to_owned()), ..Readings::default() }
}

/// A finding in short: `xid-79 unhealthy`, with the first slice of an instance.
fn short(finding: &Finding) -> String {
    let severity = finding.severity.name();
    match finding.extent {
        Extent::Gpu => format!("{} {severity}", finding.reason),
        Extent::Instance(place) => format!("{} {severity} at {}", finding.reason, place.start),
    }
}

/// All findings of GPU 0, worst first.
fn shorts(health: &Health) -> Vec<String> {
    health.findings().of_gpu(&cut(0).uuid).iter().map(short).collect()
}

/// A node that GPU 0 reported this of, a second after another.
fn told(signs: &[Sign]) -> Health {
    let mut health = Health::new(Policy::default());
    for (second, sign) in (0..).zip(signs) {
        health.sign(&cut(0), sign, at(second));
    }
    health
}
