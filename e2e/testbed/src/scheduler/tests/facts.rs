//! What a real 1.37 scheduler was seen to do with one pool of counter sets and MIG devices.

use k8s_openapi::{
    api::resource::v1::{DeviceTaint, DeviceToleration},
    apimachinery::pkg::api::resource::Quantity,
};

use super::*;

const FIRST_1G: &str = "gpu-0-mig-1g10gb-19-6";

#[test]
fn a_withdrawn_device_frees_what_it_holds_and_stops_the_pool_when_it_is_back() {
    let mut cluster = Cluster::of(1);
    assert_eq!(cluster.take(profile("2g.20gb")), one("mig", "gpu-0-mig-2g20gb-14-4"));
    let withdrawn = cluster.withdraw("gpu-0-mig-2g20gb-14-4");

    // Its consumption is forgotten: what overlaps it is given out.
    assert_eq!(cluster.take(profile("3g.40gb")), one("mig", "gpu-0-mig-3g40gb-9-4"));

    // Published again, its counters are below zero, which stops even what does not overlap.
    cluster.slice("gpu-0-mig-2g20gb-14-0").spec.devices.as_mut().unwrap().push(withdrawn);
    assert_eq!(cluster.take(profile("1g.10gb")), nothing());
}

#[test]
fn one_counter_below_zero_stops_the_pool_but_not_devices_without_counters() {
    let mut cluster = Cluster::of(2);
    cluster.device("gpu-1").consumes_counters = None;
    assert_eq!(cluster.take(profile("1g.10gb")), one("mig", FIRST_1G));

    let sets = cluster.slices[0].spec.shared_counters.as_mut().unwrap();
    let counter = sets[0].counters.get_mut("memory-slice-6").unwrap();
    counter.value = Quantity("0".to_owned());
    assert_eq!(
        cluster.take(mig("device.attributes['gpu.nvidia.com'].parentUUID == 'GPU-00000001'")),
        nothing()
    );
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-1"));
}

#[test]
fn a_counter_of_zero_that_nobody_holds_stops_only_what_needs_it() {
    let mut cluster = Cluster::of(1);
    let sets = cluster.slices[0].spec.shared_counters.as_mut().unwrap();
    sets[0].counters.get_mut("memory-slice-6").unwrap().value = Quantity("0".to_owned());
    assert_eq!(cluster.take(profile("1g.10gb")), one("mig", "gpu-0-mig-1g10gb-19-4"));
    assert_eq!(cluster.take(gpu()), nothing());
}

#[test]
fn a_missing_counter_set_makes_the_pool_invalid() {
    let mut cluster = Cluster::of(2);
    cluster.slices[0].spec.shared_counters.as_mut().unwrap().remove(1);
    let why = cluster.take(gpu()).unwrap_err();
    let pool = "invalid resource pools were encountered: pool `node-a` of `gpu.nvidia.com`";
    assert!(why.starts_with(&format!("{NOTHING_FITS}; {pool}: device `gpu-1-")), "{why}");
    assert!(why.ends_with("of `gpu-1-counter-set`, which is not there"), "{why}");
}

#[test]
fn a_device_twice_makes_the_pool_invalid() {
    let mut cluster = Cluster::of(1);
    let twice = cluster.device("gpu-0").clone();
    cluster.slice(FIRST_1G).spec.devices.as_mut().unwrap().push(twice);
    let pool = "invalid resource pools were encountered: pool `node-a` of `gpu.nvidia.com`";
    assert_eq!(
        cluster.take(gpu()),
        Err(format!("{NOTHING_FITS}; {pool}: it has device `gpu-0` twice"))
    );
}

#[test]
fn the_order_in_a_slice_is_followed_at_once() {
    let mut cluster = Cluster::of(2);
    cluster.slice("gpu-0").spec.devices.as_mut().unwrap().reverse();
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-1"));
}

