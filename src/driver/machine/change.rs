//! Noting what was changed on a GPU, without reading all of them again.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use super::{Library, Machine};
use crate::{
    model::gpu::{Gpu, GpuInstance, GpuUuid, Mig, Unreadable},
    node::nvml::{self, Nvml},
};

impl Machine {
    pub(super) fn changes(&self) -> BTreeMap<GpuUuid, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a change, before anybody can see it.
    fn count_change(&self, uuid: &GpuUuid) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        *changes.entry(uuid.clone()).or_default() += 1;
    }

    /// Reads the MIG side of a GPU again and notes it. The caller holds the GPU's lock.
    pub(in crate::driver) fn refresh(
        &self,
        nvml: &Nvml,
        uuid: &GpuUuid,
    ) -> Result<(), nvml::Error> {
        let inventory = self.inventory();
        let Some(gpu) = inventory.gpu(uuid) else { return Ok(()) };
        let now = nvml.mig_now(gpu)?;
        let minor = nvml.minor(gpu)?;
        if now != gpu.mig || minor != gpu.minor {
            self.note(uuid, now, minor);
        }
        Ok(())
    }

    /// Reads a GPU again that did not answer, and notes it if it does now. The caller holds its lock.
    pub(in crate::driver) fn read_again(&self, nvml: &Nvml, index: u32) -> Result<Gpu, Unreadable> {
        let gpu = self.complete(nvml.gpu(index)?);
        self.state.send_modify(|state| {
            let Library::Loaded(inventory) = state else { return };
            let inventory = Arc::make_mut(inventory);
            inventory.unreadable.retain(|silent| silent.index != index);
            inventory.gpus.retain(|known| known.uuid != gpu.uuid);
            inventory.gpus.push(gpu.clone());
            inventory.gpus.sort_by_key(|gpu| gpu.number);
            self.count_change(&gpu.uuid);
        });
        Ok(gpu)
    }

    /// Notes an instance that was just made. Reading it would take many calls. The caller holds the GPU's
    /// lock.
    pub(in crate::driver) fn add_instance(&self, uuid: &GpuUuid, instance: GpuInstance) {
        self.change_instances(uuid, |instances| {
            instances.push(instance);
            instances.sort_by_key(|instance| instance.placement);
        });
    }

    /// Notes that an instance was just destroyed. The caller holds the GPU's lock.
    pub(in crate::driver) fn remove_instance(&self, uuid: &GpuUuid, id: u32) {
        self.change_instances(uuid, |instances| instances.retain(|instance| instance.id != id));
    }

    fn change_instances(&self, uuid: &GpuUuid, change: impl FnOnce(&mut Vec<GpuInstance>)) {
        self.state.send_modify(|state| {
            let Library::Loaded(inventory) = state else { return };
            let mut gpus = Arc::make_mut(inventory).gpus.iter_mut();
            let gpu = gpus.find(|gpu| gpu.uuid == *uuid);
            if let Some(mig) = gpu.and_then(|gpu| gpu.mig.as_mut()) {
                change(&mut mig.instances);
                self.count_change(uuid);
            }
        });
    }

    fn note(&self, uuid: &GpuUuid, mig: Option<Mig>, minor: u32) {
        self.state.send_modify(|state| {
            let Library::Loaded(inventory) = state else { return };
            let inventory = Arc::make_mut(inventory);
            if let Some(gpu) = inventory.gpus.iter_mut().find(|gpu| gpu.uuid == *uuid) {
                gpu.mig = mig;
                gpu.minor = minor;
                self.count_change(uuid);
            }
        });
    }
}
