//! What would make the whole pool invalid for the scheduler, and is not looked at by the API server.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{CounterSet, Device};

use crate::model::pool::SliceContent;

/// Refuses a pool in which a name is used twice or a device draws from a counter that is not there.
pub(super) fn check(pool: &[&SliceContent]) -> Result<(), String> {
    let mut sets = BTreeMap::new();
    for set in pool.iter().flat_map(|slice| &slice.shared_counters) {
        if sets.insert(set.name.as_str(), set).is_some() {
            return Err(format!("counter set `{}` is there twice", set.name));
        }
    }
    let mut names = BTreeSet::new();
    for device in pool.iter().flat_map(|slice| &slice.devices) {
        if !names.insert(device.name.as_str()) {
            return Err(format!("device `{}` is there twice", device.name));
        }
        check_counters(device, &sets)?;
    }
    Ok(())
}

fn check_counters(device: &Device, sets: &BTreeMap<&str, &CounterSet>) -> Result<(), String> {
    for consumption in device.consumes_counters.iter().flatten() {
        let (name, wanted) = (&device.name, &consumption.counter_set);
        let Some(set) = sets.get(wanted.as_str()) else {
            return Err(format!(
                "device `{name}` draws from counter set `{wanted}`, which is not there"
            ));
        };
        let missing =
            consumption.counters.keys().find(|counter| !set.counters.contains_key(*counter));
        if let Some(counter) = missing {
            let counter = format!("`{counter}` of `{wanted}`");
            return Err(format!(
                "device `{name}` draws from counter {counter}, which is not there"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::script::{consuming, content, device, set};

    fn pool(device: Device, sets: Vec<CounterSet>) -> Result<(), String> {
        let devices = SliceContent { devices: vec![device], shared_counters: Vec::new() };
        let counters = SliceContent { devices: Vec::new(), shared_counters: sets };
        check(&[&counters, &devices])
    }

    #[test]
    fn counters_may_be_in_another_slice() {
        assert_eq!(pool(consuming(device("a"), "s", "m"), vec![set("s", "m", "1")]), Ok(()));
    }

    #[test]
    fn detect_duplicate_counter_sets() {
        let found = pool(device("a"), vec![set("s", "m", "1"), set("s", "n", "1")]);
        assert_eq!(found, Err("counter set `s` is there twice".to_owned()));
    }

    #[test]
    fn detect_duplicate_devices() {
        let found = check(&[&content(&["a"]), &content(&["b", "a"])]);
        assert_eq!(found, Err("device `a` is there twice".to_owned()));
    }

    #[test]
    fn detect_unknown_counter_set() {
        let found = pool(consuming(device("a"), "t", "m"), vec![set("s", "m", "1")]);
        let expected = "device `a` draws from counter set `t`, which is not there";
        assert_eq!(found, Err(expected.to_owned()));
    }

    #[test]
    fn detect_unknown_counter() {
        let found = pool(consuming(device("a"), "s", "n"), vec![set("s", "m", "1")]);
        let expected = "device `a` draws from counter `n` of `s`, which is not there";
        assert_eq!(found, Err(expected.to_owned()));
    }
}
