//! What a GPU answers when it is asked how it is.

use kerf::model::{
    gpu::{Gpu, GpuUuid},
    health::{Answer, FabricHealth, Readings, Remapping},
};
use kerf_nvml::{
    EccErrors, Effect, FabricDescription, Fault, Model, NodeDescription, RemappedRows,
};

use super::Rig;

const RECOVERY_ACTION: u32 = 230;

fn failed(code: u32, line: &str) -> Answer {
    Answer::Error(code, line.to_owned())
}

/// Of a GPU that has every reading, all of them as they should be.
fn well() -> Readings {
    Readings {
        answer: Answer::Good,
        recovery_action: Some(0),
        remapping: Some(Remapping { pending: false, failed: false }),
        uncorrected_volatile: Some(0),
        sram_threshold_exceeded: Some(false),
        repair_pending: Some(false),
        fabric: Some(FabricHealth { state: 3, summary: Some(1), mask: 0x1aa }),
        hardware_thermal_slowdown: Some(0),
        power_brake_slowdown: Some(0),
        pcie_fatal_errors: Some(0),
    }
}

fn in_fabric(driver: &str) -> Rig {
    let fabric = FabricDescription { cluster: None, clique: 0 };
    let node = NodeDescription::uniform(Model::H200_141, 2).in_fabric(fabric);
    Rig::new(&NodeDescription { driver: driver.to_owned(), ..node })
}

#[test]
fn each_reading_is_what_the_gpu_says() {
    let rig = in_fabric("580.95.05");
    let (gpu, other) = (rig.gpu(0), rig.gpu(1));
    assert_eq!(rig.nvml.readings(&gpu), well());
    let set = rig.machine.set_readings(0, |readings| {
        readings.recovery_action = 99;
        readings.remapped_rows =
            RemappedRows { corrected: 1, uncorrected: 2, pending: true, failure: false };
        readings.volatile_ecc = EccErrors { corrected: 3, uncorrected: 4 };
        readings.sram_threshold_exceeded = true;
        readings.tpc_repair_pending = true;
        readings.fabric.mask = 0x1a9;
        readings.fabric.summary = 3;
        readings.violations.hardware_thermal = 1_000_000_007;
        readings.violations.power_brake = 8;
        readings.pcie_fatal = 9;
    });
    set.unwrap();
    let ill = Readings {
        answer: Answer::Good,
        recovery_action: Some(99),
        remapping: Some(Remapping { pending: true, failed: false }),
        uncorrected_volatile: Some(4),
        sram_threshold_exceeded: Some(true),
        repair_pending: Some(true),
        fabric: Some(FabricHealth { state: 3, summary: Some(3), mask: 0x1a9 }),
        hardware_thermal_slowdown: Some(1_000_000_007),
        power_brake_slowdown: Some(8),
        pcie_fatal_errors: Some(9),
    };
    assert_eq!([&gpu, &other].map(|gpu| rig.nvml.readings(gpu)), [ill, well()]);
}

#[test]
fn what_a_gpu_or_its_driver_lacks_is_absent() {
    let rig = Rig::new(&NodeDescription::uniform(Model::T4, 1));
    let turing = Readings {
        remapping: None,
        sram_threshold_exceeded: None,
        repair_pending: None,
        fabric: None,
        ..well()
    };
    assert_eq!(rig.nvml.readings(&rig.gpu(0)), turing);

    // Without recovery actions, and with other numbers for what slows down.
    let rig = in_fabric("550.163.01");
    let set = rig.machine.set_readings(0, |readings| {
        readings.violations.hardware_thermal = 7;
        readings.violations.power_brake = 8;
    });
    set.unwrap();
    let gpu = rig.gpu(0);
    let faults = [
        Fault::next("nvmlDeviceGetSramEccErrorStatus", Effect::Fail(4)),
        Fault::next("nvmlDeviceGetRepairStatus", Effect::Fail(13)),
        // The third version of the struct, which is asked for first.
        Fault::next("nvmlDeviceGetGpuFabricInfoV", Effect::Fail(25)),
    ];
    for fault in faults {
        rig.machine.inject(fault).unwrap();
    }
    let old = Readings {
        recovery_action: None,
        sram_threshold_exceeded: None,
        repair_pending: None,
        fabric: Some(FabricHealth { state: 3, summary: None, mask: 0x1aa }),
        hardware_thermal_slowdown: Some(7),
        power_brake_slowdown: Some(8),
        ..well()
    };
    assert_eq!(rig.nvml.readings(&gpu), old);
}

#[test]
fn an_answer_that_says_something_of_the_gpu_is_the_last() {
    let rig = in_fabric("580.95.05");
    let gpu = rig.gpu(0);
    for code in [8, 11, 14, 15, 16, 999] {
        let fault = Fault::next("nvmlDeviceGetRepairStatus", Effect::Fail(code));
        rig.machine.inject(fault).unwrap();
        let read = rig.nvml.readings(&gpu);
        let Answer::Error(told, line) = &read.answer else { panic!("{code}: {read:?}") };
        assert_eq!(*told, code);
        assert!(line.starts_with("nvmlDeviceGetRepairStatus on GPU 0: "), "{line}");
        let answer = read.answer.clone();
        assert_eq!(read, Readings { answer, repair_pending: None, fabric: None, ..well() });
    }
    // A field has an answer of its own, which the call does not show.
    let refuse = |code| {
        let set = rig.machine.set_readings(0, |readings| {
            readings.refused_fields = [(RECOVERY_ACTION, code)].into();
        });
        set.unwrap();
        rig.nvml.readings(&gpu)
    };
    let without = Readings { recovery_action: None, ..well() };
    assert_eq!([3, 999].map(refuse), [without.clone(), without.clone()]);
    let until_then = Readings {
        answer: failed(15, "nvmlDeviceGetFieldValues on GPU 0: GPU is lost"),
        sram_threshold_exceeded: None,
        repair_pending: None,
        fabric: None,
        ..without
    };
    assert_eq!(refuse(15), until_then);
}

#[test]
fn a_gpu_that_is_lost_or_gone_says_so() {
    let rig = in_fabric("580.95.05");
    let gpu = rig.gpu(0);
    rig.machine.lose_gpu(0).unwrap();
    let answer = failed(15, "nvmlDeviceGetFieldValues on GPU 0: GPU is lost");
    assert_eq!(rig.nvml.readings(&gpu), Readings { answer, ..Readings::default() });
    assert_eq!(rig.nvml.readings(&rig.gpu(1)), well(), "the other stays well");
    let swapped = Gpu { uuid: GpuUuid("GPU-that-was-swapped".to_owned()), ..gpu };
    let gone = Readings { answer: Answer::Gone, ..Readings::default() };
    assert_eq!(rig.nvml.readings(&swapped), gone);
}
