//! Containers that `runc` makes of the agent's CDI files: what programs find in them.

mod bundle;

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
};

use kerf::model::{cdi::ContainerEdits, claim::ClaimRef};
use kerf_nvml::{Model, NodeDescription};
use kerf_testbed::node::Testbed;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    claims::{prepare, spec},
    given,
};

/// A container whose first process waits for the end of its input.
struct Container {
    name: String,
    runc: Child,
    input: Option<ChildStdin>,
    dir: TempDir,
}

/// A GPU's UUID, and those of the MIG devices on it.
type Seen = (String, Vec<String>);

impl Container {
    /// With these edits, one after the other.
    fn start(edits: &[ContainerEdits]) -> Self {
        let dir = tempfile::Builder::new().prefix("kerf").tempdir().unwrap();
        bundle::root(&dir.path().join("rootfs"), edits);
        let mut config = fs::File::create(dir.path().join("config.json")).unwrap();
        write!(config, "{}", bundle::config(edits)).unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut runc = runc(dir.path(), &["run", "--bundle"]);
        runc.arg(dir.path()).arg(&name).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut runc = runc.spawn().unwrap();
        let mut up = String::new();
        BufReader::new(runc.stdout.take().unwrap()).read_line(&mut up).unwrap();
        assert_eq!(up, "up\n");
        Self { name, input: runc.stdin.take(), runc, dir }
    }

    /// With all devices of these claims.
    fn of(testbed: &Testbed, claims: &[&ClaimRef]) -> Self {
        let specs = claims.iter().map(|claim| spec(testbed, claim));
        let edits = specs.flat_map(|spec| {
            let devices = spec.devices.into_iter().map(|device| device.container_edits);
            [spec.container_edits].into_iter().chain(devices)
        });
        Self::start(&edits.collect::<Vec<_>>())
    }

    /// Runs a program in it and returns what it prints.
    fn run(&self, user: &str, words: &[&str]) -> Vec<u8> {
        let mut command = runc(self.dir.path(), &["exec", "--user", user, &self.name]);
        let Output { status, stdout, stderr } = command.args(words).output().unwrap();
        assert!(status.success(), "{words:?}: {}", String::from_utf8_lossy(&stderr));
        stdout
    }

    /// What `kerf inventory` finds now, run by anybody.
    fn devices(&self) -> Vec<Seen> {
        let words = [bundle::KERF, "inventory", "-o", "json", "--node-name", "inside"];
        let inventory: Value = serde_json::from_slice(&self.run("1000:1000", &words)).unwrap();
        assert_eq!(inventory["unreadable"], json!([]));
        let uuid = |value: &Value| value["uuid"].as_str().unwrap().to_owned();
        let devices = |gpu: &Value| {
            let instances = gpu["mig"]["instances"].as_array().into_iter().flatten();
            let compute = instances.flat_map(|gi| gi["compute"].as_array().unwrap());
            compute.map(uuid).collect()
        };
        let gpus = inventory["gpus"].as_array().unwrap().iter();
        gpus.map(|gpu| (uuid(gpu), devices(gpu))).collect()
    }

    /// The driver's nodes, each with whether anybody can open it.
    fn nodes(&self) -> Vec<String> {
        let each = "for node in /dev/nvidia* /dev/nvidia-caps/*; do test -c $node || continue; \
                    (: < $node) 2> /dev/null && echo $node || echo $node is shut; done";
        let lines = String::from_utf8(self.run("1000:1000", &["/bin/sh", "-c", each])).unwrap();
        lines.lines().map(str::to_owned).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.runc.wait();
    }
}

/// `runc` with its records beside the container's.
fn runc(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("runc");
    command.arg("--root").arg(dir.join("runc")).args(words);
    command
}

/// Whether real containers can be made here. A test that cannot run fails in CI; by hand it says so
/// and is left out.
fn possible(testbed: &Testbed) -> bool {
    let runs = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let lacking = if !testbed.machine.dev_root().join("dev/nvidia0").exists() {
        "only root can make device nodes"
    } else if !runs(&["unshare", "--mount", "true"]) {
        "no mounts can be made"
    } else if !runs(&["runc", "--version"]) {
        "`runc` is not installed"
    } else {
        return true;
    };
    // Not by `eprintln`, which the harness hides in a test that passes.
    let _ = writeln!(io::stderr(), "CANNOT RUN: {lacking}");
    assert!(env::var_os("CI").is_none(), "{lacking}");
    false
}

/// The GPU's UUID, and those of the MIG devices that begin at these memory slices.
fn seen(testbed: &Testbed, gpu: usize, starts: &[u32]) -> Seen {
    let gpu = testbed.machine.snapshot().unwrap().gpus.swap_remove(gpu);
    let begins = |start: &u32| gpu.instances.iter().find(|instance| instance.start == *start);
    let devices = starts.iter().flat_map(|start| &begins(start).unwrap().compute);
    (gpu.uuid.clone(), devices.map(|compute| compute.uuid.clone()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_the_devices_of_its_claims_as_they_are_now() {
    let node = NodeDescription::uniform(Model::H100_80, 3).for_containers();
    let testbed = given::of(node).start().await.unwrap();
    if !possible(&testbed) {
        return;
    }
    let devices = ["gpu-2", "gpu-0-mig-2g20gb-14-2", "gpu-0-mig-1g10gb-19-6"];
    let claims = devices.map(|device| given::claim(&testbed, device, &[device]));
    for claim in &claims {
        prepare(&testbed, claim).await.unwrap();
    }
    let [whole, part, other] = &claims;
    let seen = |gpu, starts: &[u32]| seen(&testbed, gpu, starts);
    let of = |claims: &[&ClaimRef]| Container::of(&testbed, claims).devices();
    assert_eq!(of(&[whole]), [seen(2, &[])]);
    assert_eq!(of(&[part, whole]), [seen(0, &[2]), seen(2, &[])]);
    assert_eq!(of(&[other, part]), [seen(0, &[2, 6])]);
    let driver = spec(&testbed, whole).container_edits;
    assert_eq!(Container::start(&[driver]).devices(), [], "the driver's files, and no device");

    let container = Container::of(&testbed, &[part]);
    assert_eq!(container.devices(), [seen(0, &[2])]);
    let nodes = [
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia0",
        "/dev/nvidiactl is shut",
        "/dev/nvidia-caps/nvidia-cap13",
        "/dev/nvidia-caps/nvidia-cap5",
    ];
    assert_eq!(container.nodes(), nodes);
    let before = seen(0, &[2]);
    testbed.machine.destroy_instance(0, 2).unwrap();
    assert_eq!(container.devices(), [seen(0, &[])]);
    testbed.machine.create_instance(0, 19, 2, true).unwrap();
    assert_eq!(container.devices(), [seen(0, &[])], "another where it was");
    testbed.machine.destroy_instance(0, 2).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    assert_eq!(container.devices(), [seen(0, &[2])]);
    assert_ne!(seen(0, &[2]), before);
}
