//! The kubelet against a driver double: the cases of the real kubelet's own tests.

mod devices;
mod double;
mod plugin;
mod pod_resources;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kerf::model::claim::ClaimRef;
use kerf::proto::dra_health_v1::{self, DeviceIdentifier, NodeWatchResourcesResponse};
use tempfile::TempDir;

use super::*;
use double::{Answer, DRIVER, Double, Script};

/// Short where the real one is long, so that nothing waits; long where a test must not see it.
fn options() -> Options {
    Options {
        registration_backoff: Duration::from_millis(5),
        reconnect: Duration::from_millis(1),
        health_retry: Duration::from_millis(1),
        ..Options::default()
    }
}

fn start(options: Options) -> (TempDir, Kubelet) {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(root.path(), options).unwrap();
    (root, kubelet)
}

async fn start_both(options: Options) -> (TempDir, Kubelet, Double) {
    let (root, kubelet) = start(options);
    let double = Double::start(root.path(), "a", Script::new(root.path(), "a"));
    kubelet.registered(DRIVER).await;
    (root, kubelet, double)
}

fn claim(uid: &str) -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: format!("claim-{uid}"), uid: uid.into() }
}

fn claims(uids: &[&str]) -> Vec<ClaimRef> {
    uids.iter().map(|uid| claim(uid)).collect()
}

fn device(uid: &str) -> Device {
    Device {
        request_names: vec!["gpu".into()],
        pool_name: "node-a".into(),
        device_name: format!("gpu-{uid}"),
        cdi_device_ids: vec![format!("k8s.gpu.nvidia.com/claim={uid}")],
        share_id: Some("share".into()),
    }
}

fn results<T: Clone>(results: &[(&str, Result<T, &str>)]) -> Results<T> {
    let result = |(uid, result): &(&str, Result<T, &str>)| {
        ((*uid).to_owned(), result.clone().map_err(str::to_owned))
    };
    results.iter().map(result).collect()
}

async fn refusal(kubelet: &Kubelet, socket: &Path) -> String {
    kubelet.wait_for(|state| state.refused.contains_key(socket)).await.refused[socket].clone()
}

#[tokio::test]
async fn a_socket_with_an_at_is_registered_under_the_kubelets_authority() {
    let (root, kubelet, double) = start_both(options()).await;
    let socket = root.path().join("plugins_registry/gpu.nvidia.com@a-reg.sock");
    let expected = Plugin {
        id: 1,
        driver: DRIVER.into(),
        socket: socket.clone(),
        endpoint: root.path().join("plugins/a.sock"),
        service: DraService::V1,
        health: Some(HealthService::V1),
        acknowledged: true,
        connected: true,
    };
    assert_eq!(kubelet.state().plugins, [expected]);
    let authority =
        format!("registration authority: {}", socket.display().to_string().replace('/', "%2F"));
    assert_eq!(
        double.script.calls("registration"),
        ["registration: accept".to_owned(), authority.clone(), authority]
    );
    kubelet.prepare(DRIVER, &claims(&["u1"])).await;
    double.script.wait_for("dra authority: localhost").await;
}

#[tokio::test]
async fn a_socket_with_the_conventional_name_is_never_registered() {
    let (root, kubelet) = start(options());
    let script = Script::new(root.path(), "a");
    let socket = root.path().join("plugins_registry/gpu.nvidia.com-reg.sock");
    let _serving = (script.serve_dra(), script.serve_registration(&socket));
    let why = refusal(&kubelet, &socket).await;
    assert_eq!(
        why,
        "failed to get plugin info using RPC GetInfo: rpc error: code = Internal desc = stream terminated by \
         RST_STREAM with error code: PROTOCOL_ERROR"
    );
    assert_eq!(script.calls("info"), [""; 0]);
}

#[tokio::test]
async fn what_is_no_plugin_is_told_why() {
    type Change = fn(&mut Script);
    let (root, kubelet) = start(options());
    let cases: [(&str, Change, &str); 4] = [
        (
            "t",
            |s| s.info.r#type = "CSIPlugin".into(),
            "no handler registered for plugin type: CSIPlugin at socket SOCKET",
        ),
        ("n", |s| s.info.name.clear(), "DRA driver name is empty at socket SOCKET"),
        (
            "v",
            |s| s.info.supported_versions.clear(),
            "empty list for supported gRPC services (aka supported versions)",
        ),
        (
            "o",
            |s| s.info.supported_versions = vec!["1.0.0".into()],
            "none of the gRPC services is known: 1.0.0",
        ),
    ];
    for (name, change, why) in cases {
        let mut script = Script::new(root.path(), name);
        change(&mut script);
        let double = Double::start(root.path(), name, script);
        let why = why.replace("SOCKET", &double.socket.display().to_string());
        assert_eq!(refusal(&kubelet, &double.socket).await, why);
        double.script.wait_for(&format!("notify: false {why}")).await;
    }
    assert_eq!(kubelet.state().plugins, []);
}

