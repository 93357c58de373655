use serde_json::{Value, json};

use super::*;
use crate::model::{
    fixtures::gpus::{self, H100},
    gpu::{GpuUuid, Placement, Unreadable},
};

const BOOT: &str = "6b1f3a52-0c5e-4f6a-9d43-5a1b2c3d4e5f";
const SMALL: &str = "gpu-0-mig-1g10gb-19-4";
const MIG_UUID: &str = "MIG-00000000-0000-0000-0001-000000000000";

fn node() -> Inventory {
    gpus::node([gpus::gpu(&H100, 0), gpus::gpu(&H100, 1)])
}

fn uuid(gpu: u32) -> String {
    gpus::gpu(&H100, gpu).uuid.0
}

fn site(inventory: &Inventory) -> Site<'_> {
    Site {
        driver: "gpu.nvidia.com",
        pool: "node-a",
        boot_id: BOOT,
        now: "2026-03-04T12:00:00Z",
        inventory,
        mig: Some(Origin::Made),
    }
}

/// The status of a claim that these devices were allocated to, for requests `r0` and so on.
fn status(devices: &[&str]) -> Value {
    let results = devices.iter().enumerate().map(|(n, device)| {
        json!({
            "request": format!("r{n}"), "driver": "gpu.nvidia.com", "pool": "node-a", "device": device,
        })
    });
    json!({
        "allocation": {
            "devices": { "results": results.collect::<Vec<_>>() },
            "nodeSelector": { "nodeSelectorTerms": [] },
        },
        "reservedFor": [{ "resource": "pods", "name": "train-0", "uid": "9a1c" }],
    })
}

/// What the kubelet was told of a device, in the spelling of Go's library.
fn told(uid: &str, device: &str) -> Value {
    json!({
        "Requests": ["r0"],
        "PoolName": "node-a",
        "DeviceName": device,
        "CDIDeviceIDs": [format!("k8s.gpu.nvidia.com/claim={uid}-{device}")],
    })
}

fn whole(uid: &str, device: &str, uuid: &str) -> Value {
    json!({ "gpu": { "info": { "uuid": uuid }, "device": told(uid, device) }, "mig": null })
}

fn mig(uid: &str, device: &str, parent: &str) -> Value {
    let concrete = json!({
        "parentMinor": 0, "giId": 7, "ciId": 0, "migUUID": MIG_UUID, "parentUUID": parent,
    });
    json!({ "gpu": null, "mig": { "concrete": concrete, "device": told(uid, device) } })
}

fn completed(devices: &[&str], prepared: &[Value]) -> Value {
    json!({
        "checkpointState": "PrepareCompleted",
        "status": status(devices),
        "preparedDevices": [{ "devices": prepared, "configState": { "mpsControlDaemonID": "" } }],
    })
}

fn started(name: &str, devices: &[&str]) -> Value {
    json!({
        "checkpointState": "PrepareStarted", "status": status(devices), "name": name, "namespace": "ml",
    })
}

/// The file as it is written: both parts, with checksums that nobody checks here.
fn file(claims: &Value) -> Value {
    json!({
        "checksum": 3_016_412_771_u64,
        "v1": { "preparedClaims": {} },
        "v2": { "checksum": 1_234_567_u64, "preparedClaims": claims, "nodeBootID": BOOT },
    })
}

fn parse(file: &Value) -> Result<Checkpoint, Refusal> {
    Checkpoint::parse(&serde_json::to_vec(file).unwrap())
}

fn adopt(claims: &Value) -> Result<Vec<Record>, Refusal> {
    records(&parse(&file(claims))?, &site(&node()))
}

fn refusal(claims: &Value) -> String {
    adopt(claims).unwrap_err().to_string()
}

fn planned(request: &str, device: &str, target: Target, origin: Origin) -> PlannedDevice {
    PlannedDevice {
        requests: vec![request.to_owned()],
        pool: "node-a".to_owned(),
        device: device.to_owned(),
        share_id: None,
        target,
        origin,
    }
}

fn small() -> Target {
    Target::Mig {
        gpu: GpuUuid(uuid(0)),
        profile: 19,
        profile_name: "1g.10gb".to_owned(),
        placement: Placement { start: 4, size: 1 },
    }
}

fn record(uid: &str, devices: Vec<PlannedDevice>, state: State) -> Record {
    let claim =
        ClaimRef { namespace: "unknown".to_owned(), name: uid.to_owned(), uid: uid.to_owned() };
    Record {
        version: record::VERSION,
        boot_id: BOOT.to_owned(),
        since: "2026-03-04T12:00:00Z".to_owned(),
        plan: Plan { holder: claim.into(), pods: vec!["train-0".to_owned()], devices },
        state,
        carving: None,
        leftover: false,
    }
}

