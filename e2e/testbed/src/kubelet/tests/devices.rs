//! The kubelet against doubles of device plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;

use kerf::proto::device_plugin::{self as v1beta1, DevicePluginOptions};

use super::double::Serving;
use super::plugin::{Answer, Plugin, RESOURCE, answer};
use super::*;

const TWO: [&str; 2] = ["gpu-0", "gpu-1"];
const PREFERS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };
const PRE_STARTS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: false };

pub(super) fn pod(name: &str) -> PodRef {
    PodRef { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}") }
}

/// A kubelet with a plugin whose devices it knows.
pub(super) async fn registered(
    options: Options,
    settings: DevicePluginOptions,
) -> (TempDir, Kubelet, Plugin, Serving) {
    let (root, kubelet) = start(options);
    let mut plugin = Plugin::new(kubelet.device_plugins_dir(), "a.sock", &TWO);
    plugin.options = settings;
    let serving = join(&kubelet, &plugin).await;
    (root, kubelet, plugin, serving)
}

async fn join(kubelet: &Kubelet, plugin: &Plugin) -> Serving {
    let serving = plugin.serve();
    plugin.register().await.unwrap();
    let count = plugin.devices.borrow().len();
    kubelet.wait_for(|state| capacity(state) == count).await;
    serving
}

fn gpus(state: &State) -> Resource {
    state.resources.get(RESOURCE).cloned().unwrap_or_default()
}

fn capacity(state: &State) -> usize {
    gpus(state).capacity()
}

fn devices(devices: &[(&str, bool)]) -> BTreeMap<String, PluginDevice> {
    let device = |(id, healthy): &(&str, bool)| {
        ((*id).to_owned(), PluginDevice { healthy: *healthy, numa: None })
    };
    devices.iter().map(device).collect()
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn given(devices: &[&str]) -> Allocation {
    let granted = Granted {
        devices: devices.iter().map(|id| ((*id).to_owned(), vec![])).collect(),
        answer: answer(devices),
    };
    BTreeMap::from([(RESOURCE.to_owned(), granted)])
}

fn rejected<T>(why: &str) -> Result<T, AdmissionError> {
    Err(AdmissionError(why.into()))
}

async fn stopped(kubelet: &Kubelet) -> Resource {
    gpus(&kubelet.wait_for(|state| !gpus(state).connected).await)
}

#[tokio::test]
async fn a_plugin_is_connected_to_before_it_is_answered() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    let expected = Resource {
        endpoint: Some(plugin.socket()),
        connected: true,
        registered: true,
        devices: devices(&[("gpu-0", true), ("gpu-1", true)]),
        allocated: ids(&[]),
    };
    assert_eq!(gpus(&kubelet.state()), expected);
    assert_eq!(kubelet.state().plugin_registrations, 1);
    let authority = "plugin authority: localhost";
    let seen = ["plugin: accept", authority, "options: ", "options ended: ", authority, "list: "];
    assert_eq!(*plugin.seen.borrow(), seen);
}

#[tokio::test]
async fn what_is_no_device_plugin_is_told_why() {
    type Change = fn(&mut Plugin);
    let (_root, kubelet) = start(Options { plugin_dial: Duration::from_millis(20), ..options() });
    let cases: [(Change, &str); 3] = [
        (
            |plugin| plugin.request.version = "v1alpha1".into(),
            r#"requested API version "v1alpha1" is not supported by kubelet. Supported version is ["v1beta1"]"#,
        ),
        (
            |plugin| plugin.request.resource_name = "gpu".into(),
            r#"the ResourceName "gpu" is invalid"#,
        ),
        (|_| {}, "failed to dial device plugin: context deadline exceeded"),
    ];
    for (change, why) in cases {
        let mut plugin = Plugin::new(kubelet.device_plugins_dir(), "a.sock", &TWO);
        change(&mut plugin);
        assert_eq!(plugin.register().await, Err(why.to_owned()));
        assert_eq!(kubelet.state().refused[&plugin.socket()], why);
    }
    assert_eq!(kubelet.state().resources, BTreeMap::new());
}