#[tokio::test]
async fn an_endpoint_is_registered_once() {
    let (root, kubelet, _first) = start_both(options()).await;
    let second = Script::new(root.path(), "a");
    let socket = root.path().join("plugins_registry/gpu.nvidia.com@b-reg.sock");
    let _serving = second.serve_registration(&socket);
    let endpoint = root.path().join("plugins/a.sock");
    assert_eq!(
        refusal(&kubelet, &socket).await,
        format!(
            "endpoint {} already registered for DRA driver plugin gpu.nvidia.com",
            endpoint.display()
        )
    );
    assert_eq!(kubelet.state().plugins.len(), 1);
}

#[tokio::test]
async fn a_plugin_that_refuses_its_registration_is_tried_again() {
    let (root, kubelet) = start(options());
    let mut script = Script::new(root.path(), "a");
    script.refuse_notify = true;
    let double = Double::start(root.path(), "a", script);
    let why = refusal(&kubelet, &double.socket).await;
    assert_eq!(
        why,
        "failed to notify the plugin: rpc error: code = FailedPrecondition desc = not like this"
    );
    let mut seen = double.script.seen.subscribe();
    seen.wait_for(|seen| seen.iter().filter(|line| *line == "notify: true ").count() == 3)
        .await
        .unwrap();
    assert_eq!(kubelet.state().registrations, 0);
}

#[tokio::test]
async fn an_older_kubelet_keeps_a_plugin_that_refuses() {
    let (root, kubelet) = start(Options { release: 35, ..options() });
    let mut script = Script::new(root.path(), "a");
    script.refuse_notify = true;
    let _double = Double::start(root.path(), "a", script);
    let state = kubelet.wait_for(|state| state.connected(DRIVER)).await;
    assert!(!state.plugins[0].acknowledged);
    assert_eq!(
        kubelet.prepare(DRIVER, &claims(&["u1"])).await,
        results(&[("u1", Ok(vec![device("u1")]))])
    );
}

#[tokio::test]
async fn answers_are_checked_as_the_kubelet_does() {
    let (_root, kubelet, double) = start_both(options()).await;
    let unknown = "NodePrepareResources returned result for unknown claim UID stranger";
    let broken = "NodePrepareResources: rpc error: code = Internal desc = the driver is ill";
    let one = |uid: &str| Ok(vec![device(uid)]);
    let cases = [
        (Answer::Each, [one("u1"), one("u2")]),
        (Answer::Nil, [Ok(vec![]), Ok(vec![])]),
        (Answer::Skip, [one("u1"), Err("NodePrepareResources skipped 1 ResourceClaims")]),
        (Answer::Stranger, [Err(unknown), Err(unknown)]),
        (Answer::Fail, [Err(broken), Err(broken)]),
        (
            Answer::Error("no room"),
            [
                Err("NodePrepareResources failed for ResourceClaim claim-u1: no room"),
                Err("NodePrepareResources failed for ResourceClaim claim-u2: no room"),
            ],
        ),
    ];
    for (answer, [first, second]) in cases {
        double.script.answer(answer);
        let expected = results(&[("u1", first), ("u2", second)]);
        assert_eq!(kubelet.prepare(DRIVER, &claims(&["u1", "u2"])).await, expected);
    }
    let unprepared = [
        (Answer::Each, Ok(())),
        (Answer::Skip, Err("NodeUnprepareResources skipped 1 ResourceClaims")),
        (
            Answer::Error("busy"),
            Err("NodeUnprepareResources failed for ResourceClaim claim-u1: busy"),
        ),
        (
            Answer::Fail,
            Err("NodeUnprepareResources: rpc error: code = Internal desc = the driver is ill"),
        ),
    ];
    for (answer, result) in unprepared {
        double.script.answer(answer);
        assert_eq!(kubelet.unprepare(DRIVER, &claims(&["u1"])).await, results(&[("u1", result)]));
    }
}

