//! What a GPU says of its health, by calls of their own.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlEccSramErrorStatus_v1_t, nvmlRepairStatus_v1_t, nvmlRowRemapperHistogramValues_t,
    nvmlViolationTime_t,
};

use super::{
    export, fields,
    wire::{Opaque, Out, Versioned, give},
};
use crate::{
    clock,
    code::Code,
    library::{Present, on_gpu},
    spec::{Architecture, NvLinks},
};

/// `nvmlMemoryLocation_t`: where the errors are that readings count.
const DRAM: c_uint = 2;
/// Banks of memory, as an A100 has them.
const BANKS: c_uint = 640;

export! {
    fn nvmlDeviceGetRemappedRows(
        device: Opaque,
        corrected: Out<'_, c_uint>,
        uncorrected: Out<'_, c_uint>,
        pending: Out<'_, c_uint>,
        failure: Out<'_, c_uint>,
    ) = |name| {
        since_ampere(name, device, |gpu| {
            if !gpu.state.instances.is_empty() {
                return Err(Code::NOT_SUPPORTED);
            }
            let rows = gpu.state.readings.remapped_rows;
            give(corrected, rows.corrected)?;
            give(uncorrected, rows.uncorrected)?;
            give(pending, rows.pending.into())?;
            give(failure, rows.failure.into())
        })
    };
    fn nvmlDeviceGetRowRemapperHistogram(
        device: Opaque, banks: Out<'_, nvmlRowRemapperHistogramValues_t>,
    ) = |name| {
        since_ampere(name, device, |gpu| {
            let none = gpu.state.readings.banks_without_spare_rows;
            let max = BANKS.saturating_sub(none);
            give(banks, nvmlRowRemapperHistogramValues_t { max, high: 0, partial: 0, low: 0, none })
        })
    };
    fn nvmlDeviceGetTotalEccErrors(
        device: Opaque, kind: c_uint, counter: c_uint, count: Out<'_, c_ulonglong>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| give(count, ecc_errors(gpu, kind, counter)?))
    };
    fn nvmlDeviceGetMemoryErrorCounter(
        device: Opaque,
        kind: c_uint,
        counter: c_uint,
        place: c_uint,
        count: Out<'_, c_ulonglong>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let errors = ecc_errors(gpu, kind, counter)?;
            match place {
                DRAM => give(count, errors),
                0..8 => give(count, 0),
                _ => Err(Code::INVALID_ARGUMENT),
            }
        })
    };
    fn nvmlDeviceGetSramEccErrorStatus(device: Opaque, status: Versioned) = |name| {
        since_ampere(name, device, |gpu| {
            let exceeded = gpu.state.readings.sram_threshold_exceeded;
            status.give(1, sram(status.version()?, exceeded))
        })
    };
    fn nvmlDeviceGetRepairStatus(device: Opaque, status: Versioned) = |name| {
        since_ampere(name, device, |gpu| {
            let readings = &gpu.state.readings;
            let status_now = nvmlRepairStatus_v1_t {
                version: status.version()?,
                bChannelRepairPending: readings.channel_repair_pending.into(),
                bTpcRepairPending: readings.tpc_repair_pending.into(),
            };
            status.give(1, status_now)
        })
    };
    fn nvmlDeviceGetViolationStatus(
        device: Opaque, policy: c_uint, time: Out<'_, nvmlViolationTime_t>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let violationTime = match policy {
                // In the order of the fields.
                0..6 => fields::violation(&gpu.state.readings, 74 + policy)?,
                10 | 11 => return Err(Code::NOT_SUPPORTED),
                _ => return Err(Code::INVALID_ARGUMENT),
            };
            give(time, nvmlViolationTime_t { referenceTime: clock::now(), violationTime })
        })
    };
    fn nvmlDeviceGetPcieReplayCounter(device: Opaque, count: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(count, gpu.state.readings.pcie_replays))
    };
    fn nvmlDeviceGetNvLinkErrorCounter(
        device: Opaque, link: c_uint, counter: c_uint, count: Out<'_, c_ulonglong>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| give(count, link_errors(gpu, link, counter)?))
    };
}

fn since_ampere(
    name: &'static str,
    device: Opaque,
    body: impl FnOnce(&Present<'_>) -> Result<(), Code>,
) -> u32 {
    on_gpu(name, device.handle(), |gpu| match gpu.gpu.facts.spec.architecture {
        Architecture::Turing => Err(Code::NOT_SUPPORTED),
        _ => body(gpu),
    })
}

/// By `nvmlMemoryErrorType_t` and `nvmlEccCounterType_t`.
fn ecc_errors(gpu: &Present<'_>, kind: c_uint, counter: c_uint) -> Result<u64, Code> {
    let readings = &gpu.state.readings;
    let errors = match counter {
        0 => readings.volatile_ecc,
        1 => readings.aggregate_ecc,
        _ => return Err(Code::INVALID_ARGUMENT),
    };
    match kind {
        0 => Ok(errors.corrected),
        1 => Ok(errors.uncorrected),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

/// No error of the simulation is in SRAM, whatever its threshold says.
fn sram(version: c_uint, exceeded: bool) -> nvmlEccSramErrorStatus_v1_t {
    nvmlEccSramErrorStatus_v1_t {
        version,
        aggregateUncParity: 0,
        aggregateUncSecDed: 0,
        aggregateCor: 0,
        volatileUncParity: 0,
        volatileUncSecDed: 0,
        volatileCor: 0,
        aggregateUncBucketL2: 0,
        aggregateUncBucketSm: 0,
        aggregateUncBucketPcie: 0,
        aggregateUncBucketMcu: 0,
        aggregateUncBucketOther: 0,
        bThresholdExceeded: exceeded.into(),
    }
}

/// By `nvmlNvLinkErrorCounter_t`. The first link has all errors.
fn link_errors(gpu: &Present<'_>, link: c_uint, counter: c_uint) -> Result<u64, Code> {
    let errors = gpu.state.readings.nvlink_errors;
    let count = match counter {
        0 => errors.replay,
        1 => errors.recovery,
        2 => errors.crc_flit,
        3 => errors.crc_data,
        4 => return Err(Code::NOT_SUPPORTED),
        _ => return Err(Code::INVALID_ARGUMENT),
    };
    match gpu.gpu.facts.spec.nvlinks {
        NvLinks::None => Err(Code::NOT_SUPPORTED),
        NvLinks::Bridged(links) | NvLinks::Switched(links) if link >= links => {
            Err(Code::INVALID_ARGUMENT)
        }
        _ if link == 0 => Ok(count),
        _ => Ok(0),
    }
}
