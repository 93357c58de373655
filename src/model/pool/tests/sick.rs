//! Devices that something is wrong with.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::model::{
    gpu::Gpu,
    health::{Class, Evicted, Extent, Finding, Findings, Severity},
};

fn finding(reason: &str, class: Class, severity: Severity) -> Finding {
    Finding {
        severity,
        class,
        reason: reason.to_owned(),
        extent: Extent::Gpu,
        since: Timestamp::UNIX_EPOCH,
        message: reason.to_owned(),
        action: "look".to_owned(),
        keeps_running_work: false,
    }
}

fn unhealthy(reason: &str, class: Class) -> Finding {
    finding(reason, class, Severity::Unhealthy)
}

/// The pool of these GPUs, with what is wrong with the first of them.
fn sick(
    gpus: Vec<Gpu>,
    wrong: Vec<Finding>,
    evicted: &[Class],
    features: Features,
) -> Vec<SliceContent> {
    let findings = Findings(BTreeMap::from([(gpus[0].uuid.clone(), wrong)]));
    let evicted = Evicted(evicted.iter().copied().collect());
    let node = node(gpus);
    let (findings, evicted) = (&findings, &evicted);
    slices(&PoolInput { findings, evicted, ..PoolInput::of("node", &node, features) })
}

/// Key, value and effect of each taint.
fn taints<'s>(slices: &'s [SliceContent], device: &str) -> Vec<(&'s str, &'s str, &'s str)> {
    let taints = find(slices, device).taints.as_deref().unwrap_or_default();
    let said = |taint: &'s v1::DeviceTaint| {
        (&*taint.key, taint.value.as_deref().unwrap_or_default(), &*taint.effect)
    };
    taints.iter().map(said).collect()
}

#[test]
fn what_is_wrong_with_a_gpu_taints_all_of_it_and_no_other() {
    let gpus = vec![gpu(&H100, 0), gpu(&H100, 1)];
    let slices = sick(gpus, vec![unhealthy("xid-79", Class::Bus)], &[], V1_37);
    let expected = [("gpu.nvidia.com/xid", "79", "NoSchedule")];
    for device in slices.iter().flat_map(|slice| &slice.devices) {
        let of_first = device.name.starts_with("gpu-0");
        let expected = if of_first { &expected[..] } else { &[] };
        assert_eq!(taints(&slices, &device.name), expected, "{}", device.name);
    }
}

#[test]
fn of_what_is_wrong_with_an_instance_only_what_overlaps_is_tainted() {
    let place = Placement { start: 4, size: 4 };
    let wrong = Finding {
        extent: Extent::Instance(place),
        ..finding("xid-94", Class::Memory, Severity::Warning)
    };
    let slices = sick(vec![gpu(&H100, 0)], vec![wrong], &[], V1_37);
    let expected = [("gpu.nvidia.com/xid", "94", "None")];
    for name in ["gpu-0", "gpu-0-mig-3g40gb-9-4", "gpu-0-mig-1g10gb-19-5"] {
        assert_eq!(taints(&slices, name), expected, "{name}");
    }
    for name in ["gpu-0-mig-3g40gb-9-0", "gpu-0-mig-1g10gb-19-3"] {
        assert_eq!(taints(&slices, name), [], "{name}");
    }
}

#[test]
fn each_kind_of_fault_has_a_key_and_the_worst_of_it_counts() {
    let wrong = vec![
        Finding { keeps_running_work: true, ..unhealthy("recovery-action-4", Class::Driver) },
        unhealthy("gpu-lost", Class::Bus),
        unhealthy("xid-79", Class::Bus),
        finding("xid-92", Class::Memory, Severity::Warning),
    ];
    let slices = sick(vec![gpu(&L4, 0)], wrong, &[Class::Bus, Class::Driver], V1_37);
    let expected = [
        ("gpu.nvidia.com/gpu-lost", "gpu-lost", "NoExecute"),
        // What runs may go on there.
        ("gpu.nvidia.com/health", "recovery-action-4", "NoSchedule"),
        ("gpu.nvidia.com/xid", "79", "NoExecute"),
    ];
    assert_eq!(taints(&slices, "gpu-0"), expected);
}

#[test]
fn servers_before_taints_for_people_get_no_warnings() {
    let wrong = || vec![finding("xid-92", Class::Memory, Severity::Warning)];
    assert_eq!(taints(&sick(vec![gpu(&L4, 0)], wrong(), &[], V1_34), "gpu-0"), []);
    let dropped = Features { taints: false, ..V1_37 };
    assert_eq!(taints(&sick(vec![gpu(&L4, 0)], wrong(), &[], dropped), "gpu-0"), []);
}

#[test]
fn a_server_that_drops_taints_gets_nothing_of_a_sick_gpu() {
    let features = Features { taints: false, ..V1_34 };
    let gpus = vec![gpu(&H100, 0), gpu(&L4, 1)];
    let slices = sick(gpus, vec![unhealthy("xid-79", Class::Bus)], &[], features);
    let names: Vec<_> = slices.iter().flat_map(names).collect();
    assert_eq!(names, ["gpu-1"]);
}

#[test]
fn a_gpu_that_has_fallen_silent_stays_published_and_is_not_given_out() {
    let mut node = node([gpu(&H100, 0), gpu(&L4, 1)]);
    let before = pool(&node, &[], V1_37);
    let silent = node.gpus.remove(0);
    node.unreadable.push(Unreadable {
        index: 0,
        uuid: Some(silent.uuid.clone()),
        reason: "nvmlDeviceGetMigMode: GPU is lost".to_owned(),
        lost: true,
        known: Some(Arc::new(silent)),
    });
    let mut slices = pool(&node, &[], V1_37);
    assert_eq!(taints(&slices, "gpu-0"), [("gpu.nvidia.com/health", "no-answer", "NoSchedule")]);
    assert_eq!(taints(&slices, "gpu-1"), []);
    for device in slices.iter_mut().flat_map(|slice| &mut slice.devices) {
        device.taints = None;
    }
    assert_eq!(names_of(&slices), names_of(&before));
    let dropped = Features { taints: false, ..V1_37 };
    assert_eq!(names_of(&pool(&node, &[], dropped)), ["gpu-1"]);
}

fn names_of(slices: &[SliceContent]) -> Vec<String> {
    let mut names: Vec<_> = slices.iter().flat_map(names).map(str::to_owned).collect();
    names.sort();
    names
}
