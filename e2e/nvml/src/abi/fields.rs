//! Field values: readings that are asked for by number, each with an answer of its own.

use std::ffi::{c_int, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlFieldValue_t, nvmlValue_t, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
};

use super::{
    export,
    sensors::number,
    wire::{Fields, Opaque},
};
use crate::{
    clock,
    code::Code,
    library::{Present, on_gpu},
    load::WHOLE,
    reading::Readings,
    spec::{Architecture, NvLinks},
};

/// How much warmer memory is, in degrees.
const MEMORY_WARMER: u64 = 4;
/// The scope of all links.
const ALL: u32 = u32::MAX;

/// A value by its C type.
enum Value {
    Int(u32),
    Long(u64),
}

export! {
    fn nvmlDeviceGetFieldValues(device: Opaque, count: c_int, values: Fields) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            values.answer(count, |field, scope| answer(gpu, field, scope))
        })
    };
}

fn answer(gpu: &Present<'_>, field: c_uint, scope: c_uint) -> nvmlFieldValue_t {
    let (code, kind, value) = match value(gpu, field, scope) {
        Ok(Value::Int(value)) => (0, UNSIGNED_INT, nvmlValue_t { uiVal: value }),
        Ok(Value::Long(value)) => (0, UNSIGNED_LONG_LONG, nvmlValue_t { ullVal: value }),
        Err(code) => (code.0, UNSIGNED_INT, nvmlValue_t { ullVal: 0 }),
    };
    nvmlFieldValue_t {
        fieldId: field,
        scopeId: scope,
        timestamp: i64::try_from(clock::now()).unwrap_or(i64::MAX),
        latencyUsec: 0,
        valueType: kind,
        nvmlReturn: code,
        value,
    }
}

/// By number, as `NVML_FI_DEV_…`. The scope is a link, or all of them.
fn value(gpu: &Present<'_>, field: u32, scope: u32) -> Result<Value, Code> {
    let readings = &gpu.state.readings;
    if let Some(&code) = readings.refused_fields.get(&field) {
        return Err(Code(code));
    }
    match field {
        3 => Ok(Value::Long(readings.volatile_ecc.corrected)),
        4 => Ok(Value::Long(readings.volatile_ecc.uncorrected)),
        5 => Ok(Value::Long(readings.aggregate_ecc.corrected)),
        6 => Ok(Value::Long(readings.aggregate_ecc.uncorrected)),
        29..=31 => retired_pages(gpu, field),
        38 | 45 | 52 | 59 => nvlink_errors(gpu, field),
        74..=79 => violation(readings, field).map(Value::Long),
        251..=253 if !renumbered(gpu) => violation(readings, field + 18).map(Value::Long),
        269..=271 if renumbered(gpu) => violation(readings, field).map(Value::Long),
        82 if gpu.board().memory_sensor => {
            Ok(Value::Int(number(gpu.sensors().warmth / 1000 + MEMORY_WARMER)))
        }
        83 => Ok(Value::Long(gpu.sensors().energy / 1_000_000)),
        94 => Ok(Value::Int(readings.pcie_replays)),
        138 | 139 => throughput(gpu, scope).map(Value::Long),
        142..=145 => remapped_rows(gpu, field),
        180 => Ok(Value::Int(readings.pcie_fatal)),
        185 | 186 => Ok(Value::Int(number(gpu.sensors().power))),
        230 if gpu.session.hardware.node.driver_branch() >= 565 => {
            Ok(Value::Int(readings.recovery_action))
        }
        _ => Err(Code::NOT_SUPPORTED),
    }
}

/// Whether the driver counts fields as the header of CUDA 13.0 Update 1 does, not as those before.
fn renumbered(gpu: &Present<'_>) -> bool {
    gpu.session.hardware.node.driver_version() >= (580, 82)
}

/// What there was before rows could be remapped.
fn retired_pages(gpu: &Present<'_>, field: u32) -> Result<Value, Code> {
    if gpu.gpu.facts.spec.architecture >= Architecture::Ampere {
        return Err(Code::NOT_SUPPORTED);
    }
    let (corrected, uncorrected, pending) = gpu.state.readings.retired_pages;
    Ok(Value::Int(match field {
        29 => corrected,
        30 => uncorrected,
        _ => pending.into(),
    }))
}

fn remapped_rows(gpu: &Present<'_>, field: u32) -> Result<Value, Code> {
    if gpu.gpu.facts.spec.architecture < Architecture::Ampere {
        return Err(Code::NOT_SUPPORTED);
    }
    let rows = gpu.state.readings.remapped_rows;
    Ok(Value::Int(match field {
        142 => rows.corrected,
        143 => rows.uncorrected,
        144 => rows.pending.into(),
        _ => rows.failure.into(),
    }))
}

/// KiB that went over one NVLink or all of them, in either direction.
fn throughput(gpu: &Present<'_>, scope: u32) -> Result<u64, Code> {
    let (NvLinks::Bridged(links) | NvLinks::Switched(links)) = gpu.gpu.facts.spec.nvlinks else {
        return Err(Code::NOT_SUPPORTED);
    };
    let links = match scope {
        ALL => links,
        link if link < links => 1,
        _ => return Err(Code::INVALID_ARGUMENT),
    };
    let per_second = (u128::from(links) * u128::from(gpu.board().nvlink)) << 10;
    let total = u128::from(gpu.sensors().work) * per_second / u128::from(WHOLE * 1_000_000);
    u64::try_from(total).or(Err(Code::UNKNOWN))
}

fn nvlink_errors(gpu: &Present<'_>, field: u32) -> Result<Value, Code> {
    if gpu.gpu.facts.spec.nvlinks == NvLinks::None {
        return Err(Code::NOT_SUPPORTED);
    }
    let errors = gpu.state.readings.nvlink_errors;
    Ok(Value::Long(match field {
        38 => errors.crc_flit,
        45 => errors.crc_data,
        52 => errors.replay,
        _ => errors.recovery,
    }))
}

/// Nanoseconds for which clocks were held down, by the number of the field in new headers.
pub(super) fn violation(readings: &Readings, field: u32) -> Result<u64, Code> {
    let times = readings.violations;
    match field {
        74 => Ok(times.power),
        75 => Ok(times.thermal),
        76 => Ok(times.sync_boost),
        77 => Ok(times.board_limit),
        78 => Ok(times.low_utilization),
        79 => Ok(times.reliability),
        269 => Ok(times.software_thermal),
        270 => Ok(times.hardware_thermal),
        271 => Ok(times.power_brake),
        _ => Err(Code::NOT_SUPPORTED),
    }
}
