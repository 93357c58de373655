//! An administrator who cuts while Kerf does: what he made is his, wherever it lies.

use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::node::Testbed;

use super::{NOTHING, prepare, unprepare};
use crate::given;

const DEVICE: &str = "gpu-0-mig-2g20gb-14-2";
const PROFILE: u32 = 14;
const START: u32 = 2;

/// UUIDs of the MIG devices.
fn uuids(testbed: &Testbed) -> Vec<String> {
    let gpus = testbed.machine.snapshot().unwrap().gpus;
    let instances = gpus.into_iter().flat_map(|gpu| gpu.instances);
    instances.flat_map(|gi| gi.compute).map(|ci| ci.uuid).collect()
}

/// Cuts the place that the claim wants when the agent makes its n-th call; the UUID, if that went well.
async fn cut_at_call(testbed: &Testbed, at: u64, call: impl Future<Output = ()>) -> Option<String> {
    let hang = Fault { function: None, gpu: None, at, times: 1, what: Effect::Hang };
    testbed.machine.inject(hang).unwrap();
    let mut call = std::pin::pin!(call);
    let hangs = given::until("the call is made", || testbed.machine.calls().unwrap() >= at);
    let ended = tokio::select! {
        () = &mut call => true,
        () = hangs => false,
    };
    let before = uuids(testbed);
    testbed.machine.set_mig_mode(0, true).unwrap();
    let cut = testbed.machine.create_instance(0, PROFILE, START, true).is_ok();
    let made = uuids(testbed).into_iter().find(|uuid| !before.contains(uuid));
    testbed.machine.clear_faults().unwrap();
    if !ended {
        call.await;
    }
    made.filter(|_| cut)
}

/// Ends what the administrator made.
fn uncut(testbed: &Testbed) {
    testbed.machine.destroy_instance(0, START).unwrap();
    testbed.machine.set_mig_mode(0, false).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_at_any_call_of_prepare_keeps_what_he_cut() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let (mut first, mut late) = (0, 0);
    for at in 1..40 {
        let claim = given::claim(&testbed, &format!("c{at}"), &[DEVICE]);
        let asked = async { drop(prepare(&testbed, &claim).await) };
        let theirs = cut_at_call(&testbed, at, asked).await;
        if let Some(theirs) = &theirs {
            assert_eq!(uuids(&testbed), [theirs.as_str()], "call {at}");
        }
        unprepare(&testbed, &claim).await.unwrap();
        match theirs {
            Some(theirs) => {
                assert_eq!(uuids(&testbed), [theirs], "call {at}");
                first += 1;
                uncut(&testbed);
            }
            None => late += 1,
        }
        assert_eq!(testbed.leftovers().unwrap(), NOTHING, "call {at}");
    }
    assert!(first > 1 && late > 1, "he came first {first} times, and too late {late} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_at_any_call_of_unprepare_keeps_what_he_cut() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let mut cuts = 0;
    for at in 1..30 {
        let claim = given::claim(&testbed, &format!("c{at}"), &[DEVICE]);
        prepare(&testbed, &claim).await.unwrap();
        let asked = async { unprepare(&testbed, &claim).await.unwrap() };
        let theirs = cut_at_call(&testbed, at, asked).await;
        unprepare(&testbed, &claim).await.unwrap();
        if let Some(theirs) = theirs {
            assert_eq!(uuids(&testbed), [theirs], "call {at}");
            cuts += 1;
            uncut(&testbed);
        } else {
            testbed.machine.set_mig_mode(0, false).unwrap();
        }
        assert_eq!(testbed.leftovers().unwrap(), NOTHING, "call {at}");
    }
    assert!(cuts > 0);
}

/// A claim whose instance was lost, so that it is made again, does not get the one that lies there by then.
#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_where_a_claim_was_keeps_what_he_cut() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &[DEVICE]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.destroy_instance(0, START).unwrap();
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    testbed.machine.inject(Fault::next(create, Effect::Fail(999))).unwrap();
    prepare(&testbed, &claim).await.unwrap_err();
    testbed.machine.create_instance(0, PROFILE, START, true).unwrap();
    let theirs = uuids(&testbed);
    let refused = prepare(&testbed, &claim).await.unwrap_err();
    assert!(refused.contains("MIG instance that Kerf did not make"), "{refused}");
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(uuids(&testbed), theirs);
    uncut(&testbed);
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}
