use serde_json::{Value, json};

use super::*;
use crate::model::config::{Interval, Sharing};

const DRIVER: &str = "gpu.nvidia.com";
const NODE: &str = "node-1";

/// The claim `ml/train`, with this status.
fn claim(status: Value) -> ResourceClaim {
    let metadata = json!({ "namespace": "ml", "name": "train", "uid": "7f3e" });
    serde_json::from_value(json!({ "metadata": metadata, "spec": {}, "status": status })).unwrap()
}

/// The same, allocated and reserved for a pod.
fn allocated(results: &Value, config: &Value) -> ResourceClaim {
    claim(json!({
        "allocation": { "devices": { "results": results, "config": config } },
        "reservedFor": [pod("train-0")],
    }))
}

fn pod(name: &str) -> Value {
    json!({ "resource": "pods", "name": name, "uid": "1" })
}

fn whole(request: &str, device: &str) -> Value {
    json!({ "request": request, "driver": DRIVER, "pool": NODE, "device": device })
}

/// Configuration for this driver.
fn config(source: &str, requests: &[&str], kind: &str) -> Value {
    let version = config::API_VERSION;
    let opaque = json!({ "driver": DRIVER, "parameters": { "apiVersion": version, "kind": kind } });
    json!({ "source": source, "requests": requests, "opaque": opaque })
}

fn read(claim: &ResourceClaim) -> Allocation {
    Allocation::of(claim, DRIVER, NODE).unwrap()
}

fn refused(claim: &ResourceClaim) -> String {
    Allocation::of(claim, DRIVER, NODE).unwrap_err().to_string()
}

fn result(request: &str, device: &str) -> AllocationResult {
    AllocationResult {
        request: request.to_owned(),
        pool: NODE.to_owned(),
        device: device.to_owned(),
        admin_access: false,
        share_id: None,
    }
}

#[test]
fn a_claim_is_read_as_it_was_allocated() {
    let share = "0c1a7e52-6f2c-4c0c-9a51-f0b0a1b2c3d4";
    let mig = "gpu-1-mig-1g10gb-19-0";
    let results = json!([
        whole("gpu", "gpu-0"),
        { "request": "part/small", "driver": DRIVER, "pool": NODE, "device": mig, "shareID": share },
        { "request": "look", "driver": DRIVER, "pool": NODE, "device": "gpu-2", "adminAccess": true },
        { "request": "not", "driver": DRIVER, "pool": NODE, "device": "gpu-3", "adminAccess": false },
    ]);
    let read = read(&allocated(&results, &json!([config("FromClaim", &["gpu"], "GpuConfig")])));
    let expected = Allocation {
        holder: ClaimRef {
            namespace: "ml".to_owned(),
            name: "train".to_owned(),
            uid: "7f3e".to_owned(),
        }
        .into(),
        pods: vec!["train-0".to_owned()],
        results: vec![
            result("gpu", "gpu-0"),
            AllocationResult { share_id: Some(share.to_owned()), ..result("part/small", mig) },
            AllocationResult { admin_access: true, ..result("look", "gpu-2") },
            result("not", "gpu-3"),
        ],
        configurations: vec![Configuration {
            requests: vec!["gpu".to_owned()],
            config: Config::Gpu(None),
        }],
    };
    assert_eq!(read, expected);
    assert_eq!(read.holder.label(), "ml/train");
}

#[test]
fn the_kubelet_knows_requests_without_their_subrequests() {
    let bases = ["gpu", "part/small", "a/b/c"].map(|name| result(name, "gpu-0"));
    assert_eq!(bases.each_ref().map(AllocationResult::base_request), ["gpu", "part", "a"]);
}

#[test]
fn what_is_for_other_drivers_is_ignored_however_odd() {
    let results = json!([
        { "request": "nic", "driver": "nic.example", "pool": "rack-4", "device": "nic-0" },
        whole("gpu", "gpu-0"),
    ]);
    let config = json!([
        { "source": "FromClaim", "opaque": { "driver": "nic.example", "parameters": ["a"] } },
        { "source": "FromMoon", "opaque": { "driver": "nic.example", "parameters": {} } },
        { "source": "FromMoon" },
    ]);
    let read = read(&allocated(&results, &config));
    assert_eq!(read.results, [result("gpu", "gpu-0")]);
    assert_eq!(read.configurations, []);
}

#[test]
fn a_claim_may_have_nothing_of_ours() {
    let nothing = [
        json!({ "allocation": {} }),
        json!({ "allocation": { "devices": {} } }),
        json!({ "allocation": { "devices": { "results": [], "config": [] } } }),
    ];
    for status in nothing {
        let read = read(&claim(status));
        assert_eq!((read.pods, read.results, read.configurations), (vec![], vec![], vec![]));
    }
}

