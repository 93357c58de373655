//! Every limit of a ResourceSlice, as `pkg/apis/resource/validation` of each release has them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, Device, DeviceAttribute, DeviceCounterConsumption, DeviceTaint,
    ResourceSliceSpec,
};

use super::gates::Release;
use super::names;
use super::refusal::Faults;
use crate::quantity::Amount;

const DEVICES: usize = 128;
const DEVICES_WITH_EXTRAS: usize = 64;
const ATTRIBUTES_AND_CAPACITIES: usize = 32;
const ATTRIBUTE_VALUES: usize = 48;
const VALUE_BYTES: usize = 64;
const COUNTER_SETS: usize = 8;
const COUNTERS: usize = 32;
const CONSUMPTIONS: usize = 2;
const CONSUMED_COUNTERS_OF_SLICE: usize = 1024;
const COMPATIBILITY_GROUPS: usize = 2;
const BINDING_CONDITIONS: usize = 4;
const VALID_VALUES: usize = 10;

/// Adds a fault for each rule that the slice breaks.
pub(super) fn check(release: Release, spec: &ResourceSliceSpec, faults: &mut Faults) {
    if !names::is_driver(&spec.driver) {
        faults.invalid("spec.driver", &spec.driver, "must be a DNS subdomain of at most 63 bytes");
    }
    pool(spec, faults);
    nodes(spec, faults);
    counter_sets(release, spec, faults);
    let devices = spec.devices.as_deref().unwrap_or_default();
    faults.at_most("spec.devices", devices.len(), most_devices(release, devices));
    let mut seen = BTreeSet::new();
    for (i, device) in devices.iter().enumerate() {
        let at = format!("spec.devices[{i}]");
        if !seen.insert(&device.name) {
            faults.duplicate(format!("{at}.name"), &device.name);
        }
        Checked { release, spec, device, at }.check(faults);
    }
}

fn most_devices(release: Release, devices: &[Device]) -> usize {
    let extras = release >= (1, 35) && devices.iter().any(has_taints_or_counters);
    let lists = release >= (1, 36) && devices.iter().flat_map(attributes).any(|(_, a)| is_list(a));
    if extras || lists { DEVICES_WITH_EXTRAS } else { DEVICES }
}

fn has_taints_or_counters(device: &Device) -> bool {
    device.taints.iter().flatten().count() + device.consumes_counters.iter().flatten().count() > 0
}

fn attributes(device: &Device) -> impl Iterator<Item = (&String, &DeviceAttribute)> {
    device.attributes.iter().flatten()
}

fn pool(spec: &ResourceSliceSpec, faults: &mut Faults) {
    let pool = &spec.pool;
    if !names::is_pool(&pool.name) {
        let why = "must be DNS subdomains with slashes between them, at most 253 bytes";
        faults.invalid("spec.pool.name", &pool.name, why);
    }
    if pool.resource_slice_count <= 0 {
        let why = "must be greater than zero";
        faults.invalid("spec.pool.resourceSliceCount", pool.resource_slice_count, why);
    }
    if pool.generation < 0 {
        let why = "must be greater than or equal to zero";
        faults.invalid("spec.pool.generation", pool.generation, why);
    }
}

fn nodes(spec: &ResourceSliceSpec, faults: &mut Faults) {
    let given = [
        spec.node_name.is_some(),
        spec.node_selector.is_some(),
        spec.all_nodes.is_some(),
        spec.per_device_node_selection.is_some(),
    ];
    let what = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is \
                required";
    match given.iter().filter(|&&given| given).count() {
        0 => faults.required("spec", what),
        1 => (),
        _ => faults.invalid("spec", given, what),
    }
    if spec.node_name.as_ref().is_some_and(|name| !names::is_subdomain(name)) {
        faults.invalid("spec.nodeName", &spec.node_name, "must be a DNS subdomain");
    }
    if spec.node_selector.as_ref().is_some_and(|s| s.node_selector_terms.len() != 1) {
        let why = "must have exactly one node selector term";
        faults.invalid("spec.nodeSelector.nodeSelectorTerms", "", why);
    }
    let only_true =
        [("allNodes", spec.all_nodes), ("perDeviceNodeSelection", spec.per_device_node_selection)];
    for (field, _) in only_true.iter().filter(|(_, value)| *value == Some(false)) {
        faults.invalid(format!("spec.{field}"), false, "must be either unset or set to true");
    }
}

