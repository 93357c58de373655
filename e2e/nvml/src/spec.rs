//! What NVIDIA built: one table per model, as the MIG user guide and read-outs of real GPUs give it.

mod boards;
mod tables;

pub(crate) use boards::Board;

/// A GPU model's numbers.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) pci_device: u32,
    pub(crate) architecture: Architecture,
    /// `nvmlBrandType_t`.
    pub(crate) brand: u32,
    pub(crate) compute_capability: (i32, i32),
    pub(crate) memory_mib: u64,
    pub(crate) nvlinks: NvLinks,
    pub(crate) board: Board,
    /// Absent where there is no MIG.
    pub(crate) mig: Option<MigSpec>,
}

/// `nvmlDeviceArchitecture_t` by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Architecture {
    Turing = 6,
    Ampere = 7,
    Ada = 8,
    Hopper = 9,
    Blackwell = 10,
}

/// How many NVLinks a GPU has, and where they lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NvLinks {
    None,
    /// Over a bridge, to the one card beside it.
    Bridged(u32),
    /// To the NVSwitches of the board.
    Switched(u32),
}

/// The MIG side of a model.
#[derive(Debug)]
pub(crate) struct MigSpec {
    /// Compute slices of all instances together; also how many MIG devices there can be.
    pub(crate) slices: u32,
    /// Placements are counted in these: the end of the last.
    pub(crate) memory_slices: u32,
    /// Placement size of the smallest instance.
    pub(crate) unit: u32,
    /// Engines of all instances together.
    pub(crate) engines: Engines,
    /// In the order of NVML's enumerators.
    pub(crate) profiles: &'static [Profile],
}

/// Counts of engines beside the multiprocessors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Engines {
    pub(crate) copy: u32,
    pub(crate) decoders: u32,
    pub(crate) encoders: u32,
    pub(crate) jpeg: u32,
    pub(crate) ofa: u32,
}

/// A GPU instance profile.
#[derive(Debug)]
pub(crate) struct Profile {
    /// NVML's enumerator.
    pub(crate) index: u32,
    /// What creates it.
    pub(crate) id: u32,
    /// Without the `MIG ` in front.
    pub(crate) name: &'static str,
    pub(crate) slices: u32,
    pub(crate) size: u32,
    pub(crate) starts: &'static [u32],
    /// How many at most.
    pub(crate) instances: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) memory_mib: u64,
    pub(crate) engines: Engines,
}

/// A compute instance profile of a GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ComputeProfile {
    pub(crate) index: u32,
    pub(crate) id: u32,
    pub(crate) slices: u32,
}

/// One past the last enumerator of GPU instance profiles.
pub(crate) const PROFILE_INDICES: u32 = 18;
/// One past the last enumerator of compute instance profiles.
pub(crate) const COMPUTE_PROFILE_INDICES: u32 = 9;

impl Spec {
    /// MIG mode switches without a reset and is forgotten when the driver is unloaded.
    pub(crate) fn switches_without_reset(&self) -> bool {
        self.architecture >= Architecture::Hopper
    }
}

impl MigSpec {
    pub(crate) fn by_index(&self, index: u32) -> Option<&'static Profile> {
        self.profiles.iter().find(|profile| profile.index == index)
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<&'static Profile> {
        self.profiles.iter().find(|profile| profile.id == id)
    }

    /// The id that the driver gives an instance at this place: nodes of a binary tree over the
    /// smallest placements, numbered level by level from the whole down.
    pub(crate) fn instance_id(&self, start: u32, size: u32) -> u32 {
        let nodes = self.leaves() / (size / self.unit).max(1);
        nodes - 1 + start / size.max(1)
    }

    /// First placement and number of placements, counted in the smallest, that an id stands for.
    pub(crate) fn place(&self, id: u32) -> (u32, u32) {
        let nodes = 1 << (id + 1).ilog2();
        let size = self.leaves() / nodes;
        ((id + 1 - nodes) * size, size)
    }

    /// How many of the smallest placements there are side by side.
    pub(crate) fn leaves(&self) -> u32 {
        self.memory_slices / self.unit
    }
}

