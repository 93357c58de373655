//! Numbers of device nodes: the driver's own, or such as open where there is no GPU.
//!
//! A node opens if the kernel has a driver for its number, and on nearly every machine it has one for
//! virtual consoles, 4:0 to 4:63, and for what they show, 7:0 and 7:1. So a machine for containers gives
//! 4:0 and on to its GPUs, and what is left to capabilities, of which it numbers no more than there can
//! be at a time.

use crate::{node::NodeDescription, spec::MigSpec};

/// The minor number of `/dev/nvidiactl`.
pub(crate) const CONTROL: u32 = 255;

/// Ids of a GPU instance, and of a compute instance in it.
pub(crate) type Capability = (u32, Option<u32>);

/// Those of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    /// Major numbers, as `/proc/devices` names their owners.
    pub(crate) nvidia: u32,
    pub(crate) uvm: u32,
    pub(crate) caps: u32,
    /// Minor numbers of the capabilities that belong to no instance.
    pub(crate) config: u32,
    pub(crate) monitor: u32,
    /// The GPUs that the driver lists numbers for, or those with MIG that are there: the minor number
    /// of each, and those of its instances.
    gpus: Vec<(u32, Minors)>,
}

/// The minor numbers of a GPU's instances.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Minors {
    /// As the driver numbers them for the GPU with this minor number.
    Driver(u32),
    /// From this number on, as few as there can be at a time.
    Few(u32, &'static MigSpec),
}

impl Numbers {
    pub(crate) fn of(node: &NodeDescription) -> Self {
        if node.for_containers { Self::that_open(node) } else { Self::of_driver() }
    }

    fn of_driver() -> Self {
        let gpus = (0..32).map(|gpu| (gpu, Minors::Driver(gpu))).collect();
        Self { nvidia: 195, uvm: 510, caps: 511, config: 1, monitor: 2, gpus }
    }

    fn that_open(node: &NodeDescription) -> Self {
        let minors = (0..).zip(&node.gpus).map(|(index, gpu)| gpu.minor.unwrap_or(index));
        let mut next = minors.clone().max().map_or(0, |last| last + 1);
        let mut gpus = Vec::new();
        for (minor, gpu) in minors.zip(&node.gpus) {
            let Some(mig) = &gpu.model.spec().mig else { continue };
            gpus.push((minor, Minors::Few(next, mig)));
            next += mig.slices + mig.leaves();
        }
        // Last, since no container is given them.
        Self { nvidia: 4, uvm: 7, caps: 4, config: next, monitor: next + 1, gpus }
    }

    /// Those of the instances of the GPU with this minor number.
    pub(crate) fn instances(&self, gpu: u32) -> Minors {
        let found = self.gpus.iter().find(|(minor, _)| *minor == gpu);
        found.map_or(Minors::Driver(gpu), |(_, minors)| *minors)
    }

    /// Every instance that there can be, with its GPU's minor number and its own.
    pub(crate) fn all(&self) -> Vec<(u32, Capability, u32)> {
        let of = |&(gpu, minors): &(u32, Minors)| {
            minors.all().into_iter().map(move |one| (gpu, one, minors.of(one)))
        };
        self.gpus.iter().flat_map(of).collect()
    }
}

impl Minors {
    /// The number of an instance's capability.
    pub(crate) fn of(self, (gi, ci): Capability) -> u32 {
        match self {
            Self::Driver(gpu) => 3 + gpu * 135 + gi * 9 + ci.map_or(0, |ci| 1 + ci),
            Self::Few(first, mig) => {
                let (start, size) = mig.place(gi);
                // One for each place to begin at and one for each to end at, which together tell all
                // instances apart; compute instances are counted from the end.
                ci.map_or(first + start, |ci| first + mig.slices + start + size - 1 - ci)
            }
        }
    }

    /// 15 GPU instances of 8 compute instances, or what the GPU can hold; each GPU instance before its
    /// compute instances.
    fn all(self) -> Vec<Capability> {
        let within = |gi| match self {
            Self::Driver(_) => 8,
            Self::Few(_, mig) => mig.place(gi).1.min(mig.slices),
        };
        let instances = match self {
            Self::Driver(_) => 15,
            // The last place is too short: there are fewer slices than places.
            Self::Few(_, mig) => mig.leaves() - 1 + mig.slices,
        };
        let of = |gi| [None].into_iter().chain((0..within(gi)).map(Some)).map(move |ci| (gi, ci));
        (0..instances).flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::node::Model;

    #[test]
    fn four_large_gpus_have_numbers_that_open() {
        let node = NodeDescription::uniform(Model::H100_80, 4).for_containers();
        let minors = Numbers::of(&node).all().into_iter().map(|(_, _, minor)| minor);
        assert_eq!(minors.collect::<BTreeSet<_>>(), (4..64).collect());
    }

    /// The capabilities of the instance at a place, filled by this many compute instances.
    fn taken(minors: Minors, id: u32, compute: u32) -> Vec<u32> {
        let within = (0..compute).map(|ci| minors.of((id, Some(ci))));
        [minors.of((id, None))].into_iter().chain(within).collect()
    }

    #[test]
    fn what_can_be_there_together_has_numbers_of_its_own() {
        for model in Model::ALL.into_iter().filter(|model| model.has_mig()) {
            let node = NodeDescription::uniform(model, 1).for_containers();
            let (numbers, mig) = (Numbers::of(&node), model.spec().mig.as_ref().unwrap());
            let minors = numbers.instances(0);
            let places = || {
                mig.profiles.iter().flat_map(|profile| {
                    let id = |start: &u32| mig.instance_id(*start, profile.size);
                    profile.starts.iter().map(move |start| (id(start), profile.slices))
                })
            };
            for (one, compute) in places() {
                let (start, size) = mig.place(one);
                let taken_here: BTreeSet<_> = taken(minors, one, compute).into_iter().collect();
                assert_eq!(taken_here.len(), 1 + compute as usize, "{model:?} {one}");
                assert!(taken_here.iter().all(|minor| (1..numbers.config).contains(minor)));
                let apart = |&(other, _): &(u32, u32)| {
                    let (other, length) = mig.place(other);
                    other + length <= start || start + size <= other
                };
                for (other, compute) in places().filter(apart) {
                    let others = taken(minors, other, compute);
                    assert!(others.iter().all(|minor| !taken_here.contains(minor)), "{model:?}");
                }
            }
        }
    }

    #[test]
    fn whole_instances_are_told_apart_also_at_different_times() {
        let numbers = Numbers::of(&NodeDescription::uniform(Model::H100_80, 1).for_containers());
        let minors = numbers.instances(0);
        let pairs = (0..14).map(|id| taken(minors, id, 1)).collect::<BTreeSet<_>>();
        assert_eq!(pairs.len(), 14);
    }
}
