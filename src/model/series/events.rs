//! What happened to GPUs: XIDs, and reasons for which clocks were held down.

use std::collections::BTreeMap;

use super::{Entity, Input};
use crate::model::exposition::{Family, Labels};

/// What happened to a GPU, as counted by who watches it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuEvents {
    /// The last XID since the agent was started; absent if there was none.
    pub last_xid: Option<LastXid>,
    /// XIDs in [`Options::xid_window`](super::Options::xid_window), by code.
    pub xids: BTreeMap<u32, u64>,
    /// Samples in [`Options::clock_event_window`](super::Options::clock_event_window) that had a bit of
    /// `nvmlDeviceGetCurrentClocksEventReasons`, by bit, such as 0x4.
    pub clock_events: BTreeMap<u64, u64>,
}

/// An XID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastXid {
    /// The code.
    pub code: u32,
    /// What it stands for, one line.
    pub message: String,
}

/// `nvmlClocksEventReason…`, in dcgm-exporter's words.
pub(super) const CLOCK_EVENTS: [(u64, &str); 9] = [
    (0x1, "gpu_idle"),
    (0x2, "clocks_setting"),
    (0x4, "power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal"),
    (0x40, "hw_thermal"),
    (0x80, "hw_power_brake"),
    (0x100, "display_clocks"),
];

pub(super) fn families(input: &Input<'_>, entities: &[Entity<'_>]) -> [Family; 3] {
    let mut last =
        Family::gauge("DCGM_FI_DEV_XID_ERRORS", "Value of the last XID error encountered.");
    let mut xids = Family::gauge(
        "DCGM_EXP_XID_ERRORS_COUNT",
        "XID errors observed during the configured time window.",
    );
    let mut clocks = Family::gauge(
        "DCGM_EXP_CLOCK_EVENTS_COUNT",
        "Clock events observed during the configured time window.",
    );
    let none = GpuEvents::default();
    for entity in entities {
        let events = entity.uuid.and_then(|uuid| input.events.get(uuid)).unwrap_or(&none);
        let (labels, value) = last_xid(entity, events);
        last.add(labels, value);
        for (code, count) in &events.xids {
            let window = input.options.xid_window.to_string();
            let (code, window) = (code.to_string(), ("window_size_in_ms", &*window));
            xids.add(entity.labels.with([("xid", &*code), window]), *count as f64);
        }
        let named = CLOCK_EVENTS.iter();
        let named = named.filter_map(|(bit, name)| Some((name, events.clock_events.get(bit)?)));
        for (name, count) in named {
            let window = input.options.clock_event_window.to_string();
            let window = ("window_size_in_ms", &*window);
            clocks.add(entity.labels.with([("clock_event", *name), window]), *count as f64);
        }
    }
    [last, xids, clocks]
}

fn last_xid(entity: &Entity<'_>, events: &GpuEvents) -> (Labels, f64) {
    let (code, message) =
        events.last_xid.as_ref().map_or((0, "No Error"), |last| (last.code, &*last.message));
    let text = code.to_string();
    (entity.labels.with([("err_code", &*text), ("err_msg", message)]), f64::from(code))
}
