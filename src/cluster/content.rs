//! What is in a slice, compared as the API server would: by value, not by spelling.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{
        Counter, CounterSet, Device, DeviceTaint, ResourcePool, ResourceSlice, ResourceSliceSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    cluster::{PublishSettings, quantity::normalise},
    model::pool::SliceContent,
};

/// How a slice stands to what is wanted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// It holds just that.
    Same,
    /// It holds just that in another order.
    Reordered,
    /// It holds something else.
    Different,
}

/// Compares what a slice holds with what is wanted.
pub(super) fn compare(slice: &ResourceSliceSpec, wanted: &SliceContent) -> Likeness {
    if !plain(slice) {
        return Likeness::Different;
    }
    let devices = slice.devices.as_deref().unwrap_or_default();
    let counters = slice.shared_counters.as_deref().unwrap_or_default();
    let devices = alike(devices, &wanted.devices, |device| &device.name, same_device);
    let counters = alike(counters, &wanted.shared_counters, |set| &set.name, same_counters);
    match (devices, counters) {
        (Likeness::Different, _) | (_, Likeness::Different) => Likeness::Different,
        (Likeness::Same, Likeness::Same) => Likeness::Same,
        _ => Likeness::Reordered,
    }
}

/// Whether all that we never set is unset. Driver, node and pool are for the caller to compare.
fn plain(slice: &ResourceSliceSpec) -> bool {
    let ResourceSliceSpec {
        all_nodes,
        devices: _,
        driver: _,
        node_name: _,
        node_selector,
        partition_type_attribute,
        per_device_node_selection,
        pool: _,
        shared_counters: _,
        skip_node_operations,
    } = slice;
    *all_nodes != Some(true)
        && *per_device_node_selection != Some(true)
        && node_selector.is_none()
        && partition_type_attribute.is_none()
        && skip_node_operations.as_ref().is_none_or(Vec::is_empty)
}

/// Names of the fields in which a slice is not what was sent.
pub(super) fn differences(slice: &ResourceSliceSpec, sent: &SliceContent) -> Vec<&'static str> {
    let counters = slice.shared_counters.as_deref().unwrap_or_default();
    let counters = alike(counters, &sent.shared_counters, |set| &set.name, same_counters);
    let stored = slice.devices.as_deref().unwrap_or_default();
    let any = |differs: fn(&Device, &Device) -> bool| {
        stored.iter().zip(&sent.devices).any(|(a, b)| differs(&normal_device(a), &normal_device(b)))
    };
    let fields = [
        ("`sharedCounters`", counters != Likeness::Same),
        ("`consumesCounters`", any(|a, b| a.consumes_counters != b.consumes_counters)),
        ("`taints`", any(|a, b| !same_taints(a.taints.as_ref(), b.taints.as_ref()))),
        ("`attributes`", any(|a, b| a.attributes != b.attributes)),
        ("`capacity`", any(|a, b| a.capacity != b.capacity)),
    ];
    let lost: Vec<_> = fields.into_iter().filter(|(_, lost)| *lost).map(|(name, _)| name).collect();
    if lost.is_empty() { vec!["what was sent"] } else { lost }
}

/// Compares two lists of things that have names.
fn alike<T>(
    found: &[T],
    wanted: &[T],
    name: impl Fn(&T) -> &String,
    same: impl Fn(&T, &T) -> bool,
) -> Likeness {
    if found.len() != wanted.len() {
        return Likeness::Different;
    }
    let pair = |(a, b): (&T, &T)| name(a) == name(b) && same(a, b);
    if found.iter().zip(wanted).all(pair) {
        return Likeness::Same;
    }
    let mut rest: BTreeMap<_, _> = found.iter().map(|thing| (name(thing), thing)).collect();
    let mut each = |thing: &T| rest.remove(name(thing)).is_some_and(|other| same(other, thing));
    if wanted.iter().all(&mut each) { Likeness::Reordered } else { Likeness::Different }
}

fn same_device(found: &Device, wanted: &Device) -> bool {
    let mut found = normal_device(found);
    let mut wanted = normal_device(wanted);
    let (theirs, ours) = (found.taints.take(), wanted.taints.take());
    found == wanted && same_taints(theirs.as_ref(), ours.as_ref())
}

