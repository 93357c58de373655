//! Extended resources: what the kubelet is offered, what containers are given, and one ledger with claims.

mod failures;

use std::collections::BTreeMap;

use hyper_util::rt::TokioIo;
use kerf::{
    model::cdi::{PLUGIN_FILE, Spec},
    node::store::write_atomic,
    proto::device_plugin::{Empty, ListAndWatchResponse, device_plugin_client::DevicePluginClient},
};
use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::{
    agent::Agent,
    apiserver::ApiOptions,
    kubelet::{self, AdmissionError, Allocation, Authority, PodRef, RunOptions},
    node::{Builder, DRIVER, Testbed},
};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use crate::{
    claims::{prepare, unprepare},
    given,
};

const GPU: &str = "nvidia.com/gpu";

/// A node whose agent offers extended resources only.
fn node(model: Model, gpus: usize) -> Builder {
    given::node(model, gpus).flag("--interface=device-plugin")
}

async fn start(builder: Builder) -> Testbed {
    let mut testbed = builder.start_without_agent().await.unwrap();
    testbed.start_plugin_agent("a", GPU).await.unwrap();
    testbed
}

fn pod(name: &str) -> PodRef {
    PodRef { namespace: "default".to_owned(), name: name.to_owned(), uid: format!("uid-of-{name}") }
}

/// A pod with one container is admitted.
async fn admit(
    testbed: &Testbed,
    name: &str,
    requests: &[(&str, usize)],
) -> Result<Allocation, AdmissionError> {
    testbed.kubelet.admit(&pod(name), "main", requests).await
}

/// Its container starts.
async fn run(testbed: &Testbed, name: &str) -> RunOptions {
    testbed.kubelet.start_container(&pod(name), "main").await.unwrap()
}

/// IDs of the devices that a container got of a resource.
fn ids(allocation: &Allocation, resource: &str) -> Vec<String> {
    allocation[resource].devices.keys().cloned().collect()
}

fn uuids(testbed: &Testbed) -> Vec<String> {
    testbed.machine.snapshot().unwrap().gpus.into_iter().map(|gpu| gpu.uuid).collect()
}

/// Waits until so many devices of a resource can be given out.
async fn offers(testbed: &Testbed, resource: &str, count: usize) {
    let so = testbed.kubelet.wait_for(|state| {
        state.resources.get(resource).map_or(0, |resource| resource.allocatable()) == count
    });
    testbed.agent.as_ref().unwrap().while_running(so).await.unwrap();
}

/// Waits until nothing is held any more.
async fn all_released(testbed: &Testbed) {
    given::until("no records", || given::records(testbed).is_empty()).await;
}

