//! What a claim asks for, with the classes that it names.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{
        CapacityRequirements, Device, DeviceClass, DeviceRequest, DeviceSelector, DeviceTaint,
        DeviceToleration, ResourceClaim,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{quantity::Amount, scheduler::Unschedulable};

/// One request: the first of its alternatives that can be had.
pub(super) struct Request<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// One for `exactly`, else those of `firstAvailable`.
    pub(super) alternatives: Vec<Alternative<'a>>,
}

/// A way to satisfy a request.
pub(super) struct Alternative<'a> {
    /// `request`, or `request/subrequest`.
    pub(super) name: String,
    /// The class that all its devices are of.
    pub(super) class: &'a DeviceClass,
    /// How many devices; absent for all that match.
    pub(super) count: Option<usize>,
    /// Whether it may have devices that others hold.
    pub(super) admin: bool,
    /// Which taints do not matter.
    pub(super) tolerations: &'a [DeviceToleration],
    selectors: &'a [DeviceSelector],
    capacity: Option<&'a BTreeMap<String, Quantity>>,
}

/// The fields that requests and subrequests share.
struct Fields<'a> {
    class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    selectors: &'a Option<Vec<DeviceSelector>>,
    tolerations: &'a Option<Vec<DeviceToleration>>,
    capacity: &'a Option<CapacityRequirements>,
}

/// The requests of a claim, in its order.
pub(super) fn of<'a>(
    claim: &'a ResourceClaim,
    classes: &'a [DeviceClass],
) -> Result<Vec<Request<'a>>, Unschedulable> {
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    let requests = devices.and_then(|devices| devices.requests.as_deref()).unwrap_or_default();
    requests.iter().map(|request| Request::new(request, classes)).collect()
}

impl<'a> Request<'a> {
    fn new(request: &'a DeviceRequest, classes: &'a [DeviceClass]) -> Result<Self, Unschedulable> {
        let name = request.name.as_str();
        let exactly = request.exactly.iter().map(|exactly| {
            let fields = Fields {
                class: &exactly.device_class_name,
                mode: exactly.allocation_mode.as_deref(),
                count: exactly.count,
                selectors: &exactly.selectors,
                tolerations: &exactly.tolerations,
                capacity: &exactly.capacity,
            };
            let admin = exactly.admin_access.unwrap_or(false);
            Ok(Alternative { admin, ..Alternative::new(name.to_owned(), fields, classes)? })
        });
        let first_available = request.first_available.iter().flatten().map(|sub| {
            let fields = Fields {
                class: &sub.device_class_name,
                mode: sub.allocation_mode.as_deref(),
                count: sub.count,
                selectors: &sub.selectors,
                tolerations: &sub.tolerations,
                capacity: &sub.capacity,
            };
            Alternative::new(format!("{name}/{}", sub.name), fields, classes)
        });
        let alternatives = exactly.chain(first_available).collect::<Result<_, _>>()?;
        Ok(Self { name, alternatives })
    }
}

impl<'a> Alternative<'a> {
    fn new(
        name: String,
        fields: Fields<'a>,
        classes: &'a [DeviceClass],
    ) -> Result<Self, Unschedulable> {
        let class =
            classes.iter().find(|class| class.metadata.name.as_deref() == Some(fields.class));
        let class = class.ok_or_else(|| {
            Unschedulable(format!(
                "request `{name}`: device class `{}` does not exist",
                fields.class
            ))
        })?;
        let count = match fields.mode {
            None | Some("ExactCount") => {
                Some(usize::try_from(fields.count.unwrap_or(1)).unwrap_or(usize::MAX))
            }
            Some("All") => None,
            Some(mode) => {
                return Err(Unschedulable(format!(
                    "request `{name}`: unknown allocation mode `{mode}`"
                )));
            }
        };
        Ok(Self {
            name,
            class,
            count,
            admin: false,
            tolerations: fields.tolerations.as_deref().unwrap_or_default(),
            selectors: fields.selectors.as_deref().unwrap_or_default(),
            capacity: fields.capacity.as_ref().and_then(|capacity| capacity.requests.as_ref()),
        })
    }

    /// The expressions that a device must satisfy, each with where it stands: those of the class, then
    /// its own.
    pub(super) fn selectors(&self) -> impl Iterator<Item = (Place<'_>, &'a str)> {
        let class =
            self.class.spec.as_ref().and_then(|spec| spec.selectors.as_deref()).unwrap_or_default();
        let name = self.class.metadata.name.as_deref().unwrap_or_default();
        let of_class =
            expressions(class).map(move |(index, text)| (Place::Class(name, index), text));
        let own = expressions(self.selectors)
            .map(|(index, text)| (Place::Request(&self.name, index), text));
        of_class.chain(own)
    }

    /// Whether the device has at least the capacity that is asked for.
    pub(super) fn is_large_enough(&self, device: &Device, driver: &str) -> bool {
        let none = BTreeMap::new();
        let capacity = device.capacity.as_ref().unwrap_or(&none);
        self.capacity.into_iter().flatten().all(|(name, wanted)| {
            let have = qualified(capacity, name, driver);
            have.is_some_and(|have| Amount::of(&have.value).nanos() >= Amount::of(wanted).nanos())
        })
    }

    /// Whether no taint of the device keeps this request away.
    pub(super) fn tolerates(&self, device: &Device) -> bool {
        let mut taints = device.taints.iter().flatten();
        taints.all(|taint| {
            !matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                || self.tolerations.iter().any(|toleration| tolerated(taint, toleration))
        })
    }
}

/// Where an expression stands.
pub(super) enum Place<'a> {
    /// In a class with this name.
    Class(&'a str, usize),
    /// In a request with this name.
    Request(&'a str, usize),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Class(name, index) => write!(f, "device class `{name}`, selector {index}"),
            Self::Request(name, index) => write!(f, "request `{name}`, selector {index}"),
        }
    }
}

fn expressions(selectors: &[DeviceSelector]) -> impl Iterator<Item = (usize, &str)> {
    selectors
        .iter()
        .enumerate()
        .filter_map(|(index, selector)| Some((index, selector.cel.as_ref()?.expression.as_str())))
}

/// What a device has under a name, which may leave out the domain where that is the driver's.
pub(super) fn qualified<'m, V>(
    values: &'m BTreeMap<String, V>,
    name: &str,
    driver: &str,
) -> Option<&'m V> {
    let unqualified =
        name.split_once('/').filter(|(domain, _)| *domain == driver).map(|(_, id)| id);
    values.get(name).or_else(|| values.get(unqualified?))
}

fn tolerated(taint: &DeviceTaint, toleration: &DeviceToleration) -> bool {
    let effect = toleration.effect.as_ref().is_none_or(|effect| *effect == taint.effect);
    let key = toleration.key.as_ref().is_none_or(|key| key.is_empty() || *key == taint.key);
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        _ => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
    };
    effect && key && value
}
