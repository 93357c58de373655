//! What single reports and readings lead to.

use Attribution::{ComputeInstance as Compute, Gpu as Nothing, GpuInstance as Instance};

use super::*;

#[test]
fn an_xid_is_judged_by_its_code() {
    let bad = |code: u32| vec![format!("xid-{code} unhealthy")];
    for code in [46, 48, 54, 62, 64, 74, 79, 95, 109, 110, 120, 136, 140, 143, 144, 149, 151, 158]
        .into_iter()
        .chain([167, 169, 171, 172, 173])
    {
        // The ids mean nothing, also where they are of an instance.
        for attribution in [Nothing, Compute(0, 0), Instance(2), Compute(1, 0)] {
            assert_eq!(shorts(&told(&[of(code, attribution)])), bad(code), "{code}");
        }
    }
    for code in [63, 92, 93, 119, 122, 155, 156, 157, 159, 160, 161, 163, 164, 166, 168, 170, 175]
        .into_iter()
        .chain([1, 57, 61, 138, 199, 999, 4711, u32::MAX])
    {
        let expected = [format!("xid-{code} warning")];
        assert_eq!(shorts(&told(&[of(code, Instance(1))])), expected, "{code}");
    }
    for code in [8, 11, 13, 14, 31, 32, 37, 38, 43, 45, 60, 66, 68, 69, 72, 78, 80, 82, 86, 89]
        .into_iter()
        .chain([99, 106, 108, 121, 126, 137, 139, 141, 142, 147, 148, 152, 154, 162, 174, 176])
    {
        for attribution in [Nothing, Compute(0, 0), Instance(2), Compute(1, 0)] {
            assert_eq!(shorts(&told(&[of(code, attribution)])), [""; 0], "{code}");
        }
    }
}

#[test]
fn a_contained_error_marks_its_instance() {
    for (attribution, expected) in [
        (Nothing, vec![]),
        (Instance(1), vec!["xid-94 warning at 0"]),
        (Compute(2, 0), vec!["xid-94 warning at 4"]),
        (Compute(2, 7), vec!["xid-94 warning at 4"]),
        (Instance(9), vec!["xid-94 warning"]),
    ] {
        assert_eq!(shorts(&told(&[of(94, attribution)])), expected, "{attribution:?}");
    }
}

#[test]
fn old_gpus_say_more_with_some_codes() {
    let mut gpu = cut(0);
    (gpu.architecture, gpu.compute_capability, gpu.mig) = ("Turing".to_owned(), (7, 5), None);
    let mut health = Health::new(Policy::default());
    health.sign(&gpu, &xid(61), at(0));
    assert_eq!(shorts(&health), ["xid-61 unhealthy"]);
}

#[test]
fn an_nvlink_error_is_as_bad_as_the_log_says() {
    let link = |code, link| Sign::Xid { code, attribution: Nothing, link };
    let (soft, hard) = (Some(LinkSeverity::NonFatal), Some(LinkSeverity::Fatal));
    for (code, severity, expected) in [
        (145, soft, vec![]),
        (145, hard, vec!["xid-145 unhealthy"]),
        (145, None, vec!["xid-145 unhealthy"]),
        (147, soft, vec![]),
        (147, hard, vec!["xid-147 unhealthy"]),
        (147, None, vec![]),
    ] {
        assert_eq!(shorts(&told(&[link(code, severity)])), expected, "{code} {severity:?}");
    }
}

#[test]
fn some_count_when_they_repeat() {
    for (code, times, seconds, expected) in [
        (32, 3, 3 * 3600, "xid-32 warning"),
        (38, 3, 200, "xid-38 warning"),
        (142, 3, 11 * 3600, "xid-142 warning"),
        (121, 10, 3600, "xid-121 warning"),
        (176, 10, 200, "xid-176 warning"),
        (147, 10, 200, "xid-147 warning"),
        (119, 3, 60, "xid-119 unhealthy"),
        (175, 3, 5, "xid-175 unhealthy"),
    ] {
        let mut health = Health::new(Policy::default());
        let gpu = cut(0);
        for time in 1..times {
            health.sign(&gpu, &xid(code), at(seconds * time));
            assert_ne!(shorts(&health), [expected], "{code}");
        }
        health.sign(&gpu, &xid(code), at(seconds * times));
        assert_eq!(shorts(&health), [expected], "{code}");
    }
}

#[test]
fn what_is_too_far_apart_does_not_repeat_and_what_is_near_is_one_fault() {
    for (code, times, seconds) in [(32, 9, 13 * 3600), (147, 20, 401), (119, 9, 301), (32, 99, 1)] {
        let mut health = Health::new(Policy::default());
        for time in 1..=times {
            health.sign(&cut(0), &xid(code), at(seconds * time));
        }
        let expected: &[&str] = if code == 119 { &["xid-119 warning"] } else { &[] };
        assert_eq!(shorts(&health), expected, "{code}");
    }
}

