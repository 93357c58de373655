//! Taking over from NVIDIA's DRA driver: its claims become Kerf's, once, before the kubelet can ask.
//!
//! Every step can be repeated, so that an agent that is killed at any of them is followed by one that
//! goes on: a claim that has a record keeps it, a CDI file of the other driver is replaced as long as
//! it is there, and the checkpoint is renamed last.

use std::sync::Arc;

use super::{Driver, Error, now};
use crate::{
    model::{
        DRIVER,
        plan::Origin,
        record::{Record, State},
        takeover::{self, Checkpoint, Refusal, Site},
    },
    node::store::Predecessor,
};

impl Driver {
    /// Makes what NVIDIA's driver prepared ours, and says how many claims were new. `mig` says whose
    /// its MIG devices are. The GPUs were read, and nobody works on claims yet.
    ///
    /// # Errors
    /// A checkpoint that cannot be taken over as a whole, with nothing changed; or a file that cannot
    /// be written, and then the next start goes on.
    pub async fn take_over(
        self: &Arc<Self>,
        from: Predecessor,
        mig: Option<Origin>,
    ) -> Result<usize, Error> {
        self.off_thread(move |driver| {
            driver.acting()?;
            driver.adopt(&from, mig)
        })
        .await
    }

    fn adopt(&self, from: &Predecessor, mig: Option<Origin>) -> Result<usize, Error> {
        let refused = |reason| {
            let file = from.checkpoint().display().to_string();
            Error::Takeover { file, reason: Box::new(reason) }
        };
        let failed = |error: std::io::Error| refused(Refusal::Unreadable(error.to_string()));
        let Some(_lock) = from.lock().map_err(failed)? else { return Err(Error::PredecessorWorks) };
        let Some(file) = from.read_checkpoint().map_err(failed)? else { return Ok(0) };
        let records = Checkpoint::parse(&file).and_then(|kept| self.records_of(&kept, mig));
        let records = records.map_err(refused)?.into_iter();
        let new: Vec<_> =
            records.filter(|record| self.ledger.get(record.plan.holder.key()).is_none()).collect();
        let count = new.len();
        for record in new {
            self.ledger.save(record)?;
        }
        for uid in from.spec_uids()? {
            self.replace_spec(from, &uid)?;
        }
        from.set_aside()?;
        Ok(count)
    }

    fn records_of(&self, kept: &Checkpoint, mig: Option<Origin>) -> Result<Vec<Record>, Refusal> {
        let site = Site {
            driver: DRIVER,
            pool: &self.node,
            boot_id: &self.boot_id,
            now: &now(),
            inventory: &self.machine.inventory(),
            mig,
        };
        takeover::records(kept, &site)
    }

    /// Our CDI file in the place of the other driver's; none where that names what is not there.
    fn replace_spec(&self, from: &Predecessor, uid: &str) -> Result<(), Error> {
        let record = self.ledger.get(uid).filter(|record| record.boot_id == self.boot_id);
        let described = match &record {
            Some(Record { plan, state: State::Prepared { devices }, .. }) => {
                self.describe_all(plan, devices)?
            }
            _ => None,
        };
        match described {
            Some(devices) if !devices.is_empty() => {
                from.replace_spec(uid, &self.spec(uid, &devices)?)?;
            }
            _ => from.remove_spec(uid)?,
        }
        Ok(())
    }
}
