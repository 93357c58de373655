//! What should be: which claims hold what, and what is cut. Whether a GPU can be cut so is asked of a
//! second machine, on which everything that is held or foreign is cut.

use std::collections::{BTreeMap, BTreeSet};

use kerf_nvml::{Machine, NodeDescription};
use tempfile::TempDir;

/// A GPU's index, and for a part of it the profile id and the first memory slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Device {
    Whole(usize),
    Part(usize, u32, u32),
}

impl Device {
    fn gpu(self) -> usize {
        match self {
            Self::Whole(gpu) | Self::Part(gpu, ..) => gpu,
        }
    }
}

/// How a claim has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// A whole GPU.
    Whole,
    /// Made for the claim, and there now or gone with the driver.
    Made { there: bool },
    /// An administrator's.
    Found,
}

#[derive(Clone, Debug)]
struct Claim {
    devices: Vec<(Device, Hold)>,
    this_boot: bool,
}

pub(super) struct Model {
    twin: Machine,
    _dir: TempDir,
    machine: NodeDescription,
    foreign: BTreeSet<Device>,
    claims: BTreeMap<String, Claim>,
}

impl Model {
    pub(super) fn new(machine: &NodeDescription) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let twin = Machine::create(dir.path(), machine).unwrap();
        for (index, gpu) in machine.gpus.iter().enumerate() {
            if switches(gpu.model) {
                twin.set_mig_mode(index, true).unwrap();
            }
        }
        let (foreign, claims) = (BTreeSet::new(), BTreeMap::new());
        Self { twin, _dir: dir, machine: machine.clone(), foreign, claims }
    }

    /// Whether the claim can be prepared; then it is.
    pub(super) fn prepare(&mut self, name: &str, devices: &[Device]) -> bool {
        match self.claims.get_mut(name) {
            Some(claim) if claim.this_boot => again(claim, &self.foreign),
            Some(_) => {
                let claim = self.claims.remove(name).unwrap();
                self.free(&claim);
                assert!(self.prepare_new(name, devices), "what it held is free for it");
                true
            }
            None => self.prepare_new(name, devices),
        }
    }

    fn prepare_new(&mut self, name: &str, devices: &[Device]) -> bool {
        let mut claim = Claim { devices: Vec::new(), this_boot: true };
        for &device in devices {
            match self.hold(&claim, device) {
                Some(hold) => claim.devices.push((device, hold)),
                None => {
                    self.free(&claim);
                    return false;
                }
            }
        }
        self.claims.insert(name.to_owned(), claim);
        true
    }

    /// How the claim can have one more device.
    fn hold(&self, claim: &Claim, device: Device) -> Option<Hold> {
        let held: Vec<Device> = self.held().chain(claim.devices.iter().map(|(d, _)| *d)).collect();
        let on_gpu = |other: &Device| other.gpu() == device.gpu();
        match device {
            Device::Whole(gpu) => {
                let model = self.machine.gpus[gpu].model;
                let stuck =
                    model.has_mig() && !switches(model) && self.machine.gpus[gpu].mig_enabled;
                let free = !held.iter().any(on_gpu) && !self.foreign.iter().any(on_gpu);
                (free && !stuck).then_some(Hold::Whole)
            }
            Device::Part(gpu, profile, start) => {
                if held.contains(&device) || held.contains(&Device::Whole(gpu)) {
                    return None;
                }
                if self.foreign.contains(&device) {
                    return Some(Hold::Found);
                }
                let cut = self.twin.create_instance(gpu, profile, start, true).is_ok();
                cut.then_some(Hold::Made { there: true })
            }
        }
    }

    fn held(&self) -> impl Iterator<Item = Device> {
        self.claims.values().flat_map(|claim| claim.devices.iter().map(|(device, _)| *device))
    }

    pub(super) fn unprepare(&mut self, name: &str) {
        if let Some(claim) = self.claims.remove(name) {
            self.free(&claim);
        }
    }

    fn free(&self, claim: &Claim) {
        for (device, _) in &claim.devices {
            match device {
                Device::Part(gpu, _, start) if !self.foreign.contains(device) => {
                    self.twin.destroy_instance(*gpu, *start).unwrap();
                }
                _ => {}
            }
        }
    }

    /// Whether an administrator can cut here; then it is cut. A GPU that is held whole is left alone.
    pub(super) fn cut(&mut self, device: Device) -> bool {
        let Device::Part(gpu, profile, start) = device else { return false };
        let whole = self.held().any(|held| held == Device::Whole(gpu));
        let cut = !whole && self.twin.create_instance(gpu, profile, start, true).is_ok();
        if cut {
            self.foreign.insert(device);
        }
        cut
    }

    /// What administrators cut.
    pub(super) fn foreign(&self) -> Vec<Device> {
        self.foreign.iter().copied().collect()
    }

    /// An administrator's instance goes; its place stays reserved for a claim that holds it.
    pub(super) fn uncut(&mut self, device: Device) {
        self.foreign.remove(&device);
        let Device::Part(gpu, _, start) = device else { return };
        if !self.held().any(|held| held == device) {
            self.twin.destroy_instance(gpu, start).unwrap();
        }
    }

    /// The driver is loaded anew: nothing that was cut is there.
    pub(super) fn reload(&mut self) {
        for device in self.foreign() {
            self.uncut(device);
        }
        let devices = self.claims.values_mut().flat_map(|claim| &mut claim.devices);
        for (_, hold) in devices {
            if let Hold::Made { there } = hold {
                *there = false;
            }
        }
    }

    pub(super) fn reboot(&mut self) {
        self.reload();
        self.claims.values_mut().for_each(|claim| claim.this_boot = false);
    }

    /// Claims that hold something.
    pub(super) fn claims(&self) -> Vec<String> {
        self.claims.keys().cloned().collect()
    }

    /// Those that have a CDI file.
    pub(super) fn prepared(&self) -> Vec<String> {
        let prepared = self.claims.iter().filter(|(_, claim)| claim.this_boot);
        prepared.map(|(name, _)| name.clone()).collect()
    }

    /// Profile id and place of every instance, GPU by GPU.
    pub(super) fn instances(&self) -> Vec<Vec<(u32, u32)>> {
        let devices = self.claims.values().flat_map(|claim| &claim.devices);
        let made = devices.filter(|(_, hold)| *hold == Hold::Made { there: true });
        let all: BTreeSet<Device> =
            made.map(|(device, _)| *device).chain(self.foreign.iter().copied()).collect();
        let mut gpus = vec![Vec::new(); self.machine.gpus.len()];
        for device in all {
            if let Device::Part(gpu, profile, start) = device {
                gpus[gpu].push((profile, start));
            }
        }
        gpus
    }
}

/// Prepared again a claim gets what is gone of its own; what an administrator took away is not its own.
fn again(claim: &mut Claim, foreign: &BTreeSet<Device>) -> bool {
    let gone = |(device, hold): &(Device, Hold)| *hold == Hold::Found && !foreign.contains(device);
    if claim.devices.iter().any(gone) {
        return false;
    }
    for (_, hold) in &mut claim.devices {
        if let Hold::Made { there } = hold {
            *there = true;
        }
    }
    true
}

/// Whether MIG mode needs no reset.
pub(super) fn switches(model: kerf_nvml::Model) -> bool {
    use kerf_nvml::Model::{B200, H100_80, H200_141, RtxPro6000};
    matches!(model, H100_80 | H200_141 | B200 | RtxPro6000)
}
