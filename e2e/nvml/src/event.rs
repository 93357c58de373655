//! What GPUs report: XIDs, kept for the processes that wait for them.

use serde::{Deserialize, Serialize};

/// `nvmlEventTypeXidCriticalError`.
pub(crate) const XID: u64 = 0x8;
/// What a GPU can report here: ECC errors (0x1, 0x2), XIDs and MIG changes (0x100) may be asked for.
pub(crate) const SUPPORTED: u64 = 0x1 | 0x2 | XID | 0x100;
/// More are not kept: a process that is so far behind has lost them.
const KEPT: usize = 128;

/// The last events of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Events {
    /// Number of the next.
    pub(crate) next: u64,
    kept: Vec<Event>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) gpu: u32,
    /// One bit.
    pub(crate) kind: u64,
    /// The XID.
    pub(crate) data: u64,
    /// Ids of GPU and compute instance, as far as they are known.
    pub(crate) instance: (Option<u32>, Option<u32>),
}

impl Events {
    pub(crate) fn report(&mut self, gpu: u32, data: u64, instance: (Option<u32>, Option<u32>)) {
        self.kept.push(Event { number: self.next, gpu, kind: XID, data, instance });
        self.next += 1;
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
    }

    /// The first event from a number on that `wanted` accepts.
    pub(crate) fn first(&self, from: u64, wanted: impl Fn(&Event) -> bool) -> Option<&Event> {
        self.kept.iter().find(|event| event.number >= from && wanted(event))
    }
}
