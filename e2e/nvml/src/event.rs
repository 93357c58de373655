//! What GPUs report: XIDs and the rest, kept for the processes that wait for them.

use serde::{Deserialize, Serialize};

use crate::node::NodeDescription;

/// `nvmlEventTypeXidCriticalError`.
pub(crate) const XID: u64 = 0x8;
/// `nvmlEventTypeGpuRecoveryAction`.
pub(crate) const RECOVERY_ACTION: u64 = 0x8000;
/// ECC errors (0x1, 0x2), XIDs and MIG changes (0x100).
const ALWAYS: u64 = 0x1 | 0x2 | XID | 0x100;
/// Since R560: a storm of ECC errors, DRAM retired or not, poison that is not fatal and that is.
const SINCE_560: u64 = 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000;
/// Since R565: GPU unavailable, another recovery action.
const SINCE_565: u64 = 0x4000 | RECOVERY_ACTION;
/// More are not kept: a process that is so far behind has lost them.
const KEPT: usize = 512;

/// What a node's driver can report.
pub(crate) fn supported(node: &NodeDescription) -> u64 {
    let since = |branch, kinds| if node.driver_branch() >= branch { kinds } else { 0 };
    ALWAYS | since(560, SINCE_560) | since(565, SINCE_565)
}

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
    /// The XID; 0 for every other kind.
    pub(crate) data: u64,
    /// Ids of GPU and compute instance, as far as they are known.
    pub(crate) instance: (Option<u32>, Option<u32>),
}

impl Events {
    pub(crate) fn report_xid(&mut self, gpu: u32, xid: u64, of: (Option<u32>, Option<u32>)) {
        self.keep(Event { number: self.next, gpu, kind: XID, data: xid, instance: of });
    }

    /// An event of another kind, which is about the whole GPU.
    pub(crate) fn report(&mut self, gpu: u32, kind: u64) {
        self.keep(Event { number: self.next, gpu, kind, data: 0, instance: (None, None) });
    }

    fn keep(&mut self, event: Event) {
        self.kept.push(event);
        self.next += 1;
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
    }

    /// The first event from a number on that `wanted` accepts.
    pub(crate) fn first(&self, from: u64, wanted: impl Fn(&Event) -> bool) -> Option<&Event> {
        self.kept.iter().find(|event| event.number >= from && wanted(event))
    }
}
