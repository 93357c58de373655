//! Devices that only an init container has: the kubelet's pod resources never name it, its checkpoint does. What
//! another component does not say is no statement.

use kerf::node::store::write_atomic;
use kerf_nvml::Model;
use kerf_testbed::{
    agent::Agent,
    kubelet::PodRef,
    node::{DRIVER, Testbed},
};

use crate::{claims::prepare, given};

const GPU: &str = "nvidia.com/gpu";

fn pod(name: &str) -> PodRef {
    PodRef { namespace: "default".to_owned(), name: name.to_owned(), uid: format!("uid-of-{name}") }
}

/// A node with one GPU and both doors open.
async fn both() -> Testbed {
    let testbed = given::node(Model::H100_80, 1).flag("--interface=both").start().await.unwrap();
    let offered = testbed.kubelet.wait_for(|state| {
        state.resources.get(GPU).is_some_and(|resource| resource.allocatable() == 1)
    });
    testbed.agent.as_ref().unwrap().while_running(offered).await.unwrap();
    testbed
}

/// Waits until the agent has asked the kubelet for its file more than once: several comparisons have passed.
async fn compared(testbed: &Testbed) {
    let file = testbed.device_plugins_dir().join("kubelet_internal_checkpoint");
    let written = || std::fs::metadata(&file).unwrap().modified().unwrap();
    for _ in 0..4 {
        let before = written();
        given::until("the file to be written again", || written() > before).await;
    }
}

fn hold(testbed: &Testbed) -> usize {
    given::records(testbed).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_init_container_has_is_held_until_its_pod_ends() {
    let testbed = both().await;
    testbed.kubelet.admit_init(&pod("a"), "init", &[(GPU, 1)]).await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    compared(&testbed).await;
    let refused = prepare(&testbed, &claim).await.unwrap_err();
    assert!(refused.contains("held by a pod with `nvidia.com/gpu`"), "{refused}");
    assert_eq!(hold(&testbed), 1);

    // The file still names the pod until the kubelet writes it again, for which it is asked.
    testbed.kubelet.end_pod(&pod("a"));
    given::until("the end", || hold(&testbed) == 0).await;
    prepare(&testbed, &claim).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_init_container_had_beyond_the_others_is_held_with_the_rest() {
    let testbed = given::node(Model::L4, 3).flag("--interface=both").start().await.unwrap();
    let offered = testbed.kubelet.wait_for(|state| {
        state.resources.get(GPU).is_some_and(|resource| resource.allocatable() == 3)
    });
    testbed.agent.as_ref().unwrap().while_running(offered).await.unwrap();
    testbed.kubelet.admit_init(&pod("a"), "init", &[(GPU, 2)]).await.unwrap();
    let main = testbed.kubelet.admit(&pod("a"), "main", &[(GPU, 1)]).await.unwrap();
    assert_eq!(main[GPU].devices.len(), 1);
    compared(&testbed).await;
    assert_eq!(hold(&testbed), 2);
    testbed.kubelet.end_pod(&pod("a"));
    given::until("the end", || hold(&testbed) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_records_takes_up_what_an_init_container_has() {
    let mut testbed = both().await;
    testbed.kubelet.admit_init(&pod("a"), "init", &[(GPU, 1)]).await.unwrap();
    testbed.agent.take().unwrap().terminate().await.unwrap();
    std::fs::remove_dir_all(testbed.state_dir().join("containers")).unwrap();
    testbed.start_agent("b").await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    let refused = prepare(&testbed, &claim).await.unwrap_err();
    assert!(refused.contains("held by a pod with `nvidia.com/gpu`"), "{refused}");
}

/// Without the device plugin's door nobody has the kubelet write its file: the pod's directory tells.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_file_is_old_the_end_of_the_pods_directory_counts() {
    let mut testbed = both().await;
    testbed.kubelet.admit_init(&pod("a"), "init", &[(GPU, 1)]).await.unwrap();
    testbed.agent.take().unwrap().terminate().await.unwrap();
    let mut options = testbed.agent_options("b").unwrap();
    options.flags = vec!["--interface=dra".into()];
    options.host_root = "/".into();
    let own = testbed.kubelet.pod_directory("b");
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    testbed.agent = Some(agent);
    testbed.kubelet.end_pod(&pod("a"));
    let claim = given::claim(&testbed, "c", &["gpu-0"]);
    // A directory without the agent's own pod is not that of the kubelet.
    prepare(&testbed, &claim).await.unwrap_err();
    std::fs::create_dir_all(own).unwrap();
    given::until("the end", || hold(&testbed) == 0).await;
    prepare(&testbed, &claim).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_frees_nothing_and_that_is_said() {
    let mut testbed = both().await;
    testbed.kubelet.admit(&pod("a"), "main", &[(GPU, 1)]).await.unwrap();
    testbed.agent.take().unwrap().terminate().await.unwrap();
    testbed.kubelet.end_pod(&pod("a"));
    let file = testbed.device_plugins_dir().join("kubelet_internal_checkpoint");
    let whole = std::fs::read(&file).unwrap();
    write_atomic(&file, &whole[..whole.len() / 2], 0o600).unwrap();
    let mut options = testbed.agent_options("b").unwrap();
    options.flags = vec!["--interface=dra".into()];
    options.host_root = "/".into();
    std::fs::create_dir_all(testbed.kubelet.pod_directory("b")).unwrap();
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    testbed.agent = Some(agent);
    let said = |_: &_| {
        let events = testbed.api.list::<k8s_openapi::api::events::v1::Event>();
        events.iter().any(|event| event.reason.as_deref() == Some("KubeletCheckpointUnreadable"))
    };
    testbed.api.wait_until(said).await;
    assert_eq!(hold(&testbed), 1);
    write_atomic(&file, &whole, 0o600).unwrap();
    given::until("the end", || hold(&testbed) == 0).await;
}