fn counter_sets(release: Release, spec: &ResourceSliceSpec, faults: &mut Faults) {
    let at = "spec.sharedCounters";
    let sets = spec.shared_counters.as_deref().unwrap_or_default();
    let devices = spec.devices.as_deref().unwrap_or_default();
    if release >= (1, 35) {
        faults.at_most(at, sets.len(), COUNTER_SETS);
        if !sets.is_empty() && !devices.is_empty() {
            faults.invalid("spec", "", "only one of `sharedCounters` or `devices` is allowed");
        }
    } else {
        let counters = sets.iter().map(|set| set.counters.len()).sum();
        faults.at_most(at, counters, COUNTERS);
        let consumed = devices.iter().flat_map(|d| d.consumes_counters.iter().flatten());
        let consumed = consumed.map(|c| c.counters.len()).sum();
        faults.at_most("spec.devices", consumed, CONSUMED_COUNTERS_OF_SLICE);
    }
    let mut seen = BTreeSet::new();
    for (i, set) in sets.iter().enumerate() {
        let at = format!("{at}[{i}]");
        names::label(format!("{at}.name"), &set.name, faults);
        if !seen.insert(&set.name) {
            faults.duplicate(format!("{at}.name"), &set.name);
        }
        counters(&format!("{at}.counters"), set.counters.iter(), faults);
    }
}

fn counters<'a>(
    at: &str,
    counters: impl ExactSizeIterator<Item = (&'a String, &'a k8s_openapi::api::resource::v1::Counter)>,
    faults: &mut Faults,
) {
    if counters.len() == 0 {
        faults.required(at, "");
    }
    faults.at_most(at, counters.len(), COUNTERS);
    for (name, counter) in counters {
        names::label(format!("{at}[{name}]"), name, faults);
        if Amount::parse(&counter.value.0).is_none() {
            faults.invalid(format!("{at}[{name}].value"), &counter.value.0, "must be a quantity");
        }
    }
}

/// A device under check, and where it is.
struct Checked<'a> {
    release: Release,
    spec: &'a ResourceSliceSpec,
    device: &'a Device,
    at: String,
}

