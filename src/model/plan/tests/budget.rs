//! How much of a GPU its claims can have.

use super::{asks, nobody, place, planned, refused};
use crate::model::{
    fixtures::{
        claims::Claims,
        gpus::{A30, H100, RTX_PRO_6000, Shape, carve, gpu, node},
    },
    gpu::{Gpu, Inventory},
};

const HALVES: [&str; 2] = ["gpu-0-mig-3g40gb-9-0", "gpu-0-mig-3g40gb-9-4"];

/// Whether a claim can have all of these, each made for it.
#[track_caller]
fn all_made(gpu: Gpu, devices: &[&str]) {
    let expected: Vec<_> = devices.iter().map(|device| format!("{device} for gpu: Made")).collect();
    assert_eq!(planned(&node([gpu]), &nobody(), &asks(devices)), expected);
}

#[test]
fn a_gpu_can_be_cut_until_it_is_full() {
    all_made(gpu(&H100, 0), &["gpu-0-mig-4g40gb-5-0", "gpu-0-mig-3g40gb-9-4"]);
    all_made(gpu(&H100, 0), &HALVES);
    all_made(gpu(&H100, 0), &["gpu-0-mig-7g80gb-0-0"]);
    let small = [0, 1, 2, 3, 4, 5, 6].map(|start| format!("gpu-0-mig-1g10gb-19-{start}"));
    all_made(gpu(&H100, 0), &small.each_ref().map(String::as_str));
    let small = [0, 1, 2, 3].map(|start| format!("gpu-0-mig-1g6gb-14-{start}"));
    all_made(gpu(&A30, 0), &small.each_ref().map(String::as_str));
}

#[test]
fn a_full_gpu_has_nothing_left() {
    let node = node([gpu(&H100, 0)]);
    let [first, last] = HALVES;
    let small = "gpu-0-mig-1g10gb-19-6";
    assert_eq!(
        refused(&node, &nobody(), &[first, last, small]),
        "gpu-0-mig-1g10gb-19-6: overlaps device `gpu-0-mig-3g40gb-9-4` of the same claim; claim one of them"
    );
    assert_eq!(
        refused(&node, &Claims::of(&node, &HALVES), &[small]),
        "gpu-0-mig-1g10gb-19-6: memory slices 4-7 of GPU 0 are used by `gpu-0-mig-3g40gb-9-4` of claim \
         `default/claim-1`; wait until that is released, or delete the pod so that it is scheduled again"
    );
}

/// The placements of the models that we know leave no compute slice to want for. What an administrator
/// made need not lie at one of them.
#[test]
fn compute_slices_are_counted_besides_memory_slices() {
    let mut h100 = gpu(&H100, 0);
    carve(&mut h100, 19, place(7, 1), Shape::Filled);
    let node = node([h100]);
    let others = Claims::of(&node, &["gpu-0-mig-4g40gb-5-0"]);
    let made = ["gpu-0-mig-2g20gb-14-4 for gpu: Made"];
    assert_eq!(planned(&node, &others, &asks(&["gpu-0-mig-2g20gb-14-4"])), made);
    assert_eq!(
        refused(&node, &others, &["gpu-0-mig-1g10gb-19-6", "gpu-0-mig-2g20gb-14-4"]),
        "gpu-0-mig-2g20gb-14-4: GPU 0 has 1 of 7 compute slices left and it needs 2; delete the pod so that it is \
         scheduled again"
    );
}

/// The published counters keep a scheduler from giving these out together; the node does so too.
#[test]
fn engines_are_counted_besides_memory_slices() {
    let a30 = node([gpu(&A30, 0)]);
    let refusal = |node: &Inventory, held: &str, asked: &str, what: &str| {
        let text =
            format!("{asked}: GPU 0 has {what}; delete the pod so that it is scheduled again");
        assert_eq!(refused(node, &Claims::of(node, &[held]), &[asked]), text);
    };
    let (held, asked) = ("gpu-0-mig-2g12gb-me-6-0", "gpu-0-mig-1g6gb-me-21-2");
    refusal(&a30, held, asked, "0 of 1 JPEG engines left and it needs 1");
    let rtx = node([gpu(&RTX_PRO_6000, 0)]);
    let (held, asked) = ("gpu-0-mig-1g24gb-meall-65-0", "gpu-0-mig-1g24gb-14-3");
    refusal(&rtx, held, asked, "0 of 4 decoders left and it needs 1");
}

/// What is carved and held counts once, and what is unknown for its memory slices alone.
#[test]
fn an_instance_of_a_claim_counts_once() {
    let mut h100 = gpu(&H100, 0);
    carve(&mut h100, 5, place(0, 4), Shape::Filled);
    carve(&mut h100, 99, place(7, 1), Shape::Filled);
    let node = node([h100]);
    let others = Claims::of(&node, &["gpu-0-mig-4g40gb-5-0"]);
    let small = [4, 5, 6].map(|start| format!("gpu-0-mig-1g10gb-19-{start}"));
    let expected = small.each_ref().map(|device| format!("{device} for gpu: Made"));
    assert_eq!(planned(&node, &others, &asks(&small.each_ref().map(String::as_str))), expected);
}

#[test]
fn a_gpu_takes_so_many_instances_of_a_profile() {
    let [first, second] = ["gpu-0-mig-1g10gb-me-20-0", "gpu-0-mig-1g10gb-me-20-3"];
    let text = "gpu-0-mig-1g10gb-me-20-3: GPU 0 takes at most 1 of profile `1g.10gb+me`, used up by 1g.10gb+me at 0; \
                delete the pod so that it is scheduled again";
    let free = node([gpu(&H100, 0)]);
    assert_eq!(refused(&free, &nobody(), &[first, second]), text);
    assert_eq!(refused(&free, &Claims::of(&free, &[first]), &[second]), text);
    let mut foreign = gpu(&H100, 0);
    carve(&mut foreign, 20, place(0, 1), Shape::Filled);
    let foreign = node([foreign]);
    assert_eq!(refused(&foreign, &nobody(), &[second]), text);
    let found = ["gpu-0-mig-1g10gb-me-20-0 for gpu: Found"];
    assert_eq!(planned(&foreign, &nobody(), &asks(&[first])), found, "that one may be had");
}

#[test]
fn each_gpu_has_a_budget_of_its_own() {
    let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
    let others = Claims::of(&node, &["gpu-0-mig-1g10gb-me-20-0", "gpu-0-mig-4g40gb-5-0"]);
    let more = ["gpu-1-mig-1g10gb-me-20-4", "gpu-1-mig-4g40gb-5-0"];
    let made = more.map(|device| format!("{device} for gpu: Made"));
    assert_eq!(planned(&node, &others, &asks(&more)), made);
}

#[test]
fn several_instances_of_a_profile_are_all_named() {
    let mut a30 = gpu(&A30, 0);
    a30.mig.as_mut().unwrap().profiles[0].max_instances = 2;
    carve(&mut a30, 14, place(3, 1), Shape::Filled);
    let node = node([a30]);
    let others = Claims::of(&node, &["gpu-0-mig-1g6gb-14-1"]);
    assert_eq!(
        refused(&node, &others, &["gpu-0-mig-1g6gb-14-0"]),
        "gpu-0-mig-1g6gb-14-0: GPU 0 takes at most 2 of profile `1g.6gb`, used up by 1g.6gb at 1, 1g.6gb at 3; \
         delete the pod so that it is scheduled again"
    );
}