#[test]
fn a_notice_is_judged_like_what_it_tells() {
    for (notice, expected) in [
        (Notice::DoubleBitEccError, vec!["uncorrected-ecc warning"]),
        (Notice::SingleBitEccErrorStorm, vec!["xid-92 warning"]),
        (Notice::DramRetirement, vec!["xid-63 warning"]),
        (Notice::DramRetirementFailure, vec!["remap-failed unhealthy"]),
        (Notice::NonFatalPoison, vec![]),
        (Notice::FatalPoison, vec!["xid-95 unhealthy"]),
        (Notice::GpuUnavailable, vec!["gpu-unavailable unhealthy"]),
        (Notice::RecoveryActionChanged, vec![]),
    ] {
        let mut health = Health::new(Policy::default());
        let seen = health.sign(&cut(0), &Sign::Notice(notice), at(0));
        assert_eq!(seen, Seen { read_again: true });
        assert_eq!(shorts(&health), expected, "{notice:?}");
        assert!(health.last_xids().is_empty());
    }
}

#[test]
fn what_may_have_changed_the_drivers_mind_is_read_again() {
    let again = |code| {
        let mut health = Health::new(Policy::default());
        health.sign(&cut(0), &xid(code), at(0)).read_again
    };
    assert_eq!([154, 48, 94, 63, 119, 999, 32].map(again), [true; 7]);
    assert_eq!([13, 31, 43, 45, 68, 106, 162].map(again), [false; 7]);
}

#[test]
fn a_reading_is_judged_by_its_value() {
    let fabric = |state, summary, mask| Readings {
        fabric: Some(FabricHealth { state, summary, mask }),
        ..Readings::default()
    };
    let rows = |pending, failed| Readings {
        remapping: Some(Remapping { pending, failed }),
        ..Readings::default()
    };
    let hangs = Readings { answer: Answer::Hangs("call".to_owned()), ..Readings::default() };
    for (readings, expected) in [
        (Readings::default(), vec![]),
        (action(0), vec![]),
        (action(1), vec!["recovery-action-1 unhealthy"]),
        (action(2), vec!["recovery-action-2 unhealthy"]),
        (action(3), vec!["recovery-action-3 warning"]),
        (action(4), vec!["recovery-action-4 unhealthy"]),
        (action(5), vec!["recovery-action-5 warning"]),
        (action(6), vec!["recovery-action-6 unhealthy"]),
        (action(7), vec!["recovery-action-7 unhealthy"]),
        (action(99), vec!["recovery-action-99 unhealthy"]),
        (answer(15), vec!["gpu-lost unhealthy"]),
        (answer(28), vec!["gpu-lost unhealthy"]),
        (answer(16), vec!["reset-required unhealthy"]),
        (answer(8), vec!["power-cable unhealthy"]),
        (answer(11), vec!["interrupts unhealthy"]),
        (answer(14), vec!["inforom-corrupt warning"]),
        (answer(999), vec![]),
        (hangs, vec!["gpu-hangs unhealthy"]),
        (Readings { answer: Answer::Gone, ..Readings::default() }, vec!["gpu-lost unhealthy"]),
        (rows(false, false), vec![]),
        (rows(true, false), vec!["remap-pending warning"]),
        (rows(true, true), vec!["remap-failed unhealthy", "remap-pending warning"]),
        (
            Readings { sram_threshold_exceeded: Some(true), ..Readings::default() },
            vec!["sram-threshold unhealthy"],
        ),
        (
            Readings { repair_pending: Some(true), ..Readings::default() },
            vec!["repair-pending warning"],
        ),
        (Readings { uncorrected_volatile: Some(9), ..Readings::default() }, vec![]),
        // A healthy GPU's mask is not 0.
        (fabric(3, Some(1), 0x10aa), vec![]),
        (fabric(3, None, 0x80), vec![]),
        (fabric(3, None, 0x01), vec!["fabric-degraded warning"]),
        (fabric(3, Some(2), 0), vec!["fabric-unhealthy warning"]),
        (fabric(3, None, 0x10), vec!["fabric-unhealthy warning"]),
        (fabric(3, None, 0x200), vec!["fabric-unhealthy warning"]),
        (fabric(3, Some(3), 0), vec!["fabric-degraded warning"]),
        (fabric(1, None, 0), vec![]),
        (fabric(0, Some(2), 0xffff), vec![]),
    ] {
        let mut health = Health::new(Policy::default());
        health.reading(&cut(0).uuid, &readings, at(0));
        assert_eq!(shorts(&health), expected, "{readings:?}");
    }
    for code in [3, 4, 9, 10, 13, 17, 18, 19, 21, 27, 29, 12345] {
        let mut health = Health::new(Policy::default());
        health.reading(&cut(0).uuid, &answer(code), at(0));
        assert_eq!(shorts(&health), [""; 0], "{code}");
    }
}

