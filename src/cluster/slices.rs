//! The requests about ResourceSlices: those of one driver on one node.

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::{
    Api, ResourceExt,
    api::{
        DeleteParams, ListParams, ObjectList, PartialObjectMeta, PostParams, Preconditions,
        WatchEvent, WatchParams,
    },
};

use crate::cluster::{Cluster, Error, PublishSettings, answer, error::reason};

/// A running watch.
pub(super) type Events =
    BoxStream<'static, Result<WatchEvent<PartialObjectMeta<ResourceSlice>>, String>>;

/// A way to the slices of one driver on one node.
#[derive(Clone)]
pub(super) struct Slices {
    api: Api<ResourceSlice>,
    selector: String,
}

impl Slices {
    pub(super) fn new(cluster: &Cluster, settings: &PublishSettings) -> Self {
        let PublishSettings { driver, node } = settings;
        let selector = format!("spec.driver={driver},spec.nodeName={node}");
        Self { api: cluster.all(), selector }
    }

    /// All slices, not older than the last write.
    pub(super) async fn list(&self) -> Result<ObjectList<ResourceSlice>, Error> {
        let params = ListParams::default().fields(&self.selector);
        answer(|| "list ResourceSlices".to_owned(), self.api.list(&params)).await
    }

    /// Names and versions of the slices as they change, from a version on or, when that is empty, from
    /// all that there are.
    pub(super) async fn watch(&self, from: &str) -> Result<Events, Error> {
        let params = WatchParams::default().fields(&self.selector);
        let request = self.api.watch_metadata(&params, from);
        let events = answer(|| "watch ResourceSlices".to_owned(), request).await?;
        Ok(events.map(|event| event.map_err(|error| reason(&error))).boxed())
    }

    pub(super) async fn create(
        &self,
        slice: &ResourceSlice,
        dry: bool,
    ) -> Result<ResourceSlice, Error> {
        let params = PostParams { dry_run: dry, field_manager: None };
        let name = slice.metadata.generate_name.as_deref().unwrap_or_default();
        let dry = if dry { " (dry run)" } else { "" };
        answer(|| format!("create ResourceSlice `{name}…`{dry}"), self.api.create(&params, slice))
            .await
    }

    /// Writes over the version that `slice` was made from, and no other.
    pub(super) async fn update(&self, slice: &ResourceSlice) -> Result<ResourceSlice, Error> {
        let name = slice.name_any();
        let params = PostParams::default();
        let request = self.api.replace(&name, &params, slice);
        answer(|| format!("update ResourceSlice `{name}`"), request).await
    }

    /// Deletes just this version. That it is gone already is well.
    pub(super) async fn delete(&self, slice: &ResourceSlice) -> Result<(), Error> {
        let name = slice.name_any();
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: slice.metadata.uid.clone(),
            resource_version: slice.metadata.resource_version.clone(),
        });
        let request = self.api.delete(&name, &params);
        match answer(|| format!("delete ResourceSlice `{name}`"), request).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
