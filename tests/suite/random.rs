//! Ten thousand random operations on the real agent, against a model: claims come and go, calls are
//! repeated, cancelled, killed and failed, agents hand over, administrators cut, drivers and machines
//! start anew. After each of them everything is as the model says, and in the end nothing is left.

mod dice;
mod model;
mod world;

use kerf_nvml::{Model, NodeDescription};

use self::world::World;

/// What happens to one node; four of them are looked at side by side.
const OPERATIONS: usize = 2500;

/// Runs a world to its end, or says how it went until it was wrong.
async fn run(machine: NodeDescription, seed: u64) {
    let mut world = World::new(machine, seed).await;
    for _ in 0..OPERATIONS {
        world.step().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_gpus_that_switch_without_a_reset() {
    run(NodeDescription::mixed(&[Model::H100_80, Model::RtxPro6000]), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_gpus_that_are_in_mig_mode_for_good() {
    run(NodeDescription::mixed(&[Model::A100_80, Model::A30]).with_mig_enabled(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_gpus_that_are_all_different() {
    let mut machine = NodeDescription::mixed(&[Model::B200, Model::A30, Model::L4, Model::A100_40]);
    machine.gpus[1].mig_enabled = true;
    run(machine, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_gpu_that_all_want() {
    run(NodeDescription::uniform(Model::H200_141, 1), 4).await;
}