fn same_taints(found: Option<&Vec<DeviceTaint>>, wanted: Option<&Vec<DeviceTaint>>) -> bool {
    let found = found.map_or(&[][..], Vec::as_slice);
    let wanted = wanted.map_or(&[][..], Vec::as_slice);
    found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| same_taint(a, b))
}

/// Time of a taint: the server sets it where we do not, and keeps whole seconds only.
fn same_taint(found: &DeviceTaint, wanted: &DeviceTaint) -> bool {
    let near = |a: &Time, b: &Time| a.0.as_second().abs_diff(b.0.as_second()) <= 1;
    let time = match (&found.time_added, &wanted.time_added) {
        (Some(a), Some(b)) => near(a, b),
        (_, None) => true,
        (None, Some(_)) => false,
    };
    time && same_but_time(found, wanted)
}

fn same_but_time(a: &DeviceTaint, b: &DeviceTaint) -> bool {
    let value = |taint: &DeviceTaint| taint.value.clone().unwrap_or_default();
    a.key == b.key && a.effect == b.effect && value(a) == value(b)
}

fn same_counters(found: &CounterSet, wanted: &CounterSet) -> bool {
    found.name == wanted.name
        && normal_counters(&found.counters) == normal_counters(&wanted.counters)
}

fn normal_counters(counters: &BTreeMap<String, Counter>) -> BTreeMap<String, Counter> {
    let mut counters = counters.clone();
    counters.values_mut().for_each(|counter| normalise(&mut counter.value));
    counters
}

/// Equal devices become equal values: empty and absent are one, and so are spellings of a quantity.
fn normal_device(device: &Device) -> Device {
    let mut device = device.clone();
    drop_empty(&mut device.attributes, BTreeMap::is_empty);
    drop_empty(&mut device.capacity, BTreeMap::is_empty);
    drop_empty(&mut device.node_allocatable_resources, BTreeMap::is_empty);
    drop_empty(&mut device.consumes_counters, Vec::is_empty);
    drop_empty(&mut device.binding_conditions, Vec::is_empty);
    drop_empty(&mut device.binding_failure_conditions, Vec::is_empty);
    for flag in
        [&mut device.all_nodes, &mut device.allow_multiple_allocations, &mut device.binds_to_node]
    {
        drop_empty(flag, |set| !set);
    }
    for capacity in device.capacity.iter_mut().flat_map(BTreeMap::values_mut) {
        normalise(&mut capacity.value);
    }
    for consumption in device.consumes_counters.iter_mut().flatten() {
        consumption.counters = normal_counters(&consumption.counters);
    }
    device
}

fn drop_empty<T>(field: &mut Option<T>, empty: impl FnOnce(&T) -> bool) {
    if field.as_ref().is_some_and(empty) {
        *field = None;
    }
}

/// The spec that publishes `content` in place of `found`: a taint that was there keeps its time, which
/// the server would set anew.
pub(super) fn spec(
    settings: &PublishSettings,
    pool: ResourcePool,
    content: &SliceContent,
    found: Option<&ResourceSlice>,
) -> ResourceSliceSpec {
    let mut devices = content.devices.clone();
    if let Some(found) = found {
        keep_times(&mut devices, found.spec.devices.as_deref().unwrap_or_default());
    }
    let counters = &content.shared_counters;
    ResourceSliceSpec {
        driver: settings.driver.clone(),
        node_name: Some(settings.node.clone()),
        pool,
        devices: Some(devices).filter(|devices| !devices.is_empty()),
        shared_counters: Some(counters.clone()).filter(|counters| !counters.is_empty()),
        ..ResourceSliceSpec::default()
    }
}

