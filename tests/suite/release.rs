//! Orders that cannot be carried out leave everything as it was.

use std::collections::BTreeMap;

use kerf::{model::claim::ClaimRef, telemetry::orders::Answer};
use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::node::{DRIVER, Testbed};

use crate::{
    claims::{prepare, unprepare},
    given,
    health::Release,
};

const HANGS: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";

/// Has a call hang on GPU 1; the kubelet has given it up.
async fn hang(testbed: &Testbed) {
    testbed.machine.inject(Fault::always(HANGS, Effect::Hang).on_gpu(1)).unwrap();
    let claim = given::claim(testbed, "hangs", &["gpu-1-mig-1g10gb-19-0"]);
    let call = testbed.kubelet.call(DRIVER).within(std::time::Duration::from_secs(1));
    let answers = call.prepare(std::slice::from_ref(&claim)).await;
    assert!(answers[&claim.uid].is_err(), "{answers:?}");
}

async fn refuses_and_serves_on(testbed: &Testbed, other: &ClaimRef, why: &str) {
    let slices = || {
        let slices = testbed.api.list::<k8s_openapi::api::resource::v1::ResourceSlice>();
        let devices = slices.into_iter().flat_map(|slice| slice.spec.devices.unwrap_or_default());
        let of_gpu = devices.filter(|device| device.name.starts_with("gpu-0"));
        of_gpu.map(|device| (device.name, device.taints)).collect::<BTreeMap<_, _>>()
    };
    let before = slices();
    let refused = Release::ask(testbed, "0").await;
    assert!(matches!(&refused.answer, Answer::Refused(text) if text.contains(why)), "{refused:?}");
    assert_eq!(slices(), before);
    prepare(testbed, other).await.unwrap();
    unprepare(testbed, other).await.unwrap();
}

/// The library is let go of in vain, and is in use again.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_is_not_released_while_a_call_on_another_does_not_end() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    hang(&testbed).await;
    let other = given::claim(&testbed, "other", &["gpu-0-mig-1g10gb-19-0"]);
    refuses_and_serves_on(&testbed, &other, "NVML is still in use after 20 s: nvmlDevice").await;
    // By now it is known to hang: it is not waited for again.
    let why = format!("cannot be released: NVML is in use: {HANGS} has not answered for");
    refuses_and_serves_on(&testbed, &other, &why).await;
}

/// Who asks and goes away before the answer leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_waiting_leaves_everything_as_it_was() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    hang(&testbed).await;
    let asked =
        tokio::time::timeout(std::time::Duration::from_secs(1), Release::ask(&testbed, "0"));
    assert!(asked.await.is_err());
    testbed.machine.clear_faults().unwrap();
    let claim = given::claim(&testbed, "other", &["gpu-0-mig-1g10gb-19-0"]);
    let prepared = || async { prepare(&testbed, &claim).await };
    while let Err(error) = prepared().await {
        assert!(error.contains("it is being loaded") || error.contains("released"), "{error}");
        tokio::task::yield_now().await;
    }
    unprepare(&testbed, &claim).await.unwrap();
}