#[test]
fn counters_and_states_are_judged_by_how_they_go_on() {
    let gpu = cut(0).uuid;
    let uncorrected = |count| Readings { uncorrected_volatile: Some(count), ..action(0) };
    let pcie = |count| Readings { pcie_fatal_errors: Some(count), ..action(0) };
    let registering = Readings {
        fabric: Some(FabricHealth { state: 2, summary: None, mask: 0 }),
        ..Readings::default()
    };
    let heat = |seconds: u64| Readings {
        hardware_thermal_slowdown: Some(seconds * 1_000_000_000),
        ..Readings::default()
    };
    for (looks, expected) in [
        (vec![(0, uncorrected(3)), (9, uncorrected(3))], vec![]),
        (vec![(0, uncorrected(3)), (9, uncorrected(1))], vec![]),
        (vec![(0, uncorrected(3)), (9, uncorrected(4))], vec!["uncorrected-ecc warning"]),
        (vec![(0, pcie(0)), (9, pcie(1))], vec!["pcie-fatal warning"]),
        (vec![(0, registering.clone()), (299, registering.clone())], vec![]),
        (vec![(0, registering.clone()), (300, registering)], vec!["fabric-incomplete warning"]),
        (vec![(0, answer(999)), (1, answer(999)), (2, action(0)), (3, answer(999))], vec![]),
        (
            vec![(0, answer(999)), (1, answer(999)), (2, answer(3)), (3, answer(999))],
            vec!["unknown-answer warning"],
        ),
        (vec![(0, heat(5000)), (60, heat(5060))], vec![]),
        (vec![(0, heat(0)), (90, heat(61))], vec!["thermal-slowdown warning"]),
        (vec![(0, heat(0)), (3600, heat(61))], vec![]),
        (
            (0..20_i64).map(|look| (look * 120, heat(look.unsigned_abs() * 60))).collect(),
            vec!["thermal-slowdown unhealthy"],
        ),
    ] {
        let mut health = Health::new(Policy::default());
        for (second, readings) in &looks {
            health.reading(&gpu, readings, at(*second));
        }
        assert_eq!(shorts(&health), expected, "{looks:?}");
    }
}

#[test]
fn policies_choose_what_counts() {
    let nvidia = |disable, enable| Policy::from_nvidia(disable, enable).unwrap();
    let both = [of(48, Instance(1)), of(31, Instance(1)), of(45, Instance(1))];
    for (policy, expected) in [
        (nvidia(None, None), vec!["xid-48 unhealthy", "recovery-action-2 unhealthy"]),
        (nvidia(Some("48"), None), vec!["recovery-action-2 unhealthy"]),
        (nvidia(Some("xids"), None), vec!["recovery-action-2 unhealthy"]),
        (nvidia(Some("all"), None), vec![]),
        (nvidia(Some("all"), Some("48")), vec!["xid-48 unhealthy"]),
        (
            nvidia(Some("xids"), Some("31,45")),
            vec!["xid-31 unhealthy at 0", "recovery-action-2 unhealthy"],
        ),
        (
            nvidia(Some("all"), Some("all")),
            vec!["xid-48 unhealthy", "xid-31 unhealthy at 0", "recovery-action-2 unhealthy"],
        ),
    ] {
        let mut health = Health::new(policy.clone());
        for (second, sign) in (0..).zip(&both) {
            health.sign(&cut(0), sign, at(second));
        }
        health.reading(&cut(0).uuid, &action(2), at(9));
        assert_eq!(shorts(&health), expected, "{policy:?}");
        assert_eq!(health.last_xids()[&cut(0).uuid].counts.len(), 3);
    }
}

#[test]
fn a_program_whose_instance_nobody_names_marks_nothing_of_a_gpu_that_is_cut() {
    let whole = Gpu { mig: None, ..cut(0) };
    let policy = Policy::from_nvidia(None, Some("31")).unwrap();
    for (gpu, attribution, expected) in [
        (&cut(0), Nothing, vec![]),
        (&cut(0), Instance(9), vec![]),
        (&cut(0), Compute(2, 0), vec!["xid-31 unhealthy at 4"]),
        (&whole, Nothing, vec!["xid-31 unhealthy"]),
    ] {
        let mut health = Health::new(policy.clone());
        health.sign(gpu, &of(31, attribution), at(0));
        assert_eq!(shorts(&health), expected, "{attribution:?}");
    }
}

#[test]
fn findings_are_for_people_too() {
    let mut health = told(&[xid(79), of(94, Instance(2)), xid(4711)]);
    health.reading(&cut(0).uuid, &action(4), at(3));
    insta::assert_json_snapshot!(health.findings());
}

#[test]
fn xids_are_counted_whatever_they_mean() {
    let health = told(&[of(31, Instance(2)), xid(31), of(31, Instance(1)), xid(45), xid(45)]);
    let xids = &health.last_xids()[&cut(0).uuid];
    assert_eq!(xids.last, LastXid { code: 45, at: at(4), extent: Extent::Gpu });
    // The second names no instance, so that it may be the first as the kernel's log tells it.
    assert_eq!(xids.counts, [(31, 2), (45, 1)].into());
    assert_eq!(health.last_xids().len(), 1);
}
