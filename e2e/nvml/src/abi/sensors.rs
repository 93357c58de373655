//! What a GPU does and what that costs: clocks, warmth, power, utilization.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlProcessUtilizationSample_t, nvmlTemperature_v1_t, nvmlUtilization_t,
};

use super::{
    export,
    wire::{Array, Opaque, Out, Versioned, give},
};
use crate::{
    clock,
    code::Code,
    library::{Present, on_gpu},
    load::{Sensors, WHOLE},
    spec::Board,
};

/// `nvmlTemperatureSensors_t`: the GPU itself, the only one.
const ON_GPU: c_uint = 0;
/// `nvmlClocksEventReasonGpuIdle`.
const IDLE: u64 = 0x1;
/// Reasons that take a third of the clock: hardware slowdown, thermal slowdowns, power brake.
const SLOWED: u64 = 0x8 | 0x20 | 0x40 | 0x80;
/// Over which time the engines' utilization is the mean, in microseconds.
const SAMPLED: c_uint = 167_000;

export! {
    fn nvmlDeviceGetClockInfo(device: Opaque, kind: c_uint, clock: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(clock, gpu.clock(kind)?))
    };
    fn nvmlDeviceGetMaxClockInfo(device: Opaque, kind: c_uint, clock: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            give(clock, by_kind(kind, gpu.board().clock, gpu.board().memory_clock)?)
        })
    };
    fn nvmlDeviceGetTemperature(device: Opaque, sensor: c_uint, degrees: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| match sensor {
            ON_GPU => give(degrees, number(gpu.sensors().warmth / 1000)),
            _ => Err(Code::INVALID_ARGUMENT),
        })
    };
    fn nvmlDeviceGetTemperatureV(device: Opaque, degrees: Versioned) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let warmth = number(gpu.sensors().warmth / 1000);
            let temperature = i32::try_from(warmth).or(Err(Code::UNKNOWN))?;
            let version = degrees.version()?;
            degrees.give(1, nvmlTemperature_v1_t { version, sensorType: ON_GPU, temperature })
        })
    };
    fn nvmlDeviceGetPowerUsage(device: Opaque, milliwatts: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(milliwatts, number(gpu.sensors().power)))
    };
    fn nvmlDeviceGetEnforcedPowerLimit(device: Opaque, milliwatts: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(milliwatts, number(gpu.board().most_power)))
    };
    fn nvmlDeviceGetTotalEnergyConsumption(
        device: Opaque, millijoules: Out<'_, c_ulonglong>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| give(millijoules, gpu.sensors().energy / 1_000_000))
    };
    fn nvmlDeviceGetUtilizationRates(device: Opaque, rates: Out<'_, nvmlUtilization_t>) = |name| {
        uncut(name, device, |gpu| {
            let busy = percent(gpu.sensors().activity);
            give(rates, nvmlUtilization_t { gpu: busy, memory: busy / 2 })
        })
    };
    fn nvmlDeviceGetEncoderUtilization(
        device: Opaque, busy: Out<'_, c_uint>, sampled: Out<'_, c_uint>,
    ) = |name| {
        uncut(name, device, |_| idle_engine(busy, sampled))
    };
    fn nvmlDeviceGetDecoderUtilization(
        device: Opaque, busy: Out<'_, c_uint>, sampled: Out<'_, c_uint>,
    ) = |name| {
        uncut(name, device, |_| idle_engine(busy, sampled))
    };
    fn nvmlDeviceGetProcessUtilization(
        device: Opaque,
        list: Array<nvmlProcessUtilizationSample_t>,
        count: Option<&mut c_uint>,
        since: c_ulonglong,
    ) = |name| {
        uncut(name, device, |gpu| list.answer(count, &gpu.samples(since)?))
    };
    fn nvmlDeviceGetPcieThroughput(device: Opaque, way: c_uint, speed: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| match way {
            0 | 1 => {
                let most = u64::from(gpu.board().pcie) << 10;
                give(speed, number(most * gpu.sensors().activity / WHOLE))
            }
            _ => Err(Code::INVALID_ARGUMENT),
        })
    };
    fn nvmlDeviceGetCurrentClocksEventReasons(
        device: Opaque, reasons: Out<'_, c_ulonglong>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| give(reasons, gpu.event_reasons()))
    };
    fn nvmlDeviceGetCurrentClocksThrottleReasons(
        device: Opaque, reasons: Out<'_, c_ulonglong>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| give(reasons, gpu.event_reasons()))
    };
}

/// A call that a GPU in MIG mode does not support.
fn uncut(
    name: &'static str,
    device: Opaque,
    body: impl FnOnce(&Present<'_>) -> Result<(), Code>,
) -> u32 {
    on_gpu(name, device.handle(), |gpu| match gpu.state.mig.0 {
        true => Err(Code::NOT_SUPPORTED),
        false => body(gpu),
    })
}

/// Nothing that runs here encodes or decodes.
fn idle_engine(busy: Out<'_, c_uint>, sampled: Out<'_, c_uint>) -> Result<(), Code> {
    give(busy, 0)?;
    give(sampled, SAMPLED)
}

/// `nvmlClockType_t`: graphics, multiprocessors and video go together.
fn by_kind(kind: c_uint, clock: u32, memory: u32) -> Result<u32, Code> {
    match kind {
        0 | 1 | 3 => Ok(clock),
        2 => Ok(memory),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

fn percent(activity: u64) -> u32 {
    number(activity * 100 / WHOLE)
}

/// As far as it fits.
pub(super) fn number(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl Present<'_> {
    /// What its sensors show now.
    pub(super) fn sensors(&self) -> Sensors {
        self.state.sensors(self.gpu.facts.spec, clock::now())
    }

    pub(super) fn board(&self) -> &'static Board {
        &self.gpu.facts.spec.board
    }

    fn clock(&self, kind: c_uint) -> Result<u32, Code> {
        let board = self.board();
        let clock = match self.event_reasons() {
            reasons if reasons & IDLE != 0 => board.idle_clock,
            reasons if reasons & SLOWED != 0 => board.clock / 3 * 2,
            _ => board.clock,
        };
        by_kind(kind, clock, board.memory_clock)
    }

    fn event_reasons(&self) -> u64 {
        let idle = if self.sensors().activity == 0 { IDLE } else { 0 };
        idle | self.state.readings.clock_event_reasons
    }

    /// One for each process, as of now.
    fn samples(&self, since: u64) -> Result<Vec<nvmlProcessUtilizationSample_t>, Code> {
        let now = clock::now();
        let sample = |process: &crate::state::Process| nvmlProcessUtilizationSample_t {
            pid: process.pid,
            timeStamp: now,
            smUtil: process.load.utilization,
            memUtil: process.load.utilization / 2,
            encUtil: 0,
            decUtil: 0,
        };
        let samples: Vec<_> = self.state.processes.iter().map(sample).collect();
        if samples.is_empty() || now <= since { Err(Code::NOT_FOUND) } else { Ok(samples) }
    }
}
