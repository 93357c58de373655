//! The simulation as a program sees it: through the shared library, loaded by path.
//! Here: what real GPUs were seen to do when they are cut.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod faults;
mod gpm;
mod guest;
mod health;
mod life;
mod load;
mod processes;
mod rig;
mod topology;

use std::fs;

use kerf_nvml::{GpuDescription, Model, NodeDescription};
use rig::*;

/// What an index answers: the profile's id, or the code.
fn ids(rig: &Rig, gpu: u32) -> Vec<Answer<u32>> {
    let gpu = rig.gpu(gpu).unwrap();
    (0..19).map(|index| rig.profile(gpu, index).map(|profile| profile.id)).collect()
}

/// Answers by index: the ids that are there, NOT_SUPPORTED between them, INVALID_ARGUMENT after the last.
fn expected(present: &[(usize, u32)]) -> Vec<Answer<u32>> {
    let mut answers = vec![Err(NOT_SUPPORTED); 18];
    for &(index, id) in present {
        answers[index] = Ok(id);
    }
    answers.push(Err(INVALID_ARGUMENT));
    answers
}

#[test]
fn profiles_are_asked_for_by_index_and_created_by_id() {
    let rig = Rig::new(&[Model::H100_80, Model::A30, Model::RtxPro6000, Model::L4]);
    let eighths = [(0, 19), (1, 14), (2, 9), (3, 5), (4, 0), (7, 20), (9, 15)];
    assert_eq!(ids(&rig, 0), expected(&eighths));
    assert_eq!(ids(&rig, 1), expected(&[(0, 14), (1, 5), (3, 0), (7, 21), (8, 6)]));
    let rtx = [(0, 14), (1, 5), (3, 0), (7, 21), (10, 47), (11, 35), (12, 32), (13, 67), (14, 66)];
    assert_eq!(ids(&rig, 2), expected(&[rtx.as_slice(), &[(15, 65), (16, 64)]].concat()));
    assert_eq!(ids(&rig, 3), expected(&[]));

    let gpu = rig.gpu(0).unwrap();
    assert_eq!(rig.profile_name(gpu, 7), Ok("MIG 1g.10gb+me".to_owned()));
    assert_eq!(rig.profile_of_version(gpu, 7, 1), Err(ARGUMENT_VERSION_MISMATCH));
    assert_eq!(rig.placements(gpu, 15), Ok(vec![(0, 2), (2, 2), (4, 2), (6, 2)]));
    assert_eq!(rig.placements(gpu, 7), Err(INVALID_ARGUMENT));
}

#[test]
fn creation_is_refused_for_the_reason_that_holds() {
    let rig = Rig::new(&[Model::A100_40]);
    let gpu = rig.gpu(0).unwrap();
    assert_eq!(rig.create(gpu, 19, 0, 1), Err(NOT_SUPPORTED), "mode off");
    assert_eq!(rig.set_mig_mode(gpu, 1), Ok(0));
    assert_eq!(rig.create(gpu, 7, 0, 1), Err(INVALID_ARGUMENT), "an index, not an id");
    assert_eq!(rig.create(gpu, 9, 2, 4), Err(INVALID_ARGUMENT), "no such place");
    assert_eq!(rig.create(gpu, 9, 4, 2), Err(INVALID_ARGUMENT), "no such size");
    rig.create(gpu, 20, 0, 1).unwrap();
    assert_eq!(rig.create(gpu, 14, 0, 2), Err(INSUFFICIENT_RESOURCES), "overlap");
    assert_eq!(rig.create(gpu, 20, 1, 1), Err(INSUFFICIENT_RESOURCES), "one set of media engines");
    assert_eq!(rig.create(gpu, 0, 0, 8), Err(INSUFFICIENT_RESOURCES), "all taken");
}