#[tokio::test]
async fn the_authority_is_that_of_the_release_or_as_wanted() {
    let reset = "failed to get device plugin options: rpc error: code = Internal desc = stream \
        terminated by RST_STREAM with error code: PROTOCOL_ERROR";
    let (_root, old) = start(Options { release: 25, ..options() });
    let plugin = Plugin::new(old.device_plugins_dir(), "a.sock", &TWO);
    let _serving = plugin.serve();
    assert_eq!(plugin.register().await, Err(reset.to_owned()));

    let encoded = Options { plugin_authority: Some(Authority::EncodedPath), ..options() };
    let (_root, kubelet) = start(encoded);
    let plugin = Plugin::new(kubelet.device_plugins_dir(), "gpu@a.sock", &TWO);
    let _serving = join(&kubelet, &plugin).await;
    let path = plugin.socket().display().to_string().replace('/', "%2F");
    let authority = format!("plugin authority: {path}");
    assert_eq!(plugin.calls("plugin authority"), [authority.clone(), authority]);
}

#[tokio::test]
async fn to_1_24_the_answer_comes_at_once_and_options_count_as_sent() {
    let options =
        Options { release: 24, plugin_authority: Some(Authority::Localhost), ..options() };
    let (_root, kubelet) = start(options);
    let mut plugin = Plugin::new(kubelet.device_plugins_dir(), "a.sock", &TWO);
    plugin.request.options = Some(PREFERS);
    plugin.register().await.unwrap();
    let _serving = plugin.serve();
    kubelet.wait_for(|state| capacity(state) == 2).await;
    kubelet.admit(&pod("a"), "main", &[(RESOURCE, 2)]).await.unwrap();
    let authority = "plugin authority: localhost";
    let calls = ["list: ", "prefer 2 of: gpu-0,gpu-1", "allocate: gpu-0,gpu-1"];
    let seen = calls.iter().flat_map(|call| [authority, *call]);
    let seen: Vec<_> = std::iter::once("plugin: accept").chain(seen).collect();
    assert_eq!(*plugin.seen.borrow(), seen);
}

#[tokio::test]
async fn a_plugin_that_gives_up_ends_its_registration_from_1_35_on() {
    for release in [34, 35] {
        let (_root, kubelet) = start(Options { release, ..options() });
        let plugin = Plugin::new(kubelet.device_plugins_dir(), "a.sock", &TWO);
        let _serving = plugin.serve();
        plugin.ready.send_replace(false);
        tokio::select! {
            _ = plugin.register() => panic!("it does not say its options"),
            () = plugin.wait_for("options: ") => {}
        }
        if release < 35 {
            plugin.ready.send_replace(true);
            kubelet.wait_for(|state| capacity(state) == 2).await;
        } else {
            plugin.wait_for("options ended: ").await;
            assert_eq!(kubelet.state().resources, BTreeMap::new());
        }
    }
}

#[tokio::test]
async fn until_its_devices_are_listed_a_resource_is_passed_over() {
    let (_root, kubelet) = start(options());
    let mut plugin = Plugin::new(kubelet.device_plugins_dir(), "a.sock", &TWO);
    plugin.silent = true;
    let _serving = plugin.serve();
    plugin.register().await.unwrap();
    assert_eq!(kubelet.admit(&pod("a"), "main", &[(RESOURCE, 1)]).await, Ok(BTreeMap::new()));
    assert_eq!(plugin.calls("allocate"), [""; 0]);
}