#[tokio::test]
async fn the_deadline_and_a_drop_cancel_the_handler() {
    let (_root, kubelet, double) = start_both(options()).await;
    double.script.answer(Answer::Hang);
    let late =
        "NodePrepareResources: rpc error: code = DeadlineExceeded desc = context deadline exceeded";
    let call = kubelet.call(DRIVER).within(Duration::from_millis(20));
    assert_eq!(call.prepare(&claims(&["u1"])).await, results(&[("u1", Err(late))]));
    double.script.wait_for("v1 prepare ended").await;

    let unprepared = claims(&["u1"]);
    let call = kubelet.unprepare(DRIVER, &unprepared);
    tokio::select! {
        _ = call => panic!("the driver hangs"),
        () = double.script.wait_for("v1 unprepare: u1") => {}
    }
    double.script.wait_for("v1 unprepare ended").await;
}

#[tokio::test]
async fn the_plugins_first_known_version_is_used() {
    let old = DraService::V1beta1;
    let cases: [(Options, bool, DraService); 4] = [
        (options(), false, DraService::V1),
        (options(), true, old),
        (Options { only_v1beta1: true, ..options() }, false, old),
        (Options { release: 33, ..options() }, false, old),
    ];
    for (options, reverse, service) in cases {
        let (root, kubelet) = start(options);
        let mut script = Script::new(root.path(), "a");
        if reverse {
            script.info.supported_versions.reverse();
        }
        let double = Double::start(root.path(), "a", script);
        assert_eq!(kubelet.registered(DRIVER).await.service, service);
        let share_id = (service == DraService::V1).then(|| "share".to_owned());
        let expected = Device { share_id, ..device("u1") };
        assert_eq!(
            kubelet.prepare(DRIVER, &claims(&["u1"])).await,
            results(&[("u1", Ok(vec![expected]))])
        );
        assert_eq!(kubelet.unprepare(DRIVER, &claims(&["u1"])).await, results(&[("u1", Ok(()))]));
        let version = if service == old { "v1beta1" } else { "v1" };
        assert_eq!(
            double.script.calls(&format!("{version} prepare:")),
            [format!("{version} prepare: u1")]
        );
    }
}

fn health(status: dra_health_v1::HealthStatus) -> NodeWatchResourcesResponse {
    let device = DeviceIdentifier { pool_name: "node-a".into(), device_name: "gpu-0".into() };
    let health = dra_health_v1::DeviceHealth {
        device: Some(device),
        message: "x".repeat(1100),
        ..Default::default()
    };
    NodeWatchResourcesResponse {
        devices: vec![dra_health_v1::DeviceHealth { health: status.into(), ..health }],
    }
}

#[tokio::test]
async fn health_follows_the_stream_and_is_forgotten_with_it() {
    use dra_health_v1::HealthStatus;
    for (release, version) in [(37, "v1"), (36, "v1alpha1")] {
        let (_root, kubelet, double) = start_both(Options { release, ..options() }).await;
        let is = |state: &State, health| state.health(DRIVER, "node-a", "gpu-0") == health;
        assert!(is(&kubelet.state(), Health::Unknown));
        double.script.health.send_replace(health(HealthStatus::Unhealthy));
        let state = kubelet.wait_for(|state| is(state, Health::Unhealthy)).await;
        assert_eq!(
            state.health.values().map(|said| said.message.len()).collect::<Vec<_>>(),
            [1024]
        );
        double.script.health.send_replace(health(HealthStatus::Healthy));
        kubelet.wait_for(|state| is(state, Health::Healthy)).await;
        assert_eq!(double.script.calls("v1"), [format!("{version} health")]);

        drop(double.dra);
        kubelet.wait_for(|state| is(state, Health::Unknown)).await;
        let _again = double.script.serve_dra();
        kubelet.wait_for(|state| is(state, Health::Healthy)).await;
    }
}

#[tokio::test]
async fn health_is_not_asked_for_where_it_is_not_offered() {
    let (root, kubelet) = start(options());
    let mut script = Script::new(root.path(), "a");
    script.info.supported_versions.truncate(2);
    let _double = Double::start(root.path(), "a", script);
    assert_eq!(kubelet.registered(DRIVER).await.health, None);
}