impl Profile {
    /// Compute instance profiles that fit, in the order of NVML's enumerators.
    pub(crate) fn compute_profiles(&self) -> Vec<ComputeProfile> {
        let sizes = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 7)];
        let fits = |&(_, slices): &(u32, u32)| slices <= self.slices && self.splits_into(slices);
        let mut profiles: Vec<_> = sizes
            .into_iter()
            .filter(fits)
            .map(|(index, slices)| ComputeProfile { index, id: index, slices })
            .collect();
        if self.slices == 1 && self.engines.ofa > 0 {
            profiles.push(ComputeProfile { index: 7, id: 7, slices: 1 });
        }
        profiles
    }

    fn splits_into(&self, slices: u32) -> bool {
        match slices {
            3 => self.slices == 3 || self.slices == 7,
            7 => self.slices == 7,
            _ => true,
        }
    }

    pub(crate) fn compute_by_id(&self, id: u32) -> Option<ComputeProfile> {
        self.compute_profiles().into_iter().find(|profile| profile.id == id)
    }

    /// The compute instance that fills the instance.
    pub(crate) fn filling(&self) -> Option<ComputeProfile> {
        self.compute_profiles().into_iter().find(|profile| profile.slices == self.slices)
    }

    /// First slices at which a compute instance of this many slices may lie.
    pub(crate) fn compute_starts(&self, slices: u32) -> Vec<u32> {
        let step = if slices == 3 { 4 } else { slices };
        (0..self.slices)
            .filter(|start| start % step == 0 && start + slices <= self.slices)
            .collect()
    }

    /// Name of a compute instance's MIG device, with the `MIG ` in front.
    pub(crate) fn device_name(&self, slices: u32) -> String {
        if slices == self.slices {
            format!("MIG {}", self.name)
        } else {
            format!("MIG {slices}c.{}", self.name)
        }
    }

    /// Multiprocessors of a compute instance of this many slices.
    pub(crate) fn compute_multiprocessors(&self, slices: u32) -> u32 {
        self.multiprocessors * slices / self.slices
    }

    /// Whether graphics work may run in it.
    pub(crate) fn graphics(&self) -> bool {
        self.name.ends_with("+gfx")
    }
}

#[cfg(test)]
mod tests {
    use crate::node::Model;

    #[test]
    fn instance_ids_are_nodes_of_the_placement_tree() {
        let ids = |model: Model, places: &[(u32, u32)]| {
            let mig = model.spec().mig.as_ref().unwrap();
            places.iter().map(|&(start, size)| mig.instance_id(start, size)).collect::<Vec<_>>()
        };
        let eight = [(0, 8), (0, 4), (4, 4), (0, 2), (6, 2), (0, 1), (6, 1)];
        assert_eq!(ids(Model::H100_80, &eight), [0, 1, 2, 3, 6, 7, 13]);
        assert_eq!(ids(Model::A30, &[(0, 4), (0, 2), (2, 2), (0, 1), (3, 1)]), [0, 1, 2, 3, 6]);
        assert_eq!(ids(Model::RtxPro6000, &[(0, 12), (6, 6), (0, 3), (9, 3)]), [0, 2, 3, 6]);
    }

    #[test]
    fn an_instance_id_tells_its_place() {
        for mig in Model::ALL.iter().filter_map(|model| model.spec().mig.as_ref()) {
            for profile in mig.profiles {
                for start in profile.starts {
                    let place = mig.place(mig.instance_id(*start, profile.size));
                    assert_eq!(place, (start / mig.unit, profile.size / mig.unit));
                }
            }
        }
    }

    #[test]
    fn tables_are_consistent() {
        for model in Model::ALL {
            let Some(mig) = &model.spec().mig else { continue };
            for profile in mig.profiles {
                let last = profile.starts.last().unwrap();
                assert!(last + profile.size <= mig.memory_slices, "{model:?} {}", profile.name);
                assert!(profile.slices <= mig.slices, "{model:?} {}", profile.name);
                assert!(profile.filling().is_some(), "{model:?} {}", profile.name);
                assert!(
                    profile.memory_mib <= model.spec().memory_mib,
                    "{model:?} {}",
                    profile.name
                );
            }
        }
    }
}
