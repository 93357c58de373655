//! What has to be written so that the slices of the pool become the wanted ones. Pure: decides, and
//! writes nothing.

use std::{cmp::Reverse, collections::BTreeSet};

use k8s_openapi::api::resource::v1::{ResourcePool, ResourceSlice};

use crate::{
    cluster::content::{Likeness, compare},
    model::pool::SliceContent,
};

/// What has to be written.
#[derive(Debug, PartialEq)]
pub(super) struct Sync<'e> {
    /// The pool as all its slices are to have it.
    pub(super) pool: ResourcePool,
    /// In the order in which to write.
    pub(super) writes: Vec<Write<'e>>,
    /// Indexes of the slices whose order has to wait.
    pub(super) waiting: Vec<usize>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Write<'e> {
    /// Takes a slice away.
    Delete(&'e ResourceSlice),
    /// Writes a slice in place.
    Update {
        /// Which content.
        index: usize,
        /// What is there.
        found: &'e ResourceSlice,
        /// Whether nothing but the order changes.
        order_only: bool,
    },
    /// Adds a slice.
    Create {
        /// Which content.
        index: usize,
    },
}

/// Compares what exists with what is wanted.
///
/// The generation is kept while no slice is new and at most one changes, and the scheduler then follows
/// at once; else it rises and every slice is written, so that the scheduler sees all of the change or
/// nothing. A change of order alone keeps it too, and waits for slices whose index is in `resting`.
pub(super) fn sync<'e>(
    existing: &'e [ResourceSlice],
    wanted: &[&SliceContent],
    pool: &str,
    resting: &BTreeSet<usize>,
) -> Sync<'e> {
    let (matched, obsolete) = assign(existing, wanted.len(), pool);
    let generation = existing.iter().filter(|slice| slice.spec.pool.name == pool);
    let generation = generation.map(|slice| slice.spec.pool.generation).max();
    let mut pool = ResourcePool {
        name: pool.to_owned(),
        generation: generation.unwrap_or(0),
        resource_slice_count: i64::try_from(wanted.len()).unwrap_or(i64::MAX),
    };
    let likeness = |(found, wanted): (&Option<&ResourceSlice>, &&SliceContent)| match found {
        Some(found) if found.spec.pool == pool => compare(&found.spec, wanted),
        _ => Likeness::Different,
    };
    let likeness: Vec<_> = matched.iter().zip(wanted).map(likeness).collect();
    let changed = likeness.iter().filter(|&&like| like == Likeness::Different).count();
    let raised = changed > 1 || matched.iter().any(Option::is_none);
    if raised {
        pool.generation = pool.generation.saturating_add(1);
    }
    let mut waiting = Vec::new();
    let mut writes: Vec<_> = obsolete.into_iter().map(Write::Delete).collect();
    for (index, (found, like)) in matched.iter().zip(likeness).enumerate() {
        let Some(found) = *found else { continue };
        let order_only = like == Likeness::Reordered && !raised;
        if order_only && resting.contains(&index) {
            waiting.push(index);
        } else if raised || like != Likeness::Same {
            writes.push(Write::Update { index, found, order_only });
        }
    }
    let missing = matched.iter().enumerate().filter(|(_, found)| found.is_none());
    writes.extend(missing.map(|(index, _)| Write::Create { index }));
    Sync { pool, writes, waiting }
}

/// What the slices of a pool hold, by index, as far as there is no gap.
pub(super) fn found(existing: Vec<ResourceSlice>, pool: &str) -> Vec<SliceContent> {
    let (matched, _) = assign(&existing, existing.len(), pool);
    let there = matched.into_iter().map_while(|slice| slice);
    let content = there.map(|slice| SliceContent {
        devices: slice.spec.devices.clone().unwrap_or_default(),
        shared_counters: slice.spec.shared_counters.clone().unwrap_or_default(),
    });
    content.collect()
}

/// For each of `count` indexes the slice whose name carries it, and the slices that are left over.
///
/// Of two for one index the younger generation wins. A slice of an older generation, left by a change
/// that was interrupted, is written in place.
fn assign<'e>(
    existing: &'e [ResourceSlice],
    count: usize,
    pool: &str,
) -> (Vec<Option<&'e ResourceSlice>>, Vec<&'e ResourceSlice>) {
    let mut matched = vec![None; count];
    let mut obsolete = Vec::new();
    let mut existing: Vec<_> = existing.iter().collect();
    existing.sort_by_key(|slice| (Reverse(slice.spec.pool.generation), &slice.metadata.name));
    for slice in existing {
        let index = slice.metadata.name.as_deref().and_then(index);
        match index.and_then(|index| matched.get_mut(index)) {
            Some(free @ None) if slice.spec.pool.name == pool => *free = Some(slice),
            _ => obsolete.push(slice),
        }
    }
    (matched, obsolete)
}

/// Digits of the index that starts a name. The scheduler goes through the slices by name, so the index
/// is their order; the width is the Go library's.
const DIGITS: usize = 5;

/// The name of a slice without what the server adds to make it unique.
pub(super) fn base_name(index: usize, driver: &str, node: &str) -> String {
    format!("{index:0DIGITS$x}-{driver}-{node}-")
}

fn index(name: &str) -> Option<usize> {
    let (digits, _) = name.split_once('-')?;
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let valid = digits.len() == DIGITS && digits.chars().all(hex);
    valid.then(|| usize::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests;