/// The paths of the device nodes of a device in the plugin's CDI file.
fn nodes(testbed: &Testbed, name: &str) -> Vec<String> {
    let file = std::fs::read(testbed.cdi_root().join(PLUGIN_FILE)).unwrap();
    let spec: Spec = serde_json::from_slice(&file).unwrap();
    let device = name.rsplit('=').next().unwrap();
    let device = spec.devices.iter().find(|one| one.name == device).unwrap();
    device.container_edits.device_nodes.iter().map(|node| node.path.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_whole_gpus_by_their_cdi_names() {
    let testbed = start(node(Model::H100_80, 4)).await;
    offers(&testbed, GPU, 4).await;
    let allocation = admit(&testbed, "two", &[(GPU, 2)]).await.unwrap();
    let given = ids(&allocation, GPU);
    assert_eq!(given.len(), 2);
    let names: Vec<_> =
        given.iter().map(|uuid| format!("k8s.device-plugin.nvidia.com/gpu={uuid}")).collect();
    let mut options = run(&testbed, "two").await;
    options.cdi_devices.sort();
    assert_eq!(options, RunOptions { cdi_devices: names.clone(), ..RunOptions::default() });
    for (uuid, name) in given.iter().zip(&names) {
        let minor = uuids(&testbed).iter().position(|one| one == uuid).unwrap();
        assert!(nodes(&testbed, name).contains(&format!("/dev/nvidia{minor}")));
    }
    // The records know by whom once the kubelet has said so.
    assert_eq!(given::records(&testbed).len(), 2);
    testbed.kubelet.end_pod(&pod("two"));
    all_released(&testbed).await;
    assert_eq!(testbed.leftovers().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mig_devices_are_carved_for_a_container_and_go_with_it() {
    let testbed = start(node(Model::H100_80, 2).flag("--mig-on-demand")).await;
    let small = "nvidia.com/mig-1g.10gb";
    let half = "nvidia.com/mig-3g.40gb";
    // Of a resource that it does not know yet the kubelet gives nothing.
    offers(&testbed, small, 14).await;
    offers(&testbed, half, 4).await;
    let allocation = admit(&testbed, "parts", &[(small, 2), (half, 1)]).await.unwrap();
    let [first, second] = ids(&allocation, small).try_into().unwrap();
    assert!(first.contains("-mig-19-") && second.contains("-mig-19-"), "{first} {second}");
    let options = run(&testbed, "parts").await;
    assert_eq!(options.cdi_devices.len(), 3);
    assert_eq!((options.envs, options.devices.len()), (BTreeMap::new(), 0));
    for name in &options.cdi_devices {
        let caps = nodes(&testbed, name);
        assert_eq!(caps.iter().filter(|path| path.starts_with("/dev/nvidia-caps/")).count(), 2);
    }
    let cut: Vec<_> = given::cut(&testbed).into_iter().flatten().collect();
    assert_eq!(cut.len(), 3, "{cut:?}");
    // What overlaps is out of reach before the answer.
    let state = testbed.kubelet.state();
    assert!(state.resources[GPU].allocatable() < 2);

    testbed.kubelet.end_pod(&pod("parts"));
    all_released(&testbed).await;
    offers(&testbed, GPU, 2).await;
    assert_eq!(testbed.leftovers().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_starts_again_is_registered_with_at_once() {
    let testbed = start(node(Model::L4, 2)).await;
    admit(&testbed, "before", &[(GPU, 1)]).await.unwrap();
    testbed.kubelet.restart().await.unwrap();
    offers(&testbed, GPU, 2).await;
    // Its pods keep what they have, and the other device can be had.
    admit(&testbed, "after", &[(GPU, 1)]).await.unwrap();
    assert!(admit(&testbed, "third", &[(GPU, 1)]).await.is_err());
    run(&testbed, "before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_hangs_up_is_registered_with_again() {
    let testbed = start(node(Model::L4, 2)).await;
    let before = testbed.kubelet.state().plugin_registrations;
    testbed.kubelet.disconnect_plugin(GPU);
    let again = testbed.kubelet.wait_for(|state| state.plugin_registrations > before);
    testbed.agent.as_ref().unwrap().while_running(again).await.unwrap();
    offers(&testbed, GPU, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_taken_away_is_made_again() {
    let testbed = start(node(Model::L4, 1)).await;
    let endpoint = testbed.kubelet.state().resources[GPU].endpoint.clone().unwrap();
    std::fs::remove_file(&endpoint).unwrap();
    let moved = testbed.kubelet.wait_for(|state| {
        let resource = &state.resources[GPU];
        resource.endpoint.as_ref() != Some(&endpoint) && resource.allocatable() == 1
    });
    testbed.agent.as_ref().unwrap().while_running(moved).await.unwrap();
    admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_made_again_is_found() {
    let testbed = start(node(Model::L4, 1)).await;
    let before = testbed.kubelet.state().plugin_registrations;
    let dir = testbed.device_plugins_dir();
    std::fs::rename(&dir, dir.with_extension("old")).unwrap();
    testbed.kubelet.serve_device_plugins().unwrap();
    let again = testbed.kubelet.wait_for(|state| state.plugin_registrations > before);
    testbed.agent.as_ref().unwrap().while_running(again).await.unwrap();
    offers(&testbed, GPU, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_late_is_waited_for() {
    let options = kubelet::Options { device_plugins: false, ..kubelet::Options::default() };
    let mut testbed = node(Model::L4, 1).kubelet(options).start_without_agent().await.unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    let refused =
        given::until("no kubelet", || agent.tail().contains("not registered with the kubelet"));
    agent.while_running(refused).await.unwrap();
    testbed.agent = Some(agent);
    testbed.kubelet.serve_device_plugins().unwrap();
    offers(&testbed, GPU, 1).await;
}

/// HTTP/2 has no name for a path: h2 ends such a call before any of our code sees it.
#[tokio::test(flavor = "multi_thread")]
async fn kubelets_before_1_26_are_served_where_they_encode_the_path() {
    let old = |authority| kubelet::Options {
        release: 25,
        plugin_authority: Some(authority),
        ..kubelet::Options::default()
    };
    let encoded = node(Model::L4, 1).kubelet(old(Authority::EncodedPath));
    let testbed = start(encoded).await;
    admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();

    let raw = node(Model::L4, 1).kubelet(old(Authority::Path));
    let testbed = raw.start_without_agent().await.unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    let said = "not registered with the kubelet";
    let refused = given::until(said, || agent.tail().contains(said));
    agent.while_running(refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_is_unhealthy_and_comes_back() {
    let testbed = start(node(Model::L4, 2)).await;
    testbed.machine.lose_gpu(1).unwrap();
    offers(&testbed, GPU, 1).await;
    let lost = &uuids(&testbed)[1];
    let state = testbed.kubelet.state();
    assert_eq!(state.resources[GPU].capacity(), 2);
    assert!(!state.resources[GPU].devices[lost].healthy);
    testbed.machine.find_gpu(1).unwrap();
    testbed.machine.reset_gpu(1).unwrap();
    offers(&testbed, GPU, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_a_container_finds_its_device_carved_again() {
    let builder = node(Model::H100_80, 1).flag("--mig-on-demand");
    let mut testbed = start(builder).await;
    let small = "nvidia.com/mig-1g.10gb";
    offers(&testbed, small, 7).await;
    admit(&testbed, "pod", &[(small, 1)]).await.unwrap();
    let before = given::cut(&testbed);
    testbed.agent = None;
    testbed.kubelet.stop().await;
    testbed.machine.reboot().unwrap();
    assert_eq!(given::cut(&testbed), [vec![]]);
    testbed.kubelet.restart().await.unwrap();
    testbed.start_plugin_agent("b", small).await.unwrap();
    // What it holds is healthy, though nothing is carved yet.
    admit(&testbed, "pod", &[(small, 1)]).await.unwrap();
    run(&testbed, "pod").await;
    assert_eq!(given::cut(&testbed), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_allocation_leaves_nothing() {
    let testbed = start(node(Model::H100_80, 1).flag("--mig-on-demand")).await;
    let half = "nvidia.com/mig-3g.40gb";
    offers(&testbed, half, 2).await;
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    testbed.machine.inject(Fault::next(create, Effect::Fail(999))).unwrap();
    let refused = admit(&testbed, "pod", &[(half, 1)]).await.unwrap_err();
    assert!(refused.to_string().contains("nvmlDeviceCreateGpuInstanceWithPlacement"), "{refused}");
    testbed.machine.clear_faults().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), [""; 0]);
    admit(&testbed, "again", &[(half, 1)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_while_it_carves_leaves_nothing() {
    let half = "nvidia.com/mig-3g.40gb";
    let mut testbed = start(node(Model::H100_80, 1).flag("--mig-on-demand")).await;
    offers(&testbed, half, 2).await;
    for call in ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"]
    {
        testbed.machine.inject(Fault::next(call, Effect::KillAfter)).unwrap();
        admit(&testbed, "pod", &[(half, 1)]).await.unwrap_err();
        testbed.machine.clear_faults().unwrap();
        testbed.start_plugin_agent("again", half).await.unwrap();
        given::until("no records", || given::records(&testbed).is_empty()).await;
        assert_eq!(testbed.leftovers().unwrap(), [""; 0], "killed in {call}");
    }
    offers(&testbed, half, 2).await;
    admit(&testbed, "pod", &[(half, 1)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_claim_holds_is_out_of_the_kubelets_reach_and_the_other_way_round() {
    let testbed = both(Model::H100_80, 2).await;
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    prepare(&testbed, &claim).await.unwrap();
    offers(&testbed, GPU, 1).await;
    let allocation = admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();
    assert_eq!(ids(&allocation, GPU), [uuids(&testbed)[1].clone()]);
    // By a kubelet that has not heard of it yet: refused before anything is changed.
    let held = uuids(&testbed)[0].clone();
    let refused = testbed.kubelet.allocate(GPU, &[&held]).await.unwrap_err();
    assert!(refused.contains("held by claim `default/c`"), "{refused}");

    let late = given::claim(&testbed, "late", &["gpu-1"]);
    let refused = prepare(&testbed, &late).await.unwrap_err();
    assert!(refused.contains("held by pod `default/pod`"), "{refused}");
    let part = given::claim(&testbed, "part", &["gpu-1-mig-1g10gb-19-0"]);
    let refused = prepare(&testbed, &part).await.unwrap_err();
    assert!(refused.contains("`gpu-1` of pod `default/pod`"), "{refused}");
    // The scheduler is told.
    let tainted = testbed.api.wait_until(|_| {
        tainted(&testbed).iter().all(|name| name.starts_with("gpu-1"))
            && !tainted(&testbed).is_empty()
    });
    testbed.agent.as_ref().unwrap().while_running(tainted).await.unwrap();

    // At once, without waiting for the next comparison.
    testbed.kubelet.end_pod(&pod("pod"));
    while let Err(refused) = prepare(&testbed, &late).await {
        assert!(refused.contains("held by pod"), "{refused}");
    }
    unprepare(&testbed, &claim).await.unwrap();
    offers(&testbed, GPU, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_split_between_the_doors() {
    let builder = given::node(Model::L4, 3).flag("--interface=both").flag("--device-plugin-gpus=1");
    let testbed = builder.start().await.unwrap();
    offers(&testbed, GPU, 1).await;
    let state = testbed.kubelet.state();
    assert_eq!(state.resources[GPU].devices.keys().collect::<Vec<_>>(), [&uuids(&testbed)[1]]);
    let slices = testbed.published().await;
    let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    assert_eq!(devices.map(|device| &*device.name).collect::<Vec<_>>(), ["gpu-0", "gpu-2"]);
}

/// Strategies, IDs and shares by a configuration file, which takes effect when it changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_edited_takes_effect() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let write = |text: &str| write_atomic(&file, text.as_bytes(), 0o644).unwrap();
    write("flags: {plugin: {deviceListStrategy: envvar}}");
    let testbed = start(node(Model::L4, 2).flag(format!("--config-file={}", file.display()))).await;
    let allocation = admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();
    let envs =
        BTreeMap::from([("NVIDIA_VISIBLE_DEVICES".to_owned(), ids(&allocation, GPU)[0].clone())]);
    assert_eq!(run(&testbed, "pod").await, RunOptions { envs, ..RunOptions::default() });
    testbed.kubelet.end_pod(&pod("pod"));

    let shared = "sharing: {timeSlicing: {failRequestsGreaterThanOne: true, resources: [{name: gpu, replicas: 4}]}}";
    write(shared);
    offers(&testbed, GPU, 8).await;
    admit(&testbed, "one", &[(GPU, 1)]).await.unwrap();
    let refused = admit(&testbed, "two", &[(GPU, 2)]).await.unwrap_err().to_string();
    let expected = "invalid allocation request for \"nvidia.com/gpu\": invalid request: maximum request size for \
        shared resources is 1; found 2";
    assert!(refused.contains(expected), "{refused}");

    // What cannot be read changes nothing, and is said.
    write("sharring: {}");
    let said = |what: &str| {
        given::status(&testbed).is_some_and(|status| status.warnings.join("").contains(what))
    };
    given::until("the warning", || said("sharring")).await;
    assert_eq!(testbed.kubelet.state().resources[GPU].allocatable(), 8);

    // What nothing serves is not offered, and said.
    write("sharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}");
    given::until("the warning", || said("`nvidia.com/gpu` is not offered")).await;
    let none = || testbed.kubelet.state().resources.get(GPU).is_none_or(|it| it.allocatable() == 0);
    given::until("nothing to be offered", none).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_the_cdi_file_is_there_before_a_container_starts() {
    let mut testbed = start(node(Model::L4, 1)).await;
    admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();
    testbed.agent = None;
    std::fs::remove_file(testbed.cdi_root().join(PLUGIN_FILE)).unwrap();
    testbed.start_plugin_agent("b", GPU).await.unwrap();
    let name = run(&testbed, "pod").await.cdi_devices.remove(0);
    given::until("the file", || testbed.cdi_root().join(PLUGIN_FILE).exists()).await;
    assert!(nodes(&testbed, &name).contains(&"/dev/nvidia0".to_owned()));
}

/// A claim and a pod want the same GPU at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_claim_and_a_pod_that_race_for_a_gpu_one_has_it() {
    let testbed = both(Model::H100_80, 1).await;
    let mut winners = BTreeMap::<&str, usize>::new();
    for round in 0..12 {
        let device = if round % 2 == 0 { "gpu-0" } else { "gpu-0-mig-3g40gb-9-4" };
        let claim = given::claim(&testbed, &format!("c{round}"), &[device]);
        let name = format!("pod-{round}");
        // The kubelet may know already that the GPU is taken.
        let (prepared, admitted) =
            tokio::join!(prepare(&testbed, &claim), admit(&testbed, &name, &[(GPU, 1)]));
        match (&prepared, &admitted) {
            (Ok(_), Err(_)) => *winners.entry("claim").or_default() += 1,
            (Err(_), Ok(_)) => *winners.entry("pod").or_default() += 1,
            (prepared, admitted) => panic!("round {round}: {prepared:?} and {admitted:?}"),
        }
        assert_eq!(given::records(&testbed).len(), 1);
        unprepare(&testbed, &claim).await.unwrap();
        testbed.kubelet.end_pod(&pod(&name));
        all_released(&testbed).await;
        offers(&testbed, GPU, 1).await;
    }
    assert_eq!(winners.values().sum::<usize>(), 12, "{winners:?}");
    assert_eq!(testbed.leftovers().unwrap(), [""; 0]);
}

/// A stream of lists from the socket that the kubelet calls.
async fn stream(testbed: &Testbed) -> tonic::Streaming<ListAndWatchResponse> {
    let socket = testbed.kubelet.state().resources[GPU].endpoint.clone().unwrap();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connect).await.unwrap();
    DevicePluginClient::new(channel).list_and_watch(Empty {}).await.unwrap().into_inner()
}

/// The healthy devices of the next list of a stream.
async fn healthy(stream: &mut tonic::Streaming<ListAndWatchResponse>) -> usize {
    let list = stream.message().await.unwrap().unwrap();
    list.devices.iter().filter(|device| device.health == "Healthy").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_is_told_all_and_none_is_needed_to_notice() {
    let testbed = start(node(Model::L4, 2)).await;
    let mut streams = [stream(&testbed).await, stream(&testbed).await];
    for stream in &mut streams {
        assert_eq!(healthy(stream).await, 2);
    }
    testbed.machine.lose_gpu(1).unwrap();
    for stream in &mut streams {
        assert_eq!(healthy(stream).await, 1);
    }
    testbed.kubelet.stop().await;
    drop(streams);
    testbed.machine.find_gpu(1).unwrap();
    testbed.machine.reset_gpu(1).unwrap();
    testbed.machine.lose_gpu(0).unwrap();
    testbed.kubelet.restart().await.unwrap();
    offers(&testbed, GPU, 1).await;
    let lost = &uuids(&testbed)[0];
    given::until("the other GPU", || {
        let state = testbed.kubelet.state();
        let devices = &state.resources[GPU].devices;
        devices.len() == 2 && !devices[lost].healthy
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_go_by_nvmls_index_where_that_is_asked_for() {
    let builder = node(Model::H100_80, 2)
        .flag("--mig-strategy=mixed")
        .flag("--device-list-strategy=envvar")
        .flag("--device-id-strategy=index");
    let testbed = start(builder).await;
    testbed.machine.set_mig_mode(0, true).unwrap();
    testbed.machine.create_instance(0, 19, 0, true).unwrap();
    testbed.machine.create_instance(0, 9, 4, true).unwrap();
    // NVML counts by the ids of GPU instances, of which large ones have the low.
    let (whole, part) = (GPU, "nvidia.com/mig-3g.40gb");
    offers(&testbed, part, 1).await;
    for (name, resource, said) in [("whole", whole, "1"), ("part", part, "0:0")] {
        admit(&testbed, name, &[(resource, 1)]).await.unwrap();
        let envs = run(&testbed, name).await.envs;
        assert_eq!(envs["NVIDIA_VISIBLE_DEVICES"], said);
    }
}

/// Names of the devices that are tainted.
fn tainted(testbed: &Testbed) -> Vec<String> {
    let slices = testbed.slices();
    let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let tainted = devices.filter(|device| device.taints.as_ref().is_some_and(|t| !t.is_empty()));
    tainted.map(|device| device.name.clone()).collect()
}

/// A node with both doors open.
async fn both(model: Model, gpus: usize) -> Testbed {
    let testbed = given::node(model, gpus).flag("--interface=both").start().await.unwrap();
    offers(&testbed, GPU, gpus).await;
    testbed
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_plugin_gave_out_is_held_from_the_start() {
    let mut testbed = start(node(Model::L4, 2)).await;
    let allocation = admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();
    let taken = uuids(&testbed).iter().position(|uuid| *uuid == ids(&allocation, GPU)[0]).unwrap();
    testbed.agent.take().unwrap().terminate().await.unwrap();
    std::fs::remove_dir_all(testbed.state_dir().join("containers")).unwrap();
    // An agent for claims alone, with none of the records.
    let mut options = testbed.agent_options("b").unwrap();
    options.flags = vec!["--interface=dra".into()];
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    testbed.agent = Some(agent);
    let claim = given::claim(&testbed, "c", &[&format!("gpu-{taken}")]);
    let refused = prepare(&testbed, &claim).await.unwrap_err();
    assert!(refused.contains("held by pod `default/pod`"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_upgraded_moves_from_one_door_to_the_other() {
    let mut testbed = given::node(Model::L4, 2)
        .api(ApiOptions::of((1, 31)))
        .kubelet(kubelet::Options::default())
        .start_without_agent()
        .await
        .unwrap();
    testbed.start_plugin_agent("a", GPU).await.unwrap();
    admit(&testbed, "pod", &[(GPU, 1)]).await.unwrap();
    assert!(testbed.kubelet.state().plugins.is_empty());

    testbed.api.serve_dra();
    let agent = testbed.agent.as_ref().unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    let slices = agent.while_running(testbed.published()).await.unwrap();
    assert!(!slices.is_empty());
    offers(&testbed, GPU, 0).await;
    // The pod keeps what it has, and claims are kept from it.
    assert_eq!(given::records(&testbed).len(), 1);
}
