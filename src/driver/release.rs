//! Orders for single GPUs: one is let go for a reset and taken up again, or called well by a person.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::jiff::Timestamp;

use tokio::time::timeout;

use super::{Driver, Error, machine::LETTING_GO};
use crate::model::gpu::GpuUuid;

impl Driver {
    /// Lets go of a GPU, by NVML's index or UUID, until [`Driver::take_up_gpu`].
    ///
    /// # Errors
    /// No such GPU; one that is held; calls on it that do not come back. Nothing has changed then.
    pub async fn release_gpu(self: &Arc<Self>, which: &str) -> Result<GpuUuid, Error> {
        let uuid = self.find_gpu(which)?;
        let refused = |reason: String| Error::Order { gpu: self.gpu_name(&uuid), reason };
        let gpus = BTreeSet::from([uuid.clone()]);
        if let Some(call) = self.machine.hung().first() {
            return Err(refused(format!("cannot be released: NVML is in use: {call}")));
        }
        let locks = timeout(LETTING_GO, self.lock_gpus(&gpus)).await;
        let _guard = locks.map_err(|_| refused(self.machine.still_in_use()))?;
        if self.machine.is_released(&uuid) {
            return Err(refused("it is released already".to_owned()));
        }
        let held = self
            .ledger
            .all()
            .into_iter()
            .filter(|record| !record.leftover)
            .find(|record| record.held().any(|held| *held.target.gpu() == uuid));
        if let Some(record) = held {
            return Err(refused(format!(
                "cannot be released: {} holds it; delete its pods first",
                record.plan.holder
            )));
        }
        if let Some(why) = self.withheld().iter().find(|withheld| withheld.concerns(&uuid)) {
            return Err(refused(format!("cannot be released: {why}")));
        }
        self.machine.release(&uuid).await.map_err(refused)?;
        tracing::info!(%uuid, "released");
        Ok(uuid)
    }

    /// Takes up a GPU that was let go, as one that was reset.
    pub async fn take_up_gpu(self: &Arc<Self>, uuid: &GpuUuid) {
        self.machine.take_up(uuid).await;
        tracing::info!(%uuid, "taken up again");
        self.change_health(|health| health.reset(uuid, Timestamp::now()));
        self.clear_leftovers().await;
        self.read_health_of(uuid).await;
    }

    /// Forgets what is wrong with a GPU: a person says that it is well. What its readings show is found again.
    ///
    /// # Errors
    /// No such GPU.
    pub async fn clear_gpu(self: &Arc<Self>, which: &str) -> Result<GpuUuid, Error> {
        let uuid = self.find_gpu(which)?;
        tracing::info!(%uuid, "cleared by hand");
        self.change_health(|health| health.cleared(&uuid, Timestamp::now()));
        self.read_health_of(&uuid).await;
        Ok(uuid)
    }

    fn find_gpu(&self, which: &str) -> Result<GpuUuid, Error> {
        let inventory = self.machine.inventory();
        let index = which.parse::<u32>().ok();
        let answering = inventory.gpus.iter().map(|gpu| (gpu.index, Some(&gpu.uuid)));
        let silent = inventory.unreadable.iter().map(|gpu| (gpu.index, gpu.uuid.as_ref()));
        let named = |(at, uuid): &(u32, Option<&GpuUuid>)| {
            Some(*at) == index || uuid.is_some_and(|uuid| uuid.0 == which)
        };
        match answering.chain(silent).find(named) {
            Some((_, Some(uuid))) => Ok(uuid.clone()),
            Some((_, None)) => Err(Error::Order {
                gpu: format!("GPU {which}"),
                reason: "it has never said its UUID, so it is not in use".to_owned(),
            }),
            None => Err(Error::Order {
                gpu: format!("GPU `{which}`"),
                reason: "there is none; `kerf inventory` lists indices and UUIDs".to_owned(),
            }),
        }
    }
}
