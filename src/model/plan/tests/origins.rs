//! Whose work each planned device is.

use std::collections::BTreeSet;

use super::{admin, asks, claimed, holding, nobody, place, planned, result, with_mode};
use crate::model::{
    claim::AllocationResult,
    device::Target,
    fixtures::{
        claims::Claims,
        gpus::{A30, A100_80, H100, L4, Shape, carve, gpu, node},
    },
    plan::{Origin, Plan, PlannedDevice, plan},
};

const SMALL: &str = "gpu-0-mig-1g10gb-19-0";
const HALF: &str = "gpu-0-mig-3g40gb-9-4";

#[test]
fn a_plan_says_all_that_there_is_to_do() {
    let node = node([gpu(&H100, 0), gpu(&L4, 1)]);
    let share = Some("0c1a7e52".to_owned());
    let shared = AllocationResult { share_id: share.clone(), ..result("gpu", "gpu-1") };
    let claim = claimed([result("part/small", SMALL), shared]);
    let expected = Plan {
        holder: claim.holder.clone(),
        pods: vec!["train-0".to_owned()],
        devices: vec![
            PlannedDevice {
                requests: vec!["part".to_owned()],
                pool: "node".to_owned(),
                device: SMALL.to_owned(),
                share_id: None,
                target: Target::Mig {
                    gpu: node.gpus[0].uuid.clone(),
                    profile: 19,
                    profile_name: "1g.10gb".to_owned(),
                    placement: place(0, 1),
                },
                origin: Origin::Made,
            },
            PlannedDevice {
                requests: vec!["gpu".to_owned()],
                pool: "node".to_owned(),
                device: "gpu-1".to_owned(),
                share_id: share,
                target: Target::Gpu { gpu: node.gpus[1].uuid.clone() },
                origin: Origin::Found,
            },
        ],
    };
    assert_eq!(plan(&node, &[], &claim).unwrap(), expected);
}

#[test]
fn a_claim_without_devices_is_a_plan_without_devices() {
    assert_eq!(plan(&node([]), &[], &asks(&[])).unwrap().devices, []);
}

#[test]
fn a_whole_gpu_is_found() {
    let found = ["gpu-0 for gpu: Found"];
    for gpu in [
        gpu(&L4, 0),
        // Kerf switches the mode off where that needs no reset.
        gpu(&H100, 0),
        with_mode(gpu(&H100, 0), false, false),
        with_mode(gpu(&A30, 0), false, false),
        // A switch that waits for a reset is in nobody's way while the mode is off.
        with_mode(gpu(&A100_80, 0), false, true),
    ] {
        let product = gpu.product.clone();
        assert_eq!(planned(&node([gpu]), &nobody(), &asks(&["gpu-0"])), found, "{product}");
    }
}

#[test]
fn a_mig_device_is_made() {
    for gpu in [gpu(&H100, 0), with_mode(gpu(&H100, 0), false, false), gpu(&A100_80, 0)] {
        let product = gpu.product.clone();
        let made = [format!("{SMALL} for gpu: Made")];
        assert_eq!(planned(&node([gpu]), &nobody(), &asks(&[SMALL])), made, "{product}");
    }
}

#[test]
fn an_instance_that_an_administrator_made_is_found() {
    let mut h100 = gpu(&H100, 0);
    carve(&mut h100, 9, place(4, 4), Shape::Filled);
    let expected = [format!("{HALF} for gpu: Found"), format!("{SMALL} for gpu: Made")];
    assert_eq!(planned(&node([h100]), &nobody(), &asks(&[HALF, SMALL])), expected);
}

#[test]
fn an_instance_on_a_gpu_that_waits_for_a_reset_is_found_until_then() {
    let mut a100 = with_mode(gpu(&A100_80, 0), true, false);
    carve(&mut a100, 9, place(4, 4), Shape::Filled);
    let found = [format!("{HALF} for gpu: Found")];
    assert_eq!(planned(&node([a100]), &nobody(), &asks(&[HALF])), found);
}

