//! What is at work on a GPU or a GPU instance between two looks (GPM, Hopper and later).

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use super::{
    Error, Nvml,
    raw::{GpmBuffer, On},
};
use crate::model::{
    gpu::{Gpu, GpuUuid},
    sample::Activity,
};

/// What is asked for: `NVML_GPM_METRIC_…`.
const METRICS: [u32; 16] = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 20, 21, 60, 61];

/// NVML counts traffic in MiB a second.
const MIB: f64 = 1_048_576.0;

/// What was seen at the look before. It does not keep the library loaded; kept over a load of the driver
/// it begins anew.
#[derive(Debug, Default)]
pub struct Gpm {
    nvml: Weak<Nvml>,
    /// Whether a GPU has GPM at all.
    has: BTreeMap<GpuUuid, bool>,
    /// By GPU and, of a GPU instance, its id.
    seen: BTreeMap<(GpuUuid, Option<u32>), Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    before: Option<Buffer>,
    /// For the next look.
    spare: Option<Buffer>,
}

/// A buffer that frees itself, as long as its library is loaded.
#[derive(Debug)]
struct Buffer {
    nvml: Weak<Nvml>,
    sample: GpmBuffer,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(nvml) = self.nvml.upgrade() else { return };
        if let Err(error) = nvml.free_gpm_buffer(&self.sample) {
            tracing::debug!(%error, "a GPM sample is left behind");
        }
    }
}

impl Gpm {
    /// Forgets what another load of the driver, or a GPU instance that is gone, has left.
    pub(super) fn belong_to(&mut self, nvml: &Arc<Nvml>, gpu: &Gpu) {
        let now = Arc::downgrade(nvml);
        if !self.nvml.ptr_eq(&now) {
            *self = Self { nvml: now, ..Self::default() };
        }
        let instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
        let there: Vec<u32> = instances.map(|instance| instance.id).collect();
        self.seen.retain(|(uuid, instance), _| {
            *uuid != gpu.uuid || instance.is_none_or(|id| there.contains(&id))
        });
    }

    /// The means since the look before; `None` at the first and where there is no GPM.
    pub(super) fn activity(
        &mut self,
        on: On<'_>,
        gpu: &Gpu,
        instance: Option<u32>,
    ) -> Result<Option<Activity>, Error> {
        if !self.has(on, gpu)? {
            return Ok(None);
        }
        let key = (gpu.uuid.clone(), instance);
        let Seen { before, spare } = self.seen.remove(&key).unwrap_or_default();
        let mut now = match spare {
            Some(spare) => spare,
            None => self.buffer(on)?,
        };
        let taken = on.take_gpm_sample(instance, &mut now.sample);
        if taken.is_err() {
            // The next look has nothing to compare with.
            self.seen.insert(key, Seen { before: None, spare: Some(now) });
            return taken.map(|()| None);
        }
        let told = before
            .as_ref()
            .map(|before| on.gpm_metrics(&before.sample, &now.sample, &METRICS))
            .transpose();
        self.seen.insert(key, Seen { before: Some(now), spare: before });
        Ok(told?.map(|values| activity(&values)))
    }

    fn has(&mut self, on: On<'_>, gpu: &Gpu) -> Result<bool, Error> {
        if let Some(&has) = self.has.get(&gpu.uuid) {
            return Ok(has);
        }
        let has = match on.has_gpm() {
            Err(error) if error.lacking() => false,
            answer => answer?,
        };
        self.has.insert(gpu.uuid.clone(), has);
        Ok(has)
    }

    fn buffer(&self, on: On<'_>) -> Result<Buffer, Error> {
        Ok(Buffer { nvml: self.nvml.clone(), sample: on.nvml.allocate_gpm_buffer()? })
    }
}

fn activity(values: &BTreeMap<u32, f64>) -> Activity {
    let ratio = |id| values.get(&id).map(|percent| percent / 100.0);
    let bytes = |id| values.get(&id).map(|traffic| traffic * MIB);
    Activity {
        graphics: ratio(1),
        sm: ratio(2),
        sm_occupancy: ratio(3),
        tensor: ratio(5),
        tensor_dfma: ratio(6),
        tensor_hmma: ratio(7),
        tensor_imma: ratio(9),
        dram: ratio(10),
        fp64: ratio(11),
        fp32: ratio(12),
        fp16: ratio(13),
        integer: ratio(4),
        pcie_sent: bytes(20),
        pcie_received: bytes(21),
        nvlink_received: bytes(60),
        nvlink_sent: bytes(61),
    }
}