#[tokio::test]
async fn all_calls_share_one_connection_that_is_opened_again_when_it_breaks() {
    let (_root, kubelet, double) = start_both(options()).await;
    kubelet.wait_for(|state| state.streams == 1).await;
    kubelet.prepare(DRIVER, &claims(&["u1"])).await;
    kubelet.unprepare(DRIVER, &claims(&["u1"])).await;
    assert_eq!(double.script.calls("dra: accept"), ["dra: accept"]);
    assert_eq!(kubelet.state().connections, 1);

    let endpoint = double.script.info.endpoint.clone();
    drop(double.dra);
    std::fs::remove_file(&endpoint).unwrap();
    kubelet.wait_for(|state| !state.connected(DRIVER)).await;
    let down = kubelet.prepare(DRIVER, &claims(&["u1"])).await;
    let why = format!(
        "NodePrepareResources: rpc error: code = Unavailable desc = connection error: desc = \"transport: Error \
         while dialing: dial unix {endpoint}: No such file or directory (os error 2)\""
    );
    assert_eq!(down, results(&[("u1", Err(why.as_str()))]));

    let _again = double.script.serve_dra();
    kubelet.wait_for(|state| state.connected(DRIVER)).await;
    assert_eq!(
        kubelet.prepare(DRIVER, &claims(&["u1"])).await,
        results(&[("u1", Ok(vec![device("u1")]))])
    );
}

#[tokio::test]
async fn the_newest_connected_plugin_is_called() {
    let (root, kubelet, old) = start_both(options()).await;
    let new = Double::start(root.path(), "b", Script::new(root.path(), "b"));
    let both =
        |state: &State| state.plugins.iter().filter(|p| p.connected && p.acknowledged).count() == 2;
    kubelet.wait_for(both).await;
    let calls = |double: &Double| double.script.calls("v1 prepare:").len();

    kubelet.prepare(DRIVER, &claims(&["u1"])).await;
    assert_eq!((calls(&old), calls(&new)), (0, 1));
    let old_endpoint = PathBuf::from(&old.script.info.endpoint);
    kubelet.call(DRIVER).via(&old_endpoint).prepare(&claims(&["u1"])).await;
    assert_eq!((calls(&old), calls(&new)), (1, 1));

    std::fs::remove_file(&new.script.info.endpoint).unwrap();
    let script = new.script.clone();
    drop(new.dra);
    kubelet.wait_for(|state| !state.plugins[1].connected).await;
    kubelet.prepare(DRIVER, &claims(&["u1"])).await;
    assert_eq!(calls(&old), 2);

    let _again = script.serve_dra();
    kubelet.wait_for(both).await;
    std::fs::remove_file(&new.socket).unwrap();
    kubelet.wait_for(|state| state.plugins.len() == 1).await;
    kubelet.prepare(DRIVER, &claims(&["u1"])).await;
    assert_eq!(calls(&old), 3);
}

#[tokio::test]
async fn a_removed_socket_ends_the_plugin_and_its_calls() {
    let (_root, kubelet, double) = start_both(options()).await;
    double.script.answer(Answer::Hang);
    let held = claims(&["u1"]);
    let call = kubelet.prepare(DRIVER, &held);
    let remove = async {
        double.script.wait_for("v1 prepare: u1").await;
        std::fs::remove_file(&double.socket).unwrap();
    };
    let (result, ()) = tokio::join!(call, remove);
    let why = "NodePrepareResources: rpc error: code = Canceled desc = grpc: the client connection is closing";
    assert_eq!(result, results(&[("u1", Err(why))]));
    kubelet.wait_for(|state| state.plugins.is_empty()).await;
    let why = "DRA driver gpu.nvidia.com is not registered";
    assert_eq!(kubelet.prepare(DRIVER, &held).await, results(&[("u1", Err(why))]));
}

#[tokio::test]
async fn a_socket_made_again_is_registered_again() {
    let (_root, kubelet, double) = start_both(options()).await;
    drop(double.registration);
    let _again = double.script.serve_registration(&double.socket);
    let state = kubelet.wait_for(|state| state.registrations == 2).await;
    assert_eq!(state.plugins.len(), 1);
    assert_eq!(double.script.calls("notify"), ["notify: true ", "notify: true "]);
}