#[test]
fn only_pods_of_the_core_group_are_pods() {
    let read = read(&claim(json!({
        "allocation": {},
        "reservedFor": [
            pod("b"),
            { "resource": "pods", "apiGroup": "", "name": "a", "uid": "2" },
            { "resource": "pods", "apiGroup": "metrics.k8s.io", "name": "c", "uid": "3" },
            { "resource": "jobs", "apiGroup": "batch", "name": "d", "uid": "4" },
        ],
    })));
    assert_eq!(read.pods, ["b", "a"]);
}

#[test]
fn configuration_of_classes_goes_before_that_of_the_claim() {
    let sharing = |interval| Some(Sharing::TimeSlicing(interval));
    let sliced = |source, interval| {
        let mut config = config(source, &["a", "b/c"], "GpuConfig");
        config["opaque"]["parameters"]["sharing"] =
            json!({ "strategy": "TimeSlicing", "timeSlicingConfig": { "interval": interval } });
        config
    };
    let config = json!([
        sliced("FromClaim", "Short"),
        sliced("FromClass", "Long"),
        sliced("FromClaim", "Medium"),
        config("FromClass", &[], "MigDeviceConfig"),
    ]);
    let of = |config| {
        let requests = vec!["a".to_owned(), "b/c".to_owned()];
        Configuration { requests, config }
    };
    let expected = [
        of(Config::Gpu(sharing(Interval::Long))),
        Configuration { requests: vec![], config: Config::Mig(None) },
        of(Config::Gpu(sharing(Interval::Short))),
        of(Config::Gpu(sharing(Interval::Medium))),
    ];
    assert_eq!(read(&allocated(&json!([]), &config)).configurations, expected);
}

#[test]
fn a_claim_that_was_not_allocated_is_refused() {
    let mut bare = claim(json!({}));
    let text = "not allocated; delete the pod so that it is scheduled again";
    assert_eq!(refused(&bare), text);
    bare.status = None;
    assert_eq!(refused(&bare), text);
}

#[test]
fn a_claim_on_its_way_out_is_for_those_who_have_it_reserved() {
    let gone = |reserved: &Value| {
        let mut claim = claim(json!({ "allocation": {}, "reservedFor": reserved }));
        claim.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-03-04T11:48:00Z")).unwrap();
        claim
    };
    let text = "being deleted and reserved for nobody; delete the pod and make the claim again";
    assert_eq!(refused(&gone(&Value::Null)), text);
    assert_eq!(refused(&gone(&json!([]))), text);
    assert_eq!(read(&gone(&json!([pod("train-0")]))).pods, ["train-0"]);
    let job = json!([{ "resource": "jobs", "apiGroup": "batch", "name": "job", "uid": "4" }]);
    assert_eq!(read(&gone(&job)).pods, [""; 0], "reserved, though not for a pod");
}

#[test]
fn a_claim_without_a_name_is_refused() {
    let without = |field: &str| {
        let mut metadata = json!({ "namespace": "ml", "name": "train", "uid": "7f3e" });
        metadata[field] = Value::Null;
        let mut claim = claim(json!({ "allocation": {} }));
        claim.metadata = serde_json::from_value(metadata).unwrap();
        refused(&claim)
    };
    assert_eq!(without("namespace"), "has no `metadata.namespace`");
    assert_eq!(without("name"), "has no `metadata.name`");
    assert_eq!(without("uid"), "has no `metadata.uid`");
}

#[test]
fn a_device_of_another_pool_is_refused() {
    let mut other = whole("gpu", "gpu-0");
    other["pool"] = json!("node-2");
    assert_eq!(
        refused(&allocated(&json!([other]), &json!([]))),
        "device `gpu-0` is of pool `node-2` and this node's pool is `node-1`; delete the pod so that it is \
         scheduled again"
    );
}

#[test]
fn configuration_that_cannot_be_read_says_whose_it_is_and_for_what() {
    let told = |source, requests: &[&str]| {
        refused(&allocated(&json!([]), &json!([config(source, requests, "GpuConfg")])))
    };
    let why = "unknown kind `GpuConfg` in parameters; did you mean `GpuConfig`?";
    assert_eq!(
        told("FromMoon", &[]),
        "opaque configuration has unknown source `FromMoon`; update Kerf"
    );
    assert_eq!(told("FromClaim", &[]), format!("opaque configuration for all requests: {why}"));
    assert_eq!(
        told("FromClaim", &["gpu"]),
        format!("opaque configuration for request `gpu`: {why}")
    );
    assert_eq!(
        told("FromClass", &["gpu", "part/small"]),
        format!("opaque configuration of the device class for requests `gpu`, `part/small`: {why}")
    );
}
