//! What holds whatever happens.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Something that happens to one of the two GPUs.
#[derive(Clone, Debug)]
enum Event {
    Sign(u32, Sign),
    Reading(u32, Readings),
    Reset(u32),
    Cleared(u32),
    Tick,
}

fn sign() -> impl Strategy<Value = Sign> {
    let code = prop_oneof![
        select(vec![13, 31, 45, 46, 48, 63, 64, 74, 79, 92, 93, 94, 95, 119, 121, 145, 154, 162]),
        1..200u32,
    ];
    let attribution = prop_oneof![
        Just(Attribution::Gpu),
        (0..4u32).prop_map(Attribution::GpuInstance),
        (0..4u32, 0..2u32).prop_map(|(gi, ci)| Attribution::ComputeInstance(gi, ci)),
    ];
    let link = select(vec![None, Some(LinkSeverity::NonFatal), Some(LinkSeverity::Fatal)]);
    let xid = (code, attribution, link).prop_map(|(code, attribution, link)| Sign::Xid {
        code,
        attribution,
        link,
    });
    let notice = select(vec![
        Notice::DoubleBitEccError,
        Notice::SingleBitEccErrorStorm,
        Notice::DramRetirement,
        Notice::DramRetirementFailure,
        Notice::NonFatalPoison,
        Notice::FatalPoison,
        Notice::GpuUnavailable,
        Notice::RecoveryActionChanged,
    ]);
    prop_oneof![4 => xid, 1 => notice.prop_map(Sign::Notice)]
}

fn readings() -> impl Strategy<Value = Readings> {
    let answer = prop_oneof![
        6 => Just(Answer::Good),
        1 => Just(Answer::Gone),
        1 => Just(Answer::Hangs(String::new())),
        2 => select(vec![3, 8, 11, 14, 15, 16, 999]).prop_map(|code| Answer::Error(code, String::new())),
    ];
    let remapping =
        (any::<bool>(), any::<bool>()).prop_map(|(pending, failed)| Remapping { pending, failed });
    let fabric = (0..4u32, 0..4u32, any::<u32>()).prop_map(|(state, summary, mask)| FabricHealth {
        state,
        summary: Some(summary),
        mask,
    });
    let counters = (
        proptest::option::of(0..3u64),
        proptest::option::of(any::<u64>()),
        proptest::option::of(0..3u64),
    );
    let some = proptest::option::of::<BoxedStrategy<bool>>;
    (
        answer,
        proptest::option::of(0..9u32),
        proptest::option::of(remapping),
        proptest::option::of(fabric),
        some(any::<bool>().boxed()),
        some(any::<bool>().boxed()),
        counters,
    )
        .prop_map(|(answer, recovery_action, remapping, fabric, sram, repair, counters)| {
            Readings {
                answer,
                recovery_action,
                remapping,
                uncorrected_volatile: counters.0,
                sram_threshold_exceeded: sram,
                repair_pending: repair,
                fabric,
                hardware_thermal_slowdown: counters.1,
                power_brake_slowdown: counters.1,
                pcie_fatal_errors: counters.2,
            }
        })
}

fn event() -> impl Strategy<Value = Event> {
    let gpu = || 0..2u32;
    prop_oneof![
        6 => (gpu(), sign()).prop_map(|(gpu, sign)| Event::Sign(gpu, sign)),
        4 => (gpu(), readings()).prop_map(|(gpu, readings)| Event::Reading(gpu, readings)),
        2 => gpu().prop_map(Event::Reset),
        1 => gpu().prop_map(Event::Cleared),
        4 => Just(Event::Tick),
    ]
}

/// Events, each with the seconds since the one before.
fn story() -> impl Strategy<Value = Vec<(i64, Event)>> {
    let step = prop_oneof![4 => 0..30i64, 2 => 30..900i64, 1 => 900..90_000i64];
    vec((step, event()), 0..24)
}

fn policy() -> impl Strategy<Value = Policy> {
    select(vec![
        Policy::default(),
        Policy::from_nvidia(None, Some("all")).unwrap(),
        Policy::from_nvidia(Some("all"), Some("48")).unwrap(),
    ])
}

fn happen(health: &mut Health, event: &Event, now: Timestamp) {
    let uuid = |number: &u32| cut(*number).uuid;
    match event {
        Event::Sign(gpu, sign) => {
            health.sign(&cut(*gpu), sign, now);
        }
        Event::Reading(gpu, readings) => health.reading(&uuid(gpu), readings, now),
        Event::Reset(gpu) => health.reset(&uuid(gpu), now),
        Event::Cleared(gpu) => health.cleared(&uuid(gpu), now),
        Event::Tick => health.tick(now),
    }
}

/// The node after a story, and its last second.
fn after(policy: Policy, story: &[(i64, Event)]) -> (Health, i64) {
    let mut health = Health::new(policy);
    let mut second = 0;
    for (step, event) in story {
        second += step;
        happen(&mut health, event, at(second));
    }
    (health, second)
}

/// Codes that end with a reset, each with its hold-down in seconds.
const ENDS_WITH_A_RESET: [(u32, i64); 8] =
    [(46, 60), (48, 60), (62, 60), (95, 60), (109, 60), (140, 60), (74, 300), (136, 300)];

