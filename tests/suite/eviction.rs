//! Pods with extended resources that leave GPUs with faults: those that were given the devices, by their UIDs, and never
//! another that has taken the name of one.

use std::{collections::BTreeSet, fs, sync::Arc, sync::Mutex};

use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kerf::node::store::write_atomic;
use kerf_nvml::Model;
use kerf_testbed::{
    apiserver::{ApiServer, Fault},
    kubelet::PodRef,
    node::Testbed,
};
use serde_json::json;

use crate::given;

const GPU: &str = "nvidia.com/gpu";

/// A GPU that makes no progress.
const XID: u64 = 46;

async fn start(gpus: usize) -> Testbed {
    let flags = ["--interface=device-plugin", "--evict-on=all", "--evict-plugin-pods"];
    let builder = flags.iter().fold(given::node(Model::L4, gpus), |node, flag| node.flag(*flag));
    let mut testbed = builder.start_without_agent().await.unwrap();
    testbed.start_plugin_agent("a", GPU).await.unwrap();
    testbed
}

/// A pod of the API server, on this node.
fn made(api: &ApiServer, node: &str, namespace: &str, name: &str) -> PodRef {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace },
        "spec": { "nodeName": node, "containers": [{ "name": "main" }] },
    });
    let made = api.apply(pod).unwrap();
    let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
    PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid }
}

fn replaced(api: &ApiServer, node: &str, pod: &PodRef) -> PodRef {
    api.delete::<Pod>(&pod.namespace, &pod.name).unwrap();
    let other = made(api, node, &pod.namespace, &pod.name);
    assert_ne!(other.uid, pod.uid);
    other
}

/// One that runs with a GPU, whose index is answered, and that the agent knows by name.
async fn with_gpu(testbed: &Testbed, namespace: &str, name: &str) -> (PodRef, usize) {
    let pod = made(&testbed.api, testbed.name(), namespace, name);
    let given = testbed.kubelet.admit(&pod, "main", &[(GPU, 1)]).await.unwrap();
    testbed.kubelet.start_container(&pod, "main").await.unwrap();
    let id = given[GPU].devices.keys().next().unwrap().clone();
    given::until("the container's name", || {
        let records = given::records(testbed);
        let mut containers = records.iter().filter_map(|record| record.plan.holder.container());
        containers.any(|one| one.id == id && one.name.is_some())
    })
    .await;
    let gpus = testbed.machine.snapshot().unwrap().gpus;
    (pod, gpus.iter().position(|gpu| gpu.uuid == id).unwrap())
}

fn uid(testbed: &Testbed, pod: &PodRef) -> Option<String> {
    testbed.api.get::<Pod>(&pod.namespace, &pod.name).ok()?.metadata.uid
}

async fn gone(testbed: &Testbed, pod: &PodRef) {
    let gone = testbed.api.wait_until(|_| uid(testbed, pod).is_none());
    testbed.agent.as_ref().unwrap().while_running(gone).await.unwrap();
}

fn notes(testbed: &Testbed, reason: &str) -> BTreeSet<String> {
    let events = testbed.api.list::<Event>().into_iter();
    let of_reason = events.filter(|event| event.reason.as_deref() == Some(reason));
    of_reason.filter_map(|event| event.note).collect()
}

/// Pods are looked at in the order of their names, so that one has been when the next is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_took_the_name_of_another_stays() {
    let testbed = start(3).await;
    let (first, first_gpu) = with_gpu(&testbed, "default", "a").await;
    let (system, system_gpu) = with_gpu(&testbed, "kube-system", "a").await;
    testbed
        .api
        .apply(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "z" } }))
        .unwrap();
    let (last, last_gpu) = with_gpu(&testbed, "z", "a").await;
    // The kubelet has not yet heard of it.
    let other = replaced(&testbed.api, testbed.name(), &first);
    for gpu in [first_gpu, system_gpu, last_gpu] {
        testbed.machine.xid(gpu, XID, None, None).unwrap();
    }
    gone(&testbed, &last).await;
    assert_eq!(uid(&testbed, &first), Some(other.uid));
    assert_eq!(uid(&testbed, &system), Some(system.uid), "what the cluster runs on");
    assert_eq!(testbed.api.count("POST", "/eviction"), 1);
    let notes = notes(&testbed, "PodNotEvicted");
    let note = "pod `kube-system/a` is not evicted yet: pods of kube-system are left alone; delete it yourself";
    assert!(notes.iter().all(|one| one == note) && !notes.is_empty(), "{notes:?}");
}

/// Between the look and the eviction.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_replaced_meanwhile_stays() {
    let testbed = start(2).await;
    let (first, first_gpu) = with_gpu(&testbed, "default", "a").await;
    let (last, last_gpu) = with_gpu(&testbed, "default", "b").await;
    let other = Arc::new(Mutex::new(None));
    let (api, node) = (testbed.api.clone(), testbed.name().to_owned());
    let (told, pod) = (other.clone(), first.clone());
    let replace = move || *told.lock().unwrap() = Some(replaced(&api, &node, &pod).uid);
    testbed.api.inject(Fault::before(replace).on("POST", "/pods/a/eviction"));
    testbed.machine.xid(first_gpu, XID, None, None).unwrap();
    testbed.machine.xid(last_gpu, XID, None, None).unwrap();
    gone(&testbed, &last).await;
    let other = other.lock().unwrap().take();
    assert!(other.is_some() && uid(&testbed, &first) == other, "{other:?}");
    assert_eq!(testbed.api.count("POST", "/pods/a/eviction"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_evicted_by_name_alone() {
    let testbed = start(1).await;
    let (pod, gpu) = with_gpu(&testbed, "default", "a").await;
    let file = testbed.device_plugins_dir().join("kubelet_internal_checkpoint");
    let kept = fs::read(&file).unwrap();
    let of_nobody = r#"{"Data": {"PodDeviceEntries": null}}"#;
    let known = |words: &'static str| {
        let testbed = &testbed;
        given::until(words, move || {
            notes(testbed, "PodNotEvicted").iter().any(|note| note.contains(words))
        })
    };
    // The kubelet writes it anew when a device is unhealthy, and cannot now.
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(file.join("full")).unwrap();
    testbed.machine.xid(gpu, XID, None, None).unwrap();
    known("which pod has its devices is not known: `").await;
    fs::remove_dir_all(&file).unwrap();
    write_atomic(&file, of_nobody.as_bytes(), 0o600).unwrap();
    known("the kubelet's file names none").await;
    assert_eq!(uid(&testbed, &pod), Some(pod.uid.clone()));
    assert_eq!(testbed.api.count("POST", "/eviction"), 0);
    write_atomic(&file, &kept, 0o600).unwrap();
    gone(&testbed, &pod).await;
}
