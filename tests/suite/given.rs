//! What tests start from and look at: nodes, claims that were allocated, and what is there of them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use k8s_openapi::api::resource::v1::ResourceClaim;
use kerf::model::{
    claim::ClaimRef,
    record::{Record, State},
    status::Status,
};
use kerf_nvml::node::{Model, NodeDescription};
use kerf_testbed::{
    agent::{Agent, AgentOptions},
    node::{Builder, DRIVER, Testbed},
};
use serde_json::{Value, json};

/// A node of this many GPUs with the real agent.
pub(crate) fn node(model: Model, gpus: usize) -> Builder {
    of(NodeDescription::uniform(model, gpus))
}

/// A node with this machine and the real agent.
pub(crate) fn of(machine: NodeDescription) -> Builder {
    Testbed::builder(machine, [env!("CARGO_BIN_EXE_kerf")])
}

/// A claim with a request for each of these devices, allocated and reserved for a pod.
pub(crate) fn claim(testbed: &Testbed, name: &str, devices: &[&str]) -> ClaimRef {
    let results: Vec<Value> = devices
        .iter()
        .enumerate()
        .map(|(n, device)| {
            json!({
                "request": format!("r{n}"), "driver": DRIVER,
                "pool": testbed.name(), "device": device,
            })
        })
        .collect();
    claim_with(testbed, name, devices.len(), json!({ "devices": { "results": results } }))
}

/// A claim with this many requests, `r0` and so on, and this allocation.
pub(crate) fn claim_with(
    testbed: &Testbed,
    name: &str,
    requests: usize,
    allocation: Value,
) -> ClaimRef {
    let requests: Vec<Value> = (0..requests)
        .map(|n| json!({ "name": format!("r{n}"), "exactly": { "deviceClassName": DRIVER } }))
        .collect();
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "devices": { "requests": requests } },
    });
    let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
    let mut claim = testbed.api.create(&claim).unwrap();
    let status = json!({
        "allocation": allocation,
        "reservedFor": [{ "resource": "pods", "name": format!("{name}-pod"), "uid": "pod-uid" }],
    });
    claim.status = Some(serde_json::from_value(status).unwrap());
    let claim = testbed.api.update_status(&claim).unwrap();
    ClaimRef {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: claim.metadata.uid.unwrap(),
    }
}

/// The records on disk.
pub(crate) fn records(testbed: &Testbed) -> Vec<Record> {
    let (records, unreadable) = kerf::node::store::look(&testbed.state_dir()).unwrap();
    assert_eq!(unreadable, []);
    records
}

/// The claims on disk that are prepared, by name.
pub(crate) fn prepared(testbed: &Testbed) -> Vec<String> {
    let records = records(testbed).into_iter();
    let prepared = records.filter(|record| matches!(record.state, State::Prepared { .. }));
    prepared.map(|record| record.plan.holder.claim().unwrap().name.clone()).collect()
}

/// The claims on disk that are prepared, by name; none where a record cannot be read.
pub(crate) fn prepared_if_readable(testbed: &Testbed) -> Vec<String> {
    let (_, unread) = kerf::node::store::look(&testbed.state_dir()).unwrap();
    if unread.is_empty() { prepared(testbed) } else { Vec::new() }
}

/// Profile id and place of every instance, GPU by GPU.
pub(crate) fn cut(testbed: &Testbed) -> Vec<Vec<(u32, u32)>> {
    let snapshot = testbed.machine.snapshot().unwrap();
    let gpus = snapshot.gpus.iter().map(|gpu| {
        let mut places: Vec<_> =
            gpu.instances.iter().map(|instance| (instance.profile, instance.start)).collect();
        places.sort_unstable();
        places
    });
    gpus.collect()
}

/// Names of the CDI files, each of which runtimes would read.
pub(crate) fn cdi_files(testbed: &Testbed) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(testbed.cdi_root()).unwrap() {
        let path = entry.unwrap().path();
        let spec: kerf::model::cdi::Spec =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        spec.validate().unwrap();
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    names
}

/// Status and text of `/readyz`.
pub(crate) fn readiness(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// How an agent ends that cannot start, and the end of what it says.
pub(crate) async fn refusal(testbed: &Testbed, change: impl FnOnce(&mut AgentOptions)) -> String {
    let mut options = testbed.agent_options("a").unwrap();
    options.log = testbed.kubelet_root().join("refusal.log");
    let _ = std::fs::remove_file(&options.log);
    change(&mut options);
    let agent = Agent::spawn(&options).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), agent.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(1));
    agent.tail().lines().last().unwrap_or_default().to_owned()
}

/// What the acting agent says of itself.
pub(crate) fn status(testbed: &Testbed) -> Option<Status> {
    let mut text = Vec::new();
    let socket = testbed.state_dir().join("agent.sock");
    UnixStream::connect(socket).ok()?.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Waits, for as long as anything may take on a busy machine.
pub(crate) async fn until(what: &str, reached: impl Fn() -> bool) {
    let waiting = async {
        while !reached() {
            // Others want the processor too: the agent, and the tests beside this one.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap_or_else(|_| panic!("it never comes to this: {what}"));
}
