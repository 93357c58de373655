//! A GPU's load, as it is sampled.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use kerf::{
    model::sample::{
        Activity, EccCount, InstanceSample, MemoryUse, NvlinkErrors, RetiredPages, Sample,
        Violations,
    },
    node::nvml::{Calls, Gpm, Nvml},
};
use kerf_nvml::{
    EccErrors, Effect, Fault, Load, Model, NodeDescription, NvLinkErrors, RemappedRows,
};

use super::Rig;

const GIB: u64 = 1 << 30;

/// So much time must lie between looks, or they say nothing of it.
fn pass() {
    thread::sleep(Duration::from_millis(110));
}

/// Without what time changes.
fn settled(sample: Sample) -> Sample {
    assert!(sample.energy.is_some());
    Sample {
        energy: None,
        nvlink_throughput: None,
        temperature: None,
        memory_temperature: None,
        ..sample
    }
}

/// To two digits, and 100 MB a second: times are measured in microseconds.
fn rounded(activity: Activity) -> [Option<f64>; 4] {
    let Activity { graphics, tensor, fp64, pcie_sent, .. } = activity;
    let round = |ratio: f64| (ratio * 100.0).round() / 100.0;
    let sent = pcie_sent.map(|sent| (sent / 1e8).round());
    [graphics.map(round), tensor.map(round), fp64.map(round), sent]
}

#[test]
fn each_value_is_what_the_gpu_says() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    let set = rig.machine.set_readings(0, |readings| {
        readings.volatile_ecc = EccErrors { corrected: 3, uncorrected: 4 };
        readings.aggregate_ecc = EccErrors { corrected: 5, uncorrected: 6 };
        readings.remapped_rows =
            RemappedRows { corrected: 142, uncorrected: 143, pending: true, failure: false };
        readings.nvlink_errors =
            NvLinkErrors { crc_flit: 38, crc_data: 45, replay: 52, recovery: 59 };
        readings.violations.power = 74;
        readings.violations.reliability = 79;
        readings.pcie_replays = 94;
    });
    set.unwrap();
    rig.machine.start_process(0, None, 4711, "python3").unwrap();
    rig.machine.set_load(4711, Load { utilization: 30, memory: 20 * GIB }).unwrap();
    let gpu = rig.gpu(0);
    let sample = rig.nvml.sample(&gpu, &mut Gpm::default()).unwrap();
    let MemoryUse { total, free, used, reserved } = sample.memory.unwrap();
    assert_eq!((used, free + used + reserved), (20 * GIB, total));
    assert!(sample.temperature.is_some() && sample.memory_temperature.is_some());
    assert!(sample.nvlink_throughput.is_some());
    let violations = Violations {
        power: Some(74),
        thermal: Some(0),
        sync_boost: Some(0),
        board_limit: Some(0),
        low_utilization: Some(0),
        reliability: Some(79),
    };
    let nvlink_errors = NvlinkErrors {
        crc_flit: Some(38),
        crc_data: Some(45),
        replay: Some(52),
        recovery: Some(59),
    };
    let expected = Sample {
        sm_clock: Some(1980),
        memory_clock: Some(2619),
        power: Some(259_000),
        pcie_replays: Some(94),
        utilization: Some(30),
        memory_utilization: Some(15),
        encoder_utilization: Some(0),
        decoder_utilization: Some(0),
        memory: sample.memory,
        uncorrectable_remapped_rows: Some(143),
        correctable_remapped_rows: Some(142),
        row_remap_failure: Some(false),
        row_remap_pending: Some(true),
        ecc_single: EccCount { volatile: Some(3), aggregate: Some(5) },
        ecc_double: EccCount { volatile: Some(4), aggregate: Some(6) },
        retired_pages: RetiredPages::default(),
        violations,
        clocks_event_reasons: Some(0),
        nvlink_errors,
        ..Sample::default()
    };
    assert_eq!(settled(sample), expected);
}

#[test]
fn instances_have_memory_and_activity_of_their_own() {
    let rig = Rig::cut(Model::H100_80);
    let [busy, idle] = [(9, 0), (19, 4)]
        .map(|(profile, start)| rig.machine.create_instance(0, profile, start, true).unwrap().id);
    rig.machine.start_process(0, Some(0), 4711, "python3").unwrap();
    rig.machine.set_load(4711, Load { utilization: 70, memory: GIB }).unwrap();
    let gpu = rig.gpu(0);
    let mut gpm = Gpm::default();
    let first = rig.nvml.sample(&gpu, &mut gpm).unwrap();
    assert_eq!((first.activity, first.utilization, first.encoder_utilization), (None, None, None));
    assert_eq!(first.instances.iter().map(|one| one.activity).collect::<Vec<_>>(), [None; 2]);
    pass();
    let second = rig.nvml.sample(&gpu, &mut gpm).unwrap();
    let whole = [Some(0.3), Some(0.18), Some(0.0), Some(50.0)];
    assert_eq!(second.activity.map(rounded), Some(whole));
    let of = |sample: &InstanceSample| {
        (sample.id, sample.memory.unwrap().used, sample.activity.map(rounded))
    };
    let instances: Vec<_> = second.instances.iter().map(of).collect();
    let worked = |graphics, tensor| Some([Some(graphics), Some(tensor), Some(0.0), None]);
    assert_eq!(instances, [(busy, GIB, worked(0.7, 0.42)), (idle, 0, worked(0.0, 0.0))]);
}