#[tokio::test]
async fn each_list_replaces_the_one_before_and_its_end_makes_all_unhealthy() {
    let (_root, kubelet, plugin, serving) = registered(options(), PREFERS).await;
    plugin.list(&["gpu-0"], &["gpu-2"]);
    let state = kubelet.wait_for(|state| gpus(state).allocatable() == 1).await;
    assert_eq!(gpus(&state).devices, devices(&[("gpu-0", true), ("gpu-2", false)]));
    drop(serving);
    let expected = Resource {
        endpoint: Some(plugin.socket()),
        connected: false,
        registered: true,
        devices: devices(&[("gpu-0", false), ("gpu-2", false)]),
        allocated: ids(&[]),
    };
    assert_eq!(stopped(&kubelet).await, expected);
    kubelet.expire_stopped();
    assert_eq!(kubelet.state().resources, BTreeMap::new());
    // Its pods are admitted without devices from then on.
    assert_eq!(kubelet.admit(&pod("a"), "main", &[(RESOURCE, 1)]).await, Ok(BTreeMap::new()));
}

#[tokio::test]
async fn to_1_24_the_end_of_an_old_stream_changes_nothing() {
    let options =
        Options { release: 24, plugin_authority: Some(Authority::Localhost), ..options() };
    let (_root, kubelet, _old, serving) = registered(options, PREFERS).await;
    let new = Plugin::new(kubelet.device_plugins_dir(), "b.sock", &["gpu-0"]);
    let _new = join(&kubelet, &new).await;
    let before = gpus(&kubelet.state());
    drop(serving);
    let state = kubelet.wait_for(|state| state.plugin_streams == 1).await;
    assert_eq!((gpus(&state), before.allocatable()), (before, 1));
}

#[tokio::test]
async fn to_1_36_the_end_of_an_old_stream_takes_the_new_registration_with_it() {
    let (_root, kubelet, _old, serving) =
        registered(Options { release: 36, ..options() }, PREFERS).await;
    let new = Plugin::new(kubelet.device_plugins_dir(), "b.sock", &["gpu-0"]);
    let _new = join(&kubelet, &new).await;
    drop(serving);
    let expected = Resource {
        endpoint: Some(new.socket()),
        connected: false,
        registered: true,
        devices: devices(&[("gpu-0", false)]),
        allocated: ids(&[]),
    };
    assert_eq!(stopped(&kubelet).await, expected);
    new.wait_for("list ended: ").await;
    new.register().await.unwrap();
    kubelet.wait_for(|state| gpus(state).allocatable() == 1).await;
}

#[tokio::test]
async fn from_1_37_on_plugins_of_one_resource_take_over_from_each_other() {
    let (_root, kubelet, old, _serving) = registered(options(), PREFERS).await;
    let new = Plugin::new(kubelet.device_plugins_dir(), "b.sock", &["gpu-0"]);
    let serving = join(&kubelet, &new).await;
    // Both lists are the list.
    old.list(&TWO, &["gpu-2"]);
    kubelet.wait_for(|state| capacity(state) == 3).await;
    assert_eq!(gpus(&kubelet.state()).endpoint, Some(new.socket()));
    drop(serving);
    let handed_back = |state: &State| gpus(state).endpoint == Some(old.socket());
    let state = kubelet.wait_for(handed_back).await;
    assert_eq!((gpus(&state).connected, gpus(&state).allocatable()), (true, 2));
}

#[tokio::test]
async fn from_1_37_on_a_socket_registered_twice_is_lost_until_a_restart() {
    let (_root, kubelet, plugin, serving) = registered(options(), PREFERS).await;
    let why = format!("device plugin already connected: {}", plugin.socket().display());
    assert_eq!(plugin.register().await, Err(why.clone()));
    drop(serving);
    kubelet.wait_for(|state| state.plugin_streams == 0).await;
    let _again = plugin.serve();
    assert_eq!(plugin.register().await, Err(why));
    assert_eq!(gpus(&kubelet.state()).allocatable(), 2);
    kubelet.restart().await.unwrap();
    let _served = join(&kubelet, &plugin).await;
}

