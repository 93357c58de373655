//! A GPU that needs a reset does not trap its pods: what cannot be destroyed waits for the reset, without
//! them.

use std::time::Duration;

use kerf::{model::status::ClaimState, telemetry::orders::Answer};
use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::node::{DRIVER, Testbed};

use super::{NOTHING, prepare, unprepare};
use crate::{given, health::Release};

const DEVICE: &str = "gpu-0-mig-2g20gb-14-2";
const DESTROY: [&str; 2] = ["nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"];

const LOST: u32 = 15;
const RESET_REQUIRED: u32 = 16;
const IN_USE: u32 = 19;
const UNKNOWN: u32 = 999;

/// How the claims with records are.
fn states(testbed: &Testbed) -> Vec<ClaimState> {
    let status = given::status(testbed).unwrap();
    status.claims.iter().map(|claim| claim.state).collect()
}

/// Taints of the published devices of GPU 0 that overlap the claim's.
fn is_withheld(testbed: &Testbed) -> bool {
    let slices = testbed.api.list::<k8s_openapi::api::resource::v1::ResourceSlice>();
    let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    devices
        .filter(|device| device.name == DEVICE)
        .any(|device| device.taints.iter().flatten().any(|taint| taint.effect == "NoSchedule"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_reset_is_given_to_nobody_and_goes_with_it() {
    for code in [RESET_REQUIRED, LOST] {
        for function in DESTROY {
            let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
            let claim = given::claim(&testbed, "c", &[DEVICE]);
            prepare(&testbed, &claim).await.unwrap();
            let cut = given::cut(&testbed);
            testbed.machine.inject(Fault::always(function, Effect::Fail(code))).unwrap();
            unprepare(&testbed, &claim).await.unwrap();
            unprepare(&testbed, &claim).await.unwrap();
            assert_eq!(states(&testbed), [ClaimState::Leftover]);
            assert_eq!((given::cut(&testbed), given::cdi_files(&testbed)), (cut.clone(), vec![]));
            given::until("it is withheld", || is_withheld(&testbed)).await;

            // Another agent knows it as well.
            testbed.start_agent("b").await.unwrap();
            for other in [DEVICE, "gpu-0-mig-1g10gb-19-3", "gpu-0"] {
                let other = given::claim(&testbed, other, &[other]);
                let refused = prepare(&testbed, &other).await.unwrap_err();
                let why = "`gpu-0-mig-2g20gb-14-2` of claim `default/c`, which has ended, could not be \
                           destroyed before GPU 0 is reset";
                assert!(refused.contains(why), "{refused}");
            }
            assert_eq!(given::cut(&testbed), cut);

            let released = Release::ask(&testbed, "0").await;
            assert!(matches!(released.answer, Answer::Released(_)), "{released:?}");
            testbed.machine.clear_faults().unwrap();
            testbed.machine.reset_gpu(0).unwrap();
            released.end().await;
            assert_eq!(testbed.leftovers().unwrap(), NOTHING);
            given::until("it is offered", || !is_withheld(&testbed)).await;
            prepare(&testbed, &claim).await.unwrap();
        }
    }
}

/// Who uses it may end, and nobody knows what 999 means: the kubelet asks again.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_asked_for_again() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &[DEVICE]);
    for function in DESTROY {
        prepare(&testbed, &claim).await.unwrap();
        for code in [UNKNOWN, IN_USE] {
            testbed.machine.inject(Fault::always(function, Effect::Fail(code))).unwrap();
            unprepare(&testbed, &claim).await.unwrap_err();
            assert_eq!(states(&testbed), [ClaimState::Prepared]);
            testbed.machine.clear_faults().unwrap();
        }
        unprepare(&testbed, &claim).await.unwrap();
        assert_eq!(testbed.leftovers().unwrap(), NOTHING);
    }
}

/// Of two GPUs, the one that is well gives back what it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_keeps_what_is_on_it_in_mind_alone() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let both = [DEVICE, "gpu-1-mig-1g10gb-19-0"];
    let claim = given::claim(&testbed, "c", &both);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.lose_gpu(0).unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(given::cut(&testbed)[1], []);
    let other = given::claim(&testbed, "other", &both[1..]);
    prepare(&testbed, &other).await.unwrap();
    unprepare(&testbed, &other).await.unwrap();

    testbed.machine.find_gpu(0).unwrap();
    given::until("it is gone", || given::records(&testbed).is_empty()).await;
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// A boot takes everything with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_reset_goes_with_a_boot() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &[DEVICE]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.inject(Fault::always(DESTROY[1], Effect::Fail(RESET_REQUIRED))).unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    drop(testbed.agent.take());
    testbed.machine.clear_faults().unwrap();
    testbed.machine.reboot().unwrap();
    testbed.start_agent("b").await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// The kubelet's call that hangs is given up by it; the next one does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_hangs_does_not_trap_its_pods() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &[DEVICE]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.inject(Fault::always(DESTROY[1], Effect::Hang)).unwrap();
    let call = testbed.kubelet.call(DRIVER).within(Duration::from_secs(2));
    let answers = call.unprepare(std::slice::from_ref(&claim)).await;
    assert!(answers[&claim.uid].is_err(), "{answers:?}");
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(states(&testbed), [ClaimState::Leftover]);
    let other = given::claim(&testbed, "other", &["gpu-1"]);
    prepare(&testbed, &other).await.unwrap();
    unprepare(&testbed, &other).await.unwrap();

    testbed.machine.clear_faults().unwrap();
    given::until("it is gone", || given::records(&testbed).is_empty()).await;
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}
