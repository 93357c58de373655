//! What a claim's `status.devices` says of our devices (KEP-4817).

use k8s_openapi::{
    api::resource::v1::AllocatedDeviceStatus,
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        runtime::RawExtension,
    },
    jiff::Timestamp,
};
use serde_json::{Value, json};

use crate::model::{
    device::Target,
    gpu::{GpuInstance, Inventory},
    health::{Finding, Findings, Severity},
    plan::PlannedDevice,
    record::{PreparedDevice, Record, State},
};

/// Bytes that a condition's message may have.
const LONGEST_MESSAGE: usize = 32768;

/// The entries of a claim's devices; none before they are prepared.
pub fn devices(
    driver: &str,
    record: &Record,
    inventory: &Inventory,
    findings: &Findings,
) -> Vec<AllocatedDeviceStatus> {
    let State::Prepared { devices } = &record.state else { return Vec::new() };
    let since = record.since.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    let devices = record.plan.devices.iter().zip(devices);
    let entry = |(planned, prepared): (&PlannedDevice, &PreparedDevice)| AllocatedDeviceStatus {
        driver: driver.to_owned(),
        pool: planned.pool.clone(),
        device: planned.device.clone(),
        share_id: planned.share_id.clone(),
        conditions: Some(vec![
            ready(prepared, since),
            healthy(findings.of(&planned.target).next(), since),
        ]),
        data: Some(RawExtension(data(planned, prepared, inventory))),
        network_data: None,
    };
    devices.map(entry).collect()
}

/// Admin access may find a device that is not carved.
fn ready(prepared: &PreparedDevice, since: Timestamp) -> Condition {
    match prepared.cdi.is_empty() {
        false => condition("Ready", true, "Prepared", "", since),
        true => condition("Ready", false, "NotCarved", "the device does not exist now", since),
    }
}

fn healthy(worst: Option<&Finding>, since: Timestamp) -> Condition {
    match worst {
        None => condition("Healthy", true, "Healthy", "", since),
        Some(finding) => {
            let healthy = finding.severity < Severity::Unhealthy;
            let reason = if healthy { "Warning" } else { "Unhealthy" };
            condition("Healthy", healthy, reason, &finding.line(), finding.since.max(since))
        }
    }
}

fn condition(kind: &str, holds: bool, reason: &str, message: &str, since: Timestamp) -> Condition {
    let message = &message[..message.floor_char_boundary(LONGEST_MESSAGE)];
    Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(since),
        observed_generation: None,
    }
}

fn data(planned: &PlannedDevice, prepared: &PreparedDevice, inventory: &Inventory) -> Value {
    let instance = instance(&planned.target, inventory);
    let mut data = json!({
        "uuid": prepared.uuid,
        "parentUUID": planned.target.gpu(),
        "cdiDeviceIDs": prepared.cdi,
    });
    if let (Some(instance), Value::Object(data)) = (instance, &mut data) {
        data.insert("gpuInstanceID".to_owned(), instance.id.into());
        let compute = instance.device().map(|device| device.id);
        data.insert("computeInstanceID".to_owned(), compute.into());
    }
    data
}

fn instance<'i>(target: &Target, inventory: &'i Inventory) -> Option<&'i GpuInstance> {
    match target {
        Target::Gpu { .. } => None,
        Target::Mig { gpu, profile, placement, .. } => {
            inventory.gpu(gpu)?.instance(*profile, *placement)
        }
    }
}

#[cfg(test)]
mod tests;
