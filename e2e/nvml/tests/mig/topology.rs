//! How GPUs are joined.

use kerf_nvml::{Model, NodeDescription};

use crate::rig::*;

const HOSTBRIDGE: u32 = 30;
const NODE: u32 = 40;
const SYSTEM: u32 = 50;
const TO_GPU: u32 = 0;
const TO_SWITCH: u32 = 2;

#[test]
fn the_way_over_pcie_follows_from_where_gpus_are_plugged_in() {
    let mut node = NodeDescription::uniform(Model::L4, 4);
    node.gpus[1].pcie_root = node.gpus[0].pcie_root.clone();
    node.gpus[3].pcie_root = None;
    let rig = Rig::of(&node);
    let gpus = [0, 1, 2, 3].map(|index| rig.gpu(index).unwrap());
    let levels = [(0, 1), (1, 0), (0, 2), (2, 3)];
    let levels = levels.map(|(one, other): (usize, usize)| rig.ancestor(gpus[one], gpus[other]));
    assert_eq!(levels, [Ok(HOSTBRIDGE), Ok(HOSTBRIDGE), Ok(SYSTEM), Ok(NODE)]);
    rig.machine.lose_gpu(1).unwrap();
    let lost =
        [(0, 1), (1, 0)].map(|(one, other): (usize, usize)| rig.ancestor(gpus[one], gpus[other]));
    assert_eq!(lost, [Err(GPU_IS_LOST); 2]);
    assert_eq!(rig.ancestor(gpus[0], Handle(0)), Err(INVALID_ARGUMENT));
}

/// How many links are up, and where the first leads.
fn links(rig: &Rig, gpu: u32) -> (usize, Answer<(u32, String)>) {
    let gpu = rig.gpu(gpu).unwrap();
    let up = (0..18).filter(|&link| rig.link_state(gpu, link) == Ok(1)).count();
    (up, rig.link_end(gpu, 0))
}

#[test]
fn nvlinks_lead_to_switches_or_over_a_bridge_or_are_not_there() {
    let switch = || Ok((TO_SWITCH, "00000000:F0:00.0".to_owned()));
    for (model, count) in [
        (Model::A100_40, 12),
        (Model::A100_80, 12),
        (Model::H100_80, 18),
        (Model::H200_141, 18),
        (Model::B200, 18),
    ] {
        assert_eq!(links(&Rig::new(&[model]), 0), (count, switch()), "{model:?}");
    }
    for model in [Model::RtxPro6000, Model::L4, Model::T4] {
        let rig = Rig::new(&[model]);
        assert_eq!(links(&rig, 0), (0, Err(NOT_SUPPORTED)), "{model:?}");
        assert_eq!(rig.link_state(rig.gpu(0).unwrap(), 0), Err(NOT_SUPPORTED), "{model:?}");
    }
    let rig = Rig::new(&[Model::A30; 3]);
    let to = |address: &str| (4, Ok((TO_GPU, address.to_owned())));
    assert_eq!(links(&rig, 0), to("00000000:15:00.0"));
    assert_eq!(links(&rig, 1), to("00000000:07:00.0"));
    assert_eq!(links(&rig, 2), (0, Err(NOT_SUPPORTED)), "no card beside it");
    assert_eq!(rig.link_state(rig.gpu(2).unwrap(), 0), Ok(0));
    assert_eq!(rig.link_state(rig.gpu(2).unwrap(), 4), Err(INVALID_ARGUMENT));
}
