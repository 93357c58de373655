//! What goes wrong when it is told to.

use std::{thread, time::Duration};

use kerf_nvml::{Effect, Fault, Model};

use crate::rig::*;

#[test]
fn a_call_fails_without_effect_as_often_as_told() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    let what = Effect::Fail(INSUFFICIENT_RESOURCES);
    rig.machine.inject(Fault { at: 2, times: 2, ..Fault::next(create, what) }).unwrap();
    let answers = [0, 1, 1, 1].map(|start| rig.create(gpu, 19, start, 1).map(|_| ()));
    let refused = Err(INSUFFICIENT_RESOURCES);
    assert_eq!(answers, [Ok(()), refused, refused, Ok(())]);
    let starts: Vec<_> =
        rig.machine.snapshot().unwrap().gpus[0].instances.iter().map(|one| one.start).collect();
    assert_eq!(starts, [0, 1]);
}

#[test]
fn calls_are_counted_but_for_waits() {
    let rig = Rig::cut(&[Model::H100_80]);
    rig.machine.count_calls().unwrap();
    let gpu = rig.gpu(0).unwrap();
    let set = rig.event_set().unwrap();
    rig.wait(set, 0).unwrap_err();
    rig.uuid(gpu).unwrap();
    assert_eq!(rig.machine.calls().unwrap(), 3);
    rig.machine.clear_faults().unwrap();
    rig.uuid(gpu).unwrap();
    assert_eq!(rig.machine.calls().unwrap(), 3);
}

#[test]
fn a_gpu_that_hangs_stops_no_other() {
    let rig = Rig::cut(&[Model::H100_80, Model::H100_80]);
    let [one, two] = [0, 1].map(|index| rig.gpu(index).unwrap());
    rig.machine.inject(Fault::always("nvmlDeviceGetUUID", Effect::Hang).on_gpu(0)).unwrap();
    thread::scope(|scope| {
        let hanging = scope.spawn(|| rig.uuid(one));
        // The thread has been struck once this call is counted.
        while rig.machine.calls().unwrap() == 0 {
            thread::yield_now();
        }
        assert_eq!(rig.uuid(two).map(|_| ()), Ok(()));
        let instance = rig.create(one, 19, 0, 1).unwrap();
        rig.destroy(instance).unwrap();
        assert!(!hanging.is_finished());
        rig.machine.clear_faults().unwrap();
        assert_eq!(hanging.join().unwrap().map(|_| ()), Ok(()));
    });
}

#[test]
fn a_delayed_call_does_what_it_does() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let delay = Effect::Delay(Duration::from_millis(1));
    rig.machine.inject(Fault::always("nvmlGpuInstanceDestroy", delay)).unwrap();
    let instance = rig.create(gpu, 19, 0, 1).unwrap();
    assert_eq!(rig.destroy(instance), Ok(()));
    assert_eq!(rig.machine.snapshot().unwrap().gpus[0].instances, []);
}

#[test]
fn initialisation_can_fail() {
    let rig = Rig::new(&[Model::T4]);
    rig.shutdown().unwrap();
    let fail = Effect::Fail(DRIVER_NOT_LOADED);
    rig.machine.inject(Fault::next("nvmlInit", fail)).unwrap();
    assert_eq!([rig.init(), rig.init()], [Err(DRIVER_NOT_LOADED), Ok(())]);
}
