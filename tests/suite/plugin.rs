//! Extended resources: what the kubelet is offered, what containers are given, and one ledger with claims.

use std::collections::BTreeMap;

use kerf::model::cdi::{PLUGIN_FILE, Spec};
use kerf_nvml::Model;
use kerf_testbed::{
    kubelet::{AdmissionError, Allocation, PodRef, RunOptions},
    node::{Builder, Testbed},
};

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
    while !given::records(testbed).is_empty() {
        tokio::task::yield_now().await;
    }
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
    offers(&testbed, small, 14).await;
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
