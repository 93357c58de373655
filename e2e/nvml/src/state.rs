//! What changes on a machine: the driver, and for each GPU its mode, how it is cut and who runs on it.

use serde::{Deserialize, Serialize};

use crate::{
    clock,
    load::{Load, Meter},
    reading::Readings,
    spec::Spec,
};

/// The driver and the boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Driver {
    pub(crate) loaded: bool,
    /// How often it was loaded: whoever initialised before the last time speaks to a driver that is gone.
    pub(crate) loads: u64,
    pub(crate) boot_id: String,
    /// When it booted, in microseconds since 1970.
    pub(crate) booted: u64,
    /// Records of the kernel's log since then.
    pub(crate) logged: u64,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GpuState {
    /// MIG mode now, and after the next reset.
    pub(crate) mig: (bool, bool),
    /// Fallen off the bus.
    pub(crate) lost: bool,
    pub(crate) persistence: bool,
    pub(crate) compute_mode: u32,
    /// How many instances there ever were: handles and UUIDs are made of it.
    pub(crate) serials: u32,
    /// In the order of their ids.
    pub(crate) instances: Vec<Instance>,
    pub(crate) processes: Vec<Process>,
    pub(crate) meter: Meter,
    /// Left out of the file while there is nothing to read, since all of it is written at each change.
    #[serde(default, skip_serializing_if = "Readings::are_of_a_whole_gpu")]
    pub(crate) readings: Readings,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: u32,
    pub(crate) serial: u32,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) size: u32,
    /// Activity times microseconds, until the load last changed.
    pub(crate) work: u64,
    /// In the order of their ids.
    pub(crate) compute: Vec<Compute>,
}

/// A compute instance, and the MIG device that it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compute {
    pub(crate) id: u32,
    pub(crate) serial: u32,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) size: u32,
    pub(crate) uuid: String,
}

/// A process that computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Ids of GPU and compute instance, on a GPU in MIG mode.
    pub(crate) instance: Option<(u32, u32)>,
    pub(crate) load: Load,
}

impl Driver {
    /// Just loaded, for the first time in a new boot.
    pub(crate) fn booted(loads: u64, boot_id: String) -> Self {
        Self { loaded: true, loads, boot_id, booted: clock::now(), logged: 0 }
    }
}

impl GpuState {
    /// The driver goes: what is cut and who ran is gone, and MIG mode with it unless it is kept in
    /// the GPU's own memory, as before Hopper, where a mode that waited for this becomes real. The next
    /// driver counts energy anew.
    pub(crate) fn unload(&mut self, spec: &Spec) {
        self.reset(spec);
        self.meter = Meter::begin(&spec.board, clock::now());
        self.persistence = false;
        self.compute_mode = 0;
        if spec.switches_without_reset() {
            self.mig = (false, false);
        }
    }

    /// The GPU starts anew.
    pub(crate) fn reset(&mut self, spec: &Spec) {
        self.add_up(spec, clock::now());
        self.instances.clear();
        self.processes.clear();
        self.lost = false;
        self.mig.0 = self.mig.1;
        self.readings.reset();
    }

    /// A number that no instance of this GPU has had.
    pub(crate) fn next_serial(&mut self) -> u32 {
        self.serials += 1;
        self.serials
    }

    pub(crate) fn instance(&self, id: u32) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    /// The compute instances with their GPU instances, in the order of MIG device indices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&Instance, &Compute)> {
        self.instances.iter().flat_map(|gi| gi.compute.iter().map(move |ci| (gi, ci)))
    }
}
