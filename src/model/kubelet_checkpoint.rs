//! The kubelet's `kubelet_internal_checkpoint`: which pod was given which devices by device plugins, containers
//! that its pod resources never name included. It may name a pod that has ended, until it is written again.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One device of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// UID of the pod.
    pub pod: String,
    /// Full name of the resource.
    pub resource: String,
    /// ID of the device, as its plugin named it.
    pub id: String,
}

/// A file that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("not a checkpoint of the kubelet: {0}")]
pub struct Unreadable(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    /// Null before anything was given out, and never absent.
    #[serde(rename = "PodDeviceEntries", deserialize_with = "Option::deserialize")]
    entries: Option<Vec<PodEntry>>,
}

#[derive(Deserialize)]
struct PodEntry {
    #[serde(rename = "PodUID")]
    pod: String,
    #[serde(rename = "ResourceName")]
    resource: String,
    #[serde(rename = "DeviceIDs")]
    ids: Option<Ids>,
}

/// By NUMA node since 1.20.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    ByNode(BTreeMap<String, Option<Vec<String>>>),
    Flat(Vec<String>),
}

impl Ids {
    fn all(self) -> Vec<String> {
        match self {
            Self::ByNode(nodes) => nodes.into_values().flatten().flatten().collect(),
            Self::Flat(ids) => ids,
        }
    }
}

/// Reads the file's content.
///
/// # Errors
/// Anything but such a file: a part of one says nothing about what is not in it.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, Unreadable> {
    let document: Document = serde_json::from_slice(bytes)?;
    let entries = document.data.entries.into_iter().flatten();
    let entries = entries.flat_map(|PodEntry { pod, resource, ids }| {
        let entry = move |id| Entry { pod: pod.clone(), resource: resource.clone(), id };
        ids.map(Ids::all).into_iter().flatten().map(entry)
    });
    Ok(entries.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(document: &Value) -> Result<Vec<Entry>, Unreadable> {
        parse(document.to_string().as_bytes())
    }

    fn entry(pod: &str, id: &str) -> Entry {
        Entry { pod: pod.to_owned(), resource: "nvidia.com/gpu".to_owned(), id: id.to_owned() }
    }

    #[test]
    fn devices_are_read_by_numa_node_and_as_a_flat_list() {
        let document = json!({
            "Data": {
                "PodDeviceEntries": [
                    { "PodUID": "u1", "ContainerName": "init", "ResourceName": "nvidia.com/gpu",
                      "DeviceIDs": { "-1": ["a"], "0": ["b", "c"], "1": null }, "AllocResp": "CgA=" },
                    { "PodUID": "u2", "ContainerName": "main", "ResourceName": "nvidia.com/gpu",
                      "DeviceIDs": ["d"], "AllocResp": null },
                    { "PodUID": "u3", "ContainerName": "main", "ResourceName": "nvidia.com/gpu",
                      "DeviceIDs": null },
                ],
                "RegisteredDevices": { "nvidia.com/gpu": ["a", "b"] },
            },
            "Checksum": 3_141_592_653_u64,
        });
        let expected = [entry("u1", "a"), entry("u1", "b"), entry("u1", "c"), entry("u2", "d")];
        assert_eq!(read(&document).unwrap(), expected);
        let empty = json!({ "Data": { "PodDeviceEntries": null, "RegisteredDevices": {} } });
        assert_eq!(read(&empty).unwrap(), []);
    }

    #[test]
    fn what_is_not_such_a_file_names_nothing_and_frees_nothing() {
        for document in [
            json!({}),
            json!({ "Data": {} , "Checksum": 1 }),
            json!({ "Data": { "PodDeviceEntries": {} } }),
            json!({ "Data": { "PodDeviceEntries": [{ "PodUID": "u" }] } }),
            json!({ "Data": { "PodDeviceEntries": [{ "PodUID": "u", "ResourceName": "r", "DeviceIDs": 1 }] } }),
        ] {
            assert!(read(&document).is_err(), "{document}");
        }
        assert!(parse(b"").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = parse(&bytes);
        }

        #[test]
        fn a_file_that_is_cut_short_is_not_read(cut in 0_usize..100) {
            let whole = json!({ "Data": { "PodDeviceEntries": [
                { "PodUID": "u", "ResourceName": "r", "DeviceIDs": { "0": ["a"] } },
            ] } }).to_string();
            prop_assume!(cut < whole.len());
            prop_assert!(parse(&whole.as_bytes()[..cut]).is_err());
        }
    }
}
