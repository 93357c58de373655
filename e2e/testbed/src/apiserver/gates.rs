//! Feature gates: which optional fields a release of Kubernetes knows and keeps.

use std::collections::BTreeSet;

/// A minor release, such as `(1, 37)`.
pub type Release = (u32, u32);

/// A gate whose fields are dropped silently where it is off.
///
/// Stages per release: `pkg/features/kube_features.go` of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// `adminAccess` of requests.
    AdminAccess,
    /// `firstAvailable` of requests.
    PrioritizedList,
    /// Counters, and nodes of single devices.
    PartitionableDevices,
    /// `spec.partitionTypeAttribute` of slices.
    PartitionableDevicesType,
    /// `taints` of devices, `tolerations` of requests.
    DeviceTaints,
    /// `allowMultipleAllocations` and request policies.
    ConsumableCapacity,
    /// Binding conditions and `bindsToNode`.
    BindingConditions,
    /// `spec.extendedResourceName` of classes.
    ExtendedResource,
    /// Attributes with list values.
    ListTypeAttributes,
    /// `nodeAllocatableResources` of devices.
    NodeAllocatableResources,
    /// `spec.skipNodeOperations` of slices.
    OptionalNodeOperations,
    /// `compatibilityGroups` of consumptions.
    CompatibilityGroups,
}

use Gate::*;

impl Gate {
    const ALL: [Self; 12] = [
        AdminAccess,
        PrioritizedList,
        PartitionableDevices,
        PartitionableDevicesType,
        DeviceTaints,
        ConsumableCapacity,
        BindingConditions,
        ExtendedResource,
        ListTypeAttributes,
        NodeAllocatableResources,
        OptionalNodeOperations,
        CompatibilityGroups,
    ];

    /// The first release that has the fields, and the first that has the gate on by default.
    fn releases(self) -> (Release, Option<Release>) {
        match self {
            AdminAccess | PrioritizedList => ((1, 33), Some((1, 34))),
            PartitionableDevices | DeviceTaints => ((1, 33), Some((1, 36))),
            ConsumableCapacity | BindingConditions | ExtendedResource => ((1, 34), Some((1, 36))),
            ListTypeAttributes | NodeAllocatableResources => ((1, 36), None),
            PartitionableDevicesType | OptionalNodeOperations | CompatibilityGroups => {
                ((1, 37), None)
            }
        }
    }
}

/// The gates that are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gates {
    release: Release,
    on: BTreeSet<Gate>,
}

impl Gates {
    /// Those that are on by default in a release.
    pub fn of(release: Release) -> Self {
        let by_default = |gate: &Gate| gate.releases().1.is_some_and(|since| since <= release);
        Self { release, on: Gate::ALL.into_iter().filter(by_default).collect() }
    }

    /// Switches a gate on; without effect where the release does not have it.
    pub fn with(mut self, gate: Gate) -> Self {
        if self.knows(gate) {
            self.on.insert(gate);
        }
        self
    }

    /// Switches a gate off.
    pub fn without(mut self, gate: Gate) -> Self {
        self.on.remove(&gate);
        self
    }

    /// Whether a gate is on.
    pub fn has(&self, gate: Gate) -> bool {
        self.on.contains(&gate)
    }

    /// Whether the release has the fields at all.
    pub(super) fn knows(&self, gate: Gate) -> bool {
        gate.releases().0 <= self.release
    }
}
