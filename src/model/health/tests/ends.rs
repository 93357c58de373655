//! What ends a fault, and when.

use Attribution::GpuInstance as Instance;

use super::*;

/// Something that may prove an end, and its name.
type Proof<'p> = (&'p str, &'p dyn Fn(&mut Health));

fn rows(pending: bool, failed: bool) -> Readings {
    Readings { remapping: Some(Remapping { pending, failed }), ..Readings::default() }
}

/// The seconds after `from` at which nothing is wrong any more, as `due` says.
fn gone_after(health: &mut Health, from: i64) -> Option<i64> {
    let open = shorts(health);
    let due = health.due()?;
    let just_before = Timestamp::from_nanosecond(due.as_nanosecond() - 1).unwrap();
    health.tick(just_before);
    assert_eq!(shorts(health), open);
    health.tick(due);
    assert_eq!(shorts(health), [""; 0]);
    Some(due.duration_since(at(from)).as_secs())
}

#[test]
fn each_fault_ends_with_its_own_proof() {
    let gpu = cut(0).uuid;
    let reset = |health: &mut Health| health.reset(&gpu, at(1000));
    let good = |health: &mut Health| health.reading(&gpu, &Readings::default(), at(1000));
    let none = |health: &mut Health| health.reading(&gpu, &action(0), at(1000));
    let remapped = |health: &mut Health| health.reading(&gpu, &rows(false, false), at(1000));
    let smooth = |health: &mut Health| {
        health.sign(&cut(0), &xid(162), at(1000));
    };
    let repaired = |health: &mut Health| {
        let readings = Readings { repair_pending: Some(false), ..Readings::default() };
        health.reading(&gpu, &readings, at(1000));
    };
    let proofs: [Proof<'_>; 7] = [
        ("reset", &reset),
        ("good", &good),
        ("none", &none),
        ("remapped", &remapped),
        ("smooth", &smooth),
        ("repaired", &repaired),
        ("nothing", &|_| {}),
    ];
    // What proves the end of an XID, and the hold-down.
    for (code, proven_by, wait) in [
        (46, vec!["reset"], 60),
        (48, vec!["reset"], 60),
        (62, vec!["reset"], 60),
        (63, vec!["reset", "remapped"], 60),
        (64, vec![], 0),
        (74, vec!["reset"], 300),
        (79, vec![], 0),
        (93, vec![], 0),
        (95, vec!["reset"], 60),
        (110, vec![], 0),
        (143, vec!["good", "none", "remapped", "repaired"], 60),
        (144, vec!["reset"], 300),
        (156, vec!["reset", "repaired"], 60),
        (163, vec!["reset", "smooth"], 60),
        (173, vec![], 0),
    ] {
        for (name, proof) in proofs {
            let mut health = told(&[xid(code)]);
            proof(&mut health);
            let gone = gone_after(&mut health, 1000);
            assert_eq!(gone, proven_by.contains(&name).then_some(wait), "{code} {name}");
        }
    }
}

#[test]
fn what_is_quiet_for_long_enough_ends() {
    for (code, hours) in [(92, 24), (4711, 24), (119, 1)] {
        let mut health = told(&[xid(code)]);
        health.sign(&cut(0), &xid(code), at(1800));
        assert_eq!(gone_after(&mut health, 1800), Some(hours * 3600), "{code}");
    }
}

#[test]
fn a_contained_error_ends_when_it_is_quiet_and_the_driver_asks_for_nothing() {
    let gpu = cut(0).uuid;
    let mut health = told(&[of(94, Instance(1))]);
    assert_eq!(health.due(), None);
    health.reading(&gpu, &action(4), at(30));
    health.reading(&gpu, &action(0), at(60));
    let only = |health: &Health, reason: &str| {
        shorts(health).iter().filter(|short| short.starts_with(reason)).count()
    };
    health.tick(at(599));
    assert_eq!(only(&health, "xid-94"), 1);
    health.tick(at(600));
    assert_eq!(only(&health, "xid-94"), 0);
}

#[test]
fn a_gpu_off_the_bus_ends_when_it_answers_after_a_boot() {
    let gpu = cut(0).uuid;
    let health = told(&[xid(79)]);
    let saved = health.save("one");
    let mut same = Health::restore(Policy::default(), saved.clone(), "one");
    same.reading(&gpu, &action(0), at(100));
    assert_eq!((shorts(&same), same.due()), (vec!["xid-79 warning".to_owned()], None));

    let mut next = Health::restore(Policy::default(), saved, "two");
    next.reading(&gpu, &answer(15), at(100));
    assert_eq!(next.due(), None);
    next.reading(&gpu, &Readings::default(), at(200));
    assert_eq!(gone_after(&mut next, 200), Some(60));
}

