//! What keeps the scheduler away from a device, and moves pods from it.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1;

use crate::model::{
    device::Target,
    health::{Finding, Severity},
    pool::PoolInput,
};

/// Key of the taint of devices that the device plugin gave out.
const TAKEN: &str = "gpu.nvidia.com/device-plugin";
/// Key of the taint of devices that a record may be about that cannot be read.
const WITHHELD: &str = "gpu.nvidia.com/record";
/// Keys of what is wrong: the first two are those of NVIDIA's driver.
const XID: &str = "gpu.nvidia.com/xid";
const LOST: &str = "gpu.nvidia.com/gpu-lost";
const HEALTH: &str = "gpu.nvidia.com/health";

/// `effect` of a taint. The strongest comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    None,
    NoSchedule,
    NoExecute,
}

/// The taints of a device, at most one a key.
pub(super) fn taints(target: &Target, input: &PoolInput) -> Vec<v1::DeviceTaint> {
    let mut taints: BTreeMap<&str, (Effect, String)> = BTreeMap::new();
    if input.taken.iter().any(|held| held.target.overlaps(target)) {
        taints.insert(TAKEN, (Effect::NoSchedule, "held".to_owned()));
    }
    if input.withheld.iter().any(|withheld| withheld.concerns(target.gpu())) {
        taints.insert(WITHHELD, (Effect::NoSchedule, "unreadable".to_owned()));
    }
    for finding in input.findings.of(target) {
        let effect = effect(finding, input);
        let (key, value) = key(finding);
        let known = taints.get(key).map(|known| known.0);
        // The worst of a key comes first.
        if known.is_none_or(|known| known < effect) {
            taints.insert(key, (effect, value));
        }
    }
    let unexplained = input.findings.unhealthy(target).is_none();
    if unexplained && input.inventory.silence(target.gpu()).is_some() {
        taints.insert(HEALTH, (Effect::NoSchedule, "no-answer".to_owned()));
    }
    if !input.features.informative_taints() {
        taints.retain(|_, (effect, _)| *effect > Effect::None);
    }
    taints.into_iter().map(|(key, (effect, value))| taint(key, effect, value)).collect()
}

/// Whether the scheduler must not put anything new on a device.
pub(super) fn is_blocked(taints: &[v1::DeviceTaint]) -> bool {
    taints.iter().any(|taint| taint.effect != name(Effect::None))
}

fn effect(finding: &Finding, input: &PoolInput) -> Effect {
    match finding.severity {
        Severity::Warning => Effect::None,
        Severity::Unhealthy if input.evicted.because_of(finding) => Effect::NoExecute,
        Severity::Unhealthy => Effect::NoSchedule,
    }
}

fn key(finding: &Finding) -> (&'static str, String) {
    match finding.reason.strip_prefix("xid-") {
        Some(code) => (XID, code.to_owned()),
        None if finding.reason == "gpu-lost" => (LOST, finding.reason.clone()),
        None => (HEALTH, finding.reason.clone()),
    }
}

fn name(effect: Effect) -> &'static str {
    match effect {
        Effect::None => "None",
        Effect::NoSchedule => "NoSchedule",
        Effect::NoExecute => "NoExecute",
    }
}

fn taint(key: &str, effect: Effect, value: String) -> v1::DeviceTaint {
    v1::DeviceTaint {
        key: key.to_owned(),
        value: Some(value),
        effect: name(effect).to_owned(),
        ..v1::DeviceTaint::default()
    }
}