#[tokio::test]
async fn a_container_is_given_what_its_plugin_prefers() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    plugin.list(&["gpu-0", "gpu-1", "gpu-2"], &["gpu-3"]);
    kubelet.wait_for(|state| capacity(state) == 4).await;
    *plugin.preferred.lock().unwrap() = Ok(["gpu-3", "gpu-9", "gpu-1"].map(str::to_owned).into());
    let first = kubelet.admit(&pod("a"), "main", &[(RESOURCE, 1)]).await;
    assert_eq!(first, Ok(given(&["gpu-1"])));
    // What is preferred is in use: what is left is taken.
    let second = kubelet.admit(&pod("b"), "main", &[(RESOURCE, 2)]).await;
    assert_eq!(second, Ok(given(&["gpu-0", "gpu-2"])));
    assert_eq!(gpus(&kubelet.state()).allocated, ids(&["gpu-0", "gpu-1", "gpu-2"]));
    assert_eq!(
        plugin.calls("prefer"),
        ["prefer 1 of: gpu-0,gpu-1,gpu-2", "prefer 2 of: gpu-0,gpu-2"]
    );
    // The same container again has what it has.
    assert_eq!(kubelet.admit(&pod("a"), "main", &[(RESOURCE, 1)]).await, Ok(given(&["gpu-1"])));
    assert_eq!(plugin.calls("allocate"), ["allocate: gpu-1", "allocate: gpu-0,gpu-2"]);
    kubelet.end_pod(&pod("b"));
    assert_eq!(gpus(&kubelet.state()).allocated, ids(&["gpu-1"]));
}

#[tokio::test]
async fn rejected_pods_end_with_the_kubelets_words() {
    let (_root, kubelet, plugin, serving) = registered(options(), PREFERS).await;
    let admit = async |name: &str, count| {
        kubelet.admit(&pod(name), "main", &[(RESOURCE, count)]).await.map(drop)
    };
    assert_eq!(
        admit("a", 3).await.unwrap_err().to_string(),
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. \
         Requested: 3, Available: 2, which is unexpected"
    );
    *plugin.preferred.lock().unwrap() = Err("no idea");
    let why = "device plugin GetPreferredAllocation rpc failed with err: rpc error: code = Internal desc = no idea";
    assert_eq!(admit("a", 1).await, rejected(why));
    *plugin.preferred.lock().unwrap() = Ok(vec!["gpu-0".into()]);
    plugin.answer(Answer::Fail);
    assert_eq!(admit("a", 1).await, rejected("rpc error: code = Internal desc = no room"));
    assert_eq!(gpus(&kubelet.state()).allocated, ids(&[]));
    plugin.answer(Answer::Nothing);
    assert_eq!(admit("a", 1).await, rejected("no containers return in allocation response "));
    assert_eq!(kubelet.state().pods, BTreeMap::new());
    // Nobody has it, and nobody gets it.
    assert_eq!(gpus(&kubelet.state()).allocated, ids(&["gpu-0"]));

    plugin.answer(Answer::Each);
    admit("b", 1).await.unwrap();
    let changed =
        r#"pod "uid-b" container "main" changed request for resource "nvidia.com/gpu" from 1 to 2"#;
    assert_eq!(admit("b", 2).await, rejected(changed));
    assert_eq!(gpus(&kubelet.state()).allocated, ids(&[]));
    admit("c", 1).await.unwrap();
    plugin.list(&["gpu-1"], &["gpu-0"]);
    kubelet.wait_for(|state| gpus(state).allocatable() == 1).await;
    let ill = "previously allocated devices are no longer healthy; cannot allocate unhealthy devices nvidia.com/gpu";
    assert_eq!(admit("c", 1).await, rejected(ill));
    drop(serving);
    stopped(&kubelet).await;
    let ill = "no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu";
    assert_eq!(admit("d", 1).await, rejected(ill));
}

