//! What happened to a GPU lately: what [`GpuEvents`] is counted from.

use std::collections::{BTreeMap, VecDeque};

use super::{GpuEvents, LastXid, Options, events::CLOCK_EVENTS};

/// XIDs that are kept at most: a GPU in trouble may report thousands.
const MOST_XIDS: usize = 1024;

/// Samples of clock events that are kept at most: 5 minutes of one in a second, and some.
const MOST_SAMPLES: usize = 512;

/// A GPU's XIDs and reasons for clock events, with when they were seen, in seconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuHistory {
    last_xid: Option<LastXid>,
    xids: VecDeque<(f64, u32)>,
    clock_events: VecDeque<(f64, u64)>,
}

impl GpuHistory {
    /// An XID came. Of those that are too many the oldest are forgotten.
    pub fn xid(&mut self, at: f64, xid: LastXid) {
        push(&mut self.xids, MOST_XIDS, (at, xid.code));
        self.last_xid = Some(xid);
    }

    /// A sample had these bits of `nvmlDeviceGetCurrentClocksEventReasons`.
    pub fn clock_events(&mut self, at: f64, reasons: u64) {
        push(&mut self.clock_events, MOST_SAMPLES, (at, reasons));
    }

    /// What happened until now, counted in the windows of the options.
    pub fn events(&self, now: f64, options: &Options) -> GpuEvents {
        let mut events = GpuEvents { last_xid: self.last_xid.clone(), ..GpuEvents::default() };
        for code in within(&self.xids, now, options.xid_window) {
            *events.xids.entry(code).or_default() += 1;
        }
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for reasons in within(&self.clock_events, now, options.clock_event_window) {
            let bits = CLOCK_EVENTS.iter().map(|(bit, _)| *bit);
            bits.filter(|bit| reasons & bit != 0)
                .for_each(|bit| *counts.entry(bit).or_default() += 1);
        }
        events.clock_events = counts;
        events
    }
}

fn push<T>(seen: &mut VecDeque<(f64, T)>, most: usize, new: (f64, T)) {
    if seen.len() == most {
        seen.pop_front();
    }
    seen.push_back(new);
}

/// What is not older than so many milliseconds.
fn within<T: Copy>(seen: &VecDeque<(f64, T)>, now: f64, window: u64) -> impl Iterator<Item = T> {
    let begin = now - window as f64 / 1e3;
    seen.iter().filter(move |(at, _)| *at >= begin).map(|(_, what)| *what)
}
