//! What stops the start, with one line that says what to do, and changes nothing.

use std::{fs, os::unix::net::UnixListener, path::PathBuf};

use kerf::node::lock;
use kerf_nvml::Model;
use kerf_testbed::node::Testbed;
use serde_json::json;

use super::{Left, MIDDLE, SMALL, TAKEN, node, theirs, write};
use crate::{claims::prepare, given};

/// The content of the files of NVIDIA's driver.
fn content(testbed: &Testbed) -> Vec<(PathBuf, Vec<u8>)> {
    let dirs = [testbed.state_dir(), testbed.cdi_root()];
    let names = theirs(testbed).into_iter();
    let paths = names.flat_map(|name| dirs.each_ref().map(|dir| dir.join(&name)));
    paths.filter_map(|path| Some((path.clone(), fs::read(&path).ok()?))).collect()
}

/// The reason in the line of an agent that finds this checkpoint and refuses to start.
async fn reason(testbed: &Testbed) -> String {
    let (before, machine) = (content(testbed), testbed.machine.snapshot().unwrap());
    let line = given::refusal(testbed, |_| {}).await;
    assert_eq!(content(testbed), before, "{line}");
    assert_eq!(testbed.machine.snapshot().unwrap(), machine);
    assert_eq!(given::records(testbed), []);
    let checkpoint = testbed.state_dir().join("checkpoint.json");
    let begin = format!("kerf: cannot take over `{}` from NVIDIA's driver: ", checkpoint.display());
    let end = "; drain the node and remove the file, or go back to NVIDIA's driver";
    line.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(end)).expect(&line).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_kerf_does_not_understand() {
    let mut testbed = node("dynamic").await;
    let claim = given::claim(&testbed, "c", &[SMALL]);
    testbed.machine.create_instance(0, 19, 4, true).unwrap();
    let checkpoint = Left::on(&testbed).prepared(&claim, &[SMALL]).checkpoint();
    let uid = &claim.uid;
    let mut newer = checkpoint.clone();
    newer["v3"] = json!({});
    write(&testbed, &newer);
    assert_eq!(reason(&testbed).await, "format v3 is not known to this version of Kerf");
    let mut mps = checkpoint.clone();
    let group = &mut mps["v2"]["preparedClaims"][uid]["preparedDevices"][0];
    group["configState"]["mpsControlDaemonID"] = json!("c-0a1b2");
    write(&testbed, &mps);
    assert_eq!(
        reason(&testbed).await,
        format!("claim `unknown/{uid}`: it shares its devices by MPS, which Kerf does not do")
    );
    write(&testbed, &json!("half"));
    assert!(reason(&testbed).await.starts_with("invalid type: string \"half\""));

    // Removed as the line says, it is not missed.
    fs::remove_file(testbed.state_dir().join("checkpoint.json")).unwrap();
    testbed.start_agent("a").await.unwrap();
    assert_eq!(given::cut(&testbed), [vec![(19, 4), (19, 6)], vec![]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mig_devices_when_nobody_says_whose_they_are() {
    let testbed = given::node(Model::H100_80, 1).start_without_agent().await.unwrap();
    let claim = given::claim(&testbed, "c", &[MIDDLE]);
    testbed.machine.set_mig_mode(0, true).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    Left::on(&testbed).prepared(&claim, &[MIDDLE]).write();
    let said = reason(&testbed).await;
    assert!(said.contains(&format!("who made MIG device `{MIDDLE}`: set `--adopt-mig`")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nvidias_driver_while_it_is_alive() {
    let mut testbed = node("dynamic").await;
    let claim = given::claim(&testbed, "c", &["gpu-1"]);
    Left::on(&testbed).prepared(&claim, &["gpu-1"]).write();
    let before = content(&testbed);
    let [dra, registration] = [
        testbed.state_dir().join("dra.sock"),
        testbed.kubelet_root().join("plugins_registry/gpu.nvidia.com-reg.sock"),
    ];
    let alive = UnixListener::bind(&dra).unwrap();
    assert_eq!(
        given::refusal(&testbed, |_| {}).await,
        format!(
            "kerf: another driver named `gpu.nvidia.com` is alive on this node, at `{}`; remove NVIDIA's DRA driver \
             first (its DaemonSet, or the label that brings it to this node)",
            dra.display()
        )
    );
    // It may be at a call when its sockets are gone.
    drop(alive);
    let at_work = lock::try_lock(&testbed.state_dir().join("pu.lock")).unwrap().unwrap();
    assert_eq!(
        given::refusal(&testbed, |_| {}).await,
        "kerf: cannot take over from NVIDIA's driver while it is at work; remove its DaemonSet first"
    );
    drop(at_work);
    assert_eq!(content(&testbed), before);
    assert_eq!(given::records(&testbed), []);

    drop(UnixListener::bind(&registration).unwrap());
    testbed.start_agent("a").await.unwrap();
    assert_eq!(theirs(&testbed), TAKEN);
    assert_eq!([dra.exists(), registration.exists()], [true, true], "the dead are left alone");
    prepare(&testbed, &claim).await.unwrap();
}
