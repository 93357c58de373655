//! Sick GPUs with the real agent: what is said of them at every door, what ends it, and that no other GPU is
//! concerned.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::{events::v1::Event, resource::v1::DeviceTaint};
use kerf::{
    model::{
        gpu::Placement,
        health::{Class, Extent, Severity},
        status::GpuStatus,
    },
    node::store::write_atomic,
    telemetry::orders::{Answer, Order},
};
use kerf_nvml::{Effect, Fault, Model, NodeDescription};
use kerf_testbed::{
    kubelet::Health,
    node::{Builder, DRIVER, Testbed},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::{
    claims::{prepare, unprepare},
    commands::{complaint, kerf, text},
    given,
};

/// A node whose sick GPUs are watched for a second before they are served again.
fn node(model: Model, gpus: usize) -> Builder {
    given::node(model, gpus).flag("--hold-down=1")
}

/// Key, value and effect of the taints of each tainted device.
fn taints(testbed: &Testbed) -> BTreeMap<String, Vec<String>> {
    let slices = testbed.slices();
    let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let text = |taint: &DeviceTaint| {
        format!("{}={}:{}", taint.key, taint.value.as_deref().unwrap_or_default(), taint.effect)
    };
    let tainted = devices.filter_map(|device| {
        let taints: Vec<_> = device.taints.iter().flatten().map(text).collect();
        (!taints.is_empty()).then(|| (device.name.clone(), taints))
    });
    tainted.collect()
}

/// Waits until what is tainted is as wanted.
async fn tainted(testbed: &Testbed, wanted: impl Fn(&BTreeMap<String, Vec<String>>) -> bool) {
    let so = testbed.api.wait_until(|_| wanted(&taints(testbed)));
    let so = testbed.agent.as_ref().unwrap().while_running(so);
    let so = tokio::time::timeout(Duration::from_secs(120), so).await;
    so.unwrap_or_else(|_| panic!("tainted: {:?}", taints(testbed))).unwrap();
}

/// Waits until every device of GPU 0 has just these taints, and no other device has any.
async fn all_of_first(testbed: &Testbed, count: usize, expected: &[&str]) {
    tainted(testbed, |taints| {
        taints.len() == count
            && taints.iter().all(|(device, has)| {
                (device == "gpu-0" || device.starts_with("gpu-0-")) && has == expected
            })
    })
    .await;
}

async fn none_tainted(testbed: &Testbed) {
    tainted(testbed, BTreeMap::is_empty).await;
}

/// Waits for what the kubelet was told of a device, and returns the words.
async fn told(testbed: &Testbed, device: &str, health: Health) -> String {
    let pool = testbed.name().to_owned();
    let told = testbed.kubelet.wait_for(|state| state.health(DRIVER, &pool, device) == health);
    let state = testbed.agent.as_ref().unwrap().while_running(told).await.unwrap();
    let said = state.health.iter().find(|(key, _)| key.device == device);
    said.map(|(_, said)| said.message.clone()).unwrap_or_default()
}

fn gpu(testbed: &Testbed, index: u32) -> GpuStatus {
    let gpus = given::status(testbed).unwrap().gpus;
    gpus.into_iter().find(|gpu| gpu.index == index).unwrap()
}

/// Reasons and notes of the events on an object, in the order of their creation.
fn events(testbed: &Testbed, kind: &str) -> Vec<(String, String)> {
    let mut events = testbed.api.list::<Event>();
    events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
    let of_kind = events.into_iter().filter(|event| {
        event.regarding.as_ref().and_then(|object| object.kind.as_deref()) == Some(kind)
    });
    of_kind
        .map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default()))
        .collect()
}

/// Devices of an H100: the whole one, and its MIG placements.
const H100_DEVICES: usize = 26;