#[test]
fn an_instance_in_anothers_place_is_no_continuation_of_it() {
    let rig = Rig::cut(Model::H100_80);
    let make = || rig.machine.create_instance(0, 9, 0, true).unwrap().id;
    let sample = |gpm: &mut Gpm| {
        pass();
        let sample = rig.nvml.sample(&rig.gpu(0), gpm).unwrap();
        let told = |one: &InstanceSample| (one.id, one.memory.is_some(), one.activity.is_some());
        sample.instances.iter().map(told).collect::<Vec<_>>()
    };
    let mut gpm = Gpm::default();
    let id = make();
    assert_eq!(sample(&mut gpm), [(id, true, false)]);
    assert_eq!(sample(&mut gpm), [(id, true, true)]);
    let gpu = rig.gpu(0);
    rig.nvml.destroy(&gpu, &gpu.mig.as_ref().unwrap().instances[0]).unwrap();
    assert_eq!(sample(&mut gpm), []);
    assert_eq!(make(), id);
    assert_eq!(sample(&mut gpm), [(id, true, false)]);
    assert_eq!(sample(&mut gpm), [(id, true, true)]);
}

#[test]
fn a_gpu_is_not_asked_again_for_what_it_lacks() {
    let rig = Rig::new(&NodeDescription::uniform(Model::T4, 1));
    let gpu = rig.gpu(0);
    let calls = Calls::default();
    let nvml = Arc::new(Nvml::load(Some(&rig.machine.library()), calls.clone()).unwrap());
    let told = Arc::new(Mutex::new(BTreeMap::<&str, u32>::new()));
    let counts = told.clone();
    calls.observed_by(move |function, _| *counts.lock().unwrap().entry(function).or_default() += 1);
    let mut gpm = Gpm::default();
    let samples = [(); 3].map(|()| settled(nvml.sample(&gpu, &mut gpm).unwrap()));
    assert_eq!([&samples[1], &samples[2]], [&samples[0]; 2]);
    assert_eq!((samples[0].row_remap_pending, samples[0].retired_pages.pending), (None, Some(0)));
    let told = told.lock().unwrap();
    let asked = |times| {
        let so_often = told.iter().filter(|(_, count)| **count == times);
        so_often.map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let once = [
        "nvmlDeviceGetGridLicensableFeatures_v4",
        "nvmlDeviceGetHandleByUUID",
        "nvmlGpmQueryDeviceSupport",
    ];
    let each_time = [
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetDecoderUtilization",
        "nvmlDeviceGetEncoderUtilization",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetUtilizationRates",
    ];
    assert_eq!((asked(1), asked(3)), (once.to_vec(), each_time.to_vec()));
    // For multiprocessors and for memory.
    assert_eq!(asked(6), ["nvmlDeviceGetClockInfo"]);
}

#[test]
fn a_value_that_fails_is_absent_and_a_lost_gpu_ends_the_sample() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    let gpu = rig.gpu(0);
    let mut gpm = Gpm::default();
    rig.machine.inject(Fault::next("nvmlDeviceGetPowerUsage", Effect::Fail(999))).unwrap();
    let sample = rig.nvml.sample(&gpu, &mut gpm).unwrap();
    assert_eq!((sample.power, sample.sm_clock), (None, Some(345)));
    assert_eq!(rig.nvml.sample(&gpu, &mut gpm).unwrap().power, Some(70_000));
    rig.machine.inject(Fault::next("nvmlGpmSampleGet", Effect::Fail(15))).unwrap();
    let error = rig.nvml.sample(&gpu, &mut gpm).unwrap_err();
    assert_eq!(error.to_string(), "nvmlGpmSampleGet on GPU 0: GPU is lost");
    rig.machine.lose_gpu(0).unwrap();
    assert!(rig.nvml.sample(&gpu, &mut gpm).unwrap_err().lost());
}

#[test]
fn what_was_seen_does_not_keep_the_library_loaded() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    let gpu = rig.gpu(0);
    let mut gpm = Gpm::default();
    let before = Arc::new(super::load(&rig.machine));
    before.sample(&gpu, &mut gpm).unwrap();
    let library = Arc::downgrade(&before);
    drop(before);
    assert!(library.upgrade().is_none());
    pass();
    // Of another load, so there is nothing to compare with.
    assert_eq!(rig.nvml.sample(&gpu, &mut gpm).unwrap().activity, None);
    pass();
    assert!(rig.nvml.sample(&gpu, &mut gpm).unwrap().activity.is_some());
}
