//! Sick GPUs with the real agent: what is said of them at every door, what ends it, and that no other GPU is
//! concerned.

use std::collections::BTreeMap;

use k8s_openapi::api::{events::v1::Event, resource::v1::DeviceTaint};
use kerf::model::{
    health::{Class, Extent, Severity},
    status::GpuStatus,
};
use kerf_nvml::Model;
use kerf_testbed::{
    kubelet::Health,
    node::{Builder, DRIVER, Testbed},
};

use crate::{claims::prepare, given};

/// A node whose sick GPUs are watched for a second before they are served again.
fn node(model: Model, gpus: usize) -> Builder {
    given::node(model, gpus).flag("--hold-down=1")
}

/// Key, value and effect of the taints of each tainted device.
fn taints(testbed: &Testbed) -> BTreeMap<String, Vec<String>> {
    let slices = testbed.slices();
    let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let text = |taint: &DeviceTaint| {
        format!("{}={}:{}", taint.key, taint.value.as_deref().unwrap_or_default(), taint.effect)
    };
    let tainted = devices.filter_map(|device| {
        let taints: Vec<_> = device.taints.iter().flatten().map(text).collect();
        (!taints.is_empty()).then(|| (device.name.clone(), taints))
    });
    tainted.collect()
}

/// Waits until what is tainted is as wanted.
async fn tainted(testbed: &Testbed, wanted: impl Fn(&BTreeMap<String, Vec<String>>) -> bool) {
    let so = testbed.api.wait_until(|_| wanted(&taints(testbed)));
    testbed.agent.as_ref().unwrap().while_running(so).await.unwrap();
}

/// Waits until every device of GPU 0 has just this taint, and no other device has any.
async fn all_of_first(testbed: &Testbed, count: usize, taint: &str) {
    tainted(testbed, |taints| {
        taints.len() == count
            && taints.iter().all(|(device, has)| {
                (device == "gpu-0" || device.starts_with("gpu-0-")) && has == &[taint]
            })
    })
    .await;
}

async fn none_tainted(testbed: &Testbed) {
    tainted(testbed, BTreeMap::is_empty).await;
}

/// Waits for what the kubelet was told of a device, and returns the words.
async fn told(testbed: &Testbed, device: &str, health: Health) -> String {
    let pool = testbed.name().to_owned();
    let told = testbed.kubelet.wait_for(|state| state.health(DRIVER, &pool, device) == health);
    let state = testbed.agent.as_ref().unwrap().while_running(told).await.unwrap();
    let said = state.health.iter().find(|(key, _)| key.device == device);
    said.map(|(_, said)| said.message.clone()).unwrap_or_default()
}

fn gpu(testbed: &Testbed, index: u32) -> GpuStatus {
    let gpus = given::status(testbed).unwrap().gpus;
    gpus.into_iter().find(|gpu| gpu.index == index).unwrap()
}

/// Reasons and notes of the events on an object, in the order of their creation.
fn events(testbed: &Testbed, kind: &str) -> Vec<(String, String)> {
    let mut events = testbed.api.list::<Event>();
    events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
    let of_kind = events.into_iter().filter(|event| {
        event.regarding.as_ref().and_then(|object| object.kind.as_deref()) == Some(kind)
    });
    of_kind
        .map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default()))
        .collect()
}

/// Devices of an H100: the whole one, and its MIG placements.
const H100_DEVICES: usize = 26;

const XID_79: &str = "gpu.nvidia.com/xid=79:NoSchedule";

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_fell_off_the_bus_is_tainted_told_of_and_healed() {
    let testbed = node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-0"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.published().await;
    // Drivers do not report this one through NVML.
    testbed.machine.logged_xid(0, 79, None, None).unwrap();
    all_of_first(&testbed, H100_DEVICES, XID_79).await;
    let message = told(&testbed, "gpu-0-mig-1g10gb-19-0", Health::Unhealthy).await;
    assert!(message.contains("XID 79"), "{message}");
    assert_eq!(told(&testbed, "gpu-1", Health::Healthy).await, "");

    let finding = &gpu(&testbed, 0).findings[0];
    let found = (finding.severity, finding.class, &*finding.reason, finding.extent);
    assert_eq!(found, (Severity::Unhealthy, Class::Bus, "xid-79", Extent::Gpu));
    assert_eq!(gpu(&testbed, 1).findings, []);
    given::until("events", || {
        let reason = |kind| events(&testbed, kind).last().map(|event| event.0.clone());
        let unhealthy = Some("GpuUnhealthy".to_owned());
        reason("Node") == unhealthy && reason("ResourceClaim") == unhealthy
    })
    .await;

    testbed.machine.reboot().unwrap();
    none_tainted(&testbed).await;
}