/// An uncontained memory error, after which the driver wants a reset.
fn break_memory(testbed: &Testbed, gpu: usize) {
    testbed.machine.xid(gpu, 95, None, None).unwrap();
    testbed.machine.set_recovery_action(gpu, 1, true).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_off_the_bus_is_tainted_told_of_and_healed() {
    let testbed = node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-0"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.published().await;
    // Drivers do not report this one through NVML, and the GPU answers nothing any more.
    testbed.machine.lose_gpu(0).unwrap();
    testbed.machine.logged_xid(0, 79, None, None).unwrap();
    let both = ["gpu.nvidia.com/gpu-lost=gpu-lost:NoSchedule", "gpu.nvidia.com/xid=79:NoSchedule"];
    all_of_first(&testbed, H100_DEVICES, &both).await;
    let message = told(&testbed, "gpu-0-mig-1g10gb-19-0", Health::Unhealthy).await;
    assert!(message.contains("seating, power and cable"), "{message}");
    assert_eq!(told(&testbed, "gpu-1", Health::Healthy).await, "");

    let of_first = gpu(&testbed, 0);
    let found: BTreeSet<_> = of_first
        .findings
        .iter()
        .map(|one| (one.severity, one.class, one.reason.clone(), one.extent))
        .collect();
    let finding = |reason: &str| (Severity::Unhealthy, Class::Bus, reason.to_owned(), Extent::Gpu);
    assert_eq!(found, BTreeSet::from([finding("gpu-lost"), finding("xid-79")]));
    assert!(!of_first.served);
    assert_eq!(gpu(&testbed, 1).findings, []);
    let told_of = |kind| events(&testbed, kind).iter().any(|event| event.0 == "GpuUnhealthy");
    given::until("events", || told_of("Node") && told_of("ResourceClaim")).await;

    // The driver is loaded anew: proof, after which the GPU answers.
    testbed.machine.reboot().unwrap();
    none_tainted(&testbed).await;
    given::until("the event", || events(&testbed, "Node").last().unwrap().0 == "GpuHealthy").await;
    assert_eq!(told(&testbed, "gpu-0", Health::Healthy).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drivers_own_verdict_marks_one_gpu_until_it_is_taken_back() {
    let testbed = node(Model::H100_80, 2).start().await.unwrap();
    testbed.published().await;
    // Not announced: as after a load of the driver.
    testbed.machine.set_recovery_action(0, 99, false).unwrap();
    all_of_first(&testbed, H100_DEVICES, &["gpu.nvidia.com/health=recovery-action-99:NoSchedule"])
        .await;
    testbed.machine.set_recovery_action(0, 0, true).unwrap();
    none_tainted(&testbed).await;

    break_memory(&testbed, 0);
    let reset =
        ["gpu.nvidia.com/health=recovery-action-1:NoSchedule", "gpu.nvidia.com/xid=95:NoSchedule"];
    all_of_first(&testbed, H100_DEVICES, &reset).await;
    testbed.machine.reset_gpu(0).unwrap();
    none_tainted(&testbed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_at_the_start_is_found_and_outlives_an_agent() {
    let mut testbed = node(Model::L4, 2).start_without_agent().await.unwrap();
    testbed.machine.set_recovery_action(0, 2, false).unwrap();
    testbed.start_agent("a").await.unwrap();
    let reboot = ["gpu.nvidia.com/health=recovery-action-2:NoSchedule"];
    all_of_first(&testbed, 1, &reboot).await;
    // Quiet since, but nothing proves that it is over: the next agent knows of it from the first write on.
    testbed.agent.take().unwrap().terminate().await.unwrap();
    testbed.machine.set_recovery_action(0, 0, false).unwrap();
    testbed.api.clear_requests();
    testbed.start_agent("b").await.unwrap();
    given::until("its health", || given::status(&testbed).is_some_and(|it| it.gpus.len() == 2))
        .await;
    assert_eq!(gpu(&testbed, 0).findings[0].reason, "recovery-action-2");
    let written = testbed.api.writes();
    assert!(written.iter().all(|write| !write.path.contains("resourceslices")), "{written:?}");
    all_of_first(&testbed, 1, &reboot).await;
    // A boot does.
    testbed.agent.take().unwrap().terminate().await.unwrap();
    testbed.machine.reboot().unwrap();
    testbed.start_agent("c").await.unwrap();
    none_tainted(&testbed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instances_error_marks_what_overlaps_and_programs_errors_nothing() {
    let testbed = node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-3g40gb-9-4"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.published().await;
    let instance = testbed.machine.snapshot().unwrap().gpus[0].instances[0].id;
    for program in [13, 31, 43, 45] {
        testbed.machine.xid(0, program, Some(instance), Some(0)).unwrap();
    }
    testbed.machine.xid(0, 94, Some(instance), Some(0)).unwrap();
    tainted(&testbed, |taints| {
        let warned = ["gpu.nvidia.com/xid=94:None"];
        let parts = ["gpu-0-mig-3g40gb-9-4", "gpu-0-mig-1g10gb-19-6", "gpu-0"];
        let free = ["gpu-0-mig-3g40gb-9-0", "gpu-0-mig-1g10gb-19-0", "gpu-1"];
        parts.iter().all(|part| taints.get(*part).is_some_and(|has| *has == warned))
            && free.iter().all(|part| !taints.contains_key(*part))
    })
    .await;
    let message = told(&testbed, "gpu-0-mig-3g40gb-9-4", Health::Healthy).await;
    assert!(message.contains("XID 94"), "{message}");
    let extent = gpu(&testbed, 0).findings[0].extent;
    assert_eq!(extent, Extent::Instance(Placement { start: 4, size: 4 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_errors_is_one_write_of_each_slice() {
    let testbed = node(Model::H100_80, 2).start().await.unwrap();
    testbed.published().await;
    testbed.api.clear_requests();
    testbed.machine.set_recovery_action(0, 1, false).unwrap();
    for _ in 0..300 {
        testbed.machine.reported_xid(0, 95, None, None).unwrap();
    }
    let taints =
        ["gpu.nvidia.com/health=recovery-action-1:NoSchedule", "gpu.nvidia.com/xid=95:NoSchedule"];
    all_of_first(&testbed, H100_DEVICES, &taints).await;
    let writes = testbed.api.writes();
    let mut of_slices: BTreeMap<&str, usize> = BTreeMap::new();
    for write in writes.iter().filter(|write| write.path.contains("resourceslices/")) {
        *of_slices.entry(&write.path).or_default() += 1;
    }
    // The driver's verdict and the error may be heard of one after the other.
    assert!(of_slices.values().all(|&count| count <= 2), "{of_slices:?}");
}

/// A GPU that is lost ends every wait for events: the others are listened to all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_silences_no_other() {
    let testbed = node(Model::L4, 8).start().await.unwrap();
    testbed.published().await;
    testbed.machine.lose_gpu(0).unwrap();
    all_of_first(&testbed, 1, &["gpu.nvidia.com/gpu-lost=gpu-lost:NoSchedule"]).await;
    testbed.machine.reported_xid(7, 62, None, None).unwrap();
    tainted(&testbed, |taints| taints.keys().eq(["gpu-0", "gpu-7"])).await;
    testbed.machine.find_gpu(0).unwrap();
    tainted(&testbed, |taints| !taints.contains_key("gpu-0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_released_can_be_reset_and_comes_back() {
    let testbed = node(Model::H100_80, 2).start().await.unwrap();
    testbed.published().await;
    break_memory(&testbed, 0);
    let sick =
        ["gpu.nvidia.com/health=recovery-action-1:NoSchedule", "gpu.nvidia.com/xid=95:NoSchedule"];
    all_of_first(&testbed, H100_DEVICES, &sick).await;
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    prepare(&testbed, &claim).await.unwrap();
    let refused = Release::ask(&testbed, "0").await;
    let held = "cannot be released: claim `default/c` holds it; delete its pods first";
    assert!(matches!(&refused.answer, Answer::Refused(why) if why.ends_with(held)), "{refused:?}");
    unprepare(&testbed, &claim).await.unwrap();

    let uuid = testbed.machine.snapshot().unwrap().gpus[0].uuid.clone();
    let released = Release::ask(&testbed, "0").await;
    assert_eq!(released.answer, Answer::Released(uuid.clone()));
    assert!(!gpu(&testbed, 0).served);
    let error = prepare(&testbed, &claim).await.unwrap_err();
    assert!(error.contains("released, so that it can be reset"), "{error}");
    let again = Release::ask(&testbed, &uuid).await;
    assert!(matches!(&again.answer, Answer::Refused(why) if why.ends_with("released already")));
    // No call may touch it, or the reset would fail. Whatever did would be told that it is lost.
    let touched =
        Fault { function: None, gpu: Some(0), at: 1, times: u64::MAX, what: Effect::Fail(15) };
    testbed.machine.inject(touched).unwrap();
    let other = given::claim(&testbed, "other", &["gpu-1-mig-1g10gb-19-0"]);
    for _ in 0..5 {
        // Each makes the agent look at what has changed, and at what is silent.
        prepare(&testbed, &other).await.unwrap();
        unprepare(&testbed, &other).await.unwrap();
    }
    let findings = gpu(&testbed, 0).findings;
    assert!(findings.iter().all(|finding| finding.reason != "gpu-lost"), "{findings:?}");
    testbed.machine.clear_faults().unwrap();
    testbed.machine.reset_gpu(0).unwrap();
    released.end().await;
    none_tainted(&testbed).await;
    prepare(&testbed, &claim).await.unwrap();
}

/// A connection that has asked for a GPU.
#[derive(Debug)]
pub(crate) struct Release {
    stream: BufReader<UnixStream>,
    pub(crate) answer: Answer,
}

impl Release {
    pub(crate) async fn ask(testbed: &Testbed, gpu: &str) -> Self {
        let stream = UnixStream::connect(testbed.state_dir().join("orders.sock")).await.unwrap();
        let mut stream = BufReader::new(stream);
        let order = serde_json::to_string(&Order::Release(gpu.to_owned())).unwrap();
        stream.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        let answer = Self::read(&mut stream).await;
        Self { stream, answer }
    }

    async fn read(stream: &mut BufReader<UnixStream>) -> Answer {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Gives the GPU back.
    pub(crate) async fn end(mut self) {
        self.stream.write_all(b"\n").await.unwrap();
        assert!(matches!(Self::read(&mut self.stream).await, Answer::Served(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_missing_is_named_and_stops_nothing() {
    let machine = NodeDescription {
        driver: "550.54.15".to_owned(),
        ..NodeDescription::uniform(Model::L4, 1)
    };
    let mut testbed = given::of(machine).flag("--hold-down=1").start().await.unwrap();
    std::fs::remove_file(testbed.machine.kernel_log()).unwrap();
    testbed.start_agent("b").await.unwrap();
    let warned = || {
        let status = given::status(&testbed);
        let warnings = status.map(|status| status.warnings).unwrap_or_default();
        warnings.iter().any(|line| line.starts_with("health is seen in part: kernel log: `"))
    };
    given::until("the warning", warned).await;
    // This driver has no verdict of its own: the rule stands.
    testbed.machine.reported_xid(0, 62, None, None).unwrap();
    all_of_first(&testbed, 1, &["gpu.nvidia.com/xid=62:NoSchedule"]).await;
}

/// What the device plugin offers of a GPU that is sick, and of the others.
async fn offered(testbed: &Testbed, resource: &str, healthy: usize) {
    let so = testbed.kubelet.wait_for(|state| {
        state.resources.get(resource).map_or(0, |resource| resource.allocatable()) == healthy
    });
    testbed.agent.as_ref().unwrap().while_running(so).await.unwrap();
}

async fn plugin_node(builder: Builder, flags: &[&str], resource: &str) -> Testbed {
    let builder = builder.flag("--interface=device-plugin");
    let builder = flags.iter().fold(builder, |builder, flag| builder.flag(*flag));
    let mut testbed = builder.start_without_agent().await.unwrap();
    testbed.start_plugin_agent("a", resource).await.unwrap();
    testbed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_share_of_a_sick_gpu_is_unhealthy_and_comes_back() {
    const SHARED: &str = "nvidia.com/gpu.shared";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let config = "version: v1\nsharing: {timeSlicing: {renameByDefault: true, resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n";
    write_atomic(&file, config.as_bytes(), 0o644).unwrap();
    let flag = format!("--config-file={}", file.display());
    let testbed = plugin_node(node(Model::L4, 2), &[&flag], SHARED).await;
    offered(&testbed, SHARED, 8).await;
    break_memory(&testbed, 0);
    offered(&testbed, SHARED, 4).await;
    testbed.machine.reset_gpu(0).unwrap();
    offered(&testbed, SHARED, 8).await;
}

/// By the ids that reports carry: none (0xFFFFFFFF), a GPU instance, a compute instance in it, and 0/0.
#[tokio::test(flavor = "multi_thread")]
async fn mig_devices_are_unhealthy_as_far_as_an_error_reaches() {
    const SMALL: &str = "nvidia.com/mig-1g.10gb";
    let builder = node(Model::H100_80, 2);
    let mut testbed = builder
        .flag("--interface=device-plugin")
        .flag("--mig-strategy=mixed")
        .start_without_agent()
        .await
        .unwrap();
    for gpu in [0, 1] {
        testbed.machine.set_mig_mode(gpu, true).unwrap();
        for start in [0, 1] {
            testbed.machine.create_instance(gpu, 19, start, true).unwrap();
        }
    }
    testbed.start_plugin_agent("a", SMALL).await.unwrap();
    offered(&testbed, SMALL, 4).await;
    let instance = testbed.machine.snapshot().unwrap().gpus[0].instances[0].id;
    // A program's errors are nobody's but its own.
    for ids in [(None, None), (Some(instance), None), (Some(instance), Some(0)), (Some(0), Some(0))]
    {
        testbed.machine.xid(0, 31, ids.0, ids.1).unwrap();
    }
    // What concerns the GPU does so whatever it names.
    testbed.machine.set_recovery_action(0, 1, false).unwrap();
    testbed.machine.xid(0, 95, Some(0), Some(0)).unwrap();
    offered(&testbed, SMALL, 2).await;
    // The instances are gone with the reset: an administrator makes them again.
    testbed.machine.reset_gpu(0).unwrap();
    for start in [0, 1] {
        testbed.machine.create_instance(0, 19, start, true).unwrap();
    }
    offered(&testbed, SMALL, 4).await;
}

/// As NVIDIA's device plugin promises and does not do.
#[tokio::test(flavor = "multi_thread")]
async fn all_health_checks_off_but_one_is_that_one() {
    const GPU: &str = "nvidia.com/gpu";
    let flags = ["--disable-health-checks=all", "--enable-health-checks=48,31"];
    let testbed = plugin_node(node(Model::L4, 3), &flags, GPU).await;
    offered(&testbed, GPU, 3).await;
    testbed.machine.xid(0, 79, None, None).unwrap();
    testbed.machine.xid(1, 31, None, None).unwrap();
    offered(&testbed, GPU, 2).await;
    let reasons: Vec<_> = (0..3).map(|index| gpu(&testbed, index).findings).collect();
    let reasons: Vec<_> =
        reasons.iter().map(|all| all.iter().map(|one| &*one.reason).collect::<Vec<_>>()).collect();
    assert_eq!(reasons, [vec![], vec!["xid-31"], vec![]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_no_list_of_errors_has_are_refused_by_name() {
    let testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    let refusal = given::refusal(&testbed, |options| {
        options.flags.push("--disable-health-checks=79,everything".into());
    });
    let refusal = refusal.await;
    assert!(refusal.contains("`DP_DISABLE_HEALTHCHECKS` has `everything`"), "{refusal}");
}

/// Of a worn InfoROM nothing tells that it is over.
#[tokio::test(flavor = "multi_thread")]
async fn operators_release_and_clear_gpus() {
    let testbed = node(Model::L4, 2).start().await.unwrap();
    testbed.published().await;
    testbed.machine.xid(0, 93, None, None).unwrap();
    tainted(&testbed, |taints| taints.contains_key("gpu-0")).await;
    let uuid = testbed.machine.snapshot().unwrap().gpus[0].uuid.clone();
    let released = text(&kerf(&testbed, &["release-gpu", "0", "--for", "0"]));
    let expected = format!(
        "GPU 0 ({uuid}) is released: reset it now, as with `nvidia-smi --gpu-reset -i {uuid}`\n\
         it is taken up again in 0 s, or when this command ends (Ctrl-C)\n\
         GPU 0 is not well:\n  InfoROM worn or not accessible (XID 93); contact support\n"
    );
    assert_eq!(released, expected);
    let cleared = text(&kerf(&testbed, &["clear-gpu", &uuid]));
    assert_eq!(cleared, format!("GPU {uuid} is served, and nothing is wrong with it\n"));
    none_tainted(&testbed).await;
    let none = kerf(&testbed, &["clear-gpu", "7"]);
    let expected = "kerf: GPU `7`: there is none; `kerf inventory` lists indices and UUIDs\n";
    assert_eq!((none.status.code(), complaint(&none)), (Some(1), expected.to_owned()));
}

/// A node of a driver that has no verdict of its own, so that the rules stand.
async fn old_driver() -> Testbed {
    let gpus = NodeDescription::uniform(Model::L4, 2);
    let machine = NodeDescription { driver: "550.54.15".to_owned(), ..gpus };
    given::of(machine).flag("--hold-down=1").start_without_agent().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_logged_before_the_start_is_found_once() {
    let mut testbed = old_driver().await;
    testbed.machine.logged_xid(0, 62, None, None).unwrap();
    testbed.start_agent("a").await.unwrap();
    all_of_first(&testbed, 1, &["gpu.nvidia.com/xid=62:NoSchedule"]).await;
    let uuid = testbed.machine.snapshot().unwrap().gpus[0].uuid.clone();
    text(&kerf(&testbed, &["clear-gpu", &uuid]));
    none_tainted(&testbed).await;
    // The line is still there; the next agent has the word of this one that it was seen to.
    testbed.start_agent("b").await.unwrap();
    testbed.machine.logged_xid(1, 62, None, None).unwrap();
    tainted(&testbed, |taints| taints.keys().eq(["gpu-1"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_logged_before_the_driver_was_loaded_is_over() {
    let mut testbed = old_driver().await;
    testbed.machine.logged_xid(0, 62, None, None).unwrap();
    testbed.machine.log("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15").unwrap();
    testbed.machine.logged_xid(1, 62, None, None).unwrap();
    testbed.start_agent("a").await.unwrap();
    tainted(&testbed, |taints| taints.keys().eq(["gpu-1"])).await;
}

/// A GPU that is lost does not even say which it is; the agent that saw it well has written that down.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_knows_a_gpu_that_was_lost_before_its_start() {
    let mut testbed = node(Model::H100_80, 2).start().await.unwrap();
    testbed.published().await;
    testbed.machine.lose_gpu(0).unwrap();
    testbed.machine.logged_xid(0, 79, None, None).unwrap();
    let lost = ["gpu.nvidia.com/gpu-lost=gpu-lost:NoSchedule", "gpu.nvidia.com/xid=79:NoSchedule"];
    all_of_first(&testbed, H100_DEVICES, &lost).await;
    let before = testbed.slices();
    testbed.api.clear_requests();
    testbed.start_agent("b").await.unwrap();
    let message = told(&testbed, "gpu-0", Health::Unhealthy).await;
    assert!(!message.is_empty());
    assert_eq!(gpu(&testbed, 0).findings.len(), 2);
    let refused = text(&kerf(&testbed, &["release-gpu", "0", "--for", "0"]));
    assert!(refused.contains("is released"), "{refused}");
    assert_eq!(testbed.slices(), before);
    let written = testbed.api.writes();
    assert!(written.iter().all(|write| !write.path.contains("resourceslices")), "{written:?}");
    // It counts as reset since, and answers again.
    testbed.machine.find_gpu(0).unwrap();
    none_tainted(&testbed).await;
}
