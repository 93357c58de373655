//! Records that cannot be read: what they may be about is withheld from everybody, and they are tried again.

use std::sync::Arc;

use super::{Driver, Error, Listed};
use crate::{
    model::{
        claim::Allocation,
        device,
        gpu::Inventory,
        holder::Holder,
        plan::{Reason, Refusal},
        record::Record,
        unread::{Told, Unread, Withheld},
    },
    node::store,
};

impl Driver {
    /// What is withheld because of records that cannot be read.
    pub fn withheld(&self) -> Vec<Withheld> {
        let unread = self.ledger.unread();
        if unread.is_empty() {
            return Vec::new();
        }
        let (inventory, numbers) = (self.machine.inventory(), self.machine.numbers());
        unread.iter().map(|unread| unread.withheld(&inventory, &numbers)).collect()
    }

    /// Nothing new is begun where a record that cannot be read may say that somebody holds something, nor
    /// for the holder of that record. What is only looked at with admin access is no matter.
    pub(super) fn refuse_withheld(
        &self,
        inventory: &Inventory,
        allocation: &Allocation,
    ) -> Result<(), Box<Refusal>> {
        let withheld = self.withheld();
        for result in allocation.results.iter().filter(|result| !result.admin_access) {
            let gpu =
                inventory.known().into_iter().find(|gpu| device::is_of(&result.device, gpu.number));
            let why = withheld.iter().find(|withheld| {
                withheld.holder().key() == allocation.holder.key()
                    || gpu.is_some_and(|gpu| withheld.concerns(&gpu.uuid))
            });
            if let Some(why) = why {
                let reason = Box::new(Reason::Withheld { why: why.to_string() });
                let (device, request) = (result.device.clone(), result.request.clone());
                return Err(Box::new(Refusal { device, request, reason }));
            }
        }
        Ok(())
    }

    /// Tries once more to read what could not be read, and does then what was asked meanwhile; asks others of
    /// what still cannot.
    pub async fn read_again(self: &Arc<Self>) {
        let unread = self.ledger.unread();
        if unread.is_empty() {
            return;
        }
        let listed = self.pods.list().await.ok();
        for unread in unread {
            let key = unread.holder.key();
            if let Err(error) = self.read_one_again(&unread, listed.as_ref()).await {
                tracing::warn!(key, error = %error.line(), "record that cannot be read");
            }
        }
    }

    async fn read_one_again(
        self: &Arc<Self>,
        unread: &Unread,
        listed: Option<&Listed>,
    ) -> Result<(), Error> {
        let Some(turn) = self.claims.try_lock(unread.holder.key()) else { return Ok(()) };
        let tried = unread.clone();
        let told = listed.and_then(|listed| {
            let claim = unread.holder.claim().filter(|_| unread.told.is_none())?;
            Told::by_kubelet(&claim.uid, &listed.cdi)
        });
        let read = self.off_thread(move |driver| {
            let _held = turn;
            Ok(driver.try_to_read(&tried, told)?)
        });
        let Some(found) = read.await? else { return Ok(()) };
        let note = match &found {
            Some(_) => format!("record `{}` can be read again", unread.file),
            None => format!("record `{}` is not there any more", unread.file),
        };
        tracing::info!("{note}");
        self.events.tell_node("RecordRead", &note);
        match found {
            Some(record) => self.catch_up(&record).await,
            // Its CDI file is an orphan now.
            None => self.off_thread(|driver| Ok(driver.remove_orphans()?)).await,
        }
    }

    /// What can be read now, or that it is gone; `None` if it still cannot be read.
    fn try_to_read(
        &self,
        unread: &Unread,
        told: Option<Told>,
    ) -> Result<Option<Option<Record>>, store::Error> {
        let key = unread.holder.key();
        let store = self.ledger.store();
        let found = match store.read_again(unread)? {
            Some(Err(reason)) => {
                let told = unread.told.clone().or(told);
                let now = Unread { reason, told, ..unread.clone() };
                if now != *unread {
                    self.ledger.learned(now);
                }
                return Ok(None);
            }
            Some(Ok(record)) => Some(record),
            None => {
                store.forget_let_go(&unread.holder)?;
                None
            }
        };
        self.ledger.resolve(key, found.clone());
        Ok(Some(found))
    }

    /// Does for a record that can be read what was asked while it could not, or what a start does.
    pub(super) async fn catch_up(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let holder = &record.plan.holder;
        if self.ledger.store().is_let_go(holder)? {
            self.let_go(holder).await?;
            return Ok(self.ledger.store().forget_let_go(holder)?);
        }
        self.recover_holder(record).await
    }

    /// Lets go of what a record says that cannot be read: that is for later, since what of it Kerf made is
    /// not known. Whether it was so.
    pub(super) fn let_go_later(&self, holder: &Holder) -> Result<bool, store::Error> {
        let Some(unread) = self.ledger.unread_of(holder.key()) else { return Ok(false) };
        self.ledger.store().note_let_go(&unread.holder)?;
        tracing::warn!(%holder, file = unread.file, "let go of once its record can be read");
        Ok(true)
    }
}
