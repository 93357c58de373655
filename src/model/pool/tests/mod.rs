mod limits;
mod properties;
mod sick;
mod taken;

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1;

use crate::model::{
    fixtures::{
        claims::Claims,
        gpus::{A30, H100, L4, RTX_PRO_6000, Shape, carve, gpu, node},
    },
    gpu::{GpuUuid, Inventory, Placement, Unreadable},
    pool::{Features, PoolInput, SliceContent, needs_reorder, slices, slices_after},
    record::Held,
};
use limits::Server;

const V1_34: Features = Features { counters: true, taints: true, separate_counter_slices: false };
const V1_37: Features = Features::ALL;
const NO_COUNTERS: Features =
    Features { counters: false, taints: true, separate_counter_slices: true };

fn pool(inventory: &Inventory, held: &[Held], features: Features) -> Vec<SliceContent> {
    slices(&PoolInput { held, ..PoolInput::of("node", inventory, features) })
}

fn names(slice: &SliceContent) -> Vec<&str> {
    slice.devices.iter().map(|device| device.name.as_str()).collect()
}

fn find<'s>(slices: &'s [SliceContent], name: &str) -> &'s v1::Device {
    let mut devices = slices.iter().flat_map(|slice| &slice.devices);
    devices.find(|device| device.name == name).unwrap()
}

fn counters(slices: &[SliceContent], gpu: u32) -> BTreeMap<&str, &str> {
    let name = format!("gpu-{gpu}-counter-set");
    let set = slices.iter().flat_map(|slice| &slice.shared_counters).find(|set| set.name == name);
    let counters = set.unwrap().counters.iter();
    counters.map(|(name, counter)| (name.as_str(), counter.value.0.as_str())).collect()
}

/// Each slice with a line of JSON for each counter set and device.
fn lines(slices: &[SliceContent]) -> String {
    let mut lines = Vec::new();
    for (index, slice) in slices.iter().enumerate() {
        lines.push(format!("slice {index}"));
        let sets = slice.shared_counters.iter().map(serde_json::to_string);
        let devices = slice.devices.iter().map(serde_json::to_string);
        lines.extend(sets.chain(devices).map(Result::unwrap));
    }
    lines.join("\n")
}