fn keep_times(devices: &mut [Device], found: &[Device]) {
    let tainted = found.iter().filter_map(|device| Some((&device.name, device.taints.as_ref()?)));
    let tainted: BTreeMap<_, _> = tainted.collect();
    for device in devices {
        let old = tainted.get(&device.name);
        for taint in device.taints.iter_mut().flatten().filter(|taint| taint.time_added.is_none()) {
            let kept = old.and_then(|old| old.iter().find(|old| same_but_time(old, taint)));
            taint.time_added = kept.and_then(|kept| kept.time_added.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::script::{
        consuming, content, device, set, settings, stored, with_memory, with_taint,
    };

    fn one(device: Device) -> SliceContent {
        SliceContent { devices: vec![device], shared_counters: Vec::new() }
    }

    fn likeness(found: &SliceContent, wanted: &SliceContent) -> Likeness {
        compare(&stored("x", (1, 1), found).spec, wanted)
    }

    #[test]
    fn spellings_of_a_quantity_are_the_same() {
        let [a, b] = ["1Gi", "1073741824"].map(|memory| one(with_memory(device("a"), memory)));
        assert_eq!(likeness(&a, &b), Likeness::Same);
        let c = one(with_memory(device("a"), "1G"));
        assert_eq!(likeness(&a, &c), Likeness::Different);
        let [a, b] = ["1k", "1000"].map(|value| SliceContent {
            devices: Vec::new(),
            shared_counters: vec![set("s", "m", value)],
        });
        assert_eq!(likeness(&a, &b), Likeness::Same);
    }

    #[test]
    fn absent_and_empty_are_the_same() {
        let empty = Device {
            attributes: Some(BTreeMap::new()),
            capacity: Some(BTreeMap::new()),
            consumes_counters: Some(Vec::new()),
            taints: Some(Vec::new()),
            all_nodes: Some(false),
            ..device("a")
        };
        assert_eq!(likeness(&one(empty), &content(&["a"])), Likeness::Same);
    }

    #[test]
    fn order_is_told_from_content() {
        let found = content(&["a", "b", "c"]);
        assert_eq!(likeness(&found, &content(&["c", "a", "b"])), Likeness::Reordered);
        for other in [&["a", "b"][..], &["a", "b", "d"], &["a", "a", "b"], &["c", "b", "a", "d"]] {
            assert_eq!(likeness(&found, &content(other)), Likeness::Different, "{other:?}");
        }
        let doubled = content(&["a", "a", "b"]);
        assert_eq!(likeness(&doubled, &content(&["a", "b", "c"])), Likeness::Different);
    }

    #[test]
    fn what_we_never_set_makes_a_slice_different() {
        let mut found = stored("x", (1, 1), &content(&["a"])).spec;
        found.all_nodes = Some(false);
        assert_eq!(compare(&found, &content(&["a"])), Likeness::Same);
        found.skip_node_operations = Some(vec!["*".to_owned()]);
        assert_eq!(compare(&found, &content(&["a"])), Likeness::Different);
    }

    fn timed(seconds: i64) -> SliceContent {
        let mut device = with_taint(device("a"), "x");
        let time = k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap();
        device.taints.as_mut().unwrap()[0].time_added = Some(Time(time));
        one(device)
    }

    #[test]
    fn a_taint_s_time_is_the_server_s_unless_given() {
        assert_eq!(likeness(&timed(100), &one(with_taint(device("a"), "x"))), Likeness::Same);
        assert_eq!(likeness(&timed(100), &timed(101)), Likeness::Same);
        assert_eq!(likeness(&timed(100), &timed(102)), Likeness::Different);
        assert_eq!(likeness(&timed(100), &one(with_taint(device("a"), "y"))), Likeness::Different);
    }

    #[test]
    fn a_taint_that_stays_keeps_its_time() {
        let wanted = one(with_taint(with_taint(device("a"), "x"), "y"));
        let found = stored("x", (1, 1), &timed(100));
        let written = spec(&settings(), found.spec.pool.clone(), &wanted, Some(&found));
        let taints = written.devices.unwrap()[0].taints.clone().unwrap();
        let kept = timed(100).devices[0].taints.clone().unwrap()[0].clone();
        let new = with_taint(device("a"), "y").taints.unwrap()[0].clone();
        assert_eq!(taints, [kept, new]);
    }

    #[test]
    fn differences_name_the_fields() {
        let mut sent = one(with_taint(consuming(device("a"), "s", "m"), "x"));
        sent.shared_counters.push(set("s", "m", "1"));
        let kept = stored("x", (1, 1), &content(&["a"])).spec;
        let expected = ["`sharedCounters`", "`consumesCounters`", "`taints`"];
        assert_eq!(differences(&kept, &sent), expected);
        let other = Device { allow_multiple_allocations: Some(true), ..device("a") };
        assert_eq!(differences(&kept, &one(other)), ["what was sent"]);
    }
}
