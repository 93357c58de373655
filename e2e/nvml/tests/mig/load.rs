//! What sensors show of what runs.

use kerf_nvml::{Load, Model, NvLinkErrors};
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, PcieUtilCounter, PerformancePolicy, TemperatureSensor},
    error::NvmlError,
};

use crate::rig::*;

const GIB: u64 = 1 << 30;

fn wrapped(rig: &Rig) -> Nvml {
    Nvml::builder().lib_path(rig.machine.library().as_os_str()).init().unwrap()
}

/// Milliwatts, clocks of multiprocessors and memory, and whether the GPU calls itself idle.
fn draws(device: &Device<'_>) -> (u32, u32, u32, bool) {
    let clock = |kind| device.clock_info(kind).unwrap();
    let idle = device.current_throttle_reasons().unwrap().contains(ThrottleReasons::GPU_IDLE);
    (device.power_usage().unwrap(), clock(Clock::SM), clock(Clock::Memory), idle)
}

#[test]
fn a_load_shows_on_every_sensor_and_goes_with_its_process() {
    let rig = Rig::new(&[Model::H100_80]);
    let nvml = wrapped(&rig);
    let gpu = nvml.device_by_index(0).unwrap();
    let shows = || {
        let rates = gpu.utilization_rates().unwrap();
        (draws(&gpu), (rates.gpu, rates.memory), gpu.memory_info().unwrap().used)
    };
    let idle = ((70_000, 345, 2619, true), (0, 0), 0);
    assert_eq!(shows(), idle);
    assert_eq!(gpu.temperature(TemperatureSensor::Gpu).unwrap(), 30);
    let before = gpu.total_energy_consumption().unwrap();

    rig.machine.start_process(0, None, 4711, "python3").unwrap();
    assert_eq!(shows(), ((700_000, 1980, 2619, false), (100, 50), 256 << 20));
    rig.machine.set_load(4711, Load { utilization: 30, memory: 20 * GIB }).unwrap();
    rig.machine.start_process(0, None, 4712, "python3").unwrap();
    rig.machine.set_load(4712, Load { utilization: 10, memory: 2 * GIB }).unwrap();
    assert_eq!(shows(), ((322_000, 1980, 2619, false), (40, 20), 22 * GIB));
    let used = gpu.running_compute_processes().unwrap();
    let used: Vec<_> = used.iter().map(|one| (one.pid, one.used_gpu_memory.clone())).collect();
    let bytes = |gib| nvml_wrapper::enums::device::UsedGpuMemory::Used(gib * GIB);
    assert_eq!(used, [(4711, bytes(20)), (4712, bytes(2))]);
    let samples = gpu.process_utilization_stats(None).unwrap();
    let samples: Vec<_> = samples.iter().map(|one| (one.pid, one.sm_util)).collect();
    assert_eq!(samples, [(4711, 30), (4712, 10)]);
    assert_eq!(gpu.pcie_throughput(PcieUtilCounter::Send).unwrap(), 16_000 * 1024 / 10 * 4);

    for pid in [4711, 4712] {
        rig.machine.stop_process(pid).unwrap();
    }
    assert_eq!(shows(), idle);
    assert!(rig.machine.set_load(4711, Load::default()).is_err());
    assert!(gpu.total_energy_consumption().unwrap() >= before);
    assert_eq!(gpu.enforced_power_limit().unwrap(), 700_000);
    assert_eq!(gpu.max_clock_info(Clock::SM).unwrap(), 1980);
}

#[test]
fn an_instance_loads_its_share_of_the_gpu() {
    let rig = Rig::cut(&[Model::A100_40]);
    let nvml = wrapped(&rig);
    let gpu = nvml.device_by_index(0).unwrap();
    for (profile, start) in [(9, 0), (14, 4)] {
        rig.machine.create_instance(0, profile, start, true).unwrap();
        let pid = 4711 + start;
        rig.machine.start_process(0, Some(start), pid, "python3").unwrap();
        rig.machine.set_load(pid, Load { utilization: 70, memory: u64::from(profile) }).unwrap();
    }
    // Five slices of seven at 70 %.
    assert_eq!(gpu.power_usage().unwrap(), 55_000 + 345_000 / 2);
    let used = |index| {
        let device = gpu.mig_device_by_index(index).unwrap();
        (
            device.memory_info().unwrap().used,
            device.power_usage().map_err(|error| error.to_string()),
        )
    };
    let not_supported = || Err(NvmlError::NotSupported.to_string());
    assert_eq!([used(0), used(1)], [(9, not_supported()), (14, not_supported())]);
    assert_eq!(gpu.memory_info().unwrap().used, 23);
    assert!(matches!(gpu.utilization_rates(), Err(NvmlError::NotSupported)));
    assert!(matches!(gpu.decoder_utilization(), Err(NvmlError::NotSupported)));
}

#[test]
fn what_slows_clocks_down_is_told_and_timed() {
    let rig = Rig::new(&[Model::L4]);
    let nvml = wrapped(&rig);
    let gpu = nvml.device_by_index(0).unwrap();
    rig.machine.start_process(0, None, 4711, "python3").unwrap();
    let set = rig.machine.set_readings(0, |readings| {
        readings.clock_event_reasons = 0x40;
        readings.violations.thermal = 75;
        readings.pcie_replays = 94;
    });
    set.unwrap();
    assert_eq!(draws(&gpu), (72_000, 1360, 6251, false));
    let reasons = gpu.current_throttle_reasons().unwrap();
    assert_eq!(reasons, ThrottleReasons::HW_THERMAL_SLOWDOWN);
    let violation = gpu.violation_status(PerformancePolicy::Thermal).unwrap();
    assert_eq!(violation.violation_time, 75);
    assert_eq!(gpu.pcie_replay_counter().unwrap(), 94);
    let ids = [82, 138, 185];
    let answers = [Err(NOT_SUPPORTED), Err(NOT_SUPPORTED), Ok(72_000)];
    assert_eq!(rig.fields(rig.gpu(0).unwrap(), &ids), Ok(answers.to_vec()));
}

#[test]
fn the_first_link_has_the_errors_of_all() {
    let rig = Rig::new(&[Model::H100_80, Model::L4]);
    let errors = NvLinkErrors { crc_flit: 1, crc_data: 2, replay: 3, recovery: 4 };
    rig.machine.set_readings(0, |readings| readings.nvlink_errors = errors).unwrap();
    let [linked, alone] = [0, 1].map(|index| rig.gpu(index).unwrap());
    let counts =
        |gpu, link| (0..6).map(|kind| rig.link_errors(gpu, link, kind)).collect::<Vec<_>>();
    let (no, bad) = (Err(NOT_SUPPORTED), Err(INVALID_ARGUMENT));
    assert_eq!(counts(linked, 0), [Ok(3), Ok(4), Ok(1), Ok(2), no, bad]);
    assert_eq!(counts(linked, 17), [Ok(0), Ok(0), Ok(0), Ok(0), no, bad]);
    assert_eq!(counts(linked, 18), [bad, bad, bad, bad, no, bad]);
    assert_eq!(counts(alone, 0), [no, no, no, no, no, bad]);
}
