//! What there is to publish, made anew when the GPUs, the claims or the server change.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{Driver, machine::Library};
use crate::{
    cluster::publish::{Desired, Server},
    model::{
        gpu::{Gpu, Inventory},
        plugin::offer,
        pool::{self, Features, PoolInput, SliceContent},
        record::{Held, Record},
        unread::Withheld,
    },
};

/// Preparing one claim changes things several times.
const SETTLE: Duration = Duration::from_millis(100);

impl Driver {
    /// Keeps `desired` up to date until nobody wants it any more. Nothing is desired before the GPUs
    /// were looked for.
    pub async fn describe_pool(
        self: Arc<Self>,
        mut server: watch::Receiver<Option<Server>>,
        desired: watch::Sender<Option<Arc<Desired>>>,
    ) {
        let mut machine = self.machine.watch();
        let mut ledger = self.ledger_changes();
        let mut health = self.health.watch();
        loop {
            let known = server.borrow_and_update().clone();
            ledger.mark_unchanged();
            health.mark_unchanged();
            let inventory = match &*machine.borrow_and_update() {
                Library::Loaded(inventory) => inventory.clone(),
                Library::Missing(_) => Arc::default(),
            };
            if let Some(server) = known {
                let before = desired.borrow().clone();
                let before = before.as_deref().map_or(&server.found, |before| &before.content);
                let now = self.pool(&inventory, server.features, before);
                desired.send_if_modified(|desired| {
                    let same = desired.as_deref() == Some(&now);
                    if !same {
                        *desired = Some(Arc::new(now));
                    }
                    !same
                });
            }
            let changed = tokio::select! {
                changed = server.changed() => changed,
                changed = machine.changed() => changed,
                changed = ledger.changed() => changed,
                changed = health.changed() => changed,
                () = desired.closed() => return,
            };
            if changed.is_err() {
                return;
            }
            sleep(SETTLE).await;
        }
    }

    /// The inventory without the GPUs that are for the device plugin.
    fn for_claims(&self, inventory: &Inventory) -> Inventory {
        let mut inventory = inventory.clone();
        if let Some(split) = &self.split {
            let ours = |gpu: &Gpu| !offer::is_in_split(Some(split), gpu);
            inventory.gpus.retain(ours);
            inventory.unreadable.retain(|gpu| gpu.known.as_deref().is_none_or(ours));
        }
        inventory
    }

    fn pool(&self, inventory: &Inventory, features: Features, before: &[SliceContent]) -> Desired {
        let records = self.records();
        let (by_claims, by_containers): (Vec<_>, Vec<_>) =
            records.iter().partition(|record| record.plan.holder.claim().is_some());
        let withheld = &self.withheld();
        let unread = withheld.iter().filter(|withheld| withheld.holder().claim().is_some());
        let held = by_claims.into_iter().flat_map(Record::held);
        let held: Vec<Held<'_>> = held.chain(unread.flat_map(Withheld::held)).collect();
        let left =
            records.iter().filter(|record| record.leftover && record.plan.holder.claim().is_some());
        let taken: Vec<Held<'_>> =
            by_containers.into_iter().chain(left).flat_map(Record::held).collect();
        let inventory = &self.for_claims(inventory);
        let findings = &self.health.findings();
        let evicted = &self.health.evicted;
        let node = &self.node;
        let input = PoolInput {
            node,
            inventory,
            held: &held,
            taken: &taken,
            withheld,
            findings,
            evicted,
            features,
        };
        Desired { features, content: pool::slices_after(before, &input) }
    }
}
