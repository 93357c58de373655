//! What containers hold through the device plugin.

use super::*;
use crate::model::{gpu::Gpu, plan::Origin};

/// The pool of these GPUs when containers hold these devices.
fn pool_beside(
    gpus: impl IntoIterator<Item = Gpu>,
    taken: &[(&str, Origin)],
    features: Features,
) -> Vec<SliceContent> {
    let node = node(gpus);
    let mut containers = Claims::default();
    for (name, origin) in taken {
        let mut devices = node.gpus.iter().flat_map(crate::model::device::Device::all);
        containers.hold(&devices.find(|device| device.name() == *name).unwrap(), *origin);
    }
    let taken = containers.held();
    slices(&PoolInput { taken: &taken, ..PoolInput::of("node", &node, features) })
}

fn tainted(slices: &[SliceContent]) -> Vec<&str> {
    let devices = slices.iter().flat_map(|slice| &slice.devices);
    let tainted = devices.filter(|device| device.taints.is_some());
    tainted.map(|device| device.name.as_str()).collect()
}

#[test]
fn a_gpu_that_a_container_has_is_tainted_with_all_of_its_parts() {
    let gpus = [gpu(&H100, 0), gpu(&L4, 1), gpu(&L4, 2)];
    let slices = pool_beside(gpus, &[("gpu-0", Origin::Found), ("gpu-1", Origin::Found)], V1_37);
    let all = slices.iter().flat_map(|slice| &slice.devices);
    let of_others = all.filter(|device| device.name == "gpu-2").count();
    let count = slices.iter().map(|slice| slice.devices.len()).sum::<usize>();
    assert_eq!((of_others, tainted(&slices).len()), (1, count - 1));
    let taint = &find(&slices, "gpu-1").taints.as_ref().unwrap()[0];
    let said = (&*taint.key, taint.value.as_deref(), &*taint.effect);
    assert_eq!(said, ("gpu.nvidia.com/device-plugin", Some("held"), "NoSchedule"));
}

#[test]
fn of_a_gpu_that_a_container_has_a_part_of_what_overlaps_is_tainted() {
    let mut cut = gpu(&H100, 0);
    carve(&mut cut, 9, Placement { start: 4, size: 4 }, Shape::Filled);
    for features in [V1_37, V1_34] {
        let taken = [("gpu-0-mig-3g40gb-9-4", Origin::Made)];
        let slices = pool_beside([cut.clone()], &taken, features);
        let names = tainted(&slices);
        assert!(names.contains(&"gpu-0") && names.contains(&"gpu-0-mig-3g40gb-9-4"), "{names:?}");
        assert!(!names.contains(&"gpu-0-mig-3g40gb-9-0"), "{names:?}");
        // What was carved for the container takes nothing that the scheduler counts.
        assert_eq!(find(&slices, "gpu-0-mig-3g40gb-9-4").consumes_counters, None);
        assert_eq!(counters(&slices, 0)["memory-slice-4"], "0");
        assert_eq!(counters(&slices, 0)["memory-slice-0"], "1");
    }
}

#[test]
fn a_server_that_drops_taints_gets_nothing_of_the_gpu() {
    let features = Features { taints: false, ..V1_34 };
    let gpus = [gpu(&H100, 0), gpu(&L4, 1)];
    let slices = pool_beside(gpus, &[("gpu-0-mig-1g10gb-19-0", Origin::Made)], features);
    let names: Vec<_> = slices.iter().flat_map(names).collect();
    assert_eq!(names, ["gpu-1"]);
    assert!(slices.iter().all(|slice| slice.shared_counters.is_empty()));
}
