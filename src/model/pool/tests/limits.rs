//! What the API server refuses: limits and shapes of `resource.k8s.io/v1`, release by release.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::resource::v1, apimachinery::pkg::api::resource::Quantity};

use crate::model::pool::{Features, SliceContent};

/// Servers that validate differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// 1.34, whose counters are off unless asked for.
    V1_34 { counters: bool },
    /// 1.35 and later, with counters unless they are switched off.
    V1_35 { counters: bool },
}

pub(crate) const SERVERS: [Server; 4] = [
    Server::V1_34 { counters: false },
    Server::V1_34 { counters: true },
    Server::V1_35 { counters: false },
    Server::V1_35 { counters: true },
];

impl Server {
    pub(crate) fn features(self) -> Features {
        match self {
            Self::V1_34 { counters } => {
                Features { counters, taints: true, separate_counter_slices: false }
            }
            Self::V1_35 { counters } => {
                Features { counters, taints: true, separate_counter_slices: true }
            }
        }
    }
}

/// Panics with what is wrong with a pool.
pub(crate) fn check(server: Server, slices: &[SliceContent]) {
    assert!(!slices.is_empty(), "a pool has at least one slice");
    let sets = slices.iter().flat_map(|slice| &slice.shared_counters);
    let sets = unique(sets, |set| &set.name);
    unique(slices.iter().flat_map(|slice| &slice.devices), |device| &device.name);
    for slice in slices {
        // 1.34 looks for the set in the same slice, later servers in the whole pool.
        let here = unique(&slice.shared_counters, |set| &set.name);
        let visible = if matches!(server, Server::V1_34 { .. }) { &here } else { &sets };
        check_slice(server, slice);
        slice.shared_counters.iter().for_each(check_set);
        slice.devices.iter().for_each(|device| check_device(device, visible));
    }
    check_types(slices);
}

