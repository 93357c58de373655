//! The form in which the server stores an object: defaults filled in, quantities in canonical text,
//! empty lists left out. What a client sent and what it gets back differ in this.

use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequirements, Device, DeviceToleration, ResourceClaimSpec,
    ResourceSliceSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::quantity::Amount;

/// Of slices: quantities, and when a taint was added.
pub(super) fn slice(spec: &mut ResourceSliceSpec) {
    let sets = spec.shared_counters.iter_mut().flatten();
    sets.flat_map(|set| set.counters.values_mut()).for_each(|c| quantity(&mut c.value));
    spec.devices.iter_mut().flatten().for_each(device);
}

fn device(device: &mut Device) {
    for capacity in device.capacity.iter_mut().flat_map(|map| map.values_mut()) {
        quantity(&mut capacity.value);
        capacity.request_policy.iter_mut().for_each(policy);
    }
    let consumed = device.consumes_counters.iter_mut().flatten();
    consumed.flat_map(|c| c.counters.values_mut()).for_each(|c| quantity(&mut c.value));
    for taint in device.taints.iter_mut().flatten() {
        let now = || Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        taint.time_added.get_or_insert_with(|| Time(now()));
    }
}

fn policy(policy: &mut CapacityRequestPolicy) {
    let range = policy.valid_range.iter_mut();
    let range = range.flat_map(|r| [Some(&mut r.min), r.max.as_mut(), r.step.as_mut()]).flatten();
    let values = policy.valid_values.iter_mut().flatten();
    policy.default.iter_mut().chain(range).chain(values).for_each(quantity);
}

fn quantity(text: &mut Quantity) {
    if let Some(amount) = Amount::parse(&text.0) {
        *text = amount.into();
    }
}

/// Of claims: allocation mode, count, operators of tolerations.
pub(super) fn claim(spec: &mut ResourceClaimSpec) {
    let Some(devices) = &mut spec.devices else { return };
    for request in devices.requests.iter_mut().flatten() {
        if let Some(exact) = &mut request.exactly {
            mode(&mut exact.allocation_mode, &mut exact.count);
            tolerations(&mut exact.tolerations);
            capacity(&mut exact.capacity);
        }
        for sub in request.first_available.iter_mut().flatten() {
            mode(&mut sub.allocation_mode, &mut sub.count);
            tolerations(&mut sub.tolerations);
            capacity(&mut sub.capacity);
        }
    }
}

fn mode(mode: &mut Option<String>, count: &mut Option<i64>) {
    let mode = mode.get_or_insert_with(|| "ExactCount".to_owned());
    if mode == "ExactCount" {
        count.get_or_insert(1);
    }
}

fn tolerations(tolerations: &mut Option<Vec<DeviceToleration>>) {
    for toleration in tolerations.iter_mut().flatten() {
        toleration.operator.get_or_insert_with(|| "Equal".to_owned());
    }
}

fn capacity(capacity: &mut Option<CapacityRequirements>) {
    let requests = capacity.iter_mut().flat_map(|c| &mut c.requests);
    requests.flat_map(|map| map.values_mut()).for_each(quantity);
}

/// Leaves out lists and maps without members, as Go's `omitempty` does; opaque parameters are kept.
pub(super) fn omit_empty_lists(value: &mut Value) {
    const MAPS: [&str; 4] = ["attributes", "capacity", "counters", "requests"];
    match value {
        Value::Object(map) => {
            map.retain(|key, value| match value {
                Value::Array(list) => !list.is_empty(),
                Value::Object(map) => !map.is_empty() || !MAPS.contains(&key.as_str()),
                _ => true,
            });
            let fields = map.iter_mut().filter(|(key, _)| *key != "parameters");
            fields.for_each(|(_, value)| omit_empty_lists(value));
        }
        Value::Array(list) => list.iter_mut().for_each(omit_empty_lists),
        _ => (),
    }
}