#[test]
fn a_boot_ends_what_it_cures() {
    let ended = |sign: &Sign| {
        let saved = told(std::slice::from_ref(sign)).save("one");
        Health::restore(Policy::default(), saved, "two").findings().0.is_empty()
    };
    let ends = [46, 48, 63, 74, 95, 110, 156, 163, 173, 4711].map(|code| ended(&xid(code)));
    assert_eq!(ends, [true; 10]);
    assert!(ended(&of(94, Instance(1))));
    let stays = [54, 64, 79, 92, 93, 143, 164].map(|code| ended(&xid(code)));
    assert_eq!(stays, [false; 7]);
    let mut health = Health::new(Policy::default());
    for action_value in [1, 2, 4, 7] {
        health.reading(&cut(0).uuid, &action(action_value), at(0));
    }
    let booted = Health::restore(Policy::default(), health.save("one"), "two");
    assert_eq!(shorts(&booted), ["recovery-action-1 unhealthy", "recovery-action-4 unhealthy"]);
}

#[test]
fn a_failed_remapping_needs_a_reset_and_a_good_flag() {
    let gpu = cut(0).uuid;
    let mut health = told(&[xid(64)]);
    health.reset(&gpu, at(10));
    assert_eq!(health.due(), None);
    health.reading(&gpu, &rows(false, false), at(20));
    assert_eq!(gone_after(&mut health, 20), Some(60));
}

#[test]
fn readings_end_when_they_are_good_for_the_hold_down() {
    let gpu = cut(0).uuid;
    let link = |mask| Readings {
        fabric: Some(FabricHealth { state: 3, summary: None, mask }),
        ..Readings::default()
    };
    for (bad, good, wait) in [
        (action(1), action(0), 60),
        (action(3), action(0), 60),
        (action(99), action(0), 60),
        (answer(15), Readings::default(), 60),
        (answer(16), action(0), 60),
        (rows(true, false), rows(false, false), 60),
        (link(0x1), link(0x2), 300),
    ] {
        let mut health = Health::new(Policy::default());
        health.reading(&gpu, &bad, at(0));
        health.tick(at(90_000));
        assert_eq!(health.due(), None);
        // Not supported, no permission: nothing.
        health.reading(&gpu, &answer(3), at(90_000));
        assert_eq!(health.due(), None);
        health.reading(&gpu, &good, at(90_001));
        health.reading(&gpu, &bad, at(90_050));
        assert_eq!(health.due(), None);
        health.reading(&gpu, &good, at(90_100));
        health.reading(&gpu, &good, at(90_130));
        assert_eq!(gone_after(&mut health, 90_100), Some(wait), "{bad:?}");
    }
}

#[test]
fn a_reset_that_the_driver_no_longer_asks_for_was_done() {
    let gpu = cut(0).uuid;
    let mut health = told(&[xid(48)]);
    health.reading(&gpu, &action(1), at(2));
    health.reading(&gpu, &action(0), at(100));
    assert_eq!(gone_after(&mut health, 100), Some(60));
}

#[test]
fn the_driver_outranks_some_rules_once_it_had_time() {
    let gpu = cut(0).uuid;
    for (code, expected) in [
        (48, "xid-48 warning"),
        (62, "xid-62 warning"),
        (79, "xid-79 warning"),
        (145, "xid-145 warning"),
        (46, "xid-46 unhealthy"),
        (140, "xid-140 unhealthy"),
    ] {
        let mut health = told(&[xid(code)]);
        for second in [0, 2] {
            health.reading(&gpu, &action(0), at(second));
            assert_eq!(shorts(&health), [format!("xid-{code} unhealthy")]);
        }
        health.reading(&gpu, &Readings::default(), at(9));
        assert_eq!(shorts(&health), [format!("xid-{code} unhealthy")]);
        health.reading(&gpu, &action(0), at(10));
        // Once it is known what the driver thinks, more of the same changes nothing.
        health.sign(&cut(0), &xid(code), at(11));
        assert_eq!(shorts(&health), [expected]);
    }
}