#[tokio::test]
async fn admissions_wait_for_each_other_and_for_the_plugin() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    *plugin.preferred.lock().unwrap() = Ok(vec!["gpu-0".into()]);
    let now = watch::Sender::new(false);
    plugin.answer(Answer::When(now.subscribe()));
    let (a, b) = (pod("a"), pod("b"));
    let both = async {
        tokio::join!(
            kubelet.admit(&a, "main", &[(RESOURCE, 1)]),
            kubelet.admit(&b, "main", &[(RESOURCE, 1)]),
            async {
                plugin.wait_for("allocate: gpu-0").await;
                plugin.answer(Answer::Each);
                // Past the one that waits.
                let raw = kubelet.allocate(RESOURCE, &["gpu-0"]).await.unwrap();
                assert_eq!(raw.container_responses, [answer(&["gpu-0"])]);
                assert_eq!(plugin.calls("prefer").len(), 1);
                now.send_replace(true);
            }
        )
    };
    let (first, second, ()) = both.await;
    assert_eq!((first, second), (Ok(given(&["gpu-0"])), Ok(given(&["gpu-1"]))));
}

#[tokio::test]
async fn a_device_that_vanishes_while_it_is_allocated_crashes_the_kubelet() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    *plugin.preferred.lock().unwrap() = Ok(vec!["gpu-0".into()]);
    let now = watch::Sender::new(false);
    plugin.answer(Answer::When(now.subscribe()));
    let a = pod("a");
    let (admitted, ()) = tokio::join!(kubelet.admit(&a, "main", &[(RESOURCE, 1)]), async {
        plugin.wait_for("allocate: gpu-0").await;
        plugin.list(&["gpu-1"], &[]);
        kubelet.wait_for(|state| capacity(state) == 1).await;
        now.send_replace(true);
    });
    let why = "device gpu-0 is no longer listed (the real kubelet crashes here)";
    assert_eq!(admitted, rejected(why));
}

#[tokio::test]
async fn a_container_that_runs_keeps_its_devices_across_a_restart() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    *plugin.preferred.lock().unwrap() = Ok(vec!["gpu-0".into()]);
    kubelet.admit(&pod("runs"), "main", &[(RESOURCE, 1)]).await.unwrap();
    kubelet.start_container(&pod("runs"), "main").await.unwrap();
    kubelet.admit(&pod("waits"), "main", &[(RESOURCE, 1)]).await.unwrap();
    kubelet.restart().await.unwrap();
    plugin.wait_for("list ended: ").await;
    let expected = Resource {
        endpoint: None,
        connected: false,
        registered: true,
        devices: BTreeMap::new(),
        allocated: ids(&TWO),
    };
    assert_eq!(gpus(&kubelet.state()), expected);
    let runs = kubelet.admit(&pod("runs"), "main", &[(RESOURCE, 1)]).await;
    assert_eq!(runs, Ok(given(&["gpu-0"])));
    let ill = "no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu";
    let waits = kubelet.admit(&pod("waits"), "main", &[(RESOURCE, 1)]).await;
    assert_eq!(waits, rejected(ill));
    // Its socket was removed by the kubelet.
    let _again = join(&kubelet, &plugin).await;
    kubelet.admit(&pod("new"), "main", &[(RESOURCE, 1)]).await.unwrap();
    assert_eq!(plugin.calls("allocate"), ["allocate: gpu-0", "allocate: gpu-1", "allocate: gpu-1"]);
}

#[tokio::test]
async fn with_its_directory_the_kubelet_loses_its_checkpoint() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    kubelet.admit(&pod("a"), "main", &[(RESOURCE, 1)]).await.unwrap();
    std::fs::remove_dir_all(kubelet.device_plugins_dir()).unwrap();
    let failed = kubelet.admit(&pod("b"), "main", &[(RESOURCE, 1)]).await.unwrap_err().0;
    assert!(failed.starts_with("failed to write checkpoint file"), "{failed}");
    kubelet.restart().await.unwrap();
    assert_eq!(kubelet.state().resources, BTreeMap::new());
    let _again = join(&kubelet, &plugin).await;
    // Started again, a container is given devices anew.
    kubelet.start_container(&pod("a"), "main").await.unwrap();
    assert_eq!(plugin.calls("allocate").len(), 3);
}

