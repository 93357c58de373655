//! What joins the GPUs of a machine.

use std::sync::Arc;

use kerf::{
    driver::machine::Machine,
    metrics::Metrics,
    model::{
        gpu::{Gpu, GpuUuid},
        topology::{Link, Links, PcieLevel},
    },
    node::host::Host,
};
use kerf_nvml::{Effect, Fault, Model, NodeDescription};

use super::Rig;

const UNKNOWN: u32 = 999;

/// The agent's view of a simulated machine.
fn machine(rig: &Rig) -> Arc<Machine> {
    let simulated = &rig.machine;
    let host = Host {
        driver_root: simulated.driver_root(),
        host_driver_root: simulated.driver_root(),
        dev_root: simulated.dev_root(),
        proc_root: simulated.proc_root(),
        sys_root: simulated.sys_root(),
    };
    Arc::new(Machine::new(Some(simulated.library()), host, Metrics::default()))
}

fn uuid(rig: &Rig, index: usize) -> GpuUuid {
    GpuUuid(rig.machine.snapshot().unwrap().gpus[index].uuid.clone())
}

/// One GPU, another, and what joins them.
type Pair = (usize, usize, PcieLevel, u32);

fn links(rig: &Rig, pairs: &[Pair]) -> Links {
    let mut links = Links::default();
    for &(one, other, pcie, nvlinks) in pairs {
        links.insert(uuid(rig, one), uuid(rig, other), Link { pcie: Some(pcie), nvlinks });
    }
    links
}

#[test]
fn each_gpu_tells_what_joins_it_to_others() {
    let rig = Rig::new(&NodeDescription::uniform(Model::A30, 3));
    let gpus = [0, 1, 2].map(|index| rig.gpu(index));
    let others = |but: &Gpu| gpus.iter().filter(|gpu| *gpu != but).cloned().collect::<Vec<_>>();
    let read = gpus.each_ref().map(|gpu| rig.nvml.surroundings(gpu, &others(gpu)));
    let bridged = (0, 1, PcieLevel::Node, 4);
    let apart = [(0, 2, PcieLevel::System, 0), (1, 2, PcieLevel::System, 0)];
    assert_eq!(Links::of(&read), links(&rig, &[bridged, apart[0], apart[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_read_when_the_gpus_are_others_than_before() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 3));
    let machine = machine(&rig);
    assert_eq!(*machine.links(), Links::default());
    machine.read().await;
    let near = (0, 1, PcieLevel::Node, 18);
    let far = [(0, 2, PcieLevel::System, 18), (1, 2, PcieLevel::System, 18)];
    let all = links(&rig, &[near, far[0], far[1]]);
    assert_eq!(*machine.links(), all);

    let state = "nvmlDeviceGetNvLinkState";
    rig.machine.inject(Fault::always(state, Effect::Fail(UNKNOWN))).unwrap();
    machine.read().await;
    assert_eq!(*machine.links(), all, "not read again");
    rig.machine.lose_gpu(2).unwrap();
    machine.read().await;
    let unknown = links(&rig, &[(0, 1, PcieLevel::Node, 0)]);
    assert_eq!(*machine.links(), unknown, "what cannot be read is not there");

    rig.machine.clear_faults().unwrap();
    rig.machine.reset_gpu(2).unwrap();
    machine.read().await;
    assert_eq!(*machine.links(), all);
    rig.machine.unload_driver().unwrap();
    machine.read().await;
    assert_eq!(*machine.links(), Links::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_hangs_is_left_out_until_it_answers() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 3));
    let machine = machine(&rig);
    let hang = Fault::always("nvmlDeviceGetNvLinkState", Effect::Hang).on_gpu(0);
    rig.machine.inject(hang).unwrap();
    let others = links(&rig, &[(1, 2, PcieLevel::System, 18)]);
    machine.read().await;
    assert_eq!(*machine.links(), others);
    machine.read().await;
    assert_eq!(*machine.links(), others, "and nobody waits for it again");

    rig.machine.clear_faults().unwrap();
    let near = (0, 1, PcieLevel::Node, 18);
    let far = [(0, 2, PcieLevel::System, 18), (1, 2, PcieLevel::System, 18)];
    let all = links(&rig, &[near, far[0], far[1]]);
    while *machine.links() != all {
        machine.read().await;
    }
}
