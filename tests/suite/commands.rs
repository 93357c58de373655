//! `kerf inventory` and `kerf status` as people run them: the real program on a simulated node.

use std::process::{Command, Output};

use kerf::model::status::{AgentState, ClaimState, Status};
use kerf_nvml::{Effect, Fault, Model, NodeDescription};
use kerf_testbed::node::Testbed;
use serde_json::Value;

use crate::{
    claims::{prepare, unprepare},
    given,
};

/// Runs a subcommand with the flags that say where the machine is, and no environment.
pub(crate) fn kerf(testbed: &Testbed, arguments: &[&str]) -> Output {
    let machine = &testbed.machine;
    let paths = [
        ("--nvml-library", machine.library()),
        ("--driver-root", machine.driver_root()),
        ("--dev-root", machine.dev_root()),
        ("--proc-root", machine.proc_root()),
        ("--sys-root", machine.sys_root()),
        ("--kubelet-plugins-directory-path", testbed.kubelet_root().join("plugins")),
        ("--cdi-root", testbed.cdi_root()),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_kerf"));
    command.env_clear().env("LANG", "C.UTF-8").args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

/// What it prints when all is well.
pub(crate) fn text(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}{}", complaint(output));
    text
}

/// What it says when it is not.
pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

async fn busy_node() -> Testbed {
    let models = [Model::H100_80, Model::A30, Model::L4];
    let testbed = given::of(NodeDescription::mixed(&models)).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2", "gpu-2"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.create_instance(0, 9, 4, true).unwrap();
    testbed
}

#[tokio::test(flavor = "multi_thread")]
async fn inventory_is_a_picture_for_people() {
    let testbed = busy_node().await;
    let inventory = kerf(&testbed, &["inventory", "--node-name", "node-a"]);
    insta::assert_snapshot!(text(&inventory));
    let inventory = kerf(&testbed, &["inventory"]);
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    assert!(text(&inventory).starts_with(&format!("node {host} · driver ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn inventory_is_a_document_for_programs() {
    let testbed = busy_node().await;
    let json = text(&kerf(&testbed, &["inventory", "-o", "json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    let yaml = text(&kerf(&testbed, &["inventory", "-o", "yaml"]));
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), json);
    let products = json["gpus"].as_array().unwrap().iter().map(|gpu| gpu["product"].as_str());
    let expected = ["NVIDIA H100 80GB HBM3", "NVIDIA A30", "NVIDIA L4"].map(Some);
    assert_eq!(products.collect::<Vec<_>>(), expected);
    let claims = json["claims"].as_array().unwrap().iter();
    let claims: Vec<_> = claims.map(|claim| claim["device"].as_str().unwrap()).collect();
    assert_eq!(claims, ["gpu-0-mig-2g20gb-14-2", "gpu-2"]);
}

/// What it says would be published is what the agent has published.
#[tokio::test(flavor = "multi_thread")]
async fn inventory_prints_the_slices_of_the_agent() {
    let testbed = given::node(Model::H100_80, 3).start().await.unwrap();
    let slices = text(&kerf(&testbed, &["inventory", "-o", "slices", "--node-name", "node-a"]));
    let slices = slices.split("---\n").skip(1).map(|slice| serde_saphyr::from_str(slice).unwrap());
    let printed: Vec<Value> = slices.map(|slice: Value| slice["spec"].clone()).collect();
    let published = testbed.slices().into_iter();
    let published: Vec<_> =
        published.map(|slice| serde_json::to_value(slice.spec).unwrap()).collect();
    assert_eq!(printed, published);
}

#[tokio::test(flavor = "multi_thread")]
async fn inventory_needs_neither_agent_nor_cluster_and_finds_the_library_itself() {
    let testbed = given::node(Model::T4, 1).start_without_agent().await.unwrap();
    let root = testbed.machine.driver_root();
    let run = |root: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kerf"));
        command.env_clear().args(["inventory", "--node-name", "n", "--state-dir", "/nowhere"]);
        command.arg("--driver-root").arg(root).output().unwrap()
    };
    let found = text(&run(&root));
    assert!(found.starts_with("node n, driver "), "not in a UTF-8 locale: {found}");
    assert!(found.contains("GPU 0  Tesla T4  GPU-"), "{found}");
    let missing = run(std::path::Path::new("/nowhere"));
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        complaint(&missing),
        "kerf: cannot ask the NVIDIA driver; load it, or name its library with `--nvml-library`: nvmlInitWithFlags: \
         a libloading error occurred: libnvidia-ml.so.1: cannot open shared object file: No such file or directory\n"
    );
    testbed.machine.unload_driver().unwrap();
    let unloaded = kerf(&testbed, &["inventory"]);
    assert_eq!(unloaded.status.code(), Some(1));
    assert_eq!(
        complaint(&unloaded),
        "kerf: cannot ask the NVIDIA driver; load it, or name its library with `--nvml-library`: nvmlInitWithFlags: \
         NVIDIA driver is not loaded\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_answers_with_errors_is_shown_with_its_reason() {
    const UNKNOWN: u32 = 999;
    let testbed = given::node(Model::L4, 3).start_without_agent().await.unwrap();
    let fault = Fault::always("nvmlDeviceGetMemoryInfo", Effect::Fail(UNKNOWN)).on_gpu(1);
    testbed.machine.inject(fault).unwrap();
    testbed.machine.lose_gpu(2).unwrap();
    let inventory = text(&kerf(&testbed, &["inventory", "--node-name", "node-a"]));
    let kubelet = testbed.kubelet_root().display().to_string();
    insta::assert_snapshot!(inventory.replace(&kubelet, "/kubelet"));
}

fn status(output: &Output) -> Status {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_asks_the_agent_and_reads_the_records_when_it_is_down() {
    let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2", "gpu-1"]);
    prepare(&testbed, &claim).await.unwrap();
    let live = kerf(&testbed, &["status", "-o", "json"]);
    assert_eq!(live.status.code(), Some(0));
    let live = status(&live);
    assert_eq!(live.agent.unwrap().state, AgentState::Serving);
    assert!(live.kubelet.unwrap().registered);
    let claims = live.claims;
    let told: Vec<_> = claims
        .iter()
        .map(|claim| (claim.name.as_str(), claim.pods[0].as_str(), claim.device.as_str()))
        .collect();
    assert_eq!(told, [("c", "c-pod", "gpu-0-mig-2g20gb-14-2"), ("c", "c-pod", "gpu-1")]);
    let uuid = testbed.machine.snapshot().unwrap().gpus[0].instances[0].compute[0].uuid.clone();
    assert_eq!(claims[0].uuid, Some(uuid));
    assert!(claims.iter().all(|claim| claim.state == ClaimState::Prepared));

    testbed.agent.take().unwrap().kill().await.unwrap();
    let down = kerf(&testbed, &["status", "-o", "json"]);
    assert_eq!(down.status.code(), Some(1), "nobody answers");
    let down = status(&down);
    assert_eq!((down.agent, down.claims), (None, claims));
    let socket = testbed.state_dir().join("agent.sock");
    let expected =
        format!("no agent answers on `{}`: Connection refused (os error 111)", socket.display());
    assert_eq!(down.error, Some(expected));
    testbed.machine.reboot().unwrap();
    let after = status(&kerf(&testbed, &["status", "-o", "json"]));
    assert!(after.claims.iter().all(|claim| claim.state == ClaimState::EarlierBoot));

    testbed.start_agent("b").await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    let table = text(&kerf(&testbed, &["status"]));
    assert!(table.ends_with("\n\nno claims\n"), "{table}");
}

/// Flags and environment are an interface: manifests name them.
#[test]
fn help_lists_what_manifests_may_say() {
    for command in ["node", "inventory", "status"] {
        let mut kerf = Command::new(env!("CARGO_BIN_EXE_kerf"));
        let help = kerf.env_clear().args([command, "-h"]).output().unwrap();
        insta::assert_snapshot!(format!("help_of_{command}"), text(&help));
    }
}

#[test]
fn a_line_that_means_nothing_is_refused_with_usage() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kerf"));
        command.env_clear().args(arguments).output().unwrap()
    };
    for arguments in
        [&["node"][..], &["inventory", "-o", "xml"], &["status", "--all"], &["nod"], &[]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(complaint(&output).contains("help"), "{arguments:?}");
    }
    let bad = run(&["node", "--node-name", "n", "--log", "=="]);
    assert_eq!(bad.status.code(), Some(1));
    let complaint = complaint(&bad);
    assert!(complaint.starts_with("kerf: `--log` is not a list of levels: "), "{complaint}");
}
