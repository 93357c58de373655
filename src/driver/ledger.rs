//! Who holds what on this node: the records, in memory as on disk.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    model::{holder::Holder, record::Record},
    node::store::{self, Store},
};

/// The records by the key of their holder. What is here is on disk: each change is written first.
#[derive(Debug)]
pub(super) struct Ledger {
    store: Store,
    records: Mutex<BTreeMap<String, Record>>,
    /// Bumped with each change.
    changed: watch::Sender<u64>,
}

impl Ledger {
    pub(super) fn new(store: Store, records: Vec<Record>) -> Self {
        let records =
            records.into_iter().map(|record| (record.plan.holder.key().to_owned(), record));
        Self { store, records: Mutex::new(records.collect()), changed: watch::Sender::new(0) }
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