#[test]
fn what_was_prepared_is_prepared_with_the_same_answer() {
    let claims = json!({
        "c1": completed(&[SMALL, "gpu-1"], &[whole("c1", "gpu-1", &uuid(1)), mig("c1", SMALL, &uuid(0))]),
    });
    let devices = vec![
        planned("r0", SMALL, small(), Origin::Made),
        planned("r1", "gpu-1", Target::Gpu { gpu: GpuUuid(uuid(1)) }, Origin::Found),
    ];
    let prepared = [(SMALL, MIG_UUID.to_owned()), ("gpu-1", uuid(1))].map(|(device, uuid)| {
        let cdi = vec![format!("k8s.gpu.nvidia.com/claim=c1-{device}")];
        PreparedDevice { uuid: Some(uuid), cdi }
    });
    let state = State::Prepared { devices: prepared.to_vec() };
    assert_eq!(adopt(&claims).unwrap(), [record("c1", devices, state)]);
}

#[test]
fn what_had_begun_is_to_be_undone_under_its_own_name() {
    let records = adopt(&json!({ "c1": started("train", &[SMALL, "gpu-1"]) })).unwrap();
    let [Record { plan, state: State::Preparing, .. }] = records.as_slice() else {
        panic!("{records:?}")
    };
    let name = ["ml", "train", "c1"].map(str::to_owned);
    let [namespace, name, uid] = name;
    assert_eq!(plan.holder, ClaimRef { namespace, name, uid }.into());
    let origins: Vec<_> = plan.devices.iter().map(|device| device.origin).collect();
    assert_eq!(origins, [Origin::Made, Origin::Found]);
}

/// To undo what had begun must not take what another claim has at the same place.
#[test]
fn what_had_begun_where_another_claim_was_prepared_is_left_alone() {
    let claims = json!({
        "c1": started("train", &[SMALL]),
        "c2": completed(&[SMALL], &[mig("c2", SMALL, &uuid(0))]),
    });
    let records = adopt(&claims).unwrap();
    let origins: Vec<_> = records.iter().map(|record| record.plan.devices[0].origin).collect();
    assert_eq!(origins, [Origin::Found, Origin::Made]);
}

#[test]
fn whose_a_mig_device_is_must_be_said() {
    let claims = json!({ "c1": completed(&[SMALL], &[mig("c1", SMALL, &uuid(0))]) });
    let checkpoint = parse(&file(&claims)).unwrap();
    let inventory = node();
    let origin = |mig| {
        let records = records(&checkpoint, &Site { mig, ..site(&inventory) });
        records.map(|records| records[0].plan.devices[0].origin)
    };
    assert_eq!(origin(Some(Origin::Found)).unwrap(), Origin::Found);
    assert_eq!(
        origin(None).unwrap_err().to_string(),
        "claim `unknown/c1`: the file does not say who made MIG device `gpu-0-mig-1g10gb-19-4`: set `--adopt-mig` \
         to `dynamic` if NVIDIA's driver did (feature gate DynamicMIG), so that it goes with its claim, or to \
         `static` if an administrator did"
    );
    let whole = json!({ "c1": completed(&["gpu-1"], &[whole("c1", "gpu-1", &uuid(1))]) });
    let checkpoint = parse(&file(&whole)).unwrap();
    assert!(records(&checkpoint, &Site { mig: None, ..site(&inventory) }).is_ok());
}

/// Names may mean other GPUs after a boot, and all that was carved is gone.
#[test]
fn what_is_of_an_earlier_boot_is_held_by_name() {
    let claims = json!({
        "c1": completed(&[SMALL], &[mig("c1", SMALL, &uuid(1))]),
        "c2": completed(&["gpu-1"], &[whole("c2", "gpu-1", &uuid(0))]),
    });
    let mut file = file(&claims);
    file["v2"]["nodeBootID"] = json!("earlier");
    let inventory = node();
    let site = Site { mig: None, ..site(&inventory) };
    let records = records(&parse(&file).unwrap(), &site).unwrap();
    let seen: Vec<_> = records
        .iter()
        .map(|record| {
            let device = &record.plan.devices[0];
            (record.boot_id.as_str(), device.target.gpu().0.clone(), device.origin)
        })
        .collect();
    let expected = [("earlier", uuid(0), Origin::Made), ("earlier", uuid(1), Origin::Found)];
    assert_eq!(seen, expected);
}