#[tokio::test]
async fn the_kubelet_cleans_its_directory_of_sockets_and_long_ago_of_files() {
    for (release, left) in [(25, vec!["dir"]), (37, vec!["dir", "file"])] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("device-plugins");
        std::fs::create_dir_all(dir.join("dir")).unwrap();
        std::fs::File::create(dir.join("file")).unwrap();
        let _stale = UnixListener::bind(dir.join("a.sock")).unwrap();
        let options = Options { release, device_plugins: false, ..options() };
        let kubelet = Kubelet::start(root.path(), options).unwrap();
        assert!(!dir.join("kubelet.sock").exists(), "it is late");
        kubelet.serve_device_plugins().unwrap();
        let names = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        let names: BTreeSet<_> = names.map(|name| name.into_string().unwrap()).collect();
        let mut expected = ids(&left);
        expected.insert("kubelet.sock".into());
        assert_eq!(names, expected);
    }
}

#[tokio::test]
async fn a_container_starts_with_what_its_plugins_answered() {
    let options = Options { pre_start: Duration::from_millis(50), ..options() };
    let (_root, kubelet, plugin, _serving) = registered(options, PRE_STARTS).await;
    kubelet.admit(&pod("a"), "main", &[(RESOURCE, 2), ("example.com/none", 1)]).await.unwrap();
    let expected = RunOptions {
        envs: BTreeMap::from([("GPUS".into(), "2".into())]),
        cdi_devices: vec!["nvidia.com/gpu=gpu-0".into(), "nvidia.com/gpu=gpu-1".into()],
        ..Default::default()
    };
    assert_eq!(kubelet.start_container(&pod("a"), "main").await, Ok(expected));
    assert_eq!(plugin.calls("pre-start"), ["pre-start: gpu-0,gpu-1"]);
    plugin.answer(Answer::Fail);
    let failed = "device plugin PreStartContainer rpc failed with err: rpc error: code = Internal desc = no room";
    assert_eq!(kubelet.start_container(&pod("a"), "main").await, Err(failed.into()));
    let never = watch::Sender::new(false);
    plugin.answer(Answer::When(never.subscribe()));
    let late = "device plugin PreStartContainer rpc failed with err: rpc error: code = DeadlineExceeded desc = \
        context deadline exceeded";
    assert_eq!(kubelet.start_container(&pod("a"), "main").await, Err(late.into()));
    kubelet.disconnect_plugin(RESOURCE);
    stopped(&kubelet).await;
    let gone = "device plugin PreStartContainer rpc failed with err: endpoint nvidia.com/gpu has been stopped";
    assert_eq!(kubelet.start_container(&pod("a"), "main").await, Err(gone.into()));
}

#[tokio::test]
async fn faults_end_as_they_began() {
    let (_root, kubelet, plugin, _serving) = registered(options(), PREFERS).await;
    kubelet.disconnect_plugin(RESOURCE);
    plugin.wait_for("list ended: ").await;
    stopped(&kubelet).await;
    kubelet.refuse_registrations(Some("not now"));
    assert_eq!(plugin.register().await, Err("not now".into()));
    kubelet.refuse_registrations(None);
    plugin.register().await.unwrap();
    let state = kubelet.wait_for(|state| gpus(state).allocatable() == 2).await;
    assert_eq!((state.refused, state.plugin_registrations), (BTreeMap::new(), 2));
    kubelet.stop().await;
    assert!(plugin.socket().exists());
    assert_eq!(gpus(&kubelet.state()).devices, devices(&[("gpu-0", false), ("gpu-1", false)]));
    let why = kubelet.admit(&pod("a"), "main", &[(RESOURCE, 1)]).await;
    assert_eq!(why, rejected("the kubelet has stopped"));
}

/// A device on NUMA nodes.
pub(super) fn device(id: &str, numa: &[i64]) -> v1beta1::Device {
    let nodes = numa.iter().map(|id| v1beta1::NumaNode { id: *id }).collect();
    v1beta1::Device {
        id: id.into(),
        health: "Healthy".into(),
        topology: Some(v1beta1::TopologyInfo { nodes }),
    }
}