#[test]
fn what_runs_goes_on_where_the_driver_says_so() {
    let gpu = cut(0).uuid;
    let keeps = |code, looks: &[u32]| {
        let mut health = told(&[xid(code)]);
        for &value in looks {
            health.reading(&gpu, &action(value), at(2));
        }
        let findings = health.findings();
        findings.of_gpu(&gpu).iter().find(|finding| finding.class != Class::Driver).cloned()
    };
    let keeps = |code, looks: &[u32]| keeps(code, looks).unwrap().keeps_running_work;
    assert_eq!([keeps(48, &[]), keeps(48, &[1]), keeps(48, &[4, 1])], [false; 3]);
    assert_eq!([keeps(48, &[4]), keeps(74, &[3]), keeps(95, &[4, 0])], [true; 3]);
    // The driver's word does not outrank all rules.
    assert_eq!([keeps(140, &[4]), keeps(145, &[]), keeps(92, &[])], [false, true, true]);
}

#[test]
fn what_comes_back_waits_longer_and_the_third_time_for_a_person() {
    let gpu = cut(0).uuid;
    let mut health = Health::new(Policy::default());
    for (start, wait) in [(0, 60), (3600, 120)] {
        health.sign(&cut(0), &xid(46), at(start));
        health.reset(&gpu, at(start + 10));
        assert_eq!(gone_after(&mut health, start + 10), Some(wait));
    }
    health.sign(&cut(0), &xid(46), at(7200));
    health.reset(&gpu, at(7210));
    assert_eq!(health.due(), None);
    let mut health = Health::restore(Policy::default(), health.save("one"), "two");
    insta::assert_snapshot!(health.findings().of_gpu(&gpu)[0].line());
    health.cleared(&gpu, at(7300));
    assert_eq!(health.findings(), Findings::default());
    health.sign(&cut(0), &xid(46), at(7400));
    health.reset(&gpu, at(7410));
    assert_eq!(gone_after(&mut health, 7410), Some(60));
}

#[test]
fn what_comes_back_much_later_is_new() {
    let gpu = cut(0).uuid;
    let mut health = Health::new(Policy::default());
    for start in [0, 4 * 3600, 25 * 3600, 50 * 3600] {
        health.sign(&cut(0), &xid(46), at(start));
        health.reset(&gpu, at(start));
        assert_eq!(gone_after(&mut health, start), Some(60));
    }
}

#[test]
fn a_hold_down_is_told_and_outlives_a_restart() {
    let gpu = cut(0).uuid;
    let mut health = told(&[xid(46)]);
    health.reset(&gpu, at(10));
    insta::assert_snapshot!(health.findings().of_gpu(&gpu)[0].line());
    let mut health = Health::restore(Policy::default(), health.save("one"), "one");
    assert_eq!(gone_after(&mut health, 10), Some(60));
}

#[test]
fn a_flag_that_nobody_can_take_back_is_cleared_by_hand_until_it_comes_anew() {
    let gpu = cut(0).uuid;
    let mut health = Health::new(Policy::default());
    for (second, clear) in [(0, true), (100, true), (200, false)] {
        health.reading(&gpu, &rows(false, true), at(second));
        assert_eq!(shorts(&health), ["remap-failed unhealthy"]);
        health.reset(&gpu, at(second));
        health.tick(at(second + 90_000));
        assert_eq!(shorts(&health), ["remap-failed unhealthy"]);
        if clear {
            health.cleared(&gpu, at(second + 1));
            health = Health::restore(Policy::default(), health.save("one"), "two");
            health.reading(&gpu, &rows(false, true), at(second + 2));
            assert_eq!(health.findings(), Findings::default());
            health.reading(&gpu, &rows(false, false), at(second + 3));
        }
    }
    health.replaced(&gpu);
    assert_eq!(health.findings(), Findings::default());
}

#[test]
fn what_the_policy_no_longer_wants_is_not_restored() {
    let saved = told(&[xid(48), xid(79)]).save("one");
    let policy = Policy::from_nvidia(Some("79"), None).unwrap();
    assert_eq!(shorts(&Health::restore(policy, saved, "one")), ["xid-48 unhealthy"]);
}

#[test]
fn a_clock_that_jumps_back_heals_nothing() {
    let gpu = cut(0).uuid;
    let mut health = told(&[xid(46), xid(92)]);
    health.reset(&gpu, at(10));
    for now in [at(-1_000_000), Timestamp::MIN, at(69)] {
        health.tick(now);
        health.sign(&cut(0), &xid(92), now);
        assert_eq!(shorts(&health), ["xid-46 unhealthy", "xid-92 warning"]);
    }
}