#[test]
fn slices_go_by_name_not_by_the_order_in_which_they_are_listed() {
    let mut cluster = Cluster::of(1);
    cluster.slices.reverse();
    assert_eq!(cluster.take(mig("true")), one("mig", FIRST_1G));
}

#[test]
fn a_new_generation_waits_for_its_last_slice() {
    let mut cluster = Cluster::of(1);
    let (first, rest) = cluster.slices.split_first_mut().unwrap();
    first.spec.pool.generation = 2;
    let updating = format!("{NOTHING_FITS}; pool `node-a` of `gpu.nvidia.com` is being updated");
    let mut half = Cluster { slices: vec![first.clone()], claims: Vec::new() };
    half.slices.extend(rest.iter().cloned());
    // The only slice of the newest generation has no devices, but it is of this node.
    assert_eq!(half.take(gpu()), Err(updating));

    rest.iter_mut().for_each(|slice| slice.spec.pool.generation = 2);
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-0"));
}

#[test]
fn slices_of_an_older_generation_are_ignored() {
    let mut cluster = Cluster::of(2);
    let old = cluster.slice("gpu-0").clone();
    cluster.slices.iter_mut().for_each(|slice| slice.spec.pool.generation = 2);
    cluster.slices.push(ResourceSlice { metadata: named("00000-old"), ..old });
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-0"));
}

#[test]
fn a_tainted_device_is_counted_and_not_given_out() {
    let mut cluster = Cluster::of(1);
    let taint = DeviceTaint {
        key: "gpu.nvidia.com/xid".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..DeviceTaint::default()
    };
    assert_eq!(cluster.take(profile("3g.40gb")), one("mig", "gpu-0-mig-3g40gb-9-4"));
    for device in ["gpu-0-mig-3g40gb-9-4", "gpu-0-mig-3g40gb-9-0"] {
        cluster.device(device).taints = Some(vec![taint.clone()]);
    }
    assert_eq!(cluster.take(profile("3g.40gb")), nothing());
    assert_eq!(cluster.take(gpu()), nothing());

    let toleration =
        DeviceToleration { operator: Some("Exists".to_owned()), ..DeviceToleration::default() };
    let mut tolerant = profile("3g.40gb");
    let requests =
        tolerant.spec.as_mut().unwrap().devices.as_mut().unwrap().requests.as_mut().unwrap();
    requests[0].exactly.as_mut().unwrap().tolerations = Some(vec![toleration.clone()]);
    let allocation = cluster.allocate(tolerant.clone()).unwrap();
    let result = allocation.devices.unwrap().results.unwrap().remove(0);
    assert_eq!(
        (result.device.as_str(), result.tolerations),
        ("gpu-0-mig-3g40gb-9-0", Some(vec![toleration]))
    );
}

#[test]
fn a_taint_without_effect_keeps_nobody_away() {
    let mut cluster = Cluster::of(1);
    let taint =
        DeviceTaint { key: "k".to_owned(), effect: "None".to_owned(), ..DeviceTaint::default() };
    cluster.device("gpu-0").taints = Some(vec![taint]);
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-0"));
}

#[test]
fn overlapping_devices_without_counters_are_both_given_out() {
    let mut cluster = Cluster::of(1);
    for slice in &mut cluster.slices {
        slice.spec.shared_counters = None;
        slice.spec.devices.iter_mut().flatten().for_each(|device| device.consumes_counters = None);
    }
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-0"));
    assert_eq!(cluster.take(profile("7g.80gb")), one("mig", "gpu-0-mig-7g80gb-0-0"));
}

#[test]
fn another_node_has_no_part_in_it() {
    let slices = slices_of(1);
    let elsewhere = fit(&slices, "node-b", &[], &gpu(), &classes()).map_err(|why| why.to_string());
    let why = "cannot allocate all claims: no devices of node `node-b` satisfy it";
    assert_eq!(elsewhere, Err(why.to_owned()));
}
