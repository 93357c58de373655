//! What a GPU says when something is wrong with it.

use std::fs;

use kerf_nvml::{
    EccErrors, Effect, FabricDescription, FabricHealth, Fault, Machine, Model, NodeDescription,
    RemappedRows, Violations,
};

use crate::rig::*;

const RECOVERY_ACTION: u32 = 230;

/// The texts of the kernel's log, whose numbers count from 0.
fn log(machine: &Machine) -> Vec<String> {
    let text = fs::read_to_string(machine.kernel_log()).unwrap();
    let record = |(number, line): (usize, &str)| {
        let (head, text) = line.split_once(';').unwrap();
        let [priority, sequence, since_boot, flags] = head.split(',').collect::<Vec<_>>()[..]
        else {
            panic!("{head}");
        };
        assert_eq!([priority, sequence, flags], ["4", &number.to_string(), "-"]);
        assert!(since_boot.parse::<u64>().is_ok(), "{head}");
        text.to_owned()
    };
    text.lines().enumerate().map(record).collect()
}

fn with_driver(version: &str) -> Rig {
    let node = NodeDescription::uniform(Model::H100_80, 1);
    Rig::of(&NodeDescription { driver: version.to_owned(), ..node })
}

#[test]
fn a_driver_knows_the_events_and_fields_of_its_time() {
    let known = ["550.163.01", "560.35.03", "565.57.01"].map(|version| {
        let rig = with_driver(version);
        rig.machine.set_recovery_action(0, 1, true).unwrap();
        let gpu = rig.gpu(0).unwrap();
        let action = rig.fields(gpu, &[RECOVERY_ACTION]).unwrap()[0];
        (rig.supported_events(gpu).unwrap(), action, log(&rig.machine).len())
    });
    let expected =
        [(0x10b, Err(NOT_SUPPORTED), 0), (0x3f0b, Err(NOT_SUPPORTED), 0), (0xff0b, Ok(1), 1)];
    assert_eq!(known, expected);
}

#[test]
fn fields_were_renumbered_within_r580() {
    let known = ["580.65.06", "580.82.07", "590.44.01"].map(|version| {
        let rig = with_driver(version);
        let times = Violations { software_thermal: 1, power_brake: 3, ..Violations::default() };
        rig.machine.set_readings(0, |readings| readings.violations = times).unwrap();
        rig.fields(rig.gpu(0).unwrap(), &[251, 253, 269, 271]).unwrap()
    });
    let (no, old) = (Err(NOT_SUPPORTED), [Ok(1), Ok(3)]);
    let (before, after) = ([old, [no, no]].concat(), [[no, no], old].concat());
    assert_eq!(known, [before, after.clone(), after]);
}

