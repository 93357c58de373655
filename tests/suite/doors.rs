//! The kubelet's doors: registration, the health stream, probes, and sockets that come and go.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::Duration,
};

use kerf_nvml::Model;
use kerf_testbed::{
    agent::Agent,
    kubelet::{self, DraService, Health, HealthService, ServingStatus, probe},
    node::{DRIVER, Testbed},
};

use crate::{
    claims::{NOTHING, prepare, unprepare},
    given,
};

/// The sockets of agents, by name.
fn sockets(testbed: &Testbed) -> Vec<String> {
    let dirs = [testbed.kubelet_root().join("plugins_registry"), testbed.state_dir()];
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".sock")).collect();
    names.sort();
    names
}

/// The stand-in sends the kubelet's own `:authority` for that socket: its percent-encoded path.
#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_registers_what_it_finds() {
    for (release, service, health) in [
        (37, DraService::V1, Some(HealthService::V1)),
        (36, DraService::V1, Some(HealthService::V1alpha1)),
        (34, DraService::V1, Some(HealthService::V1alpha1)),
        (33, DraService::V1beta1, None),
    ] {
        let builder = given::node(Model::L4, 1);
        let builder = builder.kubelet(kubelet::Options { release, ..Default::default() });
        let mut testbed = builder.start_without_agent().await.unwrap();
        let plugin = testbed.start_agent("pod-uid").await.unwrap();
        let registry = testbed.kubelet_root().join("plugins_registry");
        assert_eq!(plugin.driver, DRIVER);
        assert_eq!(plugin.socket, registry.join("gpu.nvidia.com-pod-uid@reg.sock"));
        assert_eq!(plugin.endpoint, testbed.state_dir().join("dra@pod-uid.sock"));
        assert_eq!((plugin.service, plugin.health), (service, health), "1.{release}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_go_with_their_agent_and_those_of_the_dead_are_cleared_away() {
    let mut testbed = given::node(Model::L4, 1).start().await.unwrap();
    let of = |pod: &str| {
        let names = ["agent.sock".to_owned(), format!("dra@{pod}.sock")];
        let registration = format!("gpu.nvidia.com-{pod}@reg.sock");
        names.into_iter().chain([registration, "orders.sock".to_owned()]).collect::<Vec<_>>()
    };
    assert_eq!(sockets(&testbed), of("a"));
    // A start kills the one before, which then leaves its sockets behind.
    testbed.start_agent("b").await.unwrap();
    assert_eq!(sockets(&testbed), of("b"));
    // Of the same pod, a container that is started again has the same names.
    testbed.start_agent("b").await.unwrap();
    assert_eq!(sockets(&testbed), of("b"));
    let ended = testbed.agent.take().unwrap().terminate().await.unwrap();
    assert!(ended.success(), "{ended}");
    assert_eq!(sockets(&testbed), Vec::<String>::new());
    testbed.kubelet.wait_for(|state| state.plugins.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_starts_again_finds_the_agent_and_prepares_again() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-6"]);
    let claims = std::slice::from_ref(&claim);
    let first = testbed.kubelet.prepare_pod(DRIVER, "pod", claims).await.unwrap();
    testbed.kubelet.restart().await.unwrap();
    testbed.kubelet.registered(DRIVER).await;
    let again = testbed.kubelet.prepare_pod(DRIVER, "pod", claims).await.unwrap();
    assert_eq!(again, first);
    testbed.kubelet.unprepare_pod(DRIVER, "pod").await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_devices_are_healthy_and_one_connection_serves_all_calls() {
    for release in [37, 34] {
        let builder = given::node(Model::H100_80, 2);
        let builder = builder.kubelet(kubelet::Options { release, ..Default::default() });
        let testbed = builder.start().await.unwrap();
        let published: BTreeSet<String> = testbed
            .slices()
            .iter()
            .flat_map(|slice| slice.spec.devices.iter().flatten())
            .map(|device| device.name.clone())
            .collect();
        let state = testbed.kubelet.wait_for(|state| !state.health.is_empty()).await;
        let known: BTreeSet<String> = state.health.keys().map(|key| key.device.clone()).collect();
        assert!(known.is_superset(&published));
        for (key, said) in &state.health {
            assert_eq!((key.driver.as_str(), key.pool.as_str()), (DRIVER, "node-a"));
            let expected = (Health::Healthy, "", Duration::from_secs(30));
            assert_eq!((said.health, said.message.as_str(), said.timeout), expected);
        }
        let claim = given::claim(&testbed, "c", &["gpu-0"]);
        prepare(&testbed, &claim).await.unwrap();
        unprepare(&testbed, &claim).await.unwrap();
        let state = testbed.kubelet.state();
        assert_eq!((state.streams, state.connections), (1, 1));
    }
}

async fn probes(address: SocketAddr) -> Vec<Result<ServingStatus, String>> {
    let mut answers = Vec::new();
    for service in ["", "liveness", "other"] {
        answers.push(probe(address, service).await);
    }
    answers
}

/// The probe goes through the agent's own sockets: without them it is not serving.
#[tokio::test(flavor = "multi_thread")]
async fn probes_call_the_sockets_for_real() {
    let testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    let plugin = agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    let address = format!("127.0.0.1:{}", options.healthcheck_port).parse().unwrap();
    let serving = probes(address).await;
    assert_eq!(serving[..2], [Ok(ServingStatus::Serving), Ok(ServingStatus::Serving)]);
    let unknown = serving[2].clone().unwrap_err();
    assert!(unknown.contains("no service `other`"), "{unknown}");
    for socket in [&plugin.endpoint, &plugin.socket] {
        let aside = socket.with_extension("aside");
        std::fs::rename(socket, &aside).unwrap();
        let status = probe(address, "").await;
        assert_eq!(status, Ok(ServingStatus::NotServing), "without `{}`", socket.display());
        std::fs::rename(&aside, socket).unwrap();
        assert_eq!(probe(address, "").await, Ok(ServingStatus::Serving));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_goes_to_no_terminal_has_no_escapes() {
    let testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    let log = std::fs::read_to_string(&options.log).unwrap();
    assert!(log.contains("INFO") && !log.contains('\u{1b}'), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_an_agent_from_its_doors_is_said_in_one_line() {
    let testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap();
    let _held = TcpListener::bind(("0.0.0.0", taken.port())).unwrap();
    assert_eq!(
        given::refusal(&testbed, |options| options.healthcheck_port = taken.port()).await,
        format!(
            "kerf: cannot listen on health port {}: Address already in use (os error 98)",
            taken.port()
        )
    );
    let deep = testbed.kubelet_root().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("gpu.nvidia.com-a@reg.sock");
    assert_eq!(
        given::refusal(&testbed, |options| options.registrar_dir = deep.clone()).await,
        format!(
            "kerf: socket path `{}` is longer than 107 bytes; use a shorter kubelet directory",
            path.display()
        )
    );
    let nowhere = testbed.kubelet_root().join("nowhere");
    assert_eq!(
        given::refusal(&testbed, |options| options.registrar_dir = nowhere.clone()).await,
        format!(
            "kerf: cannot bind `{}`: No such file or directory (os error 2)",
            nowhere.join("gpu.nvidia.com-a@reg.sock").display()
        )
    );
    assert_eq!(
        given::refusal(&testbed, |options| options.kubeconfig =
            PathBuf::from("/nowhere/kubeconfig"))
        .await,
        "kerf: connect to the API server with `/nowhere/kubeconfig`: failed to read kubeconfig from \
         '\"/nowhere/kubeconfig\"': No such file or directory (os error 2)"
    );
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Sockets of other plugins are nobody's to remove.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_others_stay() {
    let mut testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    let registry = testbed.kubelet_root().join("plugins_registry");
    let others = [
        registry.join("gpu.nvidia.com-reg.sock"),
        registry.join("nic.example.com@reg.sock"),
        testbed.state_dir().join("dra.sock"),
    ];
    std::fs::create_dir_all(testbed.state_dir()).unwrap();
    let bound: Vec<_> =
        others.iter().map(|path: &PathBuf| UnixListener::bind(path as &Path)).collect();
    drop(bound);
    testbed.start_agent("a").await.unwrap();
    assert_eq!(others.each_ref().map(|path| path.exists()), [true; 3]);
}