fn unique<'a, T: 'a>(
    items: impl IntoIterator<Item = &'a T>,
    name: impl Fn(&'a T) -> &'a String,
) -> BTreeMap<&'a str, &'a T> {
    let mut all = BTreeMap::new();
    for item in items {
        assert!(all.insert(name(item).as_str(), item).is_none(), "{} twice", name(item));
    }
    all
}

fn check_slice(server: Server, slice: &SliceContent) {
    let consumptions = || slice.devices.iter().flat_map(|device| &device.consumes_counters);
    let consumed: usize = consumptions().flatten().map(|of| of.counters.len()).sum();
    let shared: usize = slice.shared_counters.iter().map(|set| set.counters.len()).sum();
    match server {
        Server::V1_34 { .. } => {
            assert!(slice.devices.len() <= 128, "{} devices", slice.devices.len());
            assert!(shared <= 32, "{shared} counters in a slice");
            assert!(consumed <= 1024, "{consumed} counters consumed in a slice");
        }
        Server::V1_35 { .. } => {
            let most = if consumptions().next().is_some() { 64 } else { 128 };
            assert!(slice.devices.len() <= most, "{} devices", slice.devices.len());
            assert!(slice.shared_counters.len() <= 8, "{} sets", slice.shared_counters.len());
            let both = !slice.devices.is_empty() && !slice.shared_counters.is_empty();
            assert!(!both, "counter sets and devices in one slice");
        }
    }
    let (Server::V1_34 { counters } | Server::V1_35 { counters }) = server;
    assert!(counters || consumed + shared == 0, "counters that the server drops");
}

fn check_set(set: &v1::CounterSet) {
    assert!(is_label(&set.name), "counter set {:?}", set.name);
    assert!((1..=32).contains(&set.counters.len()), "{} counters", set.counters.len());
    for (name, counter) in &set.counters {
        assert!(is_label(name), "counter {name:?}");
        number(&counter.value);
    }
}

fn check_device(device: &v1::Device, sets: &BTreeMap<&str, &v1::CounterSet>) {
    let name = &device.name;
    assert!(is_label(name), "device {name:?}");
    let (attributes, capacity) = (device.attributes.iter().flatten(), device.capacity.iter());
    let capacity = capacity.flatten();
    let count = attributes.clone().count() + capacity.clone().count();
    assert!(count <= 32, "{name} has {count} attributes and capacities");
    for (key, value) in attributes {
        assert!(is_key(key), "{name}: attribute {key:?}");
        check_value(value);
    }
    for (key, value) in capacity {
        assert!(is_key(key), "{name}: capacity {key:?}");
        number(&value.value);
    }
    assert!(device.taints.as_ref().is_none_or(|taints| taints.len() <= 4), "{name}: taints");
    if let Some(consumes) = &device.consumes_counters {
        assert!((1..=2).contains(&consumes.len()), "{name}: {} consumptions", consumes.len());
        consumes.iter().for_each(|consumption| check_consumption(name, consumption, sets));
    }
}

fn check_consumption(
    device: &str,
    consumption: &v1::DeviceCounterConsumption,
    sets: &BTreeMap<&str, &v1::CounterSet>,
) {
    let set = sets.get(consumption.counter_set.as_str());
    let set = set.unwrap_or_else(|| panic!("{device}: no set {}", consumption.counter_set));
    let counters = &consumption.counters;
    assert!((1..=32).contains(&counters.len()), "{device}: {} counters", counters.len());
    for (name, counter) in counters {
        assert!(set.counters.contains_key(name), "{device}: no counter {name}");
        number(&counter.value);
    }
}

fn check_value(value: &v1::DeviceAttribute) {
    let v1::DeviceAttribute { bool, int, string, version, bools, ints, strings, versions } = value;
    let lists = [bools.is_some(), ints.is_some(), strings.is_some(), versions.is_some()];
    assert!(!lists.contains(&true), "lists need a feature of the server");
    let set = [bool.is_some(), int.is_some(), string.is_some(), version.is_some()];
    assert_eq!(set.iter().filter(|&&set| set).count(), 1, "{value:?}");
    assert!(string.as_ref().is_none_or(|text| text.len() <= 64), "{string:?}");
    assert!(version.as_deref().is_none_or(is_semver), "{version:?}");
}

/// An attribute has one type on all devices.
fn check_types(slices: &[SliceContent]) {
    let mut types: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let devices = slices.iter().flat_map(|slice| &slice.devices);
    for (key, value) in devices.flat_map(|device| device.attributes.iter().flatten()) {
        let kind = match value {
            v1::DeviceAttribute { int: Some(_), .. } => "int",
            v1::DeviceAttribute { string: Some(_), .. } => "string",
            v1::DeviceAttribute { version: Some(_), .. } => "version",
            _ => "bool",
        };
        types.entry(key).or_default().insert(kind);
    }
    let mixed: Vec<_> = types.iter().filter(|(_, kinds)| kinds.len() > 1).collect();
    assert!(mixed.is_empty(), "{mixed:?}");
}

fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c == '-' || edge(Some(c)))
}

/// A C identifier, in a domain or not.
fn is_key(key: &str) -> bool {
    let (domain, id) = key.rsplit_once('/').unwrap_or(("x", key));
    let letter = |c: char| c == '_' || c.is_ascii_alphabetic();
    domain.len() <= 63
        && domain.split('.').all(is_label)
        && id.len() <= 32
        && id.starts_with(letter)
        && id.chars().all(|c| letter(c) || c.is_ascii_digit())
}

fn is_semver(version: &str) -> bool {
    let number = |part: &str| part.parse::<u64>().is_ok_and(|number| number.to_string() == part);
    let parts: Vec<&str> = version.split('.').collect();
    version.len() <= 64 && parts.len() == 3 && parts.into_iter().all(number)
}

/// The number that a quantity stands for, which must be written as the API server writes it.
pub(crate) fn number(quantity: &Quantity) -> u64 {
    let text = quantity.0.as_str();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let power =
        ["", "Ki", "Mi", "Gi", "Ti", "Pi"].iter().position(|&unit| unit == &text[digits.len()..]);
    let power = u32::try_from(power.unwrap_or_else(|| panic!("quantity {text:?}"))).unwrap();
    let value: u64 = digits.parse().unwrap();
    assert!(value == 0 || power == 0 || !value.is_multiple_of(1024), "{text} is not canonical");
    assert_eq!(value.to_string(), digits);
    value * 1024u64.pow(power)
}
