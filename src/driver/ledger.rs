//! Who holds what on this node: the records, in memory as on disk.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    model::{holder::Holder, record::Record, unread::Unread},
    node::store::{self, Store},
};

/// The records by the key of their holder. What is here is on disk: each change is written first.
#[derive(Debug)]
pub(super) struct Ledger {
    store: Store,
    records: Mutex<BTreeMap<String, Record>>,
    /// Records on disk that cannot be read, by the same keys. No holder is in both.
    unread: Mutex<BTreeMap<String, Unread>>,
    /// Bumped with each change.
    changed: watch::Sender<u64>,
}

impl Ledger {
    pub(super) fn new(store: Store, records: Vec<Record>, unread: Vec<Unread>) -> Self {
        let records =
            records.into_iter().map(|record| (record.plan.holder.key().to_owned(), record));
        let unread = unread.into_iter().map(|unread| (unread.holder.key().to_owned(), unread));
        Self {
            store,
            records: Mutex::new(records.collect()),
            unread: Mutex::new(unread.collect()),
            changed: watch::Sender::new(0),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn get(&self, key: &str) -> Option<Record> {
        self.lock().get(key).cloned()
    }

    pub(super) fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// All records but the one of this holder.
    pub(super) fn others(&self, key: &str) -> Vec<Record> {
        self.lock().values().filter(|record| record.plan.holder.key() != key).cloned().collect()
    }

    /// Writes a record, then counts it. What was left over stays so until it is forgotten, whatever work that
    /// hung meanwhile comes to.
    pub(super) fn save(&self, mut record: Record) -> Result<(), store::Error> {
        record.leftover |= self.get(record.plan.holder.key()).is_some_and(|known| known.leftover);
        self.store.save(&record)?;
        self.lock().insert(record.plan.holder.key().to_owned(), record);
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Removes a record; one that is not there is no error.
    pub(super) fn forget(&self, holder: &Holder) -> Result<(), store::Error> {
        self.store.forget(holder)?;
        self.lock().remove(holder.key());
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// The records that cannot be read.
    pub(super) fn unread(&self) -> Vec<Unread> {
        self.lock_unread().values().cloned().collect()
    }

    /// The record of this holder, if it cannot be read.
    pub(super) fn unread_of(&self, key: &str) -> Option<Unread> {
        self.lock_unread().get(key).cloned()
    }

    /// Notes what was learned of a record that cannot be read.
    pub(super) fn learned(&self, unread: Unread) {
        if let Some(known) = self.lock_unread().get_mut(unread.holder.key()) {
            *known = unread;
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// Counts a record that could be read at last; `None` for one that is not there any more.
    pub(super) fn resolve(&self, key: &str, record: Option<Record>) {
        if let Some(record) = record {
            self.lock().insert(key.to_owned(), record);
        }
        self.lock_unread().remove(key);
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock_unread(&self) -> MutexGuard<'_, BTreeMap<String, Unread>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
