use super::*;
use crate::node::Model;

const SECOND: u64 = 1_000_000;

/// A GPU without MIG since time 0, with one process.
fn loaded(model: Model, utilization: u32) -> GpuState {
    let meter = Meter::begin(&model.spec().board, 0);
    let load = Load { utilization, ..Load::default() };
    let process = Process { pid: 1, name: String::new(), instance: None, load };
    GpuState { meter, processes: vec![process], ..GpuState::default() }
}

#[test]
fn a_load_takes_power_and_its_warmth_comes_with_time() {
    let spec = Model::H100_80.spec();
    let state = loaded(Model::H100_80, 50);
    let at = |seconds: u64| {
        let sensors = state.sensors(spec, seconds * SECOND);
        let joules = sensors.energy / 1_000_000_000;
        (sensors.activity, sensors.power / 1000, joules, sensors.warmth / 1000)
    };
    let expected = [
        (5000, 385, 0, 30),
        (5000, 385, 5775, 40),
        (5000, 385, 11550, 45),
        (5000, 385, 385_000, 50),
    ];
    assert_eq!([at(0), at(15), at(30), at(1000)], expected);
}

#[test]
fn adding_up_on_the_way_changes_nothing() {
    for model in Model::ALL {
        let spec = model.spec();
        for stop in [1, 7, 20 * SECOND, 59 * SECOND] {
            let (once, mut twice) = (loaded(model, 73), loaded(model, 73));
            twice.add_up(spec, stop);
            let [once, twice] = [once, twice].map(|state| state.sensors(spec, 60 * SECOND));
            assert_eq!((once.energy, once.work), (twice.energy, twice.work), "{model:?} {stop}");
        }
    }
}

#[test]
fn warmth_falls_as_it_rises_and_never_overshoots() {
    for (from, to) in [(30_000, 70_000), (70_000, 30_000)] {
        let mut last = from;
        for passed in (0..200).map(|step| step * SECOND) {
            let warmth = approach(from, to, passed);
            let range = last.min(to)..=last.max(to);
            assert!(range.contains(&warmth), "{from} {to} {passed}: {warmth} after {last}");
            last = warmth;
        }
        assert!(last.abs_diff(to) < 10, "{last} {to}");
    }
}

#[test]
fn boards_are_plausible() {
    for model in Model::ALL {
        let board = &model.spec().board;
        assert!(board.idle_power < board.most_power, "{model:?}");
        assert!(board.cool < board.hot && board.hot < 90, "{model:?}");
        assert!(board.idle_clock < board.clock, "{model:?}");
    }
}
