//! Fields of gates that are off: dropped without a word, unless the stored object has them already.

use k8s_openapi::api::resource::v1::{
    Device, DeviceClassSpec, DeviceRequest, ResourceClaimSpec, ResourceSliceSpec,
};

use super::gates::{Gate, Gates};
use super::refusal::Faults;

/// Fields of one gate in slices.
struct Fields {
    gate: Gate,
    /// Whether a stored slice has any of them.
    used: fn(&ResourceSliceSpec) -> bool,
    drop: fn(&mut ResourceSliceSpec),
}

static OF_SLICES: [Fields; 8] = [
    Fields { gate: Gate::PartitionableDevices, used: has_partitions, drop: drop_partitions },
    Fields {
        gate: Gate::DeviceTaints,
        used: |spec| devices(spec).any(|d| d.taints.is_some()),
        drop: |spec| each(spec, |d| d.taints = None),
    },
    Fields { gate: Gate::ConsumableCapacity, used: has_sharing, drop: drop_sharing },
    Fields { gate: Gate::BindingConditions, used: has_binding, drop: drop_binding },
    Fields { gate: Gate::ListTypeAttributes, used: has_lists, drop: drop_lists },
    Fields {
        gate: Gate::NodeAllocatableResources,
        used: |spec| devices(spec).any(|d| d.node_allocatable_resources.is_some()),
        drop: |spec| each(spec, |d| d.node_allocatable_resources = None),
    },
    Fields { gate: Gate::CompatibilityGroups, used: has_groups, drop: drop_groups },
    // The server drops these two only in releases that do not know them; see `forbidden`.
    Fields {
        gate: Gate::OptionalNodeOperations,
        used: |spec| spec.skip_node_operations.is_some(),
        drop: |spec| spec.skip_node_operations = None,
    },
];

/// Drops from a slice, and forbids what is forbidden rather than dropped.
pub(super) fn from_slice(
    gates: &Gates,
    old: Option<&ResourceSliceSpec>,
    new: &mut ResourceSliceSpec,
    faults: &mut Faults,
) {
    forbid(gates, old, new, faults);
    for fields in &OF_SLICES {
        let in_use = old.is_some_and(|old| (fields.used)(old));
        if !gates.has(fields.gate) && !in_use {
            (fields.drop)(new);
        }
    }
}

fn forbid(
    gates: &Gates,
    old: Option<&ResourceSliceSpec>,
    new: &mut ResourceSliceSpec,
    faults: &mut Faults,
) {
    if !gates.knows(Gate::PartitionableDevicesType) {
        new.partition_type_attribute = None;
    }
    let gate = Gate::PartitionableDevicesType;
    let stored = old.is_some_and(|old| old.partition_type_attribute.is_some());
    if new.partition_type_attribute.is_some() && !gates.has(gate) && !stored {
        let why = "may not be set while DRAPartitionableDevicesType is off";
        faults.forbidden("spec.partitionTypeAttribute", why);
    }
    let gate = Gate::OptionalNodeOperations;
    let stored = old.is_some_and(|old| old.skip_node_operations.is_some());
    if new.skip_node_operations.is_some() && gates.knows(gate) && !gates.has(gate) && !stored {
        let why = "may not be set while DRAOptionalNodeOperations is off";
        faults.forbidden("spec.skipNodeOperations", why);
    }
}

fn devices(spec: &ResourceSliceSpec) -> impl Iterator<Item = &Device> {
    spec.devices.iter().flatten()
}

fn each(spec: &mut ResourceSliceSpec, change: impl FnMut(&mut Device)) {
    spec.devices.iter_mut().flatten().for_each(change);
}

fn has_partitions(spec: &ResourceSliceSpec) -> bool {
    spec.shared_counters.is_some()
        || spec.per_device_node_selection.is_some()
        || devices(spec).any(|d| {
            d.consumes_counters.is_some()
                || d.node_name.is_some()
                || d.node_selector.is_some()
                || d.all_nodes.is_some()
        })
}