#[tokio::test]
async fn slices_are_wiped_at_start_and_when_the_driver_stays_away() {
    let wiped = watch::Sender::new(vec![]);
    let wipe: Wiper = Arc::new({
        let wiped = wiped.clone();
        move |what| {
            wiped.send_modify(|wiped| wiped.push(what));
            Box::pin(std::future::ready(()))
        }
    });
    let options = Options { wipe_after: Duration::from_millis(1), wipe: Some(wipe), ..options() };
    let (_root, kubelet, double) = start_both(options).await;
    let mut wiped = wiped.subscribe();
    wiped.wait_for(|wiped| wiped.contains(&Wipe::Node)).await.unwrap();
    drop(double.dra);
    wiped.wait_for(|wiped| wiped.contains(&Wipe::Driver(DRIVER.into()))).await.unwrap();
    kubelet.restart().await.unwrap();
    wiped.wait_for(|wiped| wiped.last() == Some(&Wipe::Node)).await.unwrap();
}

#[tokio::test]
async fn a_restart_forgets_plugins_and_prepares_again() {
    let (_root, kubelet, double) = start_both(options()).await;
    let both = claims(&["u1", "u2"]);
    let devices = vec![device("u1"), device("u2")];
    assert_eq!(kubelet.prepare_pod(DRIVER, "pod-1", &both).await, Ok(devices.clone()));
    assert_eq!(kubelet.prepare_pod(DRIVER, "pod-1", &both).await, Ok(devices.clone()));
    assert_eq!(double.script.calls("v1 prepare:"), ["v1 prepare: u1,u2"]);

    kubelet.stop().await;
    assert_eq!(kubelet.state().plugins, []);
    let gone = Err("DRA driver gpu.nvidia.com is not registered".to_owned());
    assert_eq!(kubelet.prepare_pod(DRIVER, "pod-1", &both).await, gone);
    kubelet.restart().await.unwrap();
    kubelet.registered(DRIVER).await;
    assert_eq!(kubelet.prepare_pod(DRIVER, "pod-1", &both).await, Ok(devices));
    assert_eq!(double.script.calls("v1 prepare:"), ["v1 prepare: u1,u2", "v1 prepare: u1,u2"]);
}

#[tokio::test]
async fn up_to_1_36_devices_of_a_repeated_prepare_are_appended() {
    let (_root, kubelet, _double) = start_both(Options { release: 36, ..options() }).await;
    let held = claims(&["u1"]);
    kubelet.prepare_pod(DRIVER, "pod-1", &held).await.unwrap();
    kubelet.restart().await.unwrap();
    kubelet.registered(DRIVER).await;
    assert_eq!(
        kubelet.prepare_pod(DRIVER, "pod-1", &held).await,
        Ok(vec![device("u1"), device("u1")])
    );
}

#[tokio::test]
async fn a_shared_claim_is_prepared_once_and_given_back_with_its_last_pod() {
    let (_root, kubelet, double) = start_both(options()).await;
    kubelet.prepare_pod(DRIVER, "pod-1", &claims(&["u1"])).await.unwrap();
    kubelet.prepare_pod(DRIVER, "pod-2", &claims(&["u1", "u2"])).await.unwrap();
    assert_eq!(double.script.calls("v1 prepare:"), ["v1 prepare: u1", "v1 prepare: u2"]);
    kubelet.unprepare_pod(DRIVER, "pod-1").await.unwrap();
    assert_eq!(double.script.calls("v1 unprepare:"), [""; 0]);

    let same_name = ClaimRef { uid: "u9".into(), ..claim("u1") };
    let why = "old ResourceClaim with same name claim-u1 and different UID u1 still exists (previous pod force-deleted?!)";
    assert_eq!(
        kubelet.prepare_pod(DRIVER, "pod-3", std::slice::from_ref(&same_name)).await,
        Err(why.to_owned())
    );

    double.script.answer(Answer::Error("busy"));
    let why = "NodeUnprepareResources failed for ResourceClaim claim-u1: busy";
    assert_eq!(kubelet.unprepare_pod(DRIVER, "pod-2").await, Err(why.to_owned()));
    double.script.answer(Answer::Each);
    kubelet.unprepare_pod(DRIVER, "pod-2").await.unwrap();
    assert_eq!(
        double.script.calls("v1 unprepare:"),
        ["v1 unprepare: u1,u2", "v1 unprepare: u1,u2"]
    );
    assert_eq!(kubelet.state().claims, BTreeMap::new());
    kubelet.prepare_pod(DRIVER, "pod-3", &[same_name]).await.unwrap();
}
