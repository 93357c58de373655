//! Claims of every kind, asked of the real agent over the kubelet's sockets: what is answered, what is
//! carved, what containers get, and that nothing is left.

mod administrator;
mod again;
mod given_back;
mod injected;
mod kinds;
mod refused;
mod reset;
mod unread;

use std::path::Path;

use kerf::model::{cdi, claim::ClaimRef};
use kerf_testbed::{
    kubelet::{Device, Results},
    node::{DRIVER, Testbed},
};
use serde_json::{Value, json};

use crate::given;

/// What one claim was given, or why not: what stands behind the kubelet's own words in the pod's events.
pub(crate) async fn prepare(testbed: &Testbed, claim: &ClaimRef) -> Result<Vec<Device>, String> {
    let mut answers = testbed.kubelet.prepare(DRIVER, std::slice::from_ref(claim)).await;
    answer(&mut answers, claim)
}

pub(crate) async fn unprepare(testbed: &Testbed, claim: &ClaimRef) -> Result<(), String> {
    let mut answers = testbed.kubelet.unprepare(DRIVER, std::slice::from_ref(claim)).await;
    answer(&mut answers, claim)
}

/// The answer about one of a call's claims.
pub(crate) fn answer<T>(answers: &mut Results<T>, claim: &ClaimRef) -> Result<T, String> {
    let answer = answers.remove(&claim.uid).expect("the claim was asked about");
    answer.map_err(|error| {
        let of_kubelet = format!("failed for ResourceClaim {}: ", claim.name);
        error.split_once(&of_kubelet).map_or(error.clone(), |(_, ours)| ours.to_owned())
    })
}

/// What the kubelet is told of a device.
pub(crate) fn device(claim: &ClaimRef, requests: &[&str], device: &str) -> Device {
    Device { cdi_device_ids: vec![cdi_name(claim, device)], ..seen(requests, device) }
}

/// The same of one that is not there to be used.
pub(crate) fn seen(requests: &[&str], device: &str) -> Device {
    Device {
        request_names: requests.iter().copied().map(str::to_owned).collect(),
        pool_name: "node-a".to_owned(),
        device_name: device.to_owned(),
        cdi_device_ids: Vec::new(),
        share_id: None,
    }
}

pub(crate) fn cdi_name(claim: &ClaimRef, device: &str) -> String {
    format!("k8s.gpu.nvidia.com/claim={}-{device}", claim.uid)
}

/// The claim's CDI file, which is valid.
pub(crate) fn spec(testbed: &Testbed, claim: &ClaimRef) -> cdi::Spec {
    let path = testbed.cdi_root().join(cdi::file_name(&claim.uid));
    read_spec(&path)
}

pub(crate) fn read_spec(path: &Path) -> cdi::Spec {
    let spec: cdi::Spec = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    spec.validate().unwrap();
    spec
}

/// Paths of the nodes that a device of the claim brings, besides those that every container gets and
/// those of DRM, which only root's machine has.
pub(crate) fn nodes(spec: &cdi::Spec, device: &str) -> Vec<String> {
    let found = spec.devices.iter().find(|found| found.name.ends_with(device)).unwrap();
    let paths = found.container_edits.device_nodes.iter().map(|node| node.path.clone());
    paths.filter(|path| !path.starts_with("/dev/dri")).collect()
}

/// An allocation result for this request.
pub(crate) fn result(request: &str, device: &str) -> Value {
    json!({ "request": request, "driver": DRIVER, "pool": "node-a", "device": device })
}

/// The same with admin access.
pub(crate) fn admin(request: &str, device: &str) -> Value {
    let mut result = result(request, device);
    result["adminAccess"] = json!(true);
    result
}

pub(crate) fn allocation(results: &[Value]) -> Value {
    json!({ "devices": { "results": results } })
}

/// A claim with these results; its requests are `r0`, `r1` and so on.
pub(crate) fn claim_of(testbed: &Testbed, name: &str, results: &[Value]) -> ClaimRef {
    given::claim_with(testbed, name, results.len(), allocation(results))
}

pub(crate) const NOTHING: [String; 0] = [];