/// Each slice with the names of what is in it.
fn outline(slices: &[SliceContent]) -> String {
    let line = |(index, slice): (usize, &SliceContent)| {
        let sets = slice.shared_counters.iter().map(|set| set.name.as_str());
        let all: Vec<&str> = sets.chain(names(slice)).collect();
        format!("slice {index}: {}", all.join(" "))
    };
    slices.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_a30_in_mig_mode_is_its_mig_devices_and_a_counter_set() {
    let node = node([gpu(&A30, 0)]);
    insta::assert_snapshot!("a30-1.34", lines(&pool(&node, &[], V1_34)));
    insta::assert_snapshot!("a30-1.37", lines(&pool(&node, &[], V1_37)));
}

#[test]
fn two_h100_lie_gpu_by_gpu_or_size_by_size() {
    let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
    insta::assert_snapshot!("h100x2-1.34", outline(&pool(&node, &[], V1_34)));
    insta::assert_snapshot!("h100x2-1.37", outline(&pool(&node, &[], V1_37)));
}

#[test]
fn an_h100_has_one_whole_gpu_that_takes_all_counters() {
    let node = node([gpu(&H100, 0)]);
    let slices = pool(&node, &[], V1_37);
    insta::assert_json_snapshot!("h100-whole", find(&slices, "gpu-0"));
    insta::assert_json_snapshot!("h100-mig", find(&slices, "gpu-0-mig-1g20gb-15-2"));
}

#[test]
fn an_instance_that_exists_comes_off_the_counters_and_consumes_none() {
    let mut h100 = gpu(&H100, 0);
    carve(&mut h100, 9, Placement { start: 4, size: 4 }, Shape::Filled);
    let node = node([h100]);
    let slices = pool(&node, &[], V1_37);
    insta::assert_json_snapshot!("h100-existing", find(&slices, "gpu-0-mig-3g40gb-9-4"));
    let expected = [
        ("copy-engines", "5"),
        ("decoders", "4"),
        ("encoders", "0"),
        ("jpeg-engines", "4"),
        ("memory", "40704Mi"),
        ("memory-slice-0", "1"),
        ("memory-slice-1", "1"),
        ("memory-slice-2", "1"),
        ("memory-slice-3", "1"),
        ("memory-slice-4", "0"),
        ("memory-slice-5", "0"),
        ("memory-slice-6", "0"),
        ("memory-slice-7", "0"),
        ("multiprocessors", "72"),
        ("ofa-engines", "1"),
    ];
    assert_eq!(counters(&slices, 0), BTreeMap::from(expected));
    let all = names(&slices[1]).len();
    assert_eq!(all, 7, "what overlaps stays published");
}

#[test]
fn an_instance_that_kerf_made_stays_on_the_counters() {
    let mut h100 = gpu(&H100, 0);
    carve(&mut h100, 9, Placement { start: 4, size: 4 }, Shape::Filled);
    let node = node([h100]);
    let claims = Claims::of(&node, &["gpu-0-mig-3g40gb-9-4"]);
    let slices = pool(&node, &claims.held(), V1_37);
    assert_eq!(counters(&slices, 0)["memory-slice-4"], "1");
    assert!(find(&slices, "gpu-0-mig-3g40gb-9-4").consumes_counters.is_some());
}

#[test]
fn a_shape_that_no_claim_can_be_given_comes_off_the_counters_without_a_device() {
    for shape in [Shape::Empty, Shape::Split] {
        let mut h100 = gpu(&H100, 0);
        carve(&mut h100, 5, Placement { start: 0, size: 4 }, shape);
        let node = node([h100]);
        for (features, sizes) in [(V1_37, 7), (NO_COUNTERS, 0)] {
            let slices = pool(&node, &[], features);
            let named: Vec<&str> = slices.iter().flat_map(names).collect();
            assert!(!named.contains(&"gpu-0-mig-4g40gb-5-0"), "{shape:?}: {named:?}");
            assert_eq!(slices.iter().filter(|slice| !slice.devices.is_empty()).count(), sizes);
        }
        assert_eq!(counters(&pool(&node, &[], V1_37), 0)["memory-slice-3"], "0");
    }
}

#[test]
fn an_instance_on_a_held_device_does_not_take_the_counters_below_what_is_held() {
    let mut h100 = gpu(&H100, 0);
    carve(&mut h100, 19, Placement { start: 1, size: 1 }, Shape::Filled);
    let node = node([h100]);
    let claims = Claims::of(&node, &["gpu-0-mig-2g20gb-14-0"]);
    let slices = pool(&node, &claims.held(), V1_37);
    let counters = counters(&slices, 0);
    assert_eq!(counters["memory-slice-0"], "1");
    assert_eq!(counters["memory-slice-1"], "1", "held, and occupied by another instance");
    assert_eq!(counters["multiprocessors"], "116");
}

#[test]
fn without_counters_a_gpu_is_its_instances_or_whole() {
    let mut cut = gpu(&H100, 1);
    carve(&mut cut, 14, Placement { start: 2, size: 2 }, Shape::Filled);
    carve(&mut cut, 19, Placement { start: 0, size: 1 }, Shape::Filled);
    let node = node([gpu(&H100, 0), cut, gpu(&L4, 2), gpu(&A30, 3)]);
    let slices = pool(&node, &[], NO_COUNTERS);
    let expected = ["gpu-1-mig-1g10gb-19-0", "gpu-1-mig-2g20gb-14-2", "gpu-0", "gpu-2"];
    assert_eq!(slices.iter().map(names).collect::<Vec<_>>(), [expected]);
    let uncounted = |device: &v1::Device| device.consumes_counters.is_none();
    assert!(slices[0].devices.iter().all(uncounted));
}

#[test]
fn a_whole_gpu_that_cannot_be_cut_has_its_memory_and_no_counters() {
    let mut a30 = gpu(&A30, 0);
    a30.mig.as_mut().unwrap().enabled = false;
    let mut unified = gpu(&L4, 2);
    unified.memory = None;
    let node = node([a30, gpu(&L4, 1), unified]);
    let slices = pool(&node, &[], V1_37);
    let memory = |device: &v1::Device| {
        assert_eq!(device.consumes_counters, None);
        let capacity = device.capacity.as_ref()?;
        assert_eq!(capacity.len(), 1);
        Some(capacity["memory"].value.0.clone())
    };
    let memories: Vec<_> = slices[0].devices.iter().map(memory).collect();
    assert_eq!(memories, [Some("24Gi".to_owned()), Some("23034Mi".to_owned()), None]);
    assert_eq!(slices.len(), 1);
}

#[test]
fn a_node_without_a_readable_gpu_publishes_one_slice_with_nothing_in_it() {
    let mut node = node([]);
    node.unreadable.push(Unreadable {
        index: 0,
        uuid: Some(GpuUuid("GPU-0".to_owned())),
        reason: "`nvmlDeviceGetName` answered `GPU is lost`".to_owned(),
        lost: false,
        known: None,
    });
    for features in [V1_34, V1_37, NO_COUNTERS, Features::default()] {
        assert_eq!(pool(&node, &[], features), [SliceContent::default()]);
    }
}

#[test]
fn an_existing_instance_keeps_to_the_limit_of_attributes_and_capacities() {
    let mut rtx = gpu(&RTX_PRO_6000, 0);
    carve(&mut rtx, 0, Placement { start: 0, size: 12 }, Shape::Filled);
    let node = node([rtx]);
    let slices = pool(&node, &[], V1_37);
    limits::check(Server::V1_35 { counters: true }, &slices);
    let whole = find(&slices, "gpu-0-mig-4g96gb-0-0");
    assert_eq!(whole.capacity.as_ref().unwrap().len(), 7);
}

#[test]
fn what_fills_a_cut_gpu_goes_before_what_cuts_a_whole_one() {
    let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
    let claims = Claims::of(&node, &["gpu-1-mig-3g40gb-9-4", "gpu-1-mig-1g10gb-19-0"]);
    let held = claims.held();
    let slices = pool(&node, &held, V1_37);
    let first: Vec<_> = slices[1..].iter().map(|slice| names(slice)[0]).collect();
    let expected = [
        "gpu-1-mig-1g10gb-19-1",
        "gpu-1-mig-1g10gb-me-20-1",
        "gpu-1-mig-1g20gb-15-2",
        "gpu-1-mig-2g20gb-14-2",
        "gpu-0-mig-3g40gb-9-4",
        "gpu-0-mig-4g40gb-5-0",
        "gpu-0-mig-7g80gb-0-0",
        "gpu-0",
    ];
    assert_eq!(first, expected);
    let last = |slice: &SliceContent| slice.devices.last().unwrap().name.clone();
    assert_eq!(last(&slices[1]), "gpu-1-mig-1g10gb-19-6", "held devices go last, and stay");
}

#[test]
fn an_order_changes_only_when_the_next_device_is_not_a_best_one() {
    let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
    let before = pool(&node, &[], V1_37);
    let after = |names: &[&str]| {
        let claims = Claims::of(&node, names);
        let held = claims.held();
        let input = PoolInput { held: &held, ..PoolInput::of("node", &node, V1_37) };
        let after = slices_after(&before, &input);
        let changed: Vec<usize> = (0..9).filter(|&slice| after[slice] != before[slice]).collect();
        assert_eq!(needs_reorder(&before, &input), !changed.is_empty());
        assert!(!needs_reorder(&after, &input));
        changed
    };
    let none: [usize; 0] = [];
    assert_eq!(after(&[]), none);
    assert_eq!(after(&["gpu-0"]), none, "the next of all sizes is on gpu-1");
    assert_eq!(after(&["gpu-0-mig-4g40gb-5-0"]), none, "gpu-0 is the best for the rest, and first");
    assert_eq!(after(&["gpu-1-mig-4g40gb-5-0"]), [1, 2, 3, 4, 5], "gpu-1 is best, gpu-0 first");
}

#[test]
fn what_a_slice_holds_changes_at_once() {
    let before = node([gpu(&H100, 0), gpu(&H100, 1)]);
    let mut cut = gpu(&H100, 1);
    carve(&mut cut, 19, Placement { start: 0, size: 1 }, Shape::Filled);
    let node = node([gpu(&H100, 0), cut]);
    let input = PoolInput::of("node", &node, V1_37);
    let after = slices_after(&pool(&before, &[], V1_37), &input);
    assert_eq!(after[..2], slices(&input)[..2]);
    assert_eq!(find(&after, "gpu-1-mig-1g10gb-19-0").consumes_counters, None);
}