impl Checked<'_> {
    fn check(&self, faults: &mut Faults) {
        names::label(self.field("name"), &self.device.name, faults);
        self.attributes(faults);
        self.capacities(faults);
        self.taints(faults);
        self.consumptions(faults);
        self.binding(faults);
        self.nodes(faults);
    }

    fn field(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    fn attributes(&self, faults: &mut Faults) {
        let both = self.device.attributes.iter().flatten().count()
            + self.device.capacity.iter().flatten().count();
        faults.at_most(self.at.clone(), both, ATTRIBUTES_AND_CAPACITIES);
        if self.release >= (1, 36) {
            let values = attributes(self.device).map(|(_, attribute)| values(attribute)).sum();
            faults.at_most(self.field("attributes"), values, ATTRIBUTE_VALUES);
        }
        for (name, value) in attributes(self.device) {
            let at = format!("{}[{name}]", self.field("attributes"));
            qualified(&at, name, faults);
            attribute(&at, value, faults);
        }
    }

    fn capacities(&self, faults: &mut Faults) {
        for (name, capacity) in self.device.capacity.iter().flatten() {
            let at = format!("{}[{name}]", self.field("capacity"));
            qualified(&at, name, faults);
            if Amount::parse(&capacity.value.0).is_none() {
                faults.invalid(format!("{at}.value"), &capacity.value.0, "must be a quantity");
            }
            let Some(policy) = &capacity.request_policy else { continue };
            if self.device.allow_multiple_allocations != Some(true) {
                let why = "allowMultipleAllocations must be true";
                faults.forbidden(format!("{at}.requestPolicy"), why);
            }
            request_policy(&format!("{at}.requestPolicy"), policy, &capacity.value.0, faults);
        }
    }

    fn taints(&self, faults: &mut Faults) {
        let taints = self.device.taints.as_deref().unwrap_or_default();
        let most = if self.release >= (1, 35) { 16 } else { 4 };
        faults.at_most(self.field("taints"), taints.len(), most);
        for (i, t) in taints.iter().enumerate() {
            taint(&format!("{}[{i}]", self.field("taints")), t, self.release, faults);
        }
    }

    fn consumptions(&self, faults: &mut Faults) {
        let consumed = self.device.consumes_counters.as_deref().unwrap_or_default();
        let at = self.field("consumesCounters");
        if self.release >= (1, 35) {
            faults.at_most(&at, consumed.len(), CONSUMPTIONS);
        } else {
            faults.at_most(&at, consumed.iter().map(|c| c.counters.len()).sum(), COUNTERS);
        }
        let mut seen = BTreeSet::new();
        for (i, consumption) in consumed.iter().enumerate() {
            let at = format!("{at}[{i}]");
            names::label(format!("{at}.counterSet"), &consumption.counter_set, faults);
            if !seen.insert(&consumption.counter_set) {
                faults.duplicate(format!("{at}.counterSet"), &consumption.counter_set);
            }
            counters(&format!("{at}.counters"), consumption.counters.iter(), faults);
            let groups = consumption.compatibility_groups.iter().flatten().count();
            faults.at_most(format!("{at}.compatibilityGroups"), groups, COMPATIBILITY_GROUPS);
            if self.release < (1, 35) {
                self.known_in_slice(&at, consumption, faults);
            }
        }
    }

    /// Up to 1.34 a device and the counters that it consumes are in one slice.
    fn known_in_slice(&self, at: &str, consumed: &DeviceCounterConsumption, faults: &mut Faults) {
        let mut sets = self.spec.shared_counters.iter().flatten();
        match sets.find(|set| set.name == consumed.counter_set) {
            None => faults.not_found(format!("{at}.counterSet"), &consumed.counter_set),
            Some(set) => {
                for name in consumed.counters.keys().filter(|&n| !set.counters.contains_key(n)) {
                    faults.not_found(format!("{at}.counters"), name);
                }
            }
        }
    }

    fn binding(&self, faults: &mut Faults) {
        let conditions = self.device.binding_conditions.as_deref().unwrap_or_default();
        let failures = self.device.binding_failure_conditions.as_deref().unwrap_or_default();
        let lists = [("bindingConditions", conditions), ("bindingFailureConditions", failures)];
        let mut seen = BTreeSet::new();
        for (name, list) in lists {
            faults.at_most(self.field(name), list.len(), BINDING_CONDITIONS);
            for (i, condition) in list.iter().enumerate() {
                let at = format!("{}[{i}]", self.field(name));
                if !names::is_label_key(condition) {
                    faults.invalid(&at, condition, "must be a qualified name");
                }
                if !seen.insert(condition) {
                    faults.duplicate(at, condition);
                }
            }
        }
        if conditions.is_empty() != failures.is_empty() {
            let why = "bindingConditions and bindingFailureConditions are required together";
            faults.invalid(self.at.clone(), "", why);
        }
    }

    fn nodes(&self, faults: &mut Faults) {
        let device = self.device;
        let given = [
            device.node_name.is_some(),
            device.node_selector.is_some(),
            device.all_nodes.is_some(),
        ];
        let count = given.iter().filter(|&&given| given).count();
        if self.spec.per_device_node_selection == Some(true) {
            if count != 1 {
                let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes` is required when \
                           `perDeviceNodeSelection` is true";
                faults.invalid(self.at.clone(), given, why);
            }
        } else if count > 0 {
            let why = "can be set only when `perDeviceNodeSelection` is true";
            faults.invalid(self.at.clone(), given, why);
        }
    }
}

fn qualified(at: &str, name: &str, faults: &mut Faults) {
    if !names::is_qualified(name) {
        let why =
            "must be a C identifier of at most 32 bytes, perhaps after a DNS subdomain and `/`";
        faults.invalid(at, name, why);
    }
}

fn is_list(a: &DeviceAttribute) -> bool {
    a.bools.is_some() || a.ints.is_some() || a.strings.is_some() || a.versions.is_some()
}

fn values(attribute: &DeviceAttribute) -> usize {
    let lists = attribute.bools.iter().flatten().count()
        + attribute.ints.iter().flatten().count()
        + attribute.strings.iter().flatten().count()
        + attribute.versions.iter().flatten().count();
    if is_list(attribute) { lists } else { 1 }
}

fn attribute(at: &str, attribute: &DeviceAttribute, faults: &mut Faults) {
    let given = [
        attribute.bool.is_some(),
        attribute.int.is_some(),
        attribute.string.is_some(),
        attribute.version.is_some(),
        is_list(attribute),
    ];
    match given.iter().filter(|&&given| given).count() {
        0 => faults.required(at, "exactly one value must be specified"),
        1 => (),
        _ => faults.invalid(at, given, "exactly one value must be specified"),
    }
    if is_list(attribute) && values(attribute) == 0 {
        faults.required(at, "must not be empty");
    }
    let strings = attribute.string.iter().chain(attribute.strings.iter().flatten());
    let versions = attribute.version.iter().chain(attribute.versions.iter().flatten());
    if strings.chain(versions.clone()).any(|text| text.len() > VALUE_BYTES) {
        faults.too_long(at, VALUE_BYTES);
    }
    for version in versions.filter(|version| !names::is_semver(version)) {
        faults.invalid(
            format!("{at}.version"),
            version,
            "must be a string compatible with semver.org spec 2.0.0",
        );
    }
}

fn taint(at: &str, taint: &DeviceTaint, release: Release, faults: &mut Faults) {
    if !names::is_label_key(&taint.key) {
        faults.invalid(format!("{at}.key"), &taint.key, "must be a label name");
    }
    if taint.value.as_ref().is_some_and(|value| !names::is_label_value(value)) {
        faults.invalid(format!("{at}.value"), &taint.value, "must be a label value");
    }
    let known: &[&str] = match release {
        (1, ..35) => &["NoSchedule", "NoExecute"],
        _ => &["NoSchedule", "NoExecute", "None"],
    };
    if !known.contains(&taint.effect.as_str()) {
        faults.unsupported(format!("{at}.effect"), &taint.effect, known);
    }
}

fn request_policy(at: &str, policy: &CapacityRequestPolicy, most: &str, faults: &mut Faults) {
    let nanos = |text: &str| Amount::parse(text).map(Amount::nanos);
    let default = policy.default.as_ref().and_then(|q| nanos(&q.0));
    let values = policy.valid_values.as_deref().unwrap_or_default();
    faults.at_most(format!("{at}.validValues"), values.len(), VALID_VALUES);
    let values: Vec<_> = values.iter().filter_map(|q| nanos(&q.0)).collect();
    if !values.is_sorted_by(|a, b| a < b) {
        faults.invalid(format!("{at}.validValues"), values.len(), "must be ascending");
    }
    if !values.is_empty() && !default.is_some_and(|default| values.contains(&default)) {
        faults.invalid(format!("{at}.validValues"), values.len(), "must contain the default");
    }
    let Some(range) = &policy.valid_range else { return };
    let bound = |q: &Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
        q.as_ref().and_then(|q| nanos(&q.0))
    };
    let (min, max, step) = (nanos(&range.min.0), bound(&range.max), bound(&range.step));
    let order: Vec<_> = [min, default, max, nanos(most)].into_iter().flatten().collect();
    if !order.is_sorted() {
        faults.invalid(format!("{at}.validRange"), order, "must be min <= default <= max <= value");
    }
    let steps: BTreeMap<_, _> = [("default", default), ("validRange.max", max)].into();
    for (field, value) in steps {
        if let (Some(value), Some(min), Some(step)) = (value, min, step.filter(|&s| s > 0))
            && (value - min) % step != 0
        {
            faults.invalid(format!("{at}.{field}"), value, "must be a multiple of step above min");
        }
    }
}
