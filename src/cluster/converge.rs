//! Makes the slices on the server the wanted ones, once.
//!
//! No copy of a slice is kept: each pass reads them anew, so nothing that was written here is ever
//! taken for stale. Between passes their names and versions are all that is known.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::resource::v1::{ResourcePool, ResourceSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use tokio::time::Instant;

use crate::{
    cluster::{
        Cluster, Error, PublishSettings,
        check::check,
        content::{Likeness, compare, differences, spec},
        slices::Slices,
        sync::{Sync, Write, base_name, found, sync},
        watch::Known,
    },
    model::pool::SliceContent,
};

/// What a pass came to.
#[derive(Debug, PartialEq)]
pub(super) struct Done {
    /// Number of slices.
    pub(super) slices: usize,
    /// Generation of the pool.
    pub(super) generation: i64,
    /// When an order that had to wait may be written.
    pub(super) order_due: Option<Instant>,
}

/// Makes passes.
pub(super) struct Converger {
    cluster: Cluster,
    slices: Slices,
    settings: PublishSettings,
    /// The slices as this left them.
    pub(super) known: Known,
    /// By index, when a slice's order was last written.
    ordered: BTreeMap<usize, Instant>,
    /// By index, what the server made of content that it did not keep. Taken for what is wanted: else
    /// it would be written again for ever.
    altered: BTreeMap<usize, SliceContent>,
    /// What was altered and not yet asked for, a line each.
    complaints: Vec<String>,
}

impl Converger {
    pub(super) fn new(cluster: Cluster, settings: PublishSettings) -> Self {
        Self {
            slices: Slices::new(&cluster, &settings),
            cluster,
            settings,
            known: Known::default(),
            ordered: BTreeMap::new(),
            altered: BTreeMap::new(),
            complaints: Vec::new(),
        }
    }

    /// Has content that the server did not keep tried again.
    pub(super) fn forget_altered(&mut self) {
        self.altered.clear();
    }

    /// What the server did not keep since this was last asked, a line for each slice.
    pub(super) fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    /// The slices on the server, in the order of their indexes.
    pub(super) async fn found(&self) -> Result<Vec<SliceContent>, Error> {
        let list = self.slices.list().await?;
        Ok(found(list.items, &self.settings.node))
    }

    /// Writes what differs from `content`, and nothing if nothing does. Between two writes of a slice's
    /// order alone there is at least `rest`.
    pub(super) async fn converge(
        &mut self,
        content: &[SliceContent],
        rest: Duration,
    ) -> Result<Done, Error> {
        let nothing = [SliceContent { devices: Vec::new(), shared_counters: Vec::new() }];
        let content = if content.is_empty() { &nothing } else { content };
        let altered = std::mem::take(&mut self.altered);
        let kept = |(index, wanted)| altered.get(&index).unwrap_or(wanted);
        let wanted: Vec<_> = content.iter().enumerate().map(kept).collect();
        let done = self.pass(&wanted, rest).await;
        let newly = std::mem::replace(&mut self.altered, altered);
        self.altered.extend(newly);
        done
    }

    async fn pass(&mut self, wanted: &[&SliceContent], rest: Duration) -> Result<Done, Error> {
        let what = || format!("publish pool `{}`", self.settings.node);
        check(wanted).map_err(|why| Error::Invalid { what: what(), why })?;
        let list = self.slices.list().await?;
        self.known = Known::read(&list);
        self.ordered.retain(|_, written| written.elapsed() < rest);
        let resting = self.ordered.keys().copied().collect();
        let Sync { pool, writes, waiting } =
            sync(&list.items, wanted, &self.settings.node, &resting);
        let creates = writes.iter().any(|write| matches!(write, Write::Create { .. }));
        let owner = if creates { Some(self.owner().await?) } else { None };
        for write in writes {
            self.write(write, &pool, wanted, owner.as_ref()).await?;
        }
        let written = waiting.iter().filter_map(|index| self.ordered.get(index));
        let order_due = written.min().map(|first| *first + rest);
        Ok(Done { slices: wanted.len(), generation: pool.generation, order_due })
    }

    async fn write(
        &mut self,
        write: Write<'_>,
        pool: &ResourcePool,
        wanted: &[&SliceContent],
        owner: Option<&OwnerReference>,
    ) -> Result<(), Error> {
        let (index, found, order_only) = match write {
            Write::Delete(slice) => return self.delete(slice).await,
            Write::Update { index, found, order_only } => (index, Some(found), order_only),
            Write::Create { index } => (index, None, false),
        };
        let metadata = match found {
            Some(found) => ObjectMeta { managed_fields: None, ..found.metadata.clone() },
            None => self.new_metadata(index, owner.cloned()),
        };
        let spec = spec(&self.settings, pool.clone(), wanted[index], found);
        let slice = ResourceSlice { metadata, spec };
        let stored = match found {
            Some(_) => self.slices.update(&slice).await?,
            None => self.slices.create(&slice, false).await?,
        };
        self.known.wrote(&stored);
        if order_only {
            self.ordered.insert(index, Instant::now());
        }
        self.compare(index, stored, wanted[index]);
        Ok(())
    }

    async fn delete(&mut self, slice: &ResourceSlice) -> Result<(), Error> {
        self.slices.delete(slice).await?;
        self.known.forget(slice.metadata.name.as_deref().unwrap_or_default());
        Ok(())
    }

    /// Notes what the server did not keep.
    fn compare(&mut self, index: usize, stored: ResourceSlice, wanted: &SliceContent) {
        if compare(&stored.spec, wanted) == Likeness::Same {
            return;
        }
        let fields = differences(&stored.spec, wanted).join(", ");
        let name = stored.metadata.name.unwrap_or_default();
        self.complaints
            .push(format!("ResourceSlice `{name}`: the API server did not keep {fields}"));
        let content = SliceContent {
            devices: stored.spec.devices.unwrap_or_default(),
            shared_counters: stored.spec.shared_counters.unwrap_or_default(),
        };
        self.altered.insert(index, content);
    }

    fn new_metadata(&self, index: usize, owner: Option<OwnerReference>) -> ObjectMeta {
        let PublishSettings { driver, node } = &self.settings;
        ObjectMeta {
            generate_name: Some(base_name(index, driver, node)),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// The node, with whose object the slices are to go. Asked before every creation, because a node
    /// that registers anew has another UID, and slices that name the old one are collected as garbage.
    async fn owner(&self) -> Result<OwnerReference, Error> {
        let name = self.settings.node.clone();
        let uid = self.cluster.node_uid(&name).await?;
        Ok(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name,
            uid,
            controller: Some(true),
            block_owner_deletion: None,
        })
    }
}
