//! One look at a GPU's health.

use nvml_wrapper_sys::bindings::field_id as field;

use super::{Error, Nvml, raw::On};
use crate::model::{
    gpu::Gpu,
    health::{Answer, FabricHealth, Readings, Remapping},
};

impl Nvml {
    /// Asks a GPU how it is: four calls of a GPU that answers.
    ///
    /// A call that fails in a way that says something of the GPU is the last; what was read until then is
    /// kept.
    pub fn readings(&self, gpu: &Gpu) -> Readings {
        let mut readings = Readings::default();
        let looked = match self.on(gpu) {
            Ok(on) => look(on, &mut readings),
            Err(error) if error.not_found() => {
                readings.answer = Answer::Gone;
                return readings;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = looked {
            readings.answer = Answer::Error(error.code(), error.to_string());
        }
        readings
    }
}

fn look(on: On<'_>, readings: &mut Readings) -> Result<(), Error> {
    look_at_fields(on, readings)?;
    readings.sram_threshold_exceeded = evidence(on.sram_threshold_exceeded())?;
    readings.repair_pending = evidence(on.repair_pending())?;
    readings.fabric = fabric(on)?;
    Ok(())
}

fn look_at_fields(on: On<'_>, readings: &mut Readings) -> Result<(), Error> {
    let (thermal, power_brake) = on.nvml.slowdown_fields();
    let asked = on.fields(&[
        field::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
        field::NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
        field::NVML_FI_DEV_REMAPPED_PENDING,
        field::NVML_FI_DEV_REMAPPED_FAILURE,
        field::NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR,
        thermal,
        power_brake,
    ]);
    let Some(fields) = evidence(asked)? else { return Ok(()) };
    let action = fields.get(field::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION);
    // An action that no number here can hold is an unknown one too.
    readings.recovery_action = action.map(|action| u32::try_from(action).unwrap_or(u32::MAX));
    readings.remapping = fields
        .flag(field::NVML_FI_DEV_REMAPPED_PENDING)
        .zip(fields.flag(field::NVML_FI_DEV_REMAPPED_FAILURE))
        .map(|(pending, failed)| Remapping { pending, failed });
    readings.uncorrected_volatile = fields.get(field::NVML_FI_DEV_ECC_DBE_VOL_TOTAL);
    readings.pcie_fatal_errors = fields.get(field::NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR);
    readings.hardware_thermal_slowdown = fields.get(thermal);
    readings.power_brake_slowdown = fields.get(power_brake);
    fields.failure.map_or(Ok(()), Err)
}

/// `None` where there is no fabric to be in.
fn fabric(on: On<'_>) -> Result<Option<FabricHealth>, Error> {
    let told = match on.fabric_health(3) {
        // A driver before 580 does not know the third version.
        Err(error) if error.version_mismatch() || error.invalid_argument() => on.fabric_health(2),
        told => told,
    };
    Ok(evidence(told)?.filter(|fabric| fabric.state != NO_FABRIC))
}

/// `NVML_GPU_FABRIC_STATE_NOT_SUPPORTED`.
const NO_FABRIC: u32 = nvml_wrapper_sys::bindings::NVML_GPU_FABRIC_STATE_NOT_SUPPORTED;

/// `None` for a reading that is absent; an error says something of the GPU.
fn evidence<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.no_evidence() => Ok(None),
        Err(error) => Err(error),
    }
}
