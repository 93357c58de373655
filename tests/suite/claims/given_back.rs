//! Unprepare: everything that was made goes, whatever else is the matter.

use std::time::Duration;

use kerf_nvml::{Effect, Fault, Model, NodeDescription};
use kerf_testbed::{apiserver, node::DRIVER};

use super::{NOTHING, answer, prepare, unprepare};
use crate::given;

#[tokio::test(flavor = "multi_thread")]
async fn needs_no_api_server_and_no_claim() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.api.delete::<k8s_openapi::api::resource::v1::ResourceClaim>("default", "c").unwrap();
    testbed.api.inject(apiserver::Fault::hang().always());
    unprepare(&testbed, &claim).await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    testbed.api.clear_faults();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_processes_that_end_late() {
    const IN_USE: u32 = 19;
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"]);
    for function in ["nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"] {
        prepare(&testbed, &claim).await.unwrap();
        let busy = Fault { times: 4, ..Fault::next(function, Effect::Fail(IN_USE)) };
        testbed.machine.inject(busy).unwrap();
        unprepare(&testbed, &claim).await.unwrap();
        testbed.machine.clear_faults().unwrap();
        assert_eq!(testbed.leftovers().unwrap(), NOTHING, "{function}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_the_process_that_does_not_end_and_succeeds_when_it_has() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.start_process(0, Some(2), 4242, "python3").unwrap();
    assert_eq!(
        unprepare(&testbed, &claim).await.unwrap_err(),
        "unprepare `default/c`: device `gpu-0-mig-2g20gb-14-2`: it is still in use by pid 4242 (python3); the \
         kubelet will ask again"
    );
    assert_eq!(given::prepared(&testbed), ["c"]);
    testbed.machine.stop_process(4242).unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// From Hopper on MIG mode goes with the last instance, before that it stays.
#[tokio::test(flavor = "multi_thread")]
async fn mig_mode_goes_with_the_last_instance_where_that_needs_no_reset() {
    let modes = |testbed: &kerf_testbed::node::Testbed| {
        testbed.machine.snapshot().unwrap().gpus[0].mig.unwrap().0
    };
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let [a, b] = ["gpu-0-mig-1g10gb-19-0", "gpu-0-mig-1g10gb-19-1"]
        .map(|device| given::claim(&testbed, device, &[device]));
    prepare(&testbed, &a).await.unwrap();
    prepare(&testbed, &b).await.unwrap();
    unprepare(&testbed, &a).await.unwrap();
    assert!(modes(&testbed));
    unprepare(&testbed, &b).await.unwrap();
    assert!(!modes(&testbed));

    let machine = NodeDescription::uniform(Model::A100_80, 1).with_mig_enabled();
    let testbed = given::of(machine).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-0"]);
    prepare(&testbed, &claim).await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert!(modes(&testbed));
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// That the mode cannot be switched off never fails an unprepare; the whole GPU then says why it
/// cannot be had.
#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_stays_on_fails_nobody_but_the_whole_gpu() {
    const IN_USE: u32 = 19;
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-0"]);
    prepare(&testbed, &claim).await.unwrap();
    let busy = Fault::always("nvmlDeviceSetMigMode", Effect::Fail(IN_USE));
    testbed.machine.inject(busy).unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    let whole = given::claim(&testbed, "whole", &["gpu-0"]);
    assert_eq!(
        prepare(&testbed, &whole).await.unwrap_err(),
        "prepare `default/whole`: device `gpu-0`: MIG mode of GPU 0 cannot be switched off while a process that \
         this agent cannot see uses it; stop the process or drain the node"
    );
    testbed.machine.clear_faults().unwrap();
    prepare(&testbed, &whole).await.unwrap();
    unprepare(&testbed, &whole).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// A claim that is being worked on is waited for, and then undone.
#[tokio::test(flavor = "multi_thread")]
async fn waits_for_a_prepare_that_is_under_way() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    testbed.machine.inject(Fault::always(create, Effect::Hang)).unwrap();
    let call = testbed.kubelet.call(DRIVER).within(Duration::from_secs(6));
    let mut answers = call.prepare(&claims).await;
    let error = answer(&mut answers, &claims[0]).unwrap_err();
    let error = error.replace(|c: char| c.is_ascii_digit(), "N");
    assert_eq!(
        error,
        "prepare `default/c`: not done yet: GPU N: nvmlDeviceCreateGpuInstanceWithPlacement has not answered for N \
         s; the kubelet will ask again"
    );
    let (unprepared, ()) = tokio::join!(testbed.kubelet.unprepare(DRIVER, &claims), async {
        testbed.machine.clear_faults().unwrap();
    });
    assert_eq!(unprepared[&claims[0].uid], Ok(()));
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}
