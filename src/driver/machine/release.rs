//! Letting one GPU go, so that an operator can reset it: a reset needs that nobody has it open.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{Machine, read::Reading};
use crate::{
    model::gpu::{GpuUuid, Unreadable},
    node::nvml::Nvml,
};

/// How long calls under way may take when a GPU is to be let go.
pub(in crate::driver) const LETTING_GO: Duration = Duration::from_secs(20);

/// The library, taken from all who would use it so that a GPU can be let go. Dropped, it is put back.
struct TakenLibrary<'m> {
    machine: &'m Machine,
    gpu: &'m GpuUuid,
    library: Weak<Nvml>,
    kept: bool,
}

impl<'m> TakenLibrary<'m> {
    fn take(machine: &'m Machine, gpu: &'m GpuUuid) -> Self {
        machine.released.write().unwrap_or_else(PoisonError::into_inner).insert(gpu.clone());
        let library = machine.nvml.write().unwrap_or_else(PoisonError::into_inner).take();
        let library = library.map(|library| Arc::downgrade(&library)).unwrap_or_default();
        Self { machine, gpu, library, kept: false }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for TakenLibrary<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.machine.released.write().unwrap_or_else(PoisonError::into_inner).remove(self.gpu);
        // Ended by now, it is loaded anew at the next look.
        if let Some(library) = self.library.upgrade() {
            let mut slot = self.machine.nvml.write().unwrap_or_else(PoisonError::into_inner);
            slot.get_or_insert(library);
        }
    }
}

impl Machine {
    /// Whether a GPU was let go.
    pub(in crate::driver) fn is_released(&self, uuid: &GpuUuid) -> bool {
        self.released.read().unwrap_or_else(PoisonError::into_inner).contains(uuid)
    }

    /// Lets a GPU go: no handle of it is left then, and none is taken until [`Machine::take_up`]. The
    /// caller holds the GPU's lock, or knows that nobody works on it.
    ///
    /// # Errors
    /// A call to NVML that does not come back keeps all GPUs open; the library is in use again then.
    pub(in crate::driver) async fn release(self: &Arc<Self>, uuid: &GpuUuid) -> Result<(), String> {
        let _turn = self.reading.lock().await;
        // Handles end with the library alone; the other GPUs are opened again at once.
        let taken = TakenLibrary::take(self, uuid);
        let freed = async {
            while taken.library.strong_count() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LETTING_GO, freed).await.map_err(|_| self.still_in_use())?;
        taken.keep();
        self.read_now().await;
        Ok(())
    }

    /// Why the library cannot be let go.
    pub(in crate::driver) fn still_in_use(&self) -> String {
        let slow = self.slower_than(Duration::ZERO);
        let call = slow.first().map(|call| format!(": {call}")).unwrap_or_default();
        format!("NVML is still in use after {} s{call}", LETTING_GO.as_secs())
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
