//! Letting one GPU go, so that an operator can reset it: a reset needs that nobody has it open.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{Machine, read::Reading};
use crate::model::gpu::{GpuUuid, Unreadable};

/// How long calls under way may take when a GPU is to be let go.
const LETTING_GO: Duration = Duration::from_secs(20);

impl Machine {
    /// Whether a GPU was let go.
    pub(in crate::driver) fn is_released(&self, uuid: &GpuUuid) -> bool {
        self.released.read().unwrap_or_else(PoisonError::into_inner).contains(uuid)
    }

    /// Lets a GPU go: no handle of it is left then, and none is taken until [`Machine::take_up`]. The
    /// caller holds the GPU's lock, or knows that nobody works on it.
    ///
    /// # Errors
    /// A call to NVML that does not come back keeps all GPUs open.
    pub(in crate::driver) async fn release(self: &Arc<Self>, uuid: &GpuUuid) -> Result<(), String> {
        let _turn = self.reading.lock().await;
        self.released.write().unwrap_or_else(PoisonError::into_inner).insert(uuid.clone());
        // Handles end with the library alone; the other GPUs are opened again at once.
        let old = self.nvml.write().unwrap_or_else(PoisonError::into_inner).take();
        let old = old.map(|old| Arc::downgrade(&old)).unwrap_or_default();
        let freed = async {
            while old.strong_count() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let freed = timeout(LETTING_GO, freed).await;
        let slow = self.slower_than(Duration::ZERO);
        *self.old.write().unwrap_or_else(PoisonError::into_inner) = old;
        if freed.is_err() {
            self.released.write().unwrap_or_else(PoisonError::into_inner).remove(uuid);
            let call = slow.first().map(|call| format!(": {call}")).unwrap_or_default();
            return Err(format!("NVML is still in use after {} s{call}", LETTING_GO.as_secs()));
        }
        self.read_now().await;
        Ok(())
    }

    /// Takes up a GPU that was let go.
    pub(in crate::driver) async fn take_up(self: &Arc<Self>, uuid: &GpuUuid) {
        self.released.write().unwrap_or_else(PoisonError::into_inner).remove(uuid);
        self.read().await;
    }
}

/// What is read of a GPU that was let go.
pub(super) fn reading(index: u32, uuid: Option<GpuUuid>) -> Reading {
    let reason = "released, so that it can be reset".to_owned();
    Reading::Failed(Unreadable::silent(index, uuid, reason))
}
