//! What stands in a device's way, in the words that users read.

use super::{asks, holding, nobody, place, planned, refused, with_mode};
use crate::model::{
    fixtures::{
        claims::Claims,
        gpus::{A100_80, H100, L4, RTX_PRO_6000, Shape, carve, gpu, node},
    },
    gpu::Gpu,
};

const SMALL: &str = "gpu-0-mig-1g10gb-19-0";

/// The GPU with an instance on memory slices 4 to 7, whose id is 1.
fn cut(mut gpu: Gpu, shape: Shape) -> Gpu {
    carve(&mut gpu, 9, place(4, 4), shape);
    gpu
}

#[test]
fn a_device_that_another_claim_holds() {
    let node = node([gpu(&H100, 0), gpu(&L4, 1)]);
    let others = Claims::of(&node, &[SMALL, "gpu-1"]);
    let text = |device, claim| {
        format!(
            "{device}: held by claim `default/{claim}`; wait until that is released, or delete the pod so that it is \
             scheduled again"
        )
    };
    assert_eq!(refused(&node, &others, &[SMALL]), text(SMALL, "claim-0"));
    assert_eq!(refused(&node, &others, &["gpu-1"]), text("gpu-1", "claim-1"));
}

#[test]
fn a_device_that_lies_on_what_another_claim_holds() {
    let text = |device: &str, what: &str| {
        format!(
            "{device}: {what} of claim `default/claim-0`; wait until that is released, or delete the pod so that it \
             is scheduled again"
        )
    };
    let h100 = node([gpu(&H100, 0)]);
    assert_eq!(
        refused(&h100, &holding(&h100.gpus[0]), &[SMALL]),
        text(SMALL, "GPU 0 is used by `gpu-0`")
    );
    assert_eq!(
        refused(&h100, &Claims::of(&h100, &[SMALL]), &["gpu-0"]),
        text("gpu-0", "memory slice 0 of GPU 0 is used by `gpu-0-mig-1g10gb-19-0`")
    );
    // At the same place, and another profile.
    assert_eq!(
        refused(&h100, &Claims::of(&h100, &[SMALL]), &["gpu-0-mig-1g10gb-me-20-0"]),
        text(
            "gpu-0-mig-1g10gb-me-20-0",
            "memory slice 0 of GPU 0 is used by `gpu-0-mig-1g10gb-19-0`"
        )
    );
    let rtx = node([gpu(&RTX_PRO_6000, 0)]);
    assert_eq!(
        refused(&rtx, &Claims::of(&rtx, &["gpu-0-mig-1g24gb-14-3"]), &["gpu-0-mig-2g48gb-5-0"]),
        text(
            "gpu-0-mig-2g48gb-5-0",
            "memory slices 3-5 of GPU 0 are used by `gpu-0-mig-1g24gb-14-3`"
        )
    );
}

#[test]
fn a_device_that_overlaps_another_one_of_its_claim() {
    let node = node([gpu(&H100, 0)]);
    let text = |this, other| {
        format!("{this}: overlaps device `{other}` of the same claim; claim one of them")
    };
    let refused = |devices: &[&str]| refused(&node, &nobody(), devices);
    assert_eq!(refused(&["gpu-0", SMALL]), text(SMALL, "gpu-0"));
    assert_eq!(refused(&[SMALL, "gpu-0"]), text("gpu-0", SMALL));
    let half = "gpu-0-mig-3g40gb-9-0";
    assert_eq!(refused(&[SMALL, half]), text(half, SMALL));
}

#[test]
fn a_whole_gpu_with_instances_that_kerf_did_not_make() {
    let mut h100 = cut(gpu(&H100, 0), Shape::Filled);
    carve(&mut h100, 99, place(1, 1), Shape::Empty);
    h100.index = 5;
    assert_eq!(
        refused(&node([h100]), &nobody(), &["gpu-0"]),
        "gpu-0: GPU 5 has MIG instances that Kerf did not make (profile 99 at 1, 3g.40gb at 4); delete them with \
         `nvidia-smi mig -i 5 -dci && nvidia-smi mig -i 5 -dgi`, or claim a MIG device"
    );
}

