//! What is read of a machine as it stands.

use kerf::model::gpu::{ComputeInstance, DriverVersions, Fabric, Gpu, GpuInstance, Placement};
use kerf_nvml::{
    Effect, FabricDescription, Fault, Model, NodeDescription, machine::InstanceSnapshot,
};

use super::{Rig, cuttable};

#[test]
fn each_model_is_read_whole() {
    for model in Model::ALL {
        let rig = Rig::new(&NodeDescription::uniform(model, 2));
        let name = serde_json::to_value(model).unwrap();
        insta::assert_json_snapshot!(name.as_str().unwrap(), rig.gpu(1));
    }
}

#[test]
fn a_mixed_node_of_sixteen_is_read_in_order() {
    let models: Vec<Model> = Model::ALL.into_iter().cycle().take(16).collect();
    let rig = Rig::new(&NodeDescription::mixed(&models).with_mig_enabled());
    let versions = DriverVersions { driver: "580.95.05".to_owned(), cuda: (13, 0) };
    assert_eq!(rig.nvml.versions().unwrap(), versions);
    assert_eq!(rig.nvml.count().unwrap(), 16);
    for (index, &model) in (0..).zip(&models) {
        let alone = Rig::cut(model).gpu(0);
        let snapshot = rig.machine.snapshot().unwrap();
        let uuid = kerf::model::gpu::GpuUuid(snapshot.gpus[index as usize].uuid.clone());
        let pci = format!("0000:{:02x}:00.0", 7 + 14 * index);
        let expected = Gpu { number: index, index, minor: index, uuid, pci, ..alone };
        assert_eq!(rig.gpu(index), expected);
    }
    assert_eq!(rig.nvml.gpu(16).unwrap_err().uuid, None);
}

#[test]
fn the_minor_number_is_the_drivers() {
    let mut node = NodeDescription::uniform(Model::T4, 2);
    (node.gpus[0].minor, node.gpus[1].minor) = (Some(5), Some(3));
    node.gpus[0].uuid = Some("GPU-of-its-own".to_owned());
    let rig = Rig::new(&node);
    let read = [0, 1].map(|index| rig.gpu(index));
    assert_eq!(
        read.each_ref().map(|gpu| (gpu.index, gpu.number, gpu.minor)),
        [(0, 5, 5), (1, 3, 3)]
    );
    assert_eq!(read[0].uuid.0, "GPU-of-its-own");
    assert_eq!(read.each_ref().map(|gpu| rig.nvml.minor(gpu).unwrap()), [5, 3]);
}

#[test]
fn a_fabric_is_read_where_it_connects_machines() {
    let cluster = "7b968a6d-7e2f-4a34-a1a4-2b1c5d6e7f80";
    let fabrics = [Some(cluster), None].map(|cluster| {
        let fabric = FabricDescription { cluster: cluster.map(str::to_owned), clique: 32766 };
        let node = NodeDescription::mixed(&[Model::H200_141, Model::A100_80, Model::L4]);
        let rig = Rig::new(&node.in_fabric(fabric));
        [0, 1, 2].map(|index| rig.gpu(index).fabric)
    });
    let joined = Fabric { cluster: cluster.to_owned(), clique: 32766 };
    assert_eq!(fabrics, [[Some(joined), None, None], [None, None, None]]);
    let rig = Rig::new(&NodeDescription::uniform(Model::H200_141, 1));
    assert_eq!(rig.gpu(0).fabric, None);
    // A driver that cannot say it has the GPU all the same.
    rig.machine.inject(Fault::always("nvmlDeviceGetGpuFabricInfoV", Effect::Fail(999))).unwrap();
    assert_eq!(rig.gpu(0).fabric, None);
}

/// An instance as the simulation shows it, with what fills it.
fn expected(snapshot: &InstanceSnapshot, fills: bool) -> GpuInstance {
    let compute = snapshot.compute.iter();
    GpuInstance {
        id: snapshot.id,
        profile: snapshot.profile,
        placement: Placement { start: snapshot.start, size: snapshot.size },
        compute: compute
            .map(|compute| ComputeInstance { id: compute.id, uuid: compute.uuid.clone(), fills })
            .collect(),
    }
}

