//! The kinds that are served, and what is special about each.

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Event as CoreEvent, Namespace, Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::{
    DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A served kind. Two are the same where group and plural are.
pub(super) struct Kind {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) namespaced: bool,
    /// Whether `/status` is written apart from the rest.
    pub(super) status: bool,
    /// Whether a changed spec counts up `metadata.generation`.
    pub(super) generation: bool,
    /// What a field selector may name besides name and namespace.
    pub(super) fields: &'static [&'static str],
    /// Reads the object into its type and back: what the type does not know is dropped.
    pub(super) typed: fn(Value) -> serde_json::Result<Value>,
}

/// All kinds.
pub(super) static KINDS: [Kind; 9] = [
    Kind {
        generation: true,
        fields: &["spec.nodeName", "spec.driver"],
        ..of::<ResourceSlice>(false)
    },
    Kind { generation: true, ..of::<DeviceClass>(false) },
    Kind { status: true, ..of::<ResourceClaim>(true) },
    of::<ResourceClaimTemplate>(true),
    Kind {
        status: true,
        fields: &["spec.nodeName", "status.phase", "spec.schedulerName"],
        ..of::<Pod>(true)
    },
    Kind { status: true, fields: &["spec.unschedulable"], ..of::<Node>(false) },
    Kind { status: true, fields: &["status.phase"], ..of::<Namespace>(false) },
    Kind {
        fields: &["involvedObject.name", "involvedObject.uid", "reason"],
        ..of::<CoreEvent>(true)
    },
    Kind { fields: &["regarding.name", "regarding.uid", "reason"], ..of::<Event>(true) },
];

const fn of<T: Resource + Serialize + DeserializeOwned>(namespaced: bool) -> Kind {
    Kind {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        plural: T::URL_PATH_SEGMENT,
        namespaced,
        status: false,
        generation: false,
        fields: &[],
        typed: through_type::<T>,
    }
}

fn through_type<T: Serialize + DeserializeOwned>(value: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

impl Kind {
    /// The kind of a URL.
    pub(super) fn at(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS.iter().find(|k| (k.group, k.version, k.plural) == (group, version, plural))
    }

    /// The kind of an object's `apiVersion` and `kind`.
    pub(super) fn named(api_version: &str, kind: &str) -> Option<&'static Self> {
        KINDS.iter().find(|k| k.api_version() == api_version && k.kind == kind)
    }

    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `resourceslices.resource.k8s.io`, as messages name it.
    pub(super) fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}