fn drop_partitions(spec: &mut ResourceSliceSpec) {
    spec.shared_counters = None;
    spec.per_device_node_selection = None;
    each(spec, |d| {
        d.consumes_counters = None;
        d.node_name = None;
        d.node_selector = None;
        d.all_nodes = None;
    });
}

fn has_sharing(spec: &ResourceSliceSpec) -> bool {
    devices(spec).any(|d| {
        d.allow_multiple_allocations.is_some()
            || d.capacity.iter().flat_map(|map| map.values()).any(|c| c.request_policy.is_some())
    })
}

fn drop_sharing(spec: &mut ResourceSliceSpec) {
    each(spec, |d| {
        d.allow_multiple_allocations = None;
        let capacities = d.capacity.iter_mut().flat_map(|map| map.values_mut());
        capacities.for_each(|c| c.request_policy = None);
    });
}

fn has_binding(spec: &ResourceSliceSpec) -> bool {
    devices(spec).any(|d| {
        d.binding_conditions.is_some()
            || d.binding_failure_conditions.is_some()
            || d.binds_to_node.is_some()
    })
}

fn drop_binding(spec: &mut ResourceSliceSpec) {
    each(spec, |d| {
        d.binding_conditions = None;
        d.binding_failure_conditions = None;
        d.binds_to_node = None;
    });
}

fn has_lists(spec: &ResourceSliceSpec) -> bool {
    let attributes = devices(spec).flat_map(|d| &d.attributes).flat_map(|map| map.values());
    attributes.into_iter().any(|a| {
        a.bools.is_some() || a.ints.is_some() || a.strings.is_some() || a.versions.is_some()
    })
}

fn drop_lists(spec: &mut ResourceSliceSpec) {
    each(spec, |d| {
        for attribute in d.attributes.iter_mut().flat_map(|map| map.values_mut()) {
            attribute.bools = None;
            attribute.ints = None;
            attribute.strings = None;
            attribute.versions = None;
        }
    });
}

fn has_groups(spec: &ResourceSliceSpec) -> bool {
    let mut consumed = devices(spec).flat_map(|d| d.consumes_counters.iter().flatten());
    consumed.any(|c| c.compatibility_groups.is_some())
}

fn drop_groups(spec: &mut ResourceSliceSpec) {
    each(spec, |d| {
        d.consumes_counters.iter_mut().flatten().for_each(|c| c.compatibility_groups = None);
    });
}

/// Drops from a class.
pub(super) fn from_class(gates: &Gates, old: Option<&DeviceClassSpec>, new: &mut DeviceClassSpec) {
    let stored = old.is_some_and(|old| old.extended_resource_name.is_some());
    if !gates.has(Gate::ExtendedResource) && !stored {
        new.extended_resource_name = None;
    }
}

/// Drops from a claim or a template's claim.
pub(super) fn from_claim(
    gates: &Gates,
    old: Option<&ResourceClaimSpec>,
    new: &mut ResourceClaimSpec,
) {
    let stored = |used: fn(&DeviceRequest) -> bool| {
        let requests = old.and_then(|spec| spec.devices.as_ref()?.requests.as_ref());
        requests.is_some_and(|requests| requests.iter().any(used))
    };
    let admin = |r: &DeviceRequest| r.exactly.as_ref().is_some_and(|e| e.admin_access.is_some());
    let keep_admin = gates.has(Gate::AdminAccess) || stored(admin);
    let keep_list = gates.has(Gate::PrioritizedList) || stored(|r| r.first_available.is_some());
    for request in new.devices.iter_mut().flat_map(|d| d.requests.iter_mut().flatten()) {
        if !keep_list {
            request.first_available = None;
        }
        if let Some(exact) = request.exactly.as_mut().filter(|_| !keep_admin) {
            exact.admin_access = None;
        }
    }
}