#[test]
fn instances_are_read_filled_empty_and_partly_filled() {
    let rig = Rig::cut(Model::H100_80);
    let machine = &rig.machine;
    machine.create_instance(0, 14, 4, false).unwrap();
    machine.create_compute(0, 4, 1).unwrap();
    machine.create_instance(0, 19, 0, true).unwrap();
    machine.create_instance(0, 15, 6, false).unwrap();
    machine.create_instance(0, 14, 2, false).unwrap();
    machine.create_compute(0, 2, 1).unwrap();
    machine.create_compute(0, 2, 1).unwrap();
    machine.create_instance(0, 20, 1, true).unwrap();

    let mut snapshot = machine.snapshot().unwrap().gpus.remove(0).instances;
    snapshot.sort_by_key(|instance| instance.start);
    let places: Vec<_> = snapshot.iter().map(|gi| (gi.profile, gi.start, gi.size)).collect();
    assert_eq!(places, [(19, 0, 1), (20, 1, 1), (14, 2, 2), (14, 4, 2), (15, 6, 2)]);
    let filled = [true, true, false, false, false];
    let instances: Vec<_> =
        snapshot.iter().zip(filled).map(|(gi, fills)| expected(gi, fills)).collect();
    assert_eq!(instances.iter().map(|gi| gi.compute.len()).collect::<Vec<_>>(), [1, 1, 2, 1, 0]);

    assert_eq!(rig.mig(0).instances, instances);
    let gpu = rig.gpu(0);
    assert_eq!(rig.nvml.mig_now(&gpu).unwrap(), gpu.mig);
    let devices = instances.iter().map(|gi| gi.device().is_some()).collect::<Vec<_>>();
    assert_eq!(devices, filled);
}

/// The mode that waits is told beside the mode that is.
#[test]
fn an_instance_of_every_profile_is_read() {
    for model in cuttable() {
        let rig = Rig::cut(model);
        for profile in rig.mig(0).profiles {
            let start = profile.placements[0].start;
            let made = rig.machine.create_instance(0, profile.id, start, true).unwrap();
            assert_eq!(rig.mig(0).instances, [expected(&made, true)], "{model:?} {}", profile.name);
            rig.machine.destroy_instance(0, start).unwrap();
        }
    }
}

/// Older drivers do not name profiles: the computed name is the usual one.
#[test]
fn without_a_name_from_the_driver_it_is_computed() {
    let mut different = Vec::new();
    for model in cuttable() {
        let rig = Rig::cut(model);
        let named = rig.mig(0).profiles;
        let unnamed = Fault::always("nvmlDeviceGetGpuInstanceProfileInfoV", Effect::Fail(3));
        rig.machine.inject(unnamed).unwrap();
        let computed = rig.mig(0).profiles;
        assert_eq!(named.len(), computed.len(), "{model:?}");
        for (named, computed) in named.into_iter().zip(computed) {
            if named.name != computed.name {
                different.push(format!("{model:?} {} {}", named.name, computed.name));
            }
            let same = kerf::model::gpu::Profile { name: named.name.clone(), ..computed };
            assert_eq!(named, same);
        }
    }
    assert_eq!(different, Vec::<String>::new());
}

#[test]
fn a_profile_that_has_no_name_at_all_is_left_out() {
    let rig = Rig::cut(Model::A30);
    let whole = rig.gpu(0);
    for function in ["nvmlDeviceGetGpuInstanceProfileInfoV", "nvmlDeviceGetMemoryInfo"] {
        rig.machine.inject(Fault::always(function, Effect::Fail(3))).unwrap();
    }
    let mut expected = Gpu { memory: None, ..whole };
    expected.mig.as_mut().unwrap().profiles.clear();
    assert_eq!(rig.gpu(0), expected);
}
