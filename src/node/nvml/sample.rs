//! One look at a GPU's load and state.

use std::sync::{Arc, PoisonError};

use nvml_wrapper::{
    Device,
    enum_wrappers::device::{Clock, TemperatureSensor},
    error::NvmlError,
    struct_wrappers::device::MemoryInfo,
};
use nvml_wrapper_sys::bindings::field_id as field;

use super::{Error, Gpm, Nvml, fields::Fields, raw::On};
use crate::model::{
    gpu::{Gpu, GpuInstance},
    sample::{EccCount, InstanceSample, MemoryUse, NvlinkErrors, RetiredPages, Sample, Violations},
};

/// All that is asked for in one call.
const FIELDS: [u32; 25] = [
    field::NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    field::NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
    field::NVML_FI_DEV_ECC_SBE_AGG_TOTAL,
    field::NVML_FI_DEV_ECC_DBE_AGG_TOTAL,
    field::NVML_FI_DEV_RETIRED_SBE,
    field::NVML_FI_DEV_RETIRED_DBE,
    field::NVML_FI_DEV_RETIRED_PENDING,
    field::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    field::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
    field::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    field::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
    field::NVML_FI_DEV_PERF_POLICY_POWER,
    field::NVML_FI_DEV_PERF_POLICY_THERMAL,
    field::NVML_FI_DEV_PERF_POLICY_SYNC_BOOST,
    field::NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT,
    field::NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION,
    field::NVML_FI_DEV_PERF_POLICY_RELIABILITY,
    field::NVML_FI_DEV_MEMORY_TEMP,
    field::NVML_FI_DEV_PCIE_REPLAY_COUNTER,
    field::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
    field::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
    field::NVML_FI_DEV_REMAPPED_COR,
    field::NVML_FI_DEV_REMAPPED_UNC,
    field::NVML_FI_DEV_REMAPPED_PENDING,
    field::NVML_FI_DEV_REMAPPED_FAILURE,
];

impl Nvml {
    /// Asks a GPU for its load. What it does not have in its present mode is asked once; what it does not
    /// tell is absent. `gpm` is what the call before saw of this GPU: looks should be at least 100 ms
    /// apart (`nvmlGpmSampleGet`).
    ///
    /// # Errors
    /// The GPU is lost, or the driver is gone.
    pub fn sample(self: &Arc<Self>, gpu: &Gpu, gpm: &mut Gpm) -> Result<Sample, Error> {
        let on = self.on(gpu)?;
        gpm.belong_to(self, gpu);
        let asked = Asked { on, gpu, mig: gpu.mig.as_ref().is_some_and(|mig| mig.enabled) };
        let mut sample = Sample::default();
        let fields = asked.once("nvmlDeviceGetFieldValues", || on.fields(&FIELDS))?;
        if let Some(mut fields) = fields {
            told(fields.failure.take().map_or(Ok(()), Err))?;
            from_fields(&fields, &mut sample);
        }
        asked.state(&mut sample)?;
        if !asked.mig {
            asked.utilization(&mut sample)?;
        }
        sample.activity = told(gpm.activity(on, gpu, None))?.flatten();
        let instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
        let instances = instances.map(|instance| asked.instance(instance, gpm));
        sample.instances = instances.collect::<Result<_, _>>()?;
        Ok(sample)
    }
}

/// A GPU that is asked.
#[derive(Clone, Copy)]
struct Asked<'n> {
    on: On<'n>,
    gpu: &'n Gpu,
    mig: bool,
}

