//! What there is to publish, made anew when the GPUs, the claims or the server change.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{Driver, machine::Library};
use crate::{
    cluster::publish::Desired,
    model::{
        gpu::Inventory,
        pool::{self, Features, PoolInput},
        record::Held,
    },
};

/// Preparing one claim changes things several times.
const SETTLE: Duration = Duration::from_millis(100);

impl Driver {
    /// Keeps `desired` up to date until nobody wants it any more. Nothing is desired before the GPUs
    /// were looked for.
    pub async fn describe_pool(
        self: Arc<Self>,
        mut features: watch::Receiver<Option<Features>>,
        desired: watch::Sender<Option<Arc<Desired>>>,
    ) {
        let mut machine = self.machine.watch();
        let mut ledger = self.ledger_changes();
        loop {
            let known = *features.borrow_and_update();
            ledger.mark_unchanged();
            let inventory = match &*machine.borrow_and_update() {
                Library::Loaded(inventory) => inventory.clone(),
                Library::Missing(_) => Arc::default(),
            };
            if let Some(features) = known {
                let before = desired.borrow().clone();
                let now = self.pool(&inventory, features, before.as_deref());
                desired.send_if_modified(|desired| {
                    let same = desired.as_deref() == Some(&now);
                    if !same {
                        *desired = Some(Arc::new(now));
                    }
                    !same
                });
            }
            let changed = tokio::select! {
                changed = features.changed() => changed,
                changed = machine.changed() => changed,
                changed = ledger.changed() => changed,
                () = desired.closed() => return,
            };
            if changed.is_err() {
                return;
            }
            sleep(SETTLE).await;
        }
    }

    fn pool(&self, inventory: &Inventory, features: Features, before: Option<&Desired>) -> Desired {
        let records = self.records();
        let held: Vec<Held<'_>> = records.iter().flat_map(|record| record.held()).collect();
        let input = PoolInput { node: &self.node, inventory, held: &held, features };
        let content = match before {
            Some(before) => pool::slices_after(&before.content, &input),
            None => pool::slices(&input),
        };
        Desired { features, content }
    }
}
