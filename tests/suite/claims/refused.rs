//! What a claim is refused for, in words that a user can act on, and that nothing else suffers.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kerf::model::claim::ClaimRef;
use kerf_nvml::{Effect, Fault, Model, NodeDescription};
use kerf_testbed::node::{DRIVER, Testbed};
use serde_json::{Value, json};

use super::{NOTHING, allocation, answer, prepare, result, unprepare};
use crate::given;

/// The refusal of a claim for this device, which leaves nothing.
async fn refusal(testbed: &Testbed, device: &str) -> String {
    let claim = given::claim(testbed, "asks", &[device]);
    let before = (given::cut(testbed), given::cdi_files(testbed), given::prepared(testbed));
    let error = prepare(testbed, &claim).await.unwrap_err();
    assert_eq!(before, (given::cut(testbed), given::cdi_files(testbed), given::prepared(testbed)));
    assert!(!error.contains('\n'), "{error}");
    unprepare(testbed, &claim).await.unwrap();
    testbed.api.delete::<ResourceClaim>("default", "asks").unwrap();
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn for_what_others_hold() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let held = given::claim(&testbed, "has", &["gpu-0-mig-3g40gb-9-4", "gpu-1"]);
    prepare(&testbed, &held).await.unwrap();
    let again = "delete the pod so that it is scheduled again";
    let cases = [
        (
            "gpu-0-mig-3g40gb-9-4",
            format!("held by claim `default/has`; wait until that is released, or {again}"),
        ),
        (
            "gpu-0",
            format!(
                "memory slices 4-7 of GPU 0 are used by `gpu-0-mig-3g40gb-9-4` of claim `default/has`; wait until \
                 that is released, or {again}"
            ),
        ),
        (
            "gpu-0-mig-1g10gb-19-5",
            format!(
                "memory slices 4-7 of GPU 0 are used by `gpu-0-mig-3g40gb-9-4` of claim `default/has`; wait until \
                 that is released, or {again}"
            ),
        ),
        (
            "gpu-1-mig-1g10gb-19-5",
            format!(
                "GPU 1 is used by `gpu-1` of claim `default/has`; wait until that is released, or {again}"
            ),
        ),
        ("gpu-0-mig-5g50gb-77-0", format!("GPU 0 does not offer it any more; {again}")),
        ("gpu-7", format!("not on this node any more; {again}")),
    ];
    for (device, reason) in cases {
        let expected = format!("prepare `default/asks`: device `{device}`: {reason}");
        assert_eq!(refusal(&testbed, device).await, expected);
    }
    unprepare(&testbed, &held).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_what_an_administrator_did() {
    let testbed = given::node(Model::H100_80, 1).start_without_agent().await.unwrap();
    testbed.machine.set_mig_mode(0, true).unwrap();
    testbed.machine.create_instance(0, 9, 4, true).unwrap();
    let mut testbed = testbed.starting_here().unwrap();
    testbed.start_agent("a").await.unwrap();
    assert_eq!(
        refusal(&testbed, "gpu-0").await,
        "prepare `default/asks`: device `gpu-0`: GPU 0 has MIG instances that Kerf did not make (3g.40gb at 4); \
         delete them with `nvidia-smi mig -i 0 -dci && nvidia-smi mig -i 0 -dgi`, or claim a MIG device"
    );
    assert_eq!(
        refusal(&testbed, "gpu-0-mig-1g10gb-19-6").await,
        "prepare `default/asks`: device `gpu-0-mig-1g10gb-19-6`: memory slices 4-7 of GPU 0 are used by a MIG \
         instance that Kerf did not make (3g.40gb at 4); delete it with `nvidia-smi mig -i 0 -gi 2 -dci && \
         nvidia-smi mig -i 0 -gi 2 -dgi`, or delete the pod so that it is scheduled again"
    );
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Where the mode needs a reset, a process keeps it as it is.
#[tokio::test(flavor = "multi_thread")]
async fn for_a_mode_that_waits_for_a_reset() {
    let testbed = given::node(Model::A100_80, 2).start_without_agent().await.unwrap();
    testbed.machine.start_process(1, None, 4242, "python3").unwrap();
    testbed.machine.set_mig_mode(1, true).unwrap_err();
    let mut testbed = testbed.starting_here().unwrap();
    testbed.start_agent("a").await.unwrap();
    let reset = "delete the pod so that it is scheduled again";
    assert_eq!(
        refusal(&testbed, "gpu-0-mig-1g10gb-19-6").await,
        format!(
            "prepare `default/asks`: device `gpu-0-mig-1g10gb-19-6`: MIG mode of GPU 0 is off and cannot be \
             switched on without a reset; drain the node and run `nvidia-smi -i 0 -mig 1 && nvidia-smi -r -i 0`, \
             or {reset}"
        )
    );
    assert_eq!(
        refusal(&testbed, "gpu-1-mig-1g10gb-19-6").await,
        format!(
            "prepare `default/asks`: device `gpu-1-mig-1g10gb-19-6`: MIG mode of GPU 1 waits for a reset to be \
             switched on; drain the node and run `nvidia-smi -r -i 1`, or {reset}"
        )
    );
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_process_on_the_gpu() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    testbed.machine.start_process(0, None, 4242, "python3").unwrap();
    let error = refusal(&testbed, "gpu-0-mig-1g10gb-19-6").await;
    assert_eq!(
        error,
        "prepare `default/asks`: device `gpu-0-mig-1g10gb-19-6`: MIG mode of GPU 0 cannot be switched on while pid \
         4242 (python3) uses it; stop the process or drain the node"
    );
    testbed.machine.stop_process(4242).unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// What it had made of the device until then is gone, and the next try finds a clean GPU.
#[tokio::test(flavor = "multi_thread")]
async fn for_an_instance_that_the_gpu_does_not_make() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let insufficient_resources = 23;
    for function in
        ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"]
    {
        let fails = Fault::always(function, Effect::Fail(insufficient_resources));
        testbed.machine.inject(fails).unwrap();
        assert_eq!(
            refusal(&testbed, "gpu-0-mig-1g10gb-19-6").await,
            format!(
                "prepare `default/asks`: device `gpu-0-mig-1g10gb-19-6`: carve: {function} on GPU 0: Insufficient \
                 Resources; the kubelet will ask again, and if that does not help, drain the node and reset the GPU"
            )
        );
        testbed.machine.clear_faults().unwrap();
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// It is read again whenever a claim needs it: a look at all GPUs may be seconds away.
#[tokio::test(flavor = "multi_thread")]
async fn for_a_gpu_that_is_lost_until_it_is_back() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "asks", &["gpu-1-mig-1g10gb-19-6"]);
    testbed.machine.lose_gpu(1).unwrap();
    let refusal = |function| {
        format!(
            "prepare `default/asks`: device `gpu-1-mig-1g10gb-19-6`: GPU 1 does not answer: {function} on GPU 1: GPU \
             is lost; reset it with `nvidia-smi -r -i 1`, or delete the pod so that it is scheduled again"
        )
    };
    let first = prepare(&testbed, &claim).await.unwrap_err();
    // By then the agent may have seen for itself that the GPU is lost.
    let refusals = ["nvmlDeviceGetMigMode", "nvmlDeviceGetHandleByIndex_v2"].map(refusal);
    assert!(refusals.contains(&first), "{first}");
    let out_of_reach = || testbed.slices().iter().all(|slice| !free(slice).contains("gpu-1"));
    given::until("the GPU to be tainted", out_of_reach).await;
    let second = prepare(&testbed, &claim).await.unwrap_err();
    assert_eq!(second, refusal("nvmlDeviceGetHandleByIndex_v2"));
    testbed.machine.reset_gpu(1).unwrap();
    prepare(&testbed, &claim).await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// The devices of a slice that may be given out.
fn free(slice: &ResourceSlice) -> BTreeSet<String> {
    let devices = slice.spec.devices.iter().flatten().filter(|device| device.taints.is_none());
    devices.map(|device| device.name.clone()).collect()
}

/// A claim with this configuration of ours.
fn configured(testbed: &Testbed, name: &str, device: &str, parameters: Value) -> ClaimRef {
    let mut allocation = allocation(&[result("r0", device)]);
    allocation["devices"]["config"] = json!([
        { "source": "FromClaim", "requests": ["r0"], "opaque": { "driver": DRIVER, "parameters": parameters } },
    ]);
    given::claim_with(testbed, name, 1, allocation)
}

fn parameters(kind: &str, sharing: Value) -> Value {
    json!({ "apiVersion": "resource.nvidia.com/v1beta1", "kind": kind, "sharing": sharing })
}

#[tokio::test(flavor = "multi_thread")]
async fn for_its_configuration() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let cases = [
        (
            parameters("GpuConfig", json!({ "strateggy": "MPS" })),
            "unknown field `strateggy` in GpuConfig.sharing; did you mean `strategy`?",
        ),
        (
            parameters("GpuConfig", json!({ "strategy": "MPS" })),
            "strategy `MPS` is not supported yet; remove `sharing`, or claim a MIG device for a part of a GPU",
        ),
        (
            parameters("MigDeviceConfig", json!({ "strategy": "TimeSlicing" })),
            "MigDeviceConfig does not apply to a whole GPU; use GpuConfig or remove it",
        ),
        (
            parameters("GpuConfig", json!({ "strategy": "TimeSlicing", "mpsConfig": {} })),
            "`mpsConfig` does not go with strategy `TimeSlicing` in GpuConfig.sharing; remove one of them",
        ),
    ];
    for (n, (parameters, reason)) in cases.into_iter().enumerate() {
        let claim = configured(&testbed, &format!("c{n}"), "gpu-0", parameters);
        let expected =
            format!("prepare `default/c{n}`: opaque configuration for request `r0`: {reason}");
        assert_eq!(prepare(&testbed, &claim).await.unwrap_err(), expected);
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Each of a call's claims has its own answer, whatever became of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_claim_fails_no_sibling() {
    let testbed = given::node(Model::H100_80, 4).start().await.unwrap();
    let good = given::claim(&testbed, "good", &["gpu-0-mig-1g10gb-19-6"]);
    let other = given::claim(&testbed, "other", &["gpu-1"]);
    let gone = given::claim(&testbed, "gone", &["gpu-2"]);
    let absent = ClaimRef { name: "absent".into(), uid: "no-such-uid".into(), ..good.clone() };
    let replaced = ClaimRef { uid: "another-uid".into(), ..gone.clone() };
    let escaping = ClaimRef { uid: "../../etc/passwd".into(), ..good.clone() };
    let pending = unallocated(&testbed, "pending");
    let elsewhere = given::claim_with(
        &testbed,
        "elsewhere",
        1,
        json!({ "devices": { "results": [
        { "request": "r0", "driver": DRIVER, "pool": "node-b", "device": "gpu-3" },
    ] } }),
    );
    let claims =
        [&good, &other, &absent, &replaced, &escaping, &pending, &elsewhere].map(Clone::clone);
    let mut answers = testbed.kubelet.prepare(DRIVER, &claims).await;
    assert_eq!(answers.len(), claims.len());
    for claim in [&good, &other] {
        answer(&mut answers, claim).unwrap();
    }
    let mut error = |claim| answer(&mut answers, claim).unwrap_err();
    assert_eq!(
        error(&absent),
        "prepare `default/absent`: get ResourceClaim `default/absent`: resourceclaims.resource.k8s.io \"absent\" not found"
    );
    assert_eq!(
        error(&replaced),
        format!(
            "prepare `default/gone`: get ResourceClaim `default/gone`: replaced: uid `{}`, asked for `another-uid`",
            gone.uid
        )
    );
    assert_eq!(
        error(&escaping),
        format!(
            "prepare `default/good`: get ResourceClaim `default/good`: replaced: uid `{}`, asked for \
             `../../etc/passwd`",
            good.uid
        )
    );
    assert_eq!(
        error(&pending),
        "prepare `default/pending`: not allocated; delete the pod so that it is scheduled again"
    );
    assert_eq!(
        error(&elsewhere),
        "prepare `default/elsewhere`: device `gpu-3` is of pool `node-b` and this node's pool is `node-a`; delete \
         the pod so that it is scheduled again"
    );
    let answers = testbed.kubelet.unprepare(DRIVER, &claims).await;
    for claim in &claims {
        let fails = claim.uid == escaping.uid;
        assert_eq!(answers[&claim.uid].is_err(), fails, "{:?}", answers[&claim.uid]);
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

fn unallocated(testbed: &Testbed, name: &str) -> ClaimRef {
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "devices": { "requests": [
            { "name": "r0", "exactly": { "deviceClassName": DRIVER } },
        ] } },
    });
    let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
    let uid = testbed.api.create(&claim).unwrap().metadata.uid.unwrap();
    ClaimRef { namespace: "default".into(), name: name.into(), uid }
}

/// On a GPU that must be in MIG mode for it, a whole GPU is refused; after a reset it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_gpu_that_is_in_mig_mode_until_a_reset() {
    let machine = NodeDescription::uniform(Model::A30, 1).with_mig_enabled();
    let testbed = given::of(machine).start().await.unwrap();
    assert_eq!(
        refusal(&testbed, "gpu-0").await,
        "prepare `default/asks`: device `gpu-0`: MIG mode of GPU 0 is on and cannot be switched off without a \
         reset; drain the node and run `nvidia-smi -i 0 -mig 0 && nvidia-smi -r -i 0`, or claim a MIG device"
    );
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}
