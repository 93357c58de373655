//! A claim that is prepared again gets the same answer, and what is missing is made again.

use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::node::Testbed;

use super::{NOTHING, device, prepare, unprepare};
use crate::given;

const NAMES: [&str; 2] = ["gpu-0-mig-2g20gb-14-2", "gpu-1"];

/// UUIDs of all MIG devices.
fn uuids(testbed: &Testbed) -> Vec<String> {
    let snapshot = testbed.machine.snapshot().unwrap();
    let instances = snapshot.gpus.iter().flat_map(|gpu| &gpu.instances);
    instances.flat_map(|gi| &gi.compute).map(|ci| ci.uuid.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gives_the_same_answer_and_makes_nothing() {
    let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &NAMES);
    let first = prepare(&testbed, &claim).await.unwrap();
    let expected = [device(&claim, &["r0"], NAMES[0]), device(&claim, &["r1"], NAMES[1])];
    assert_eq!(first, expected);
    let (uuids_before, records) = (uuids(&testbed), given::records(&testbed));
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), first);
    testbed.start_agent("b").await.unwrap();
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), first);
    assert_eq!((uuids(&testbed), given::records(&testbed)), (uuids_before, records));
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_a_cdi_file_that_is_gone() {
    let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &NAMES);
    let first = prepare(&testbed, &claim).await.unwrap();
    let path = testbed.cdi_root().join(kerf::model::cdi::file_name(&claim.uid));
    let before = std::fs::read(&path).unwrap();
    std::fs::remove_dir_all(testbed.cdi_root()).unwrap();
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), first);
    assert_eq!(std::fs::read(&path).unwrap(), before);

    std::fs::remove_file(&path).unwrap();
    let orphan = testbed.cdi_root().join(kerf::model::cdi::file_name("orphan"));
    let foreign = testbed.cdi_root().join("nvidia.yaml");
    for path in [&orphan, &foreign] {
        std::fs::File::create(path).unwrap();
    }
    testbed.start_agent("b").await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before, "a start repairs it");
    assert_eq!([orphan.exists(), foreign.exists()], [false, true]);
    std::fs::remove_file(foreign).unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn makes_an_instance_that_is_gone() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &NAMES);
    let first = prepare(&testbed, &claim).await.unwrap();
    let before = uuids(&testbed);
    testbed.machine.destroy_instance(0, 2).unwrap();
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), first);
    assert_eq!(given::cut(&testbed), [vec![(14, 2)], vec![]]);
    assert_ne!(uuids(&testbed), before);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// What is made at the place of an instance of ours after it was destroyed is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn leaves_alone_what_somebody_else_made_in_its_place() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &NAMES);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.destroy_instance(0, 2).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    let theirs = uuids(&testbed);
    assert_eq!(
        prepare(&testbed, &claim).await.unwrap_err(),
        "prepare `default/c`: device `gpu-0-mig-2g20gb-14-2`: memory slices 2-3 of GPU 0 are used by a MIG instance \
         that Kerf did not make (2g.20gb at 2); delete it with `nvidia-smi mig -i 0 -gi 4 -dci && nvidia-smi mig -i 0 \
         -gi 4 -dgi`, or delete the pod so that it is scheduled again"
    );
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(uuids(&testbed), theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_gpu_that_was_put_into_mig_mode_is_whole_again_or_says_why_not() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    let first = prepare(&testbed, &claim).await.unwrap();
    testbed.machine.set_mig_mode(0, true).unwrap();
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), first);
    assert_eq!(testbed.machine.snapshot().unwrap().gpus[0].mig, Some((false, false)));

    testbed.machine.set_mig_mode(0, true).unwrap();
    testbed.machine.create_instance(0, 9, 4, true).unwrap();
    assert_eq!(
        prepare(&testbed, &claim).await.unwrap_err(),
        "prepare `default/c`: device `gpu-0`: GPU 0 has MIG instances that Kerf did not make (3g.40gb at 4); delete \
         them with `nvidia-smi mig -i 0 -dci && nvidia-smi mig -i 0 -dgi`, or claim a MIG device"
    );
    testbed.machine.destroy_instance(0, 4).unwrap();
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), first);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// A step that fails is undone in the same call, and what is half done with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_any_call_leaves_nothing_and_the_next_call_succeeds() {
    const INSUFFICIENT_RESOURCES: u32 = 23;
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2", "gpu-1-mig-1g10gb-19-0"]);
    let mut failed = 0;
    for call in 1.. {
        let what = Effect::Fail(INSUFFICIENT_RESOURCES);
        let fault = Fault { function: None, gpu: None, at: call, times: 1, what };
        testbed.machine.inject(fault).unwrap();
        let answer = prepare(&testbed, &claim).await;
        let calls = testbed.machine.calls().unwrap();
        testbed.machine.clear_faults().unwrap();
        match answer {
            Ok(_) => {
                unprepare(&testbed, &claim).await.unwrap();
                assert_eq!(testbed.leftovers().unwrap(), NOTHING, "call {call}");
                if calls < call {
                    break;
                }
            }
            Err(error) => {
                failed += 1;
                assert!(!error.contains('\n'), "{error}");
                // An undo that the fault befell is repeated by whoever asks next.
                unprepare(&testbed, &claim).await.unwrap();
                assert_eq!(testbed.leftovers().unwrap(), NOTHING, "call {call}: {error}");
            }
        }
    }
    assert!(failed > 20, "only {failed} calls failed");
}