proptest! {
    #[test]
    fn what_happens_to_one_gpu_changes_no_other(policy in policy(), story in story(), event in event(), step in 0..900i64) {
        let (mut health, second) = after(policy, &story);
        let touched = match event {
            Event::Sign(gpu, _) | Event::Reading(gpu, _) | Event::Reset(gpu) | Event::Cleared(gpu) => gpu,
            Event::Tick => return Ok(()),
        };
        let other = cut(1 - touched).uuid;
        let before = health.findings().of_gpu(&other).to_vec();
        happen(&mut health, &event, at(second + step));
        let findings = health.findings();
        prop_assert_eq!(findings.of_gpu(&other), before);
    }

    #[test]
    fn an_error_of_an_instance_marks_nothing_beside_it(story in vec((0..900i64, 1..200u32, 0..2u32), 0..20)) {
        let mut health = Health::new(Policy::from_nvidia(None, Some("all")).unwrap());
        let mut second = 0;
        for (step, code, ci) in story {
            second += step;
            health.sign(&cut(0), &of(code, Attribution::ComputeInstance(1, ci)), at(second));
        }
        for finding in health.findings().of_gpu(&cut(0).uuid) {
            let of_a_part = finding.class == Class::Application || finding.reason == "xid-94";
            let expected = if of_a_part { Extent::Instance(LOWER) } else { Extent::Gpu };
            prop_assert_eq!(finding.extent, expected);
        }
    }

    #[test]
    fn what_needs_a_reset_ends_after_it_and_not_before(
        (code, wait) in select(ENDS_WITH_A_RESET.to_vec()),
        silence in vec(0..1_000_000i64, 0..5),
        looks in vec(0..1i64, 0..3),
    ) {
        let gpu = cut(0).uuid;
        let mut health = told(&[xid(code)]);
        let mut second = 0;
        for step in silence {
            second += step;
            health.tick(at(second));
            for _ in &looks {
                health.reading(&gpu, &action(0), at(second));
            }
            prop_assert_eq!(health.findings().of_gpu(&gpu).len(), 1);
        }
        health.reset(&gpu, at(second));
        health.tick(at(second + wait - 1));
        prop_assert_eq!(health.findings().of_gpu(&gpu).len(), 1);
        health.tick(at(second + wait));
        prop_assert_eq!(health.findings(), Findings::default());
    }

    #[test]
    fn many_reports_in_a_second_change_the_findings_once(
        policy in policy(), story in story(), sign in sign(), times in 1..300i64,
    ) {
        let (mut health, second) = after(policy, &story);
        let now = |time: i64| at(second + 1) + k8s_openapi::jiff::SignedDuration::from_millis(time * 3);
        health.tick(now(0));
        health.sign(&cut(0), &sign, now(0));
        let first = health.findings();
        for time in 1..times {
            health.sign(&cut(0), &sign, now(time));
            prop_assert_eq!(&health.findings(), &first);
        }
    }

    #[test]
    fn a_restart_changes_nothing(policy in policy(), before in story(), then in story()) {
        let (mut health, mut second) = after(policy.clone(), &before);
        let text = serde_json::to_string(&health.save("one")).unwrap();
        let saved: Saved = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&saved, &health.save("one"));
        let mut restored = Health::restore(policy, saved, "one");
        prop_assert_eq!(restored.findings(), health.findings());
        for (step, event) in &then {
            second += step;
            happen(&mut health, event, at(second));
            happen(&mut restored, event, at(second));
            prop_assert_eq!((restored.findings(), restored.due()), (health.findings(), health.due()));
        }
    }

    #[test]
    fn no_report_makes_anything_less_bad(policy in policy(), story in story(), sign in sign(), step in 0..9000i64) {
        let (mut health, second) = after(policy, &story);
        let gpu = cut(0).uuid;
        let before = health.findings();
        health.sign(&cut(0), &sign, at(second + step));
        let now = health.findings();
        for finding in before.of_gpu(&gpu) {
            let same = |now: &&Finding| now.reason == finding.reason && now.extent == finding.extent;
            let now = now.of_gpu(&gpu).iter().find(same).map(|now| (now.since, now.severity));
            prop_assert!(now >= Some((finding.since, finding.severity)), "{finding:?} {now:?}");
        }
    }

    #[test]
    fn the_worst_is_first_and_nothing_is_told_twice(policy in policy(), story in story()) {
        let (health, _) = after(policy, &story);
        for findings in health.findings().0.values() {
            prop_assert!(findings.is_sorted_by(|a, b| a.severity >= b.severity));
            let mut names: Vec<_> = findings.iter().map(|finding| (&finding.reason, finding.extent)).collect();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), findings.len());
        }
    }

    #[test]
    fn no_clock_is_too_wild(story in vec((any::<i32>(), event()), 0..40)) {
        let mut health = Health::new(Policy::default());
        for (second, event) in story {
            let now = Timestamp::from_second(i64::from(second) * 90).unwrap();
            happen(&mut health, &event, now);
        }
        health.tick(Timestamp::MIN);
        health.sign(&cut(0), &xid(119), Timestamp::MAX);
        health.sign(&cut(0), &xid(119), Timestamp::MIN);
    }
}
