//! XIDs as they were seen, whatever they mean.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Extent;

/// Reports of a code that are nearer to each other are of one fault: one shows on several channels, and
/// both in NVML's events and in the kernel's log.
const ONE_FAULT: SignedDuration = SignedDuration::from_mins(3);

/// The XIDs of a GPU since the program started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xids {
    /// The latest.
    pub last: LastXid,
    /// How many faults there were by code; reports within three minutes are of one.
    pub counts: BTreeMap<u32, u64>,
    recent: Vec<LastXid>,
}

/// An XID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastXid {
    /// The code.
    pub code: u32,
    /// When it was reported.
    pub at: Timestamp,
    /// The instance that the report names; the GPU where it names none that exists.
    pub extent: Extent,
}

impl Xids {
    pub(super) fn new(first: LastXid) -> Self {
        Self { last: first, counts: BTreeMap::from([(first.code, 1)]), recent: vec![first] }
    }

    pub(super) fn add(&mut self, xid: LastXid) {
        self.last = xid;
        self.recent.retain(|earlier| xid.at.duration_since(earlier.at) < ONE_FAULT);
        // The kernel's log often names no instance where NVML does.
        let same = |earlier: &LastXid| {
            earlier.code == xid.code
                && (earlier.extent == xid.extent
                    || earlier.extent == Extent::Gpu
                    || xid.extent == Extent::Gpu)
        };
        if !self.recent.iter().any(same) {
            self.recent.push(xid);
            *self.counts.entry(xid.code).or_default() += 1;
        }
    }
}