#[test]
fn an_event_of_any_kind_arrives_and_of_no_other() {
    let rig = Rig::new(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let set = rig.event_set().unwrap();
    let kinds = [0x2, 0x200, 0x400, 0x800, 0x1000, 0x2000, 0x4000, 0x8000];
    assert_eq!(rig.register(gpu, 0x1_0000, set), Err(NOT_SUPPORTED));
    rig.register(gpu, 0xff0b & !0x400, set).unwrap();
    for kind in kinds {
        rig.machine.notice(0, kind).unwrap();
    }
    for kind in kinds.into_iter().filter(|&kind| kind != 0x400) {
        assert_eq!(rig.wait(set, 1000), Ok((gpu, kind, 0, u32::MAX, u32::MAX)));
    }
    assert_eq!(rig.wait(set, 0), Err(TIMEOUT));
}

#[test]
fn a_burst_is_kept_for_who_is_slow() {
    let rig = Rig::new(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let set = rig.event_set().unwrap();
    rig.register(gpu, 0x8, set).unwrap();
    for xid in 0..512 {
        rig.machine.reported_xid(0, xid, None, None).unwrap();
    }
    let seen: Vec<_> = (0..512).map(|_| rig.wait(set, 1000).unwrap().2).collect();
    assert_eq!(seen, (0..512).collect::<Vec<_>>());
}

#[test]
fn a_recovery_action_is_announced_or_only_read() {
    let rig = Rig::new(&[Model::H100_80; 2]);
    let gpus = [0, 1].map(|index| rig.gpu(index).unwrap());
    let set = rig.event_set().unwrap();
    for gpu in gpus {
        rig.register(gpu, 0x8000, set).unwrap();
    }
    let actions = || gpus.map(|gpu| rig.fields(gpu, &[RECOVERY_ACTION]).unwrap()[0]);
    rig.machine.set_recovery_action(0, 4, false).unwrap();
    rig.machine.set_recovery_action(1, 99, true).unwrap();
    assert_eq!(actions(), [Ok(4), Ok(99)]);
    assert_eq!(rig.wait(set, 1000), Ok((gpus[1], 0x8000, 0, u32::MAX, u32::MAX)));
    assert_eq!(rig.wait(set, 0), Err(TIMEOUT));
    rig.machine.set_recovery_action(0, 1, true).unwrap();
    rig.machine.reset_gpu(0).unwrap();
    assert_eq!(actions(), [Ok(0), Ok(99)]);
    let changed = "GPU recovery action changed from";
    let expected = [
        format!("NVRM: Xid (PCI:0000:15:00): 154, {changed} 0x0 (None) to 0x63 (Unknown)"),
        format!(
            "NVRM: Xid (PCI:0000:07:00): 154, {changed} 0x4 (Drain and Reset) to 0x1 (GPU Reset \
             Required)"
        ),
    ];
    assert_eq!(log(&rig.machine), expected);
}

#[test]
fn an_xid_takes_one_road_or_both() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let set = rig.event_set().unwrap();
    rig.register(gpu, 0x8, set).unwrap();
    rig.machine.create_instance(0, 9, 4, true).unwrap();
    rig.machine.start_process(0, Some(4), 4711, "python3").unwrap();
    rig.machine.xid(0, 43, Some(2), Some(0)).unwrap();
    rig.machine.logged_xid(0, 79, Some(1), None).unwrap();
    rig.machine.reported_xid(0, 48, None, None).unwrap();
    rig.machine.log("usb 1-1: new device").unwrap();
    assert_eq!(rig.wait(set, 1000), Ok((gpu, 0x8, 43, 2, 0)));
    assert_eq!(rig.wait(set, 1000), Ok((gpu, 0x8, 48, u32::MAX, u32::MAX)));
    assert_eq!(rig.wait(set, 0), Err(TIMEOUT));
    let expected = [
        "NVRM: Xid (PCI:0000:07:00 GPU-I:02 GPU-CI:00): 43, pid=4711, name=python3, Ch 00000012",
        "NVRM: Xid (PCI:0000:07:00 GPU-I:01): 79, pid='<unknown>', name=<unknown>, GPU has fallen \
         off the bus.",
        "usb 1-1: new device",
    ];
    assert_eq!(log(&rig.machine), expected);
    rig.machine.reboot().unwrap();
    assert_eq!(log(&rig.machine), [""; 0]);
    rig.machine.log("again").unwrap();
    assert_eq!(log(&rig.machine), ["again"]);
}

#[test]
fn fields_follow_the_readings_and_a_reset() {
    let rig = Rig::new(&[Model::A100_40, Model::T4]);
    let [ampere, turing] = [0, 1].map(|index| rig.gpu(index).unwrap());
    for gpu in 0..2 {
        let set = rig.machine.set_readings(gpu, |readings| {
            readings.volatile_ecc = EccErrors { corrected: 3, uncorrected: 4 };
            readings.aggregate_ecc = EccErrors { corrected: 5, uncorrected: 6 };
            readings.retired_pages = (29, 30, true);
            readings.remapped_rows =
                RemappedRows { corrected: 142, uncorrected: 143, pending: true, failure: true };
            readings.nvlink_errors.recovery = 59;
            readings.violations.hardware_thermal = 270;
            readings.pcie_fatal = 180;
            readings.refused_fields = [(94, 15)].into();
        });
        set.unwrap();
    }
    let ids = [3, 4, 5, 6, 29, 31, 142, 144, 145, 59, 270, 180, 94, 1, 9999];
    let (no, lost) = (Err(NOT_SUPPORTED), Err(GPU_IS_LOST));
    let rest = [Ok(270), Ok(180), lost, no, no];
    let rows = [no, no, Ok(142), Ok(1), Ok(1), Ok(59)];
    let expected = [&[Ok(3), Ok(4), Ok(5), Ok(6)][..], &rows, &rest].concat();
    assert_eq!(rig.fields(ampere, &ids), Ok(expected));
    let pages = [Ok(29), Ok(1), no, no, no, no];
    let expected = [&[Ok(3), Ok(4), Ok(5), Ok(6)][..], &pages, &rest].concat();
    assert_eq!(rig.fields(turing, &ids), Ok(expected));
    rig.machine.reset_gpu(0).unwrap();
    let expected = [0, 0, 5, 6, 0, 1, 180].map(Ok).to_vec();
    assert_eq!(rig.fields(ampere, &[3, 4, 5, 6, 144, 145, 180]), Ok(expected));
}

#[test]
fn fields_are_asked_of_a_gpu_that_is_there() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let made = rig.machine.create_instance(0, 19, 0, true).unwrap();
    let mig = rig.by_uuid(&made.compute[0].uuid).unwrap();
    assert_eq!(rig.fields(mig, &[RECOVERY_ACTION]), Err(NOT_SUPPORTED));
    assert_eq!(rig.fields(gpu, &[]), Err(INVALID_ARGUMENT));
    rig.machine.inject(Fault::next("nvmlDeviceGetFieldValues", Effect::Fail(999))).unwrap();
    assert_eq!(rig.fields(gpu, &[RECOVERY_ACTION]), Err(999));
    assert_eq!(rig.fields(gpu, &[RECOVERY_ACTION]), Ok(vec![Ok(0)]));
    rig.machine.lose_gpu(0).unwrap();
    assert_eq!(rig.fields(gpu, &[RECOVERY_ACTION]), Err(GPU_IS_LOST));
}