#[test]
fn engines_run_out_before_memory_does() {
    let rig = Rig::cut(&[Model::A30, Model::RtxPro6000]);
    let [a30, rtx] = [0, 1].map(|index| rig.gpu(index).unwrap());
    rig.create(a30, 21, 0, 1).unwrap();
    assert_eq!(rig.create(a30, 6, 2, 2), Err(INSUFFICIENT_RESOURCES), "one optical flow engine");
    rig.create(a30, 5, 2, 2).unwrap();
    rig.create(rtx, 65, 0, 3).unwrap();
    assert_eq!(rig.create(rtx, 14, 3, 3), Err(INSUFFICIENT_RESOURCES), "no decoder is left");
    rig.create(rtx, 67, 3, 3).unwrap();
}

#[test]
fn slices_are_counted_and_placed() {
    let rig = Rig::cut(&[Model::A100_40, Model::A100_40]);
    let [one, two] = [0, 1].map(|index| rig.gpu(index).unwrap());
    rig.create(one, 5, 0, 4).unwrap();
    rig.create(one, 9, 4, 4).unwrap();
    rig.create(two, 9, 0, 4).unwrap();
    rig.create(two, 9, 4, 4).unwrap();
    let starts = 0..7;
    let refused: Vec<_> = starts.map(|start| rig.create(two, 19, start, 1)).collect();
    assert_eq!(refused, [Err(INSUFFICIENT_RESOURCES); 7], "six slices of seven, but no place");
    assert_eq!([rig.remaining(one, 19), rig.remaining(two, 19)], [Ok(0), Ok(0)]);
}

#[test]
fn destruction_goes_from_the_inside_out() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let instance = rig.create(gpu, 9, 4, 4).unwrap();
    let compute = rig.create_compute(instance, 2).unwrap();
    rig.machine.start_process(0, Some(4), 4711, "python3").unwrap();
    assert_eq!(rig.destroy(instance), Err(IN_USE), "a compute instance");
    assert_eq!(rig.destroy_compute(compute), Err(IN_USE), "a process");
    rig.machine.stop_process(4711).unwrap();
    assert_eq!(rig.destroy_compute(compute), Ok(()));
    assert_eq!(rig.destroy_compute(compute), Err(INVALID_ARGUMENT));
    assert_eq!(rig.compute(instance, 0), Err(NOT_FOUND));
    assert_eq!(rig.destroy(instance), Ok(()));
    assert_eq!(rig.destroy(instance), Err(INVALID_ARGUMENT));
    assert_eq!(rig.info(instance), Err(INVALID_ARGUMENT));
    assert_eq!(rig.instance(gpu, 2), Err(NOT_FOUND));
}

/// The ids of the GPU instances that MIG devices belong to, by index.
fn device_order(rig: &Rig, gpu: Handle) -> Vec<u32> {
    let devices = (0..7).map_while(|index| rig.mig_device(gpu, index).ok());
    devices.map(|device| rig.instance_id(device).unwrap()).collect()
}

#[test]
fn indices_repack_ids_return_and_uuids_do_not() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let made = [rig.machine.create_instance(0, 19, 6, true).unwrap()];
    assert_eq!(device_order(&rig, gpu), [13]);
    rig.machine.create_instance(0, 9, 0, true).unwrap();
    rig.machine.create_instance(0, 19, 4, false).unwrap();
    assert_eq!(device_order(&rig, gpu), [1, 13], "by id; without compute instance it is not seen");
    assert_eq!(rig.mig_device(gpu, 2), Err(NOT_FOUND));
    assert_eq!(rig.mig_device(gpu, 7), Err(INVALID_ARGUMENT));

    rig.machine.destroy_instance(0, 6).unwrap();
    let again = rig.machine.create_instance(0, 19, 6, true).unwrap();
    assert_eq!(again.id, made[0].id);
    assert_ne!(again.compute[0].uuid, made[0].compute[0].uuid);
    assert_eq!(rig.by_uuid(&made[0].compute[0].uuid), Err(NOT_FOUND));
    let device = rig.by_uuid(&again.compute[0].uuid).unwrap();
    let old_style = format!("MIG-{}/13/0", rig.uuid(gpu).unwrap());
    assert_eq!(rig.by_uuid(&old_style), Ok(device));
    assert_eq!([rig.parent(device), rig.parent(gpu)], [Ok(gpu), Err(INVALID_ARGUMENT)]);
    assert_eq!([rig.is_mig_device(device), rig.is_mig_device(gpu)], [Ok(1), Ok(0)]);
}

