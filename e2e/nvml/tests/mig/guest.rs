//! The library inside a container: with a root of its own, the files that a runtime mounts into it, and
//! the nodes that it makes there.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Lines, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt, chroot},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use kerf_nvml::{Machine, Model, NodeDescription};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::rig::*;

/// Where the container's root is, for the process that is to enter it.
const ROOT: &str = "KERF_NVML_TEST_ROOT";
const LIBRARY: &str = "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05";
const FIRMWARE: &str = "lib/firmware/nvidia/580.95.05";
/// How a line begins that is an answer and not the test harness's.
const ANSWER: &str = "answer: ";

/// Makes a root of what it is told and runs a program, in mounts of its own: `$1` the root, `$2` the
/// program, then `file <from> <to>` and `node <path> <major> <minor>`.
const RUNTIME: &str = r#"
root=$1 program=$2
shift 2
mkdir "$root/proc" "$root/dev"
mount --rbind /proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/nvidia-caps"
while [ $# -gt 0 ]; do
  case $1 in
  file)
    mkdir -p "$(dirname "$root/$3")"
    touch "$root/$3"
    mount --bind "$2" "$root/$3"
    mount -o remount,bind,ro,nosuid,nodev "$root/$3"
    shift 3 ;;
  node)
    mknod -m 444 "$root/$2" c "$3" "$4"
    shift 4 ;;
  esac
done
KERF_NVML_TEST_ROOT=$root exec "$program" --exact guest::inside --ignored --nocapture
"#;

/// Everything that a program finds.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct View {
    /// Minor number, UUID, and the UUIDs of the MIG devices, in the order of their indices.
    gpus: Vec<(u32, String, Vec<String>)>,
    /// Ids of the GPU instances, GPU by GPU.
    instances: Vec<Vec<u32>>,
    /// What is answered to each UUID that was asked for.
    found: Vec<Answer<()>>,
    /// What is answered to changes of the first GPU.
    changes: Vec<Answer<()>>,
    /// Nodes that cannot be opened.
    shut: Vec<String>,
}

struct Container {
    child: Child,
    questions: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    _root: TempDir,
}

