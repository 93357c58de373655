//! What a program asks about a GPU's health and sensors.

use std::mem::MaybeUninit;

use nvml_wrapper_sys::bindings::*;

use super::{Answer, Handle, Library, version};

impl Library {
    pub(crate) fn supported_events(&self, device: Handle) -> Answer<u64> {
        get!(self, nvmlDeviceGetSupportedEventTypes(device.c()))
    }

    /// Errors of a link, by `nvmlNvLinkErrorCounter_t`.
    pub(crate) fn link_errors(&self, device: Handle, link: u32, kind: u32) -> Answer<u64> {
        get!(self, nvmlDeviceGetNvLinkErrorCounter(device.c(), link, kind))
    }

    /// Corrected, uncorrected, pending, failure.
    pub(crate) fn remapped_rows(&self, device: Handle) -> Answer<[u32; 4]> {
        let [mut corrected, mut uncorrected, mut pending] = [0; 3];
        let failure = get!(
            self,
            nvmlDeviceGetRemappedRows(
                device.c(),
                &raw mut corrected,
                &raw mut uncorrected,
                &raw mut pending
            )
        )?;
        Ok([corrected, uncorrected, pending, failure])
    }

    /// Banks by how many spare rows they have, from all to none.
    pub(crate) fn spare_rows(&self, device: Handle) -> Answer<[u32; 5]> {
        let banks = get!(self, nvmlDeviceGetRowRemapperHistogram(device.c()))?;
        Ok([banks.max, banks.high, banks.partial, banks.low, banks.none])
    }

    /// By type of error, type of counter and place.
    pub(crate) fn ecc_errors(&self, device: Handle, at: (u32, u32, u32)) -> Answer<[u64; 2]> {
        let (kind, counter, place) = at;
        Ok([
            get!(self, nvmlDeviceGetTotalEccErrors(device.c(), kind, counter))?,
            get!(self, nvmlDeviceGetMemoryErrorCounter(device.c(), kind, counter, place))?,
        ])
    }

    /// Whether the threshold is exceeded.
    pub(crate) fn sram(&self, device: Handle) -> Answer<u32> {
        let mut status = nvmlEccSramErrorStatus_v1_t {
            version: version::<nvmlEccSramErrorStatus_v1_t>(1),
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
            bThresholdExceeded: 0,
        };
        call!(self, nvmlDeviceGetSramEccErrorStatus(device.c(), &raw mut status))?;
        Ok(status.bThresholdExceeded)
    }

    /// Whether channels and whether TPCs wait for repair.
    pub(crate) fn repair(&self, device: Handle) -> Answer<(u32, u32)> {
        let mut status = nvmlRepairStatus_v1_t {
            version: version::<nvmlRepairStatus_v1_t>(1),
            bChannelRepairPending: 0,
            bTpcRepairPending: 0,
        };
        call!(self, nvmlDeviceGetRepairStatus(device.c(), &raw mut status))?;
        Ok((status.bChannelRepairPending, status.bTpcRepairPending))
    }

    /// Mask and summary of the fabric's health.
    pub(crate) fn fabric_health(&self, device: Handle) -> Answer<(u32, u8)> {
        let mut info = nvmlGpuFabricInfo_v3_t {
            version: version::<nvmlGpuFabricInfo_v3_t>(3),
            clusterUuid: [0; 16],
            status: 0,
            cliqueId: 0,
            state: 0,
            healthMask: 0,
            healthSummary: 0,
        };
        let info = &raw mut info;
        call!(self, nvmlDeviceGetGpuFabricInfoV(device.c(), info.cast()))?;
        // SAFETY: the structure is this function's own.
        let info = unsafe { info.read() };
        Ok((info.healthMask, info.healthSummary))
    }

    /// The temperature by its first layout.
    pub(crate) fn temperature(&self, device: Handle) -> Answer<i32> {
        let word = version::<nvmlTemperature_v1_t>(1);
        let mut degrees = nvmlTemperature_v1_t { version: word, sensorType: 0, temperature: 0 };
        call!(self, nvmlDeviceGetTemperatureV(device.c(), &raw mut degrees))?;
        Ok(degrees.temperature)
    }

    /// The answer to each field of its own, whichever C type it has.
    pub(crate) fn fields(&self, device: Handle, ids: &[u32]) -> Answer<Vec<Answer<u64>>> {
        let empty = |&id: &u32| nvmlFieldValue_t {
            fieldId: id,
            scopeId: u32::MAX,
            timestamp: 0,
            latencyUsec: 0,
            valueType: 0,
            nvmlReturn: 999,
            value: nvmlValue_t { ullVal: 0 },
        };
        let mut values: Vec<_> = ids.iter().map(empty).collect();
        let count = i32::try_from(values.len()).unwrap();
        call!(self, nvmlDeviceGetFieldValues(device.c(), count, values.as_mut_ptr()))?;
        Ok(values.iter().map(number).collect())
    }
}

fn number(value: &nvmlFieldValue_t) -> Answer<u64> {
    match (value.nvmlReturn, value.valueType) {
        // SAFETY: the type says which member is set; all are plain numbers.
        (0, 1) => Ok(unsafe { value.value.uiVal }.into()),
        // SAFETY: as above.
        (0, 3) => Ok(unsafe { value.value.ullVal }),
        (0, other) => panic!("no field has type {other}"),
        (code, _) => Err(code),
    }
}