#[test]
fn there_are_as_many_mig_devices_as_slices_while_the_mode_is_on() {
    let rig = Rig::new(&[Model::H100_80, Model::A30, Model::RtxPro6000, Model::T4]);
    let count = |index| rig.max_mig_devices(rig.gpu(index).unwrap());
    assert_eq!([0, 1, 2, 3].map(count), [Ok(0); 4]);
    for gpu in 0..3 {
        rig.machine.set_mig_mode(gpu, true).unwrap();
    }
    assert_eq!([0, 1, 2, 3].map(count), [Ok(7), Ok(4), Ok(4), Ok(0)]);
}

#[test]
fn mig_mode_waits_for_a_reset_on_ampere_only() {
    let rig = Rig::new(&[Model::A100_80, Model::H100_80, Model::T4]);
    let [ampere, hopper, turing] = [0, 1, 2].map(|index| rig.gpu(index).unwrap());
    for gpu in 0..2 {
        rig.machine.start_process(gpu, None, 4711, "dcgm").unwrap();
    }
    assert_eq!([ampere, hopper].map(|gpu| rig.set_mig_mode(gpu, 1)), [Ok(IN_USE); 2]);
    assert_eq!([ampere, hopper].map(|gpu| rig.mig_mode(gpu)), [Ok((0, 1)), Ok((0, 0))]);
    rig.machine.stop_process(4711).unwrap();
    rig.machine.reset_gpu(0).unwrap();
    assert_eq!(rig.mig_mode(ampere), Ok((1, 1)));
    assert_eq!(rig.set_mig_mode(hopper, 1), Ok(0));
    assert_eq!(rig.mig_mode(hopper), Ok((1, 1)));
    assert_eq!(rig.set_mig_mode(hopper, 1), Ok(0), "no change");
    rig.create(hopper, 0, 0, 8).unwrap();
    assert_eq!(rig.set_mig_mode(hopper, 0), Ok(IN_USE));
    assert_eq!(rig.mig_mode(hopper), Ok((1, 1)));
    assert_eq!(rig.set_mig_mode(turing, 1), Err(NOT_SUPPORTED));
    assert_eq!(rig.mig_mode(turing), Err(NOT_SUPPORTED));
}

#[test]
fn procfs_shows_each_instance_by_minor_number() {
    let gpu = |minor| GpuDescription {
        minor: Some(minor),
        ..NodeDescription::uniform(Model::H100_80, 1).gpus.remove(0)
    };
    let mut node = NodeDescription::uniform(Model::H100_80, 1).with_mig_enabled();
    node.gpus = vec![GpuDescription { mig_enabled: true, ..gpu(1) }];
    let rig = Rig::of(&node);
    let capabilities = rig.machine.proc_root().join("driver/nvidia/capabilities");
    let mig = capabilities.join("gpu1/mig");
    let made = rig.machine.create_instance(0, 9, 4, true).unwrap();
    let access = |path: &str| fs::read_to_string(mig.join(path)).unwrap();
    let text =
        |minor| format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
    assert_eq!(made.id, 2);
    assert_eq!(access("gi2/access"), text(3 + 135 + 2 * 9));
    assert_eq!(access("gi2/ci0/access"), text(3 + 135 + 2 * 9 + 1));
    let minors = fs::read_to_string(rig.machine.proc_root().join("driver/nvidia-caps/mig-minors"));
    let minors = minors.unwrap();
    let lines = ["config 1", "monitor 2", "gpu1/gi2/access 156", "gpu1/gi2/ci0/access 157"];
    assert_eq!(lines.map(|line| minors.lines().any(|other| other == line)), [true; 4]);
    rig.machine.destroy_instance(0, 4).unwrap();
    assert_eq!(fs::read_dir(&mig).unwrap().count(), 0);
    assert!(capabilities.join("mig/config").is_file());
}

