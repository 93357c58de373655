//! MIG mode switched, on GPUs before Hopper and since.

use kerf::model::gpu::Mig;
use kerf_nvml::{Model, NodeDescription};

use super::{Rig, cuttable};

/// Mode now, mode after the next reset.
fn mode(rig: &Rig) -> (bool, bool) {
    let Mig { enabled, pending, .. } = rig.mig(0);
    (enabled, pending)
}

fn before_hopper(model: Model) -> bool {
    matches!(model, Model::A30 | Model::A100_40 | Model::A100_80)
}

#[test]
fn a_gpu_that_nobody_uses_is_switched_at_once() {
    for model in cuttable() {
        let rig = Rig::new(&NodeDescription::uniform(model, 1));
        let gpu = rig.gpu(0);
        let off = gpu.mig.clone().unwrap();
        assert_eq!(off.switches_without_reset, !before_hopper(model), "{model:?}");
        let on = Mig { enabled: true, pending: true, ..off.clone() };
        for (switch, expected) in [(true, &on), (true, &on), (false, &off), (false, &off)] {
            assert!(rig.nvml.set_mig_mode(&gpu, switch).unwrap(), "{model:?}");
            assert_eq!(rig.nvml.mig_now(&gpu).unwrap().as_ref(), Some(expected), "{model:?}");
        }
    }
}

#[test]
fn a_gpu_without_mig_has_no_mode() {
    for model in [Model::L4, Model::T4] {
        let rig = Rig::new(&NodeDescription::uniform(model, 1));
        let gpu = rig.gpu(0);
        assert!(rig.nvml.set_mig_mode(&gpu, true).unwrap_err().not_supported());
        assert_eq!(rig.nvml.mig_now(&gpu).unwrap(), None);
    }
}

#[test]
fn a_gpu_that_is_cut_stays_in_mig_mode() {
    for model in cuttable() {
        let rig = Rig::cut(model);
        let gpu = rig.gpu(0);
        let profile = &gpu.mig.as_ref().unwrap().profiles[0];
        rig.nvml.create_instance(&gpu, profile, profile.placements[0]).unwrap();
        let cut = rig.gpu(0);
        assert!(rig.nvml.set_mig_mode(&gpu, false).unwrap_err().in_use(), "{model:?}");
        assert_eq!(rig.gpu(0), cut);
    }
}

/// Before Hopper the new mode waits for a reset; since then nothing is changed.
#[test]
fn a_gpu_that_computes_is_not_switched() {
    for model in cuttable() {
        let rig = Rig::new(&NodeDescription::uniform(model, 1));
        let gpu = rig.gpu(0);
        rig.machine.start_process(0, None, 4711, "train").unwrap();
        assert_eq!(rig.nvml.processes(&gpu).unwrap(), [4711]);
        assert!(rig.nvml.set_mig_mode(&gpu, true).unwrap_err().in_use(), "{model:?}");
        assert_eq!(mode(&rig), (false, before_hopper(model)), "{model:?}");
        rig.machine.stop_process(4711).unwrap();
        assert_eq!(rig.nvml.processes(&gpu).unwrap(), Vec::<u32>::new());
        rig.machine.reset_gpu(0).unwrap();
        assert_eq!(mode(&rig), [(false, false), (true, true)][usize::from(before_hopper(model))]);
    }
}
