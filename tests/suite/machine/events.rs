//! What GPUs report by themselves.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use kerf::{
    model::health::{Attribution, Notice, Sign},
    node::nvml::{Calls, Event, EventSet, Nvml, Registered, Reported},
};
use kerf_nvml::{Effect, Fault, Model, NodeDescription};

use super::Rig;

const UNKNOWN: u32 = 999;
const NOT_SUPPORTED: u32 = 3;

/// A report is there at once; a test that waits longer is stuck.
const SOON: Duration = Duration::from_secs(10);

fn xid(code: u32, attribution: Attribution) -> Reported {
    Reported::Sign(Sign::Xid { code, attribution, link: None })
}

/// A set that all GPUs report to, and what each said to that.
fn listen(rig: &Rig, gpus: u32) -> (EventSet, Vec<Registered>) {
    let set = rig.nvml.event_set().unwrap();
    let registered = (0..gpus).map(|index| set.register(&rig.gpu(index)).unwrap()).collect();
    (set, registered)
}

fn next(set: &EventSet) -> Event {
    set.wait(SOON).unwrap().unwrap()
}

#[test]
fn an_xid_names_what_nvml_names() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 2).with_mig_enabled());
    let (set, registered) = listen(&rig, 2);
    assert_eq!(registered, [Registered::Types(0xff0a); 2]);
    let told = [
        (0, 79, None, None, Attribution::Gpu),
        (1, 94, Some(2), None, Attribution::GpuInstance(2)),
        (0, 999, Some(0), Some(0), Attribution::ComputeInstance(0, 0)),
    ];
    for (gpu, code, gi, ci, _) in told {
        rig.machine.reported_xid(gpu, code.into(), gi, ci).unwrap();
    }
    for (gpu, code, _, _, attribution) in told {
        let gpu = rig.gpu(gpu.try_into().unwrap()).uuid;
        assert_eq!(next(&set), Event { gpu, what: xid(code, attribution) });
    }
    assert_eq!(set.wait(Duration::ZERO).unwrap(), None);
}

#[test]
fn each_kind_of_event_is_told_by_name() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    let (set, _) = listen(&rig, 1);
    let kinds = [
        (0x2, Notice::DoubleBitEccError),
        (0x200, Notice::SingleBitEccErrorStorm),
        (0x400, Notice::DramRetirement),
        (0x800, Notice::DramRetirementFailure),
        (0x1000, Notice::NonFatalPoison),
        (0x2000, Notice::FatalPoison),
        (0x4000, Notice::GpuUnavailable),
        (0x8000, Notice::RecoveryActionChanged),
    ];
    // A single bit error was not asked for.
    rig.machine.notice(0, 0x1).unwrap();
    let told = kinds.map(|(kind, _)| {
        rig.machine.notice(0, kind).unwrap();
        next(&set).what
    });
    assert_eq!(told, kinds.map(|(_, notice)| Reported::Sign(Sign::Notice(notice))));
    rig.machine.notice(0, 0x100).unwrap();
    assert_eq!(next(&set).what, Reported::MigChanged);
}

#[test]
fn an_old_driver_tells_what_it_knows_and_an_old_gpu_nothing() {
    let node = NodeDescription::uniform(Model::H100_80, 1);
    let rig = Rig::new(&NodeDescription { driver: "550.163.01".to_owned(), ..node });
    assert_eq!(listen(&rig, 1).1, [Registered::Types(0x10a)]);
    let types = "nvmlDeviceGetSupportedEventTypes";
    rig.machine.inject(Fault::always(types, Effect::Fail(NOT_SUPPORTED))).unwrap();
    let (set, registered) = listen(&rig, 1);
    assert_eq!(registered, [Registered::TooOld]);
    assert_eq!(set.wait(Duration::ZERO).unwrap(), None);
}

#[test]
fn a_set_that_is_of_no_use_says_so() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    let set = rig.nvml.event_set().unwrap();
    let fault = Fault::next("nvmlDeviceRegisterEvents", Effect::Fail(UNKNOWN));
    rig.machine.inject(fault).unwrap();
    assert!(set.register(&rig.gpu(0)).unwrap_err().unknown());
}

#[test]
fn a_lost_gpu_ends_each_wait_until_a_set_is_made_without_it() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 2));
    let (set, _) = listen(&rig, 2);
    let there = rig.gpu(0);
    rig.machine.lose_gpu(1).unwrap();
    for _ in 0..3 {
        assert!(set.wait(SOON).unwrap_err().lost());
    }
    let set = rig.nvml.event_set().unwrap();
    assert_eq!(set.register(&there).unwrap(), Registered::Types(0xff0a));
    rig.machine.reported_xid(0, 13, None, None).unwrap();
    assert_eq!(next(&set), Event { gpu: there.uuid, what: xid(13, Attribution::Gpu) });
}

#[test]
fn a_wait_is_no_call_that_hangs() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    let calls = Calls::default();
    let nvml = Nvml::load(Some(&rig.machine.library()), calls.clone()).unwrap();
    let nvml = Arc::new(nvml);
    let set = nvml.event_set().unwrap();
    // Read through another load of the library, so that it is looked up here.
    set.register(&rig.gpu(0)).unwrap();
    let (tell, told) = mpsc::channel();
    calls.observed_by(move |function, _| tell.send(function).unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| set.wait(SOON));
        assert_eq!(calls.longer_than(Duration::ZERO), []);
        rig.machine.reported_xid(0, 13, None, None).unwrap();
        assert!(waiting.join().unwrap().unwrap().is_some());
    });
    // Dropped, it is freed and lets the library go.
    let library = Arc::downgrade(&nvml);
    drop((nvml, set));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["nvmlEventSetFree"]);
    assert!(library.upgrade().is_none());
}