#[test]
fn a_place_with_another_instance_that_kerf_did_not_make() {
    let device = "gpu-0-mig-1g20gb-15-6";
    let text = |delete: &str| {
        format!(
            "{device}: memory slices 4-7 of GPU 0 are used by a MIG instance that Kerf did not make (3g.40gb at 4); \
             delete it with `{delete}`, or delete the pod so that it is scheduled again"
        )
    };
    let both = "nvidia-smi mig -i 0 -gi 1 -dci && nvidia-smi mig -i 0 -gi 1 -dgi";
    for (shape, delete) in [
        (Shape::Filled, both),
        (Shape::Split, both),
        (Shape::Empty, "nvidia-smi mig -i 0 -gi 1 -dgi"),
    ] {
        let node = node([cut(gpu(&H100, 0), shape)]);
        assert_eq!(refused(&node, &nobody(), &[device]), text(delete));
    }
}

#[test]
fn an_instance_that_is_not_filled_by_one_compute_instance() {
    let device = "gpu-0-mig-3g40gb-9-4";
    let text = |delete: &str| {
        format!(
            "{device}: GPU instance 1 on GPU 5, which Kerf did not make, is not filled by one compute instance; delete \
             it with `{delete}`, or delete the pod so that it is scheduled again"
        )
    };
    for (shape, delete) in [
        (Shape::Split, "nvidia-smi mig -i 5 -gi 1 -dci && nvidia-smi mig -i 5 -gi 1 -dgi"),
        (Shape::Empty, "nvidia-smi mig -i 5 -gi 1 -dgi"),
    ] {
        let mut h100 = cut(gpu(&H100, 0), shape);
        h100.index = 5;
        assert_eq!(refused(&node([h100]), &nobody(), &[device]), text(delete));
    }
}

#[test]
fn a_mode_that_waits_for_a_reset() {
    let text = |device, switched| {
        format!(
            "{device}: MIG mode of GPU 0 waits for a reset to be switched {switched}; drain the node and run \
             `nvidia-smi -r -i 0`, or delete the pod so that it is scheduled again"
        )
    };
    let off = node([with_mode(gpu(&A100_80, 0), true, false)]);
    assert_eq!(refused(&off, &nobody(), &["gpu-0"]), text("gpu-0", "off"));
    assert_eq!(refused(&off, &nobody(), &[SMALL]), text(SMALL, "off"));
    let on = node([with_mode(gpu(&A100_80, 0), false, true)]);
    assert_eq!(refused(&on, &nobody(), &[SMALL]), text(SMALL, "on"));
}

/// A GPU that needs no reset takes a switch that was put off when it is asked for again.
#[test]
fn a_mode_that_can_be_switched_now() {
    for (enabled, pending) in [(false, false), (false, true), (true, false), (true, true)] {
        let node = node([with_mode(gpu(&H100, 0), enabled, pending)]);
        let whole = ["gpu-0 for gpu: Found"];
        assert_eq!(planned(&node, &nobody(), &asks(&["gpu-0"])), whole);
        let small = [format!("{SMALL} for gpu: Made")];
        assert_eq!(planned(&node, &nobody(), &asks(&[SMALL])), small);
    }
}

#[test]
fn a_mode_that_needs_a_reset() {
    let on = node([gpu(&A100_80, 0)]);
    assert_eq!(
        refused(&on, &nobody(), &["gpu-0"]),
        "gpu-0: MIG mode of GPU 0 is on and cannot be switched off without a reset; drain the node and run \
         `nvidia-smi -i 0 -mig 0 && nvidia-smi -r -i 0`, or claim a MIG device"
    );
    let off = node([with_mode(gpu(&A100_80, 0), false, false)]);
    assert_eq!(
        refused(&off, &nobody(), &[SMALL]),
        "gpu-0-mig-1g10gb-19-0: MIG mode of GPU 0 is off and cannot be switched on without a reset; drain the node \
         and run `nvidia-smi -i 0 -mig 1 && nvidia-smi -r -i 0`, or delete the pod so that it is scheduled again"
    );
}

#[test]
fn what_others_hold_is_told_before_what_lies_there() {
    let node = node([cut(gpu(&H100, 0), Shape::Filled)]);
    let others = Claims::of(&node, &["gpu-0-mig-3g40gb-9-4"]);
    assert_eq!(
        refused(&node, &others, &["gpu-0"]),
        "gpu-0: memory slices 4-7 of GPU 0 are used by `gpu-0-mig-3g40gb-9-4` of claim `default/claim-0`; wait until \
         that is released, or delete the pod so that it is scheduled again"
    );
}