impl Container {
    /// With `/dev/nvidiactl` and these nodes, by name and number.
    fn start(machine: &Machine, nodes: &[(String, u32)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", RUNTIME, "sh"]);
        command.arg(root.path()).arg(env::current_exe().unwrap());
        let firmware = fs::read_dir(machine.driver_root().join(FIRMWARE)).unwrap();
        let firmware = firmware.map(|file| Path::new(FIRMWARE).join(file.unwrap().file_name()));
        for file in firmware.chain([PathBuf::from(LIBRARY)]) {
            command.arg("file").arg(machine.driver_root().join(&file)).arg(file);
        }
        let control = ("nvidiactl".to_owned(), 255);
        for (name, minor) in nodes.iter().chain([&control]) {
            command.args(["node", &format!("dev/{name}"), "4", &minor.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { questions: child.stdin.take(), child, answers, _root: root }
    }

    /// What the process in the container sees now, and what it is answered to these UUIDs.
    fn look(&mut self, uuids: &[&str]) -> View {
        let questions = self.questions.as_mut().unwrap();
        writeln!(questions, "{}", serde_json::to_string(uuids).unwrap()).unwrap();
        let answer = self.answers.find_map(|line| {
            line.unwrap().strip_prefix(ANSWER).map(|text| serde_json::from_str(text).unwrap())
        });
        answer.expect("the process in the container goes on")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.questions = None;
        let _ = self.child.wait();
    }
}

/// Answers what it sees for as long as it is asked.
#[test]
#[ignore = "the other tests of this file run it in containers"]
fn inside() {
    let Some(root) = env::var_os(ROOT) else { return };
    chroot(root).unwrap();
    env::set_current_dir("/").unwrap();
    let nvml = Library::load(&Path::new("/").join(LIBRARY));
    nvml.init().unwrap();
    for question in io::stdin().lines() {
        let uuids: Vec<String> = serde_json::from_str(&question.unwrap()).unwrap();
        println!("\n{ANSWER}{}", serde_json::to_string(&view(&nvml, &uuids)).unwrap());
    }
}

fn view(nvml: &Library, uuids: &[String]) -> View {
    let gpus: Vec<_> = (0..nvml.count().unwrap()).map(|index| nvml.gpu(index).unwrap()).collect();
    let mut view = View { shut: shut(), ..View::default() };
    for (index, &gpu) in (0..).zip(&gpus) {
        assert_eq!(nvml.index(gpu), Ok(index));
        let devices = (0..7).map_while(|index| nvml.mig_device(gpu, index).ok());
        let devices = devices.map(|device| nvml.uuid(device).unwrap()).collect();
        view.gpus.push((nvml.minor(gpu).unwrap(), nvml.uuid(gpu).unwrap(), devices));
        view.instances.push((0..15).filter(|id| nvml.instance(gpu, *id).is_ok()).collect());
    }
    view.found = uuids.iter().map(|uuid| nvml.by_uuid(uuid).map(|_| ())).collect();
    if let Some(&gpu) = gpus.first() {
        view.changes = vec![
            nvml.set_mig_mode(gpu, 0).map(|_| ()),
            nvml.create(gpu, 19, 0, 1).map(|_| ()),
            nvml.remaining(gpu, 19).map(|_| ()),
        ];
        if let Ok(device) = nvml.mig_device(gpu, 0) {
            let instance = nvml.instance(gpu, nvml.instance_id(device).unwrap()).unwrap();
            view.changes.push(nvml.destroy(instance));
        }
    }
    view
}

fn shut() -> Vec<String> {
    let nodes = ["/dev", "/dev/nvidia-caps"].map(|dir| fs::read_dir(dir).unwrap());
    let nodes = nodes.into_iter().flatten().map(|entry| entry.unwrap());
    let nodes = nodes.filter(|node| node.file_type().unwrap().is_char_device());
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(i32::try_from(OFlags::NOCTTY.bits()).unwrap());
    let shut = nodes.map(|node| node.path()).filter(|path| options.open(path).is_err());
    shut.map(|path| path.display().to_string()).collect()
}

/// A machine for containers. A test that cannot run fails in CI; by hand it says so and is left out.
fn machine(models: &[Model]) -> Option<Rig> {
    let rig = Rig::of(&NodeDescription::mixed(models).with_mig_enabled().for_containers());
    let unshare = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    let mounts = unshare.is_ok_and(|status| status.success());
    if mounts && rig.machine.dev_root().join("dev/nvidia0").exists() {
        return Some(rig);
    }
    let lacking = "only root can make mounts and device nodes";
    // Not by `eprintln`, which the harness hides in a test that passes.
    let _ = writeln!(io::stderr(), "CANNOT RUN: {lacking}");
    assert!(env::var_os("CI").is_none(), "{lacking}");
    None
}

/// The nodes of the capabilities of an instance and of the compute instance in it.
fn capabilities(rig: &Rig, gpu: u32, instance: u32) -> [(String, u32); 2] {
    let mig = format!("driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}");
    ["access", "ci0/access"].map(|name| {
        let text = fs::read_to_string(rig.machine.proc_root().join(&mig).join(name)).unwrap();
        let minor = text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor: "));
        let minor = minor.unwrap().parse().unwrap();
        (format!("nvidia-caps/nvidia-cap{minor}"), minor)
    })
}

fn whole(minor: u32) -> (String, u32) {
    (format!("nvidia{minor}"), minor)
}

const REFUSED: Answer<()> = Err(NO_PERMISSION);

#[test]
fn a_container_sees_the_gpus_that_it_has_nodes_of() {
    let Some(rig) = machine(&[Model::H100_80, Model::T4, Model::A30]) else { return };
    let uuids = [0, 1, 2].map(|index| rig.uuid(rig.gpu(index).unwrap()).unwrap());
    let seen = |minor: u32| (minor, uuids[minor as usize].clone(), vec![]);
    let given: [&[u32]; 4] = [&[], &[1], &[2, 0], &[0, 1, 2]];
    for minors in given {
        let nodes: Vec<_> = minors.iter().map(|minor| whole(*minor)).collect();
        let view =
            Container::start(&rig.machine, &nodes).look(&uuids.each_ref().map(|uuid| &**uuid));
        let mut minors = minors.to_vec();
        minors.sort_unstable();
        let found = |minor| if minors.contains(&minor) { Ok(()) } else { Err(NOT_FOUND) };
        let expected = View {
            gpus: minors.iter().copied().map(seen).collect(),
            instances: vec![vec![]; minors.len()],
            found: [0, 1, 2].map(found).to_vec(),
            changes: if minors.is_empty() { vec![] } else { vec![REFUSED; 3] },
            shut: vec!["/dev/nvidiactl".to_owned()],
        };
        assert_eq!(view, expected);
    }
}

#[test]
fn a_container_sees_the_instances_that_it_has_both_nodes_of_as_they_come_and_go() {
    let Some(rig) = machine(&[Model::A30, Model::H100_80]) else { return };
    let uuid = rig.uuid(rig.gpu(1).unwrap()).unwrap();
    let make = |profile, start| {
        let made = rig.machine.create_instance(1, profile, start, true).unwrap();
        (made.id, made.compute[0].uuid.clone())
    };
    let [(other, hidden), (id, given), (half, _)] = [make(19, 0), make(14, 2), make(9, 4)];
    let [one, _] = capabilities(&rig, 1, half);
    let [gi, ci] = capabilities(&rig, 1, id);
    let not_its_number = ("nvidia0".to_owned(), 5);
    let nodes = [whole(1), gi, ci, one, not_its_number];
    let mut container = Container::start(&rig.machine, &nodes);
    let expected = |devices: Vec<(u32, String)>, found: &[Answer<()>]| {
        let (ids, uuids): (Vec<_>, Vec<_>) = devices.into_iter().unzip();
        View {
            changes: vec![REFUSED; 3 + ids.len()],
            gpus: vec![(1, uuid.clone(), uuids)],
            instances: vec![ids],
            found: found.to_vec(),
            shut: vec!["/dev/nvidiactl".to_owned()],
        }
    };
    let missing = Err(NOT_FOUND);
    let view = container.look(&[&hidden, &given]);
    assert_eq!(view, expected(vec![(id, given.clone())], &[missing, Ok(())]));

    rig.machine.destroy_instance(1, 2).unwrap();
    assert_eq!(container.look(&[&given]), expected(vec![], &[missing]));
    for start in [2, 3] {
        make(19, start);
    }
    assert_eq!(container.look(&[]), expected(vec![], &[]), "others where it was");
    for start in [2, 3] {
        rig.machine.destroy_instance(1, start).unwrap();
    }
    let again = make(14, 2);
    assert_eq!(container.look(&[&given, &again.1]), expected(vec![again], &[missing, Ok(())]));
    assert_eq!(rig.machine.snapshot().unwrap().gpus[1].instances.len(), 3, "and {other}");
}