#[test]
fn admin_access_only_looks_whatever_is_in_the_way() {
    let mut foreign = gpu(&H100, 0);
    carve(&mut foreign, 5, place(0, 4), Shape::Split);
    let off = with_mode(gpu(&A100_80, 0), false, false);
    let claim = claimed([admin("look", "gpu-0"), admin("look", SMALL), admin("look", HALF)]);
    let observed = ["gpu-0", SMALL, HALF].map(|device| format!("{device} for look: Observed"));
    for (gpu, others) in [
        (gpu(&H100, 0), nobody()),
        (gpu(&H100, 0), holding(&gpu(&H100, 0))),
        (foreign, nobody()),
        (off, nobody()),
    ] {
        assert_eq!(planned(&node([gpu]), &others, &claim), observed);
    }
}

#[test]
fn one_device_serves_several_requests() {
    let claim = claimed([
        result("a", "gpu-0"),
        result("part", "gpu-1-mig-1g10gb-19-0"),
        result("b/small", "gpu-0"),
        result("b/big", "gpu-0"),
    ]);
    let expected = ["gpu-0 for a, b: Found", "gpu-1-mig-1g10gb-19-0 for part: Made"];
    let node = node([gpu(&L4, 0), gpu(&H100, 1)]);
    assert_eq!(planned(&node, &nobody(), &claim), expected);
}

#[test]
fn what_any_request_holds_is_held() {
    let node = node([gpu(&H100, 0)]);
    for device in [SMALL, "gpu-0"] {
        let origin = if device == SMALL { Origin::Made } else { Origin::Found };
        let first = claimed([admin("look", device), result("gpu", device)]);
        let expected = [format!("{device} for look, gpu: {origin:?}")];
        assert_eq!(planned(&node, &nobody(), &first), expected);
        let last = claimed([result("gpu", device), admin("look", device)]);
        let expected = [format!("{device} for gpu, look: {origin:?}")];
        assert_eq!(planned(&node, &nobody(), &last), expected);
    }
}

#[test]
fn what_is_only_looked_at_is_not_in_the_way() {
    let node = node([gpu(&H100, 0)]);
    let claim = claimed([admin("look", "gpu-0"), result("part", SMALL)]);
    let expected = ["gpu-0 for look: Observed".to_owned(), format!("{SMALL} for part: Made")];
    assert_eq!(planned(&node, &nobody(), &claim), expected);
    let claim = claimed([result("gpu", "gpu-0"), admin("look", SMALL)]);
    let expected = ["gpu-0 for gpu: Found".to_owned(), format!("{SMALL} for look: Observed")];
    assert_eq!(planned(&node, &nobody(), &claim), expected);
}

#[test]
fn what_others_hold_elsewhere_is_not_in_the_way() {
    let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
    let others = Claims::of(&node, &["gpu-1", "gpu-0-mig-1g10gb-19-1"]);
    let claim = asks(&[SMALL, HALF]);
    let expected = [format!("{SMALL} for gpu: Made"), format!("{HALF} for gpu: Made")];
    assert_eq!(planned(&node, &others, &claim), expected);
}

#[test]
fn a_plan_knows_its_gpus_and_their_modes() {
    let node = node([gpu(&H100, 0), gpu(&L4, 1), gpu(&H100, 2), gpu(&H100, 3)]);
    let claim = claimed([
        result("part", SMALL),
        result("part", HALF),
        result("gpu", "gpu-1"),
        result("gpu", "gpu-3"),
        admin("look", "gpu-2-mig-1g10gb-19-0"),
        admin("look", "gpu-3-mig-1g10gb-19-0"),
    ]);
    let plan = plan(&node, &[], &claim).unwrap();
    let uuid = |number: usize| node.gpus[number].uuid.clone();
    assert_eq!(plan.gpus(), BTreeSet::from([uuid(0), uuid(1), uuid(3)]));
    let needs = [0, 1, 2, 3].map(|number| plan.needs_mig(&uuid(number)));
    assert_eq!(needs, [true, false, false, false]);
}
