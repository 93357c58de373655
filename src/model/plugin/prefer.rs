//! Which of the free devices of a resource a container had best get.

mod nearest;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::config::SharedPolicy;
use crate::model::{gpu::GpuUuid, topology::Links};

/// A device that a container may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What the kubelet calls it; no two are the same.
    pub id: String,
    /// The GPU that it is, or is a part of.
    pub gpu: GpuUuid,
    /// That GPU's NUMA node.
    pub numa: Option<u32>,
    /// How much of the GPU it is.
    pub part: Part,
}

/// How much of a GPU a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// A MIG device.
    Mig,
    /// One of the shares of a device that several containers may have.
    Share {
        /// The device, by any name that all of its shares give.
        of: String,
        /// How many of its shares other containers have.
        taken: u32,
    },
}

impl Candidate {
    /// What several candidates may be parts of.
    fn parent(&self) -> &str {
        match &self.part {
            Part::Share { of, .. } => of,
            Part::Whole | Part::Mig => &self.gpu.0,
        }
    }

    fn taken(&self) -> u32 {
        match self.part {
            Part::Share { taken, .. } => taken,
            Part::Whole | Part::Mig => 0,
        }
    }

    fn is_share(&self) -> bool {
        matches!(self.part, Part::Share { .. })
    }
}

/// The `size` devices that a container had best get, `must_include` among them, in the order of
/// `available`. That order decides where nothing else does; the kubelet's own lists have none.
///
/// - Whole GPUs: those nearest to each other; of equally near ones those that the GPUs which remain miss
///   least, then those on one NUMA node. Exact for up to 16 free GPUs, and a good choice among more.
/// - MIG devices: on as few GPUs as possible, and those first that have the fewest free ones.
/// - Shares: by `policy`. Distributed, of as many devices as possible, the one with the fewest shares
///   taken first; packed, of as few as possible, the one with the most first.
///
/// Empty when there are no such devices: the kubelet then takes any, or says itself what is wrong, while
/// an error would fail the pod.
pub fn preferred(
    available: &[Candidate],
    must_include: &[String],
    size: usize,
    links: &Links,
    policy: SharedPolicy,
) -> Vec<String> {
    let Some(request) = Request::of(available, must_include, size) else { return Vec::new() };
    let shares = available.iter().any(Candidate::is_share);
    let mig = available.iter().any(|candidate| candidate.part == Part::Mig);
    let chosen = match policy {
        SharedPolicy::Distributed if shares => request.spread(),
        SharedPolicy::Packed if shares => request.packed(|parent| Reverse(parent.taken)),
        _ if mig => request.packed(|parent| parent.free.len()),
        _ => nearest::choose(&request, links),
    };
    let chosen: BTreeSet<usize> = chosen.into_iter().collect();
    let all = available.iter().zip(&request.included).enumerate();
    let all = all.filter(|(at, (_, included))| **included || chosen.contains(at));
    all.map(|(_, (candidate, _))| candidate.id.clone()).collect()
}

/// A request that can be met. Candidates go by their position.
struct Request<'a> {
    available: &'a [Candidate],
    /// Whether each is chosen from the start.
    included: Vec<bool>,
    /// How many more are to be chosen.
    left: usize,
}

/// Something that candidates are parts of.
#[derive(Default)]
struct Parent {
    taken: u32,
    /// How many of its parts are chosen from the start.
    included: usize,
    /// The parts that may be chosen.
    free: Vec<usize>,
}

impl<'a> Request<'a> {
    fn of(available: &'a [Candidate], must_include: &[String], size: usize) -> Option<Self> {
        let must: BTreeSet<&str> = must_include.iter().map(String::as_str).collect();
        let included = available.iter().map(|candidate| must.contains(candidate.id.as_str()));
        let included: Vec<bool> = included.collect();
        let found = included.iter().filter(|included| **included).count();
        let left = size.checked_sub(found)?;
        let possible = found == must.len() && size <= available.len();
        possible.then_some(Self { available, included, left })
    }

    /// Positions of what may be chosen.
    fn free(&self) -> Vec<usize> {
        (0..self.available.len()).filter(|&at| !self.included[at]).collect()
    }

    /// In the order of their first parts.
    fn parents(&self) -> Vec<Parent> {
        let mut parents: Vec<Parent> = Vec::new();
        let mut known = BTreeMap::new();
        for (at, candidate) in self.available.iter().enumerate() {
            let index = *known.entry(candidate.parent()).or_insert(parents.len());
            if index == parents.len() {
                parents.push(Parent { taken: candidate.taken(), ..Parent::default() });
            }
            match self.included[at] {
                true => parents[index].included += 1,
                false => parents[index].free.push(at),
            }
        }
        parents
    }

    /// Parts of as many parents as possible, of those first that have the fewest taken.
    fn spread(&self) -> Vec<usize> {
        let mut parents = self.parents();
        parents.iter_mut().for_each(|parent| parent.free.reverse());
        let mut chosen = Vec::with_capacity(self.left);
        while chosen.len() < self.left {
            let free = parents.iter_mut().filter(|parent| !parent.free.is_empty());
            let next = free.min_by_key(|parent| (parent.included, parent.taken));
            let Some(parent) = next else { break };
            chosen.extend(parent.free.pop());
            parent.included += 1;
        }
        chosen
    }

    /// Parts of as few parents as possible, of those first that rank lowest; before all others of those
    /// that have a part in it anyway.
    fn packed<K: Ord>(&self, rank: impl Fn(&Parent) -> K) -> Vec<usize> {
        let mut parents = self.parents();
        parents.sort_by_key(rank);
        let (begun, others): (Vec<_>, Vec<_>) =
            parents.iter().partition(|parent| parent.included > 0);
        let mut chosen: Vec<usize> = Vec::with_capacity(self.left);
        chosen.extend(begun.iter().flat_map(|parent| &parent.free).take(self.left));
        let mut count = fewest(&others, self.left - chosen.len());
        for (index, parent) in others.iter().enumerate() {
            let left = self.left - chosen.len();
            // One more is enough only if the largest of those to come have the rest.
            let enough = |rest| fewest(&others[index + 1..], rest) < count;
            if left > 0 && enough(left.saturating_sub(parent.free.len())) {
                chosen.extend(parent.free.iter().take(left));
                count -= 1;
            }
        }
        chosen
    }
}

/// How many parents must be touched to get so many parts; more than there are if they do not suffice.
fn fewest(parents: &[&Parent], mut parts: usize) -> usize {
    let mut sizes: Vec<usize> = parents.iter().map(|parent| parent.free.len()).collect();
    sizes.sort_unstable_by_key(|size| Reverse(*size));
    for (count, size) in sizes.iter().enumerate() {
        if parts == 0 {
            return count;
        }
        parts = parts.saturating_sub(*size);
    }
    sizes.len() + usize::from(parts > 0)
}
