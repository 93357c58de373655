//! Containers that have GPUs without a claim: said in the log, in an event, and by `kerf status`.

use std::fs;

use k8s_openapi::api::events::v1::Event;
use kerf::node::store::write_atomic;
use kerf_nvml::Model;

use crate::{claims::prepare, given};

#[tokio::test(flavor = "multi_thread")]
async fn a_default_runtime_that_bypasses_claims_is_warned_of_until_it_is_not() {
    let mut testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    let config = testbed.host_root().join("etc/containerd/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let nvidia =
        b"[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"\n";
    write_atomic(&config, nvidia, 0o644).unwrap();
    testbed.start_agent("a").await.unwrap();
    let agent = testbed.agent.as_ref().unwrap();
    let warning = given::status(&testbed).unwrap().warnings;
    let [line] = warning.as_slice() else { panic!("{warning:?}") };
    assert!(line.starts_with("default runtime `nvidia` of containerd "), "{line}");
    assert!(agent.tail().contains(line.as_str()), "{}", agent.tail());
    let told = || {
        let events = testbed.api.list::<Event>().into_iter();
        let told: Vec<_> = events.map(|event| (event.reason, event.note)).collect();
        told == [(Some("ClaimsBypassed".to_owned()), Some(line.clone()))]
    };
    agent.while_running(given::until("an event", told)).await.unwrap();

    fs::remove_file(&config).unwrap();
    // What is refused makes the agent look at its node.
    let nowhere = given::claim(&testbed, "nowhere", &["gpu-9"]);
    prepare(&testbed, &nowhere).await.unwrap_err();
    let quiet = || given::status(&testbed).is_some_and(|status| status.warnings.is_empty());
    agent.while_running(given::until("no warning", quiet)).await.unwrap();
}
