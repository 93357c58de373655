//! The agent's reading and cutting of machines: the simulated NVML, through the library that production
//! loads.

mod events;
mod links;
mod log;
mod mode;
mod reading;
mod readings;
mod sample;

use std::sync::Arc;

use kerf::{
    model::gpu::{Gpu, Mig},
    node::nvml::{Calls, Nvml},
};
use kerf_nvml::{Machine, Model, NodeDescription};
use tempfile::TempDir;

/// A machine with its library loaded.
pub(crate) struct Rig {
    pub(crate) nvml: Arc<Nvml>,
    pub(crate) machine: Machine,
    _dir: TempDir,
}

impl Rig {
    pub(crate) fn new(node: &NodeDescription) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::create(dir.path(), node).unwrap();
        Self { nvml: Arc::new(load(&machine)), machine, _dir: dir }
    }

    /// One GPU of a model, in MIG mode if it has one.
    pub(crate) fn cut(model: Model) -> Self {
        Self::new(&NodeDescription::uniform(model, 1).with_mig_enabled())
    }

    pub(crate) fn gpu(&self, index: u32) -> Gpu {
        self.nvml.gpu(index).unwrap()
    }

    /// The MIG side of a GPU, read anew.
    pub(crate) fn mig(&self, index: u32) -> Mig {
        self.gpu(index).mig.unwrap()
    }
}

fn load(machine: &Machine) -> Nvml {
    Nvml::load(Some(&machine.library()), Calls::default()).unwrap()
}

/// The models that can be cut.
pub(crate) fn cuttable() -> impl Iterator<Item = Model> {
    Model::ALL.into_iter().filter(|model| model.has_mig())
}
