//! Which optional fields of a ResourceSlice the API server keeps: asked, not read off its version.
//!
//! A server drops the fields of a disabled feature without a word. A dry run answers with the object as
//! it would be stored and so shows it; it has to be a POST under a fresh name, because a PUT over a slice
//! that already has a field keeps it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{
        Counter, CounterSet, Device, DeviceCounterConsumption, DeviceTaint, ResourcePool,
        ResourceSlice,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use crate::{
    cluster::{Cluster, Error, PublishSettings, answer, content::spec, slices::Slices},
    model::pool::{Features, SliceContent},
};

/// Asks which of [`Features`] the API server has. Nothing is stored.
///
/// From Kubernetes 1.35 on a slice with both counter sets and devices is invalid; before, one whose
/// devices draw from a counter set that is not in the slice.
pub async fn features(cluster: &Cluster, settings: &PublishSettings) -> Result<Features, Error> {
    let slices = Slices::new(cluster, settings);
    let together = slices.create(&canary(settings, vec![counter_set()]), true).await;
    let (kept, separate) = match together {
        Ok(kept) => (kept, false),
        Err(Error::Invalid { .. }) => {
            (slices.create(&canary(settings, Vec::new()), true).await?, true)
        }
        Err(error) => return Err(error),
    };
    let devices = kept.spec.devices.unwrap_or_default();
    let any = |has: fn(&Device) -> bool| devices.iter().any(has);
    let sets = separate || kept.spec.shared_counters.is_some_and(|sets| !sets.is_empty());
    Ok(Features {
        counters: sets && any(|device| filled(device.consumes_counters.as_ref())),
        taints: any(|device| filled(device.taints.as_ref())),
        separate_counter_slices: separate,
    })
}

/// Whether the API server has claims and slices (`resource.k8s.io/v1`, from Kubernetes 1.34 on).
pub async fn serves_dra(cluster: &Cluster) -> Result<bool, Error> {
    let what = || "list the API's groups".to_owned();
    let listed = answer(what, cluster.client.list_api_groups()).await?;
    let group = listed.groups.iter().find(|group| group.name == "resource.k8s.io");
    Ok(group.is_some_and(|group| group.versions.iter().any(|served| served.version == "v1")))
}

fn filled<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

const COUNTER: &str = "memory";
const SET: &str = "probe-counters";

fn counters() -> BTreeMap<String, Counter> {
    BTreeMap::from([(COUNTER.to_owned(), Counter { value: Quantity("1".to_owned()) })])
}

fn counter_set() -> CounterSet {
    CounterSet { name: SET.to_owned(), counters: counters() }
}

/// A slice with one device that has every field that is asked for.
fn canary(settings: &PublishSettings, shared_counters: Vec<CounterSet>) -> ResourceSlice {
    let PublishSettings { driver, node } = settings;
    let device = Device {
        name: "probe".to_owned(),
        consumes_counters: Some(vec![DeviceCounterConsumption {
            counter_set: SET.to_owned(),
            counters: counters(),
            ..DeviceCounterConsumption::default()
        }]),
        taints: Some(vec![DeviceTaint {
            key: format!("{driver}/probe"),
            effect: "NoSchedule".to_owned(),
            ..DeviceTaint::default()
        }]),
        ..Device::default()
    };
    let pool = ResourcePool { name: node.clone(), generation: 1, resource_slice_count: 1 };
    let content = SliceContent { devices: vec![device], shared_counters };
    ResourceSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("probe-{driver}-{node}-")),
            ..ObjectMeta::default()
        },
        spec: spec(settings, pool, &content, None),
    }
}
