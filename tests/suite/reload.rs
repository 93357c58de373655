//! What ends under a running agent, and comes back: the driver, a GPU, the machine.

use std::net::SocketAddr;

use k8s_openapi::api::events::v1::Event;
use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::{
    agent::Agent,
    node::{DRIVER, Testbed},
};

use crate::{
    claims::{NOTHING, device, prepare, unprepare},
    given,
};

/// An agent whose readiness can be asked.
struct Watched {
    testbed: Testbed,
    http: SocketAddr,
    agent: Agent,
}

async fn watched(testbed: Testbed) -> Watched {
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    agent.while_running(testbed.published()).await.unwrap();
    Watched { testbed, http: options.http_endpoint, agent }
}

impl Watched {
    /// Waits until readiness says this, all of it or in part.
    async fn says(&self, what: &str) {
        let said = || given::readiness(self.http).contains(what);
        self.agent.while_running(given::until(what, said)).await.unwrap();
    }

    /// Waits for an event about the node.
    async fn warns(&self, reason: &str, note: &str) {
        let warned = || {
            let events = self.testbed.api.list::<Event>().into_iter();
            let told = events.map(|event| (event.reason, event.note));
            let wanted = (Some(reason.to_owned()), Some(note.to_owned()));
            told.collect::<Vec<_>>().contains(&wanted)
        };
        self.agent.while_running(given::until(note, warned)).await.unwrap();
    }

    /// Waits until the devices that can be given out are as wanted.
    async fn publishes(&self, wanted: impl Fn(&[String]) -> bool) {
        let published = || {
            let slices = self.testbed.slices();
            let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
            let devices = devices.filter(|device| device.taints.is_none());
            wanted(&devices.map(|device| device.name.clone()).collect::<Vec<_>>())
        };
        self.agent.while_running(given::until("published", published)).await.unwrap();
    }
}

