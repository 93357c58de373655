//! What is planned for a claim, and why one is refused.

mod budget;
mod laws;
mod names;
mod origins;
mod refusals;

use super::{Origin, plan};
use crate::model::{
    claim::{Allocation, AllocationResult, ClaimRef},
    device::{Device, Part},
    fixtures::claims::Claims,
    gpu::{Gpu, Inventory, Placement},
};

/// A device for a request.
fn result(request: &str, device: &str) -> AllocationResult {
    AllocationResult {
        request: request.to_owned(),
        pool: "node".to_owned(),
        device: device.to_owned(),
        admin_access: false,
        share_id: None,
    }
}

/// The same with admin access.
fn admin(request: &str, device: &str) -> AllocationResult {
    AllocationResult { admin_access: true, ..result(request, device) }
}

/// The claim `ml/train` with these results.
fn claimed(results: impl IntoIterator<Item = AllocationResult>) -> Allocation {
    let [namespace, name, uid] = ["ml", "train", "7f3e"].map(str::to_owned);
    Allocation {
        holder: ClaimRef { namespace, name, uid }.into(),
        pods: vec!["train-0".to_owned()],
        results: results.into_iter().collect(),
        configurations: Vec::new(),
    }
}

/// The same with devices for the request `gpu`.
fn asks(devices: &[&str]) -> Allocation {
    claimed(devices.iter().map(|device| result("gpu", device)))
}

/// What becomes of each planned device: its name, its requests and its origin.
fn planned(node: &Inventory, others: &Claims, claim: &Allocation) -> Vec<String> {
    let plan = plan(node, &others.held(), claim).unwrap();
    let each = plan.devices.iter().map(|device| {
        format!("{} for {}: {:?}", device.device, device.requests.join(", "), device.origin)
    });
    each.collect()
}

/// Which device is refused, and why.
fn refused(node: &Inventory, others: &Claims, devices: &[&str]) -> String {
    let refusal = plan(node, &others.held(), &asks(devices)).unwrap_err();
    format!("{}: {}", refusal.device, refusal.reason)
}

fn nobody() -> Claims {
    Claims::default()
}

/// A claim holds the whole GPU.
fn holding(gpu: &Gpu) -> Claims {
    let mut claims = Claims::default();
    claims.hold(&Device { gpu, part: Part::Whole }, Origin::Found);
    claims
}

fn place(start: u32, size: u32) -> Placement {
    Placement { start, size }
}

/// The GPU with MIG mode as it is now, and as it is after the next reset.
fn with_mode(mut gpu: Gpu, enabled: bool, pending: bool) -> Gpu {
    let mig = gpu.mig.as_mut().unwrap();
    (mig.enabled, mig.pending) = (enabled, pending);
    gpu
}