impl Asked<'_> {
    fn state(&self, sample: &mut Sample) -> Result<(), Error> {
        let clock = |clock| move |device: &Device<'_>| device.clock_info(clock);
        sample.sm_clock = self.device("nvmlDeviceGetClockInfo", clock(Clock::SM))?;
        sample.memory_clock = self.device("nvmlDeviceGetClockInfo", clock(Clock::Memory))?;
        sample.temperature = self.device("nvmlDeviceGetTemperature", |device| {
            device.temperature(TemperatureSensor::Gpu)
        })?;
        sample.power = self.device("nvmlDeviceGetPowerUsage", |device| device.power_usage())?;
        sample.energy = self.device("nvmlDeviceGetTotalEnergyConsumption", |device| {
            device.total_energy_consumption()
        })?;
        sample.memory = self
            .device("nvmlDeviceGetMemoryInfo_v2", |device| device.memory_info())?
            .map(memory_use);
        sample.clocks_event_reasons = self.clocks_event_reasons()?;
        let licensed = || self.on.vgpu_licensed();
        let licensed = self.once("nvmlDeviceGetGridLicensableFeatures_v4", licensed)?;
        sample.vgpu_licensed = licensed.flatten();
        Ok(())
    }

    fn clocks_event_reasons(&self) -> Result<Option<u64>, Error> {
        let now =
            self.once("nvmlDeviceGetCurrentClocksEventReasons", || self.on.clocks_event_reasons())?;
        match now {
            None => self.once("nvmlDeviceGetCurrentClocksThrottleReasons", || {
                self.on.clocks_throttle_reasons()
            }),
            now => Ok(now),
        }
    }

    /// NVML tells none of these in MIG mode.
    fn utilization(&self, sample: &mut Sample) -> Result<(), Error> {
        let rates =
            self.device("nvmlDeviceGetUtilizationRates", |device| device.utilization_rates())?;
        (sample.utilization, sample.memory_utilization) =
            rates.map(|rates| (rates.gpu, rates.memory)).unzip();
        let encoder =
            self.device("nvmlDeviceGetEncoderUtilization", |device| device.encoder_utilization())?;
        sample.encoder_utilization = encoder.map(|encoder| encoder.utilization);
        let decoder =
            self.device("nvmlDeviceGetDecoderUtilization", |device| device.decoder_utilization())?;
        sample.decoder_utilization = decoder.map(|decoder| decoder.utilization);
        Ok(())
    }

    fn instance(&self, instance: &GpuInstance, gpm: &mut Gpm) -> Result<InstanceSample, Error> {
        let memory = told(self.instance_memory(instance))?.flatten();
        let activity = told(gpm.activity(self.on, self.gpu, Some(instance.id)))?.flatten();
        Ok(InstanceSample { id: instance.id, memory, activity })
    }

    /// Compute instances share the memory of their GPU instance: any of them tells it.
    fn instance_memory(&self, instance: &GpuInstance) -> Result<Option<MemoryUse>, Error> {
        let nvml = self.on.nvml;
        let Some(compute) = instance.compute.first() else { return Ok(None) };
        let device = nvml.mig_device(self.on, self.gpu, instance, compute)?.device(nvml);
        let info =
            nvml.on_gpu(self.on.index, "nvmlDeviceGetMemoryInfo_v2", || device.memory_info());
        if info.is_err() {
            nvml.forget_mig_devices(self.gpu);
        }
        info.map(memory_use).map(Some)
    }

    fn device<T>(
        &self,
        function: &'static str,
        call: impl FnOnce(&Device<'_>) -> Result<T, NvmlError>,
    ) -> Result<Option<T>, Error> {
        let nvml = self.on.nvml;
        let device = self.on.handle.device(nvml);
        self.once(function, || nvml.on_gpu(self.on.index, function, || call(&device)))
    }

    /// Asks, unless the GPU has said in this load of the driver that it cannot answer that. In MIG mode it
    /// can answer less.
    fn once<T>(
        &self,
        function: &'static str,
        ask: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let key = (self.gpu.uuid.clone(), self.mig, function);
        let lacking = || self.on.nvml.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        if lacking().contains(&key) {
            return Ok(None);
        }
        let answer = ask();
        if answer.as_ref().is_err_and(Error::lacking) {
            lacking().insert(key);
        }
        told(answer)
    }
}

/// `None` for what is not told; an error ends the sample.
fn told<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.lost() || error.driver_gone() => Err(error),
        Err(error) => {
            tracing::trace!(%error, "a value of a sample is absent");
            Ok(None)
        }
    }
}

fn from_fields(fields: &Fields, sample: &mut Sample) {
    let narrow = |id| fields.get(id).and_then(|value| u32::try_from(value).ok());
    // A GPU whose memory has no sensor says 0.
    sample.memory_temperature =
        narrow(field::NVML_FI_DEV_MEMORY_TEMP).filter(|&celsius| celsius > 0);
    sample.pcie_replays = fields.get(field::NVML_FI_DEV_PCIE_REPLAY_COUNTER);
    sample.nvlink_throughput = fields
        .get(field::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)
        .zip(fields.get(field::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX))
        .map(|(sent, received)| sent.saturating_add(received));
    sample.uncorrectable_remapped_rows = fields.get(field::NVML_FI_DEV_REMAPPED_UNC);
    sample.correctable_remapped_rows = fields.get(field::NVML_FI_DEV_REMAPPED_COR);
    sample.row_remap_failure = fields.flag(field::NVML_FI_DEV_REMAPPED_FAILURE);
    sample.row_remap_pending = fields.flag(field::NVML_FI_DEV_REMAPPED_PENDING);
    sample.ecc_single = EccCount {
        volatile: fields.get(field::NVML_FI_DEV_ECC_SBE_VOL_TOTAL),
        aggregate: fields.get(field::NVML_FI_DEV_ECC_SBE_AGG_TOTAL),
    };
    sample.ecc_double = EccCount {
        volatile: fields.get(field::NVML_FI_DEV_ECC_DBE_VOL_TOTAL),
        aggregate: fields.get(field::NVML_FI_DEV_ECC_DBE_AGG_TOTAL),
    };
    sample.retired_pages = RetiredPages {
        single: fields.get(field::NVML_FI_DEV_RETIRED_SBE),
        double: fields.get(field::NVML_FI_DEV_RETIRED_DBE),
        pending: fields.get(field::NVML_FI_DEV_RETIRED_PENDING),
    };
    sample.violations = Violations {
        power: fields.get(field::NVML_FI_DEV_PERF_POLICY_POWER),
        thermal: fields.get(field::NVML_FI_DEV_PERF_POLICY_THERMAL),
        sync_boost: fields.get(field::NVML_FI_DEV_PERF_POLICY_SYNC_BOOST),
        board_limit: fields.get(field::NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT),
        low_utilization: fields.get(field::NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION),
        reliability: fields.get(field::NVML_FI_DEV_PERF_POLICY_RELIABILITY),
    };
    sample.nvlink_errors = NvlinkErrors {
        crc_flit: fields.get(field::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL),
        crc_data: fields.get(field::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL),
        replay: fields.get(field::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL),
        recovery: fields.get(field::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL),
    };
}

fn memory_use(info: MemoryInfo) -> MemoryUse {
    let MemoryInfo { total, free, used, reserved, .. } = info;
    MemoryUse { total, free, used, reserved }
}
