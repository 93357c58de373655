//! Who may work on what: one async lock a claim and one a GPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::model::gpu::GpuUuid;

/// A lock for each key, made when it is asked for.
#[derive(Debug, Default)]
pub(super) struct Locks {
    locks: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// A key's lock, held.
pub(super) type Guard = OwnedMutexGuard<()>;

impl Locks {
    /// Waits for its turn.
    pub(super) async fn lock(&self, key: &str) -> Guard {
        self.of(key).lock_owned().await
    }

    /// Does not wait.
    pub(super) fn try_lock(&self, key: &str) -> Option<Guard> {
        self.of(key).try_lock_owned().ok()
    }

    /// Waits for all of these GPUs, in the order of their UUIDs: the same for everybody, or they would
    /// wait for each other.
    pub(super) async fn lock_gpus(&self, gpus: &BTreeSet<GpuUuid>) -> Vec<Guard> {
        let mut guards = Vec::new();
        for gpu in gpus {
            guards.push(self.lock(&gpu.0).await);
        }
        guards
    }

    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(key.to_owned()).or_default().clone()
    }
}
