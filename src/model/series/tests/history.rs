//! What is counted of what happened.

use std::collections::BTreeMap;

use super::scene::Scene;
use crate::model::series::{GpuEvents, GpuHistory, LastXid};

fn xid(code: u32) -> LastXid {
    LastXid { code, message: format!("XID {code}") }
}

#[test]
fn what_is_older_than_the_window_is_the_last_xid_at_most() {
    let options = Scene::new([]).options;
    let mut history = GpuHistory::default();
    assert_eq!(history.events(0.0, &options), GpuEvents::default());
    history.xid(100.0, xid(13));
    history.xid(200.0, xid(13));
    history.xid(200.0, xid(79));
    for (at, reasons) in [(100.0, 0x4), (200.0, 0x4 | 0x8000), (300.0, 0x4 | 0x40), (301.0, 0)] {
        history.clock_events(at, reasons);
    }
    let both = GpuEvents {
        last_xid: Some(xid(79)),
        xids: BTreeMap::from([(13, 2), (79, 1)]),
        clock_events: BTreeMap::from([(0x4, 3), (0x40, 1)]),
    };
    assert_eq!(history.events(400.0, &options), both);
    let later = GpuEvents {
        last_xid: Some(xid(79)),
        xids: BTreeMap::from([(13, 1), (79, 1)]),
        clock_events: BTreeMap::from([(0x4, 2), (0x40, 1)]),
    };
    assert_eq!(history.events(401.0, &options), later);
    let last = GpuEvents { last_xid: Some(xid(79)), ..GpuEvents::default() };
    assert_eq!(history.events(1000.0, &options), last);
}

#[test]
fn a_storm_is_not_kept() {
    let options = Scene::new([]).options;
    let mut history = GpuHistory::default();
    (0..5000).for_each(|_| history.xid(1.0, xid(94)));
    assert_eq!(history.events(1.0, &options).xids, BTreeMap::from([(94, 1024)]));
}
