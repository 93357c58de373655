//! The CDI files: one for each claim, and one for all that the device plugin gives out.

use super::{Driver, Error};
use crate::model::{
    cdi::{self, ClaimDevice, Spec},
    device::Target,
    gpu::{Gpu, GpuInstance},
    holder::Holder,
    plan::PlannedDevice,
    plugin::{config::IdStrategy, id::DeviceId},
    record::{Held, Record},
    unread::Withheld,
};

/// The name by which a runtime is asked for a holder's device.
pub(super) fn cdi_name(holder: &Holder, device: &PlannedDevice) -> String {
    match holder {
        Holder::Claim(claim) => cdi::qualified_name(&claim.uid, &device.device),
        Holder::Container(container) => {
            // Shares of a device are one device to the runtime.
            let id = DeviceId::parse(&container.id).map(|id| id.device_name());
            cdi::plugin_name(&id.unwrap_or_else(|| container.id.clone()))
        }
    }
}

impl Driver {
    /// Whether a holder's devices are in a CDI file.
    pub(super) fn has_spec(&self, holder: &Holder) -> Result<bool, Error> {
        match holder {
            Holder::Claim(claim) => Ok(self.ledger.store().has_spec(&claim.uid)?),
            // It is compared as a whole when it is written.
            Holder::Container(_) => Ok(false),
        }
    }

    /// Says in a CDI file what a holder's `devices` are. A claim whose every device is missing (admin
    /// access) has none: an empty one is invalid.
    pub(super) fn write_spec(&self, holder: &Holder, devices: &[ClaimDevice]) -> Result<(), Error> {
        match holder {
            Holder::Container(_) => self.write_plugin_spec(),
            Holder::Claim(_) if devices.is_empty() => Ok(()),
            Holder::Claim(claim) => {
                let spec = self.spec(&claim.uid, devices)?;
                Ok(self.ledger.store().write_spec(&claim.uid, &spec)?)
            }
        }
    }

    /// Takes a holder's devices out of the CDI files.
    pub(super) fn remove_spec(&self, holder: &Holder) -> Result<(), Error> {
        match holder {
            Holder::Claim(claim) => Ok(self.ledger.store().remove_spec(&claim.uid)?),
            Holder::Container(_) if self.machine.nvml().is_err() => Ok(()),
            Holder::Container(_) => self.write_plugin_spec(),
        }
    }

    pub(super) fn spec(&self, uid: &str, devices: &[ClaimDevice]) -> Result<Spec, Error> {
        let files = self.machine.host().refreshed(&*self.machine.files()?)?;
        Ok(cdi::claim_spec(uid, devices, &files, self.hook.as_deref()))
    }

    /// Writes the device plugin's CDI file as the GPUs and the records are now: whole GPUs, MIG devices
    /// that exist, and those carved for containers under the names that they were given.
    pub(super) fn write_plugin_spec(&self) -> Result<(), Error> {
        let _turn = self.plugin_spec.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut files = self.machine.host().refreshed(&*self.machine.files()?)?;
        if let Some(config) = self.plugin_config() {
            files.nodes.extend(self.machine.host().direct_nodes(&config)?);
        }
        let devices = self.plugin_devices()?;
        let store = self.ledger.store();
        match cdi::plugin_spec(&devices, &files, self.hook.as_deref()) {
            Some(spec) => Ok(store.write_plugin_spec(&spec)?),
            None => Ok(store.remove_plugin_spec()?),
        }
    }

    fn plugin_devices(&self) -> Result<Vec<ClaimDevice>, Error> {
        let inventory = self.machine.inventory();
        let by_index = self.id_strategy() == IdStrategy::Index;
        let (records, withheld) = (self.ledger.all(), self.withheld());
        let held = records.iter().flat_map(Record::held);
        let held: Vec<Held<'_>> = held.chain(withheld.iter().flat_map(Withheld::held)).collect();
        let mut devices = Vec::new();
        for gpu in &inventory.gpus {
            let name = if by_index { gpu.index.to_string() } else { gpu.uuid.0.clone() };
            devices.push(self.plugin_device(name, gpu, None)?);
            let instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
            for instance in instances {
                for name in self.instance_names(gpu, instance, by_index, &held)? {
                    devices.push(self.plugin_device(name, gpu, Some(instance))?);
                }
            }
        }
        Ok(devices)
    }

    /// What the plugin calls an instance: as one that exists, and as what was carved for a container.
    fn instance_names(
        &self,
        gpu: &Gpu,
        instance: &GpuInstance,
        by_index: bool,
        held: &[Held<'_>],
    ) -> Result<Vec<String>, Error> {
        let Some(device) = instance.device() else { return Ok(Vec::new()) };
        let own = match by_index {
            true => self
                .machine
                .nvml()?
                .mig_index(gpu, &device.uuid)?
                .map(|mig| format!("{}:{mig}", gpu.index)),
            false => Some(device.uuid.clone()),
        };
        let carved = held.iter().filter(|held| !held.leftover).filter_map(|held| {
            let id = DeviceId::parse(&held.by.container()?.id)?;
            let here = matches!(held.target, Target::Mig { gpu: on, profile, placement, .. }
                if *on == gpu.uuid
                    && *profile == instance.profile
                    && *placement == instance.placement);
            (here && id.is_placement()).then(|| id.device_name())
        });
        Ok(own.into_iter().chain(carved).collect())
    }

    fn plugin_device(
        &self,
        name: String,
        gpu: &Gpu,
        instance: Option<&GpuInstance>,
    ) -> Result<ClaimDevice, Error> {
        let nodes = self.nodes(gpu, instance)?;
        Ok(ClaimDevice { name, nodes, env: Vec::new() })
    }

    /// What opens a GPU, or a MIG device on it.
    pub(super) fn nodes(
        &self,
        gpu: &Gpu,
        instance: Option<&GpuInstance>,
    ) -> Result<Vec<cdi::DeviceNode>, Error> {
        let host = self.machine.host();
        let mut nodes = host.gpu_nodes(gpu.minor, &gpu.pci)?;
        if let Some((instance, device)) = instance.and_then(|i| Some((i, i.device()?))) {
            nodes.extend(host.mig_nodes(gpu.minor, instance.id, device.id)?);
        }
        Ok(nodes)
    }
}
