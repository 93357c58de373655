//! The ResourceSlices that an agent would publish, as manifests.

use k8s_openapi::{
    api::resource::v1::{ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::model::{
    DRIVER,
    gpu::Inventory,
    pool::{self, Features, PoolInput, SliceContent},
    record::Held,
};

/// The slices for a cluster that keeps every field.
pub(super) fn slices(node: &str, inventory: &Inventory, held: &[Held<'_>]) -> Vec<ResourceSlice> {
    let content =
        pool::slices(&PoolInput { held, ..PoolInput::of(node, inventory, Features::ALL) });
    let pool = ResourcePool {
        name: node.to_owned(),
        generation: 1,
        resource_slice_count: i64::try_from(content.len()).unwrap_or(i64::MAX),
    };
    let numbered = content.into_iter().enumerate();
    numbered.map(|(index, content)| slice(node, index, pool.clone(), content)).collect()
}

fn slice(node: &str, index: usize, pool: ResourcePool, content: SliceContent) -> ResourceSlice {
    let SliceContent { devices, shared_counters } = content;
    ResourceSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{node}-{DRIVER}-{index}-")),
            ..ObjectMeta::default()
        },
        spec: ResourceSliceSpec {
            driver: DRIVER.to_owned(),
            node_name: Some(node.to_owned()),
            pool,
            devices: Some(devices).filter(|devices| !devices.is_empty()),
            shared_counters: Some(shared_counters).filter(|counters| !counters.is_empty()),
            ..ResourceSliceSpec::default()
        },
    }
}
