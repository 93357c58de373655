//! Several processes at one machine: each is this test program, run again.

use std::{
    env,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use kerf_nvml::{Effect, Fault, Machine, Model};

use crate::rig::*;

const LIBRARY: &str = "KERF_NVML_TEST_LIBRARY";

/// Cuts the first GPU with the library at hand: tries a 1g instance at each place, and fills it.
#[test]
#[ignore = "the other tests of this file run it in processes of their own"]
fn cutter() {
    let Some(path) = env::var_os(LIBRARY) else { return };
    let nvml = Library::load(Path::new(&path));
    nvml.init().unwrap();
    let gpu = nvml.gpu(0).unwrap();
    for start in 0..7 {
        match nvml.create(gpu, 19, start, 1) {
            Ok(instance) => assert!(nvml.create_compute(instance, 0).is_ok()),
            Err(code) => assert_eq!(code, INSUFFICIENT_RESOURCES),
        }
    }
    nvml.shutdown().unwrap();
}

fn start(machine: &Machine) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "processes::cutter", "--ignored"]).env(LIBRARY, machine.library());
    command.stdout(Stdio::null()).spawn().unwrap()
}

fn run(machine: &Machine) -> ExitStatus {
    start(machine).wait().unwrap()
}

#[test]
fn of_two_who_want_one_place_one_gets_it() {
    let rig = Rig::cut(&[Model::H100_80]);
    let children: Vec<_> = (0..4).map(|_| start(&rig.machine)).collect();
    let exits = children.into_iter().map(|mut child| child.wait().unwrap().success());
    assert_eq!(exits.collect::<Vec<_>>(), [true; 4]);
    let instances = &rig.machine.snapshot().unwrap().gpus[0].instances;
    let made: Vec<_> = instances.iter().map(|one| (one.start, one.compute.len())).collect();
    assert_eq!(made, [0, 1, 2, 3, 4, 5, 6].map(|start| (start, 1)));
    let gpu = rig.gpu(0).unwrap();
    assert_eq!(rig.instances(gpu, 19).map(|list| list.len()), Ok(7), "it outlives who made it");
}

/// Instances and compute instances after a process was killed at its second creation.
fn killed(effect: Effect, function: &str) -> (usize, usize) {
    let rig = Rig::cut(&[Model::H100_80]);
    rig.machine.inject(Fault { at: 2, ..Fault::next(function, effect) }).unwrap();
    assert_eq!(run(&rig.machine).signal(), Some(9));
    let instances = &rig.machine.snapshot().unwrap().gpus[0].instances;
    (instances.len(), instances.iter().map(|one| one.compute.len()).sum())
}

#[test]
fn a_process_is_killed_before_a_call_or_after_it() {
    let (gpu, compute) =
        ("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance");
    let kills = [
        killed(Effect::Kill, gpu),
        killed(Effect::KillAfter, gpu),
        killed(Effect::Kill, compute),
        killed(Effect::KillAfter, compute),
    ];
    assert_eq!(kills, [(1, 1), (2, 1), (2, 1), (2, 2)]);
}

#[test]
fn what_a_killed_process_left_in_procfs_is_set_right() {
    let rig = Rig::cut(&[Model::H100_80]);
    let mig = rig.machine.proc_root().join("driver/nvidia/capabilities/gpu0/mig");
    rig.machine.create_instance(0, 19, 0, true).unwrap();
    std::fs::remove_file(mig.join("gi7/ci0/access")).unwrap();
    std::fs::create_dir(mig.join("gi9")).unwrap();
    rig.shutdown().unwrap();
    rig.init().unwrap();
    assert!(mig.join("gi7/ci0/access").is_file());
    assert!(!mig.join("gi9").exists());
}