#[test]
fn a_device_for_two_requests_is_one_and_admin_access_only_looks() {
    let mut claim = completed(
        &["gpu-0", "gpu-0", "gpu-1"],
        &[
            whole("c1", "gpu-0", &uuid(0)),
            whole("c1", "gpu-0", &uuid(0)),
            whole("c1", "gpu-1", &uuid(1)),
        ],
    );
    let results = &mut claim["status"]["allocation"]["devices"]["results"];
    results[1]["request"] = json!("r1/first");
    results[2]["adminAccess"] = json!(true);
    let records = adopt(&json!({
        "c1": claim,
        "c2": completed(&["gpu-1"], &[whole("c2", "gpu-1", &uuid(1))]),
    }));
    let records = records.unwrap();
    let devices: Vec<_> = records[0]
        .plan
        .devices
        .iter()
        .map(|device| (device.requests.join(","), device.device.as_str(), device.origin))
        .collect();
    let expected = [
        ("r0,r1".to_owned(), "gpu-0", Origin::Found),
        ("r2".to_owned(), "gpu-1", Origin::Observed),
    ];
    assert_eq!(devices, expected);
}

/// Files of NVIDIA's driver before states and boots had `v1` alone; what it has is prepared, and in
/// this boot.
#[test]
fn an_old_file_is_read_by_its_v1() {
    let claim = completed(&["gpu-1"], &[whole("c1", "gpu-1", &uuid(1))]);
    let mut v1 = claim.clone();
    v1.as_object_mut().unwrap().remove("checkpointState");
    let old = json!({ "checksum": 1, "v1": { "preparedClaims": { "c1": v1 } } });
    let inventory = node();
    let records = |file: &Value| records(&parse(file).unwrap(), &site(&inventory)).unwrap();
    assert_eq!(records(&old), records(&file(&json!({ "c1": claim }))));
    let v1_is_stale =
        json!({ "version": "v2", "v1": { "preparedClaims": { "c2": {} } }, "v2": {} });
    assert_eq!(parse(&v1_is_stale).unwrap(), Checkpoint { boot_id: None, claims: Vec::new() });
}

#[test]
fn what_is_new_in_a_known_format_is_ignored() {
    let mut claim = completed(&["gpu-1"], &[whole("c1", "gpu-1", &uuid(1))]);
    claim["later"] = json!([1]);
    claim["preparedDevices"][0]["devices"][0]["vfio"] = Value::Null;
    claim["preparedDevices"][0]["configState"]["timeSliceApplied"] = json!(true);
    let mut file = file(&json!({ "c1": claim }));
    file["version"] = json!("v2");
    file["note"] = json!("x");
    assert_eq!(parse(&file).unwrap().claims.len(), 1);
}

#[test]
fn a_format_that_is_not_known_is_refused() {
    let format = |file: Value| parse(&file).unwrap_err().to_string();
    assert_eq!(
        format(json!({})),
        "format without `v1` and `v2` is not known to this version of Kerf"
    );
    let mut newer = file(&json!({}));
    newer["v3"] = json!({});
    assert_eq!(format(newer), "format v3 is not known to this version of Kerf");
    let mut newer = file(&json!({}));
    newer["version"] = json!("v4");
    assert_eq!(format(newer), "format v4 is not known to this version of Kerf");
    for text in ["", "{", "[]", r#"{"v2": 3}"#, "\u{0}"] {
        let error = Checkpoint::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, Refusal::Unreadable(_)), "{text}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

/// A claim with one thing changed, and what is said of it.
fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut claim = completed(&["gpu-1"], &[whole("c1", "gpu-1", &uuid(1))]);
    change(&mut claim);
    let said = refusal(&json!({ "c1": claim }));
    said.strip_prefix("claim `unknown/c1`: ").expect(&said).to_owned()
}

fn with_config(claim: &mut Value, kind: &str, sharing: Value) {
    let parameters = json!({
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": kind, "sharing": sharing,
    });
    claim["status"]["allocation"]["devices"]["config"] = json!([{
        "source": "FromClaim", "opaque": { "driver": "gpu.nvidia.com", "parameters": parameters },
    }]);
}

#[test]
fn what_kerf_does_not_do_is_refused_with_the_claims_name() {
    let mps = "it shares its devices by MPS, which Kerf does not do";
    let state = |claim: &mut Value| claim["preparedDevices"][0]["configState"].take();
    let set = |key: &'static str, value: Value| {
        changed(move |claim| {
            state(claim);
            claim["preparedDevices"][0]["configState"] = json!({ key: value });
        })
    };
    assert_eq!(set("mpsControlDaemonID", json!("c1-0a1b2")), mps);
    assert_eq!(set("mpsApplied", json!(true)), mps);
    assert_eq!(
        changed(|claim| with_config(claim, "GpuConfig", json!({ "strategy": "MPS" }))),
        "opaque configuration for request `r0`: strategy `MPS` is not supported yet; remove `sharing`, or claim a \
         MIG device for a part of a GPU"
    );
    let slices = |interval: &str| json!({ "strategy": "TimeSlicing", "timeSlicingConfig": { "interval": interval } });
    assert_eq!(
        changed(|claim| with_config(claim, "GpuConfig", slices("Long"))),
        "opaque configuration for request `r0`: interval `Long` of strategy `TimeSlicing` is not supported yet; \
         use `Default` or remove `sharing`"
    );
    let mut claim = completed(&["gpu-1"], &[whole("c1", "gpu-1", &uuid(1))]);
    with_config(&mut claim, "GpuConfig", slices("Default"));
    assert_eq!(adopt(&json!({ "c1": claim })).unwrap().len(), 1);
    assert_eq!(
        changed(|claim| {
            let device = json!({ "gpu": null, "mig": null, "vfio": { "info": { "uuid": "u" } } });
            claim["preparedDevices"][0]["devices"] = json!([device]);
        }),
        "it has a device of kind `vfio`, which Kerf does not do"
    );
    assert_eq!(
        changed(|claim| {
            let result = &mut claim["status"]["allocation"]["devices"]["results"][0];
            result["shareID"] = json!("0c1a7e52-7f2b-4d43-9a43-0c6b5ad0f6c4");
        }),
        "it has a share of device `gpu-1`, and Kerf gives whole devices"
    );
}

