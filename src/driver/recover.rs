//! What a start, or a driver that comes back, finds: half-done work is undone, missing CDI files are
//! written again, orphans are removed.

use std::{collections::BTreeSet, sync::Arc};

use super::{Driver, Error, undo::made_on};
use crate::{
    metrics::Recovered,
    model::{
        cdi::ClaimDevice,
        device::Target,
        plan::{Plan, PlannedDevice},
        record::{PreparedDevice, Record, State},
    },
    node::store,
};

impl Driver {
    /// Brings records, machine and CDI files into line. Claims that are being worked on are left to
    /// that work; what fails is logged, and done when the kubelet next asks about the claim.
    pub async fn recover(self: &Arc<Self>) {
        self.read_again().await;
        for record in self.ledger.all() {
            if let Err(error) = self.catch_up(&record).await {
                tracing::warn!(holder = %record.plan.holder, %error, "not recovered yet");
            }
        }
        let orphans = self.off_thread(|driver| Ok(driver.remove_orphans()?)).await;
        if let Err(error) = orphans {
            tracing::warn!(%error, "orphaned CDI files not removed");
        }
    }

    pub(super) async fn recover_holder(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let key = record.plan.holder.key();
        let Some(turn) = self.claims.try_lock(key) else { return Ok(()) };
        let Some(record) = self.ledger.get(key) else { return Ok(()) };
        let gpus = made_on(&record);
        let guards = self.lock_gpus(&gpus).await;
        self.off_thread(move |driver| {
            let _held = (turn, guards);
            let _files = driver.lock_files(&gpus)?;
            match &record.state {
                _ if record.leftover => driver.undo(&record, &gpus).map(drop),
                State::Preparing => {
                    driver.undo(&record, &gpus)?;
                    driver.metrics.recovered(Recovered::Record);
                    Ok(())
                }
                State::Prepared { .. } if record.boot_id != driver.boot_id => Ok(()),
                State::Prepared { devices } => driver.restore_spec(&record, devices),
            }
        })
        .await
    }

    /// Destroys what had to wait for a reset, where there was one by now.
    pub async fn clear_leftovers(self: &Arc<Self>) {
        for record in self.ledger.all().iter().filter(|record| record.leftover) {
            let is_left = |driver: &Self| {
                let now = driver.ledger.get(record.plan.holder.key());
                now.is_some_and(|record| record.leftover)
            };
            if let Err(error) = self.try_let_go(&record.plan.holder, is_left).await {
                tracing::warn!(holder = %record.plan.holder, %error, "still left over");
            }
        }
    }

    /// Writes a missing CDI file again if all its devices are there.
    fn restore_spec(&self, record: &Record, devices: &[PreparedDevice]) -> Result<(), Error> {
        let holder = &record.plan.holder;
        if devices.iter().all(|device| device.cdi.is_empty()) || self.has_spec(holder)? {
            return Ok(());
        }
        match self.describe_all(&record.plan, devices)? {
            Some(described) => self.write_spec(holder, &described),
            None => Ok(()),
        }
    }

    /// What a CDI file says of a plan's devices; `None` if one that it should name is not there.
    pub(super) fn describe_all(
        &self,
        plan: &Plan,
        devices: &[PreparedDevice],
    ) -> Result<Option<Vec<ClaimDevice>>, Error> {
        let named = plan.devices.iter().zip(devices).filter(|(_, device)| !device.cdi.is_empty());
        named.map(|(planned, prepared)| self.describe(planned, prepared)).collect()
    }

    fn describe(
        &self,
        planned: &PlannedDevice,
        prepared: &PreparedDevice,
    ) -> Result<Option<ClaimDevice>, Error> {
        let inventory = self.machine.inventory();
        let Some(gpu) = inventory.gpu(planned.target.gpu()) else { return Ok(None) };
        let instance = match &planned.target {
            Target::Gpu { .. } => None,
            Target::Mig { profile, placement, .. } => {
                let instance = gpu.instance(*profile, *placement);
                let uuid = instance.and_then(|instance| Some(&instance.device()?.uuid));
                if uuid.is_none() || uuid != prepared.uuid.as_ref() {
                    return Ok(None);
                }
                instance
            }
        };
        let nodes = self.nodes(gpu, instance)?;
        Ok(Some(ClaimDevice { name: planned.device.clone(), nodes, env: Vec::new() }))
    }

    pub(super) fn remove_orphans(&self) -> Result<(), store::Error> {
        let store = self.ledger.store();
        let known: BTreeSet<String> =
            self.ledger.all().iter().map(|record| record.plan.holder.key().to_owned()).collect();
        let unread = |uid: &str| self.ledger.unread_of(uid).is_some();
        for uid in store.spec_uids()?.iter().filter(|uid| !known.contains(*uid)) {
            let turn = self.claims.try_lock(uid);
            if turn.is_some() && self.ledger.get(uid).is_none() && !unread(uid) {
                store.remove_spec(uid)?;
            }
        }
        Ok(())
    }
}