#[test]
fn a_gpu_in_mig_mode_tells_its_memory_and_not_its_load() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let made = rig.machine.create_instance(0, 14, 2, true).unwrap();
    let device = rig.by_uuid(&made.compute[0].uuid).unwrap();
    assert_eq!(rig.memory(gpu), Ok(81559 << 20));
    assert_eq!(rig.memory(device), Ok(20096 << 20));
    assert_eq!([gpu, device].map(|device| rig.utilization(device)), [Err(NOT_SUPPORTED); 2]);
    assert_eq!([gpu, device].map(|device| rig.minor(device)), [Ok(0), Err(NOT_SUPPORTED)]);
    assert_eq!(rig.name(device), Ok("NVIDIA H100 80GB HBM3 MIG 2g.20gb".to_owned()));
    assert_eq!(rig.attributes(gpu).map(|_| ()), Err(INVALID_ARGUMENT));
    let attributes = rig.attributes(device).unwrap();
    let slices = (attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount);
    assert_eq!((slices, attributes.multiprocessorCount), ((2, 2), 32));
}

#[test]
fn the_driver_places_from_the_end_and_may_strand_space() {
    let rig = Rig::cut(&[Model::H100_80, Model::H100_80]);
    let made = |gpu, profiles: [u32; 4]| {
        let gpu = rig.gpu(gpu).unwrap();
        profiles.map(|profile| {
            let instance = rig.create_anywhere(gpu, profile)?;
            rig.info(instance).map(|(_, _, start, _)| start)
        })
    };
    assert_eq!(made(0, [19, 19, 14, 9]), [Ok(6), Ok(5), Ok(2), Err(INSUFFICIENT_RESOURCES)]);
    assert_eq!(made(1, [9, 14, 19, 19]), [Ok(4), Ok(2), Ok(1), Ok(0)]);
}

#[test]
fn every_placement_of_every_profile_can_be_made_and_filled() {
    for model in Model::ALL.into_iter().filter(|model| model.has_mig()) {
        let rig = Rig::cut(&[model]);
        let empty = rig.machine.snapshot().unwrap();
        let gpu = rig.gpu(0).unwrap();
        for profile in (0..18).filter_map(|index| rig.profile(gpu, index).ok()) {
            for (start, size) in rig.placements(gpu, profile.id).unwrap() {
                let instance = rig.create(gpu, profile.id, start, size).unwrap();
                assert_eq!(rig.instances(gpu, profile.id), Ok(vec![instance]));
                let fits = |index| {
                    let compute = rig.compute_profile(instance, index).ok()?;
                    (compute.sliceCount == profile.sliceCount).then_some(compute.id)
                };
                let filling = (0..9).find_map(fits).unwrap();
                let compute = rig.create_compute(instance, filling).unwrap();
                let device = rig.device_of(compute).unwrap();
                assert_eq!(rig.by_uuid(&rig.uuid(device).unwrap()), Ok(device));
                rig.destroy_compute(compute).unwrap();
                rig.destroy(instance).unwrap();
            }
        }
        assert_eq!(rig.machine.snapshot().unwrap(), empty);
    }
}

#[test]
fn an_instance_can_be_shared_out() {
    let rig = Rig::cut(&[Model::A100_40]);
    let gpu = rig.gpu(0).unwrap();
    let instance = rig.create(gpu, 9, 0, 4).unwrap();
    let profiles: Vec<_> = (0..10)
        .map(|index| rig.compute_profile(instance, index).map(|profile| profile.id))
        .collect();
    let mut expected = vec![Err(NOT_SUPPORTED); 9];
    expected[..3].copy_from_slice(&[Ok(0), Ok(1), Ok(2)]);
    expected.push(Err(INVALID_ARGUMENT));
    assert_eq!(profiles, expected);
    let shared = rig.create_compute(instance, 1).unwrap();
    assert_eq!(rig.create_compute(instance, 2), Err(INSUFFICIENT_RESOURCES));
    rig.create_compute(instance, 0).unwrap();
    let name = rig.name(rig.device_of(shared).unwrap());
    assert_eq!(name, Ok("NVIDIA A100-SXM4-40GB MIG 2c.3g.20gb".to_owned()));
    assert_eq!(device_order(&rig, gpu), [1, 1]);
}