#[test]
fn what_is_not_whole_is_refused_with_the_claims_name() {
    assert_eq!(changed(|claim| claim["checkpointState"] = json!("")), "state `` is not known");
    assert_eq!(
        changed(|claim| claim["checkpointState"] = json!("PrepareAborted")),
        "state `PrepareAborted` is not known"
    );
    assert_eq!(
        changed(|claim| drop(claim["status"].take())),
        "invalid type: null, expected ResourceClaimStatus"
    );
    assert_eq!(
        changed(|claim| claim["status"] = json!({})),
        "not allocated; delete the pod so that it is scheduled again"
    );
    let device = "preparedDevices";
    assert_eq!(
        changed(|claim| drop(claim[device][0]["devices"][0]["gpu"]["info"].take())),
        "invalid type: null, expected struct Info"
    );
    assert_eq!(
        changed(|claim| claim[device] = json!([])),
        "device `gpu-1` is not both allocated and prepared"
    );
    assert_eq!(
        changed(|claim| claim[device][0]["devices"] =
            json!([whole("c1", "gpu-1", &uuid(1)), whole("c1", "gpu-0", &uuid(0)),])),
        "device `gpu-0` is not both allocated and prepared"
    );
    assert_eq!(
        changed(|claim| claim[device][0]["devices"] = json!([mig("c1", "gpu-1", &uuid(1))])),
        "device `gpu-1` is not both allocated and prepared"
    );
    assert_eq!(
        changed(|claim| claim[device][0]["devices"] = json!([whole("c1", "gpu-1", &uuid(0))])),
        format!("device `gpu-1` was {}, and is {} to Kerf", uuid(0), uuid(1))
    );
    assert_eq!(
        changed(|claim| {
            let told = &mut claim[device][0]["devices"][0]["gpu"]["device"]["CDIDeviceIDs"];
            *told = json!(["k8s.gpu.nvidia.com/device=gpu-1", "k8s.gpu.nvidia.com/claim=c1"]);
        }),
        "the kubelet was told `k8s.gpu.nvidia.com/device=gpu-1`, `k8s.gpu.nvidia.com/claim=c1` for device `gpu-1`, \
         and Kerf's CDI file has `k8s.gpu.nvidia.com/claim=c1-gpu-1`"
    );
}

#[test]
fn a_device_that_this_node_cannot_give_is_refused() {
    let claims = json!({ "c1": started("train", &["gpu-7"]) });
    assert_eq!(
        refusal(&claims),
        "claim `ml/train`: device `gpu-7`: not on this node any more; delete the pod so that it is scheduled again"
    );
    let mut silent = node();
    let reason = "GPU is lost".to_owned();
    silent.unreadable.push(Unreadable { index: 7, uuid: None, reason, lost: true, known: None });
    let error = records(&parse(&file(&claims)).unwrap(), &site(&silent)).unwrap_err().to_string();
    assert!(error.contains("GPU 7 does not: GPU is lost"), "{error}");
    let elsewhere = Site { pool: "node-b", ..site(&silent) };
    let claims = json!({ "c1": started("train", &["gpu-1"]) });
    let error = records(&parse(&file(&claims)).unwrap(), &elsewhere).unwrap_err().to_string();
    assert!(error.contains("of pool `node-a` and this node's pool is `node-b`"), "{error}");
}

#[test]
fn claims_that_overlap_are_refused() {
    let claims = json!({
        "c1": completed(&[SMALL], &[mig("c1", SMALL, &uuid(0))]),
        "c2": completed(&["gpu-0"], &[whole("c2", "gpu-0", &uuid(0))]),
    });
    assert_eq!(
        refusal(&claims),
        "claim `unknown/c2`: device `gpu-0` overlaps `gpu-0-mig-1g10gb-19-4` of claim `unknown/c1`, and Kerf \
         shares no devices"
    );
}