const NAMES: [&str; 2] = ["gpu-0-mig-2g20gb-14-2", "gpu-1"];

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_comes_late_is_waited_for_and_taken_up() {
    let testbed = given::node(Model::H100_80, 2).start_without_agent().await.unwrap();
    testbed.machine.unload_driver().unwrap();
    let node = watched(testbed).await;
    node.says("no NVIDIA driver").await;
    assert_eq!(node.testbed.slices().len(), 1, "the driver is there, and has nothing");
    let claim = given::claim(&node.testbed, "c", &NAMES);
    let error = prepare(&node.testbed, &claim).await.unwrap_err();
    assert!(error.starts_with("prepare `default/c`: the NVIDIA driver is not loaded: "), "{error}");
    assert!(error.ends_with("; once it is loaded, the kubelet will ask again"), "{error}");
    node.testbed.machine.load_driver().unwrap();
    node.says("200 OK").await;
    node.publishes(|devices| devices.iter().any(|device| device == "gpu-1")).await;
    let expected = [device(&claim, &["r0"], NAMES[0]), device(&claim, &["r1"], NAMES[1])];
    assert_eq!(prepare(&node.testbed, &claim).await.unwrap(), expected);
    unprepare(&node.testbed, &claim).await.unwrap();
    assert_eq!(node.testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_reloaded_is_read_afresh_and_claims_are_repaired() {
    let testbed = given::node(Model::H100_80, 2).start_without_agent().await.unwrap();
    let node = watched(testbed).await;
    let testbed = &node.testbed;
    let [kept, released] = [&NAMES[..], &["gpu-0-mig-1g10gb-19-6"]]
        .map(|devices| given::claim(testbed, devices[0], devices));
    let answer = prepare(testbed, &kept).await.unwrap();
    prepare(testbed, &released).await.unwrap();

    testbed.machine.unload_driver().unwrap();
    node.says("no NVIDIA driver").await;
    // What was carved is gone with the driver: nothing is left to destroy.
    unprepare(testbed, &released).await.unwrap();
    let error = prepare(testbed, &kept).await.unwrap_err();
    assert!(error.contains("the NVIDIA driver is not loaded"), "{error}");

    testbed.machine.load_driver().unwrap();
    node.says("200 OK").await;
    assert_eq!(given::cut(testbed), [[], []] as [[(u32, u32); 0]; 2]);
    assert_eq!(prepare(testbed, &kept).await.unwrap(), answer);
    assert_eq!(given::cut(testbed), [vec![(14, 2)], vec![]]);
    node.publishes(|devices| devices.iter().any(|device| device == "gpu-1")).await;
    unprepare(testbed, &kept).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Between two looks at it a driver can go and come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_reloaded_unseen_is_noticed_by_the_next_call() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &NAMES);
    let answer = prepare(&testbed, &claim).await.unwrap();
    for _ in 0..2 {
        testbed.machine.unload_driver().unwrap();
        testbed.machine.load_driver().unwrap();
        let agent = testbed.agent.as_ref().unwrap();
        let again = async {
            loop {
                if let Ok(again) = prepare(&testbed, &claim).await {
                    return again;
                }
            }
        };
        assert_eq!(agent.while_running(again).await.unwrap(), answer);
        assert_eq!(given::cut(&testbed), [vec![(14, 2)], vec![]]);
    }
    testbed.machine.unload_driver().unwrap();
    testbed.machine.load_driver().unwrap();
    let unprepared = async { while unprepare(&testbed, &claim).await.is_err() {} };
    testbed.agent.as_ref().unwrap().while_running(unprepared).await.unwrap();
    // While the driver is not taken up again, that it made nothing which is still there is not known.
    given::until("nothing is left", || given::records(&testbed).is_empty()).await;
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_reset_loses_its_instances_and_claims_are_repaired() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let [kept, released] = [&NAMES[..], &["gpu-0-mig-1g10gb-19-6"]]
        .map(|devices| given::claim(&testbed, devices[0], devices));
    let answer = prepare(&testbed, &kept).await.unwrap();
    prepare(&testbed, &released).await.unwrap();
    testbed.machine.reset_gpu(0).unwrap();
    unprepare(&testbed, &released).await.unwrap();
    assert_eq!(prepare(&testbed, &kept).await.unwrap(), answer);
    assert_eq!(given::cut(&testbed), [vec![(14, 2)], vec![]]);
    unprepare(&testbed, &kept).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_falls_off_the_bus_is_out_of_reach_until_a_reset() {
    let builder = given::node(Model::H100_80, 2).flag("--hold-down=1");
    let testbed = builder.start_without_agent().await.unwrap();
    let node = watched(testbed).await;
    let testbed = &node.testbed;
    let claim = given::claim(testbed, "c", &["gpu-0-mig-2g20gb-14-2"]);
    let other = given::claim(testbed, "other", &["gpu-1"]);
    prepare(testbed, &claim).await.unwrap();
    testbed.machine.lose_gpu(0).unwrap();
    node.says("GPU 0: nvmlDeviceGetHandleByIndex_v2 on GPU 0: GPU is lost; reset it with").await;
    let uuid = testbed.machine.snapshot().unwrap().gpus.remove(0).uuid;
    let remedy = "reboot the node, then check seating, power and cable";
    node.warns("GpuUnhealthy", &format!("GPU 0 ({uuid}): GPU is lost; {remedy}")).await;
    node.publishes(|devices| devices.iter().all(|device| device.starts_with("gpu-1"))).await;
    prepare(testbed, &other).await.unwrap();

    // The instance went with the GPU.
    unprepare(testbed, &claim).await.unwrap();
    testbed.machine.reset_gpu(0).unwrap();
    node.says("200 OK").await;
    node.publishes(|devices| devices.iter().any(|device| device == "gpu-0")).await;
    prepare(testbed, &claim).await.unwrap();
    for claim in [&claim, &other] {
        unprepare(testbed, claim).await.unwrap();
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// An error that passes does not cost a GPU its devices.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_fails_to_answer_once_is_asked_again() {
    const UNKNOWN: u32 = 999;
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let before = testbed.slices();
    let fault = Fault::next("nvmlDeviceGetMemoryInfo", Effect::Fail(UNKNOWN)).on_gpu(0);
    testbed.machine.inject(fault).unwrap();
    // What is refused makes the agent look at its GPUs.
    let nowhere = given::claim(&testbed, "nowhere", &["gpu-9"]);
    prepare(&testbed, &nowhere).await.unwrap_err();
    given::until("all is read", || testbed.machine.calls().unwrap() > 60).await;
    testbed.machine.clear_faults().unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    prepare(&testbed, &claim).await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(given::status(&testbed).unwrap().not_served, []);
    assert_eq!(testbed.slices(), before);
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// A record of an earlier boot holds its devices, with nothing carved, until the kubelet asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_keeps_what_is_held_and_carves_it_when_asked() {
    let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let [kept, released] = [&NAMES[..], &["gpu-0-mig-1g10gb-19-6"]]
        .map(|devices| given::claim(&testbed, devices[0], devices));
    let answer = prepare(&testbed, &kept).await.unwrap();
    prepare(&testbed, &released).await.unwrap();

    drop(testbed.agent.take());
    testbed.machine.reboot().unwrap();
    std::fs::remove_dir_all(testbed.cdi_root()).unwrap();
    testbed.start_agent("b").await.unwrap();
    assert_eq!(given::cut(&testbed), [[], []] as [[(u32, u32); 0]; 2]);
    assert_eq!(given::cdi_files(&testbed), NOTHING);
    let thief = given::claim(&testbed, "thief", &["gpu-0-mig-2g20gb-14-2"]);
    let error = prepare(&testbed, &thief).await.unwrap_err();
    assert!(error.contains("held by claim `default/gpu-0-mig-2g20gb-14-2`"), "{error}");

    unprepare(&testbed, &released).await.unwrap();
    assert_eq!(prepare(&testbed, &kept).await.unwrap(), answer);
    assert_eq!(given::cut(&testbed), [vec![(14, 2)], vec![]]);
    unprepare(&testbed, &kept).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}