#[test]
fn remapped_rows_are_not_told_by_a_gpu_that_is_cut() {
    let rig = Rig::cut(&[Model::H100_80, Model::T4]);
    let [gpu, turing] = [0, 1].map(|index| rig.gpu(index).unwrap());
    let rows = RemappedRows { corrected: 1, uncorrected: 2, pending: true, failure: false };
    let set = rig.machine.set_readings(0, |readings| {
        readings.remapped_rows = rows;
        readings.banks_without_spare_rows = 1;
    });
    set.unwrap();
    assert_eq!(rig.remapped_rows(gpu), Ok([1, 2, 1, 0]));
    assert_eq!(rig.spare_rows(gpu), Ok([639, 0, 0, 0, 1]));
    rig.machine.create_instance(0, 19, 0, true).unwrap();
    assert_eq!(rig.remapped_rows(gpu), Err(NOT_SUPPORTED));
    assert_eq!(rig.fields(gpu, &[143]), Ok(vec![Ok(2)]));
    assert_eq!(rig.remapped_rows(turing), Err(NOT_SUPPORTED));
}

#[test]
fn errors_are_told_by_kind_and_place() {
    let rig = Rig::new(&[Model::H100_80, Model::T4]);
    let [gpu, turing] = [0, 1].map(|index| rig.gpu(index).unwrap());
    let set = rig.machine.set_readings(0, |readings| {
        readings.volatile_ecc = EccErrors { corrected: 1, uncorrected: 2 };
        readings.aggregate_ecc = EccErrors { corrected: 3, uncorrected: 4 };
        readings.sram_threshold_exceeded = true;
        readings.tpc_repair_pending = true;
    });
    set.unwrap();
    let asked = [(0, 0, 2), (1, 0, 2), (0, 1, 2), (1, 1, 7), (2, 0, 2), (0, 2, 2), (0, 0, 8)];
    let bad = Err(INVALID_ARGUMENT);
    let told = asked.map(|at| rig.ecc_errors(gpu, at));
    assert_eq!(told, [Ok([1, 1]), Ok([2, 2]), Ok([3, 3]), Ok([4, 0]), bad, bad, bad]);
    assert_eq!((rig.sram(gpu), rig.repair(gpu)), (Ok(1), Ok((0, 1))));
    assert_eq!((rig.sram(turing), rig.repair(turing)), (Err(NOT_SUPPORTED), Err(NOT_SUPPORTED)));
    rig.machine.reset_gpu(0).unwrap();
    assert_eq!((rig.sram(gpu), rig.repair(gpu)), (Ok(1), Ok((0, 0))));
    assert_eq!(rig.temperature(gpu), Ok(30));
}

#[test]
fn a_fabric_is_healthy_until_a_gpu_says_otherwise() {
    let fabric = FabricDescription { cluster: None, clique: 1 };
    let rig = Rig::of(&NodeDescription::uniform(Model::H100_80, 2).in_fabric(fabric));
    let health = FabricHealth { mask: 0x1, summary: 3 };
    rig.machine.set_readings(1, |readings| readings.fabric = health).unwrap();
    let told = [0, 1].map(|index| rig.fabric_health(rig.gpu(index).unwrap()));
    assert_eq!(told, [Ok((0x1aa, 1)), Ok((0x1, 3))]);
}
