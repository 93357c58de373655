//! What agents before this one kept: records, numbers of GPUs, health.

use std::time::Duration;

use tokio::time::sleep;

use super::agent::Ready;
use crate::{
    cluster::events::Events,
    model::{
        record::{self, Record},
        unread::Unread,
    },
    node::store::{self, Numbers, SetAside},
};

/// How soon a directory is read again that could not be read.
const AGAIN: Duration = Duration::from_secs(5);

/// What is there, as far as it can be read.
pub(super) struct Kept {
    pub(super) records: Vec<Record>,
    pub(super) unread: Vec<Unread>,
    pub(super) health: Option<store::Kept>,
    /// Of this boot.
    pub(super) numbers: Numbers,
}

impl Ready {
    /// Reads it. A directory that cannot be read is not an empty one: it is waited for.
    pub(super) async fn kept(&self, events: &Events) -> Kept {
        let mut said = None;
        loop {
            let error = match self.read_kept(events) {
                Ok(kept) => return kept,
                Err(error) => anyhow::Error::from(error),
            };
            let note = format!(
                "records cannot be read, and nothing is prepared or unprepared until they can: {error:#}; repair \
                 the file system"
            );
            if said.as_ref() != Some(&note) {
                tracing::error!("{note}");
                events.warn_node("RecordsUnreadable", &note);
                self.reporter.warn(vec![note.clone()]);
                said = Some(note);
            }
            sleep(AGAIN).await;
        }
    }

    fn read_kept(&self, events: &Events) -> Result<Kept, store::Error> {
        let (mut numbers, spoilt) = self.store.numbers()?;
        let (records, mut unread) = self.store.records()?;
        let mut aside: Vec<_> = spoilt.into_iter().collect();
        // In the first moments of a boot no record is of this boot, and nothing that was carved is there.
        let new_boot = !numbers.boot_id.is_empty()
            && numbers.boot_id != self.boot_id
            && records.iter().all(|record| record.boot_id != self.boot_id);
        if new_boot {
            for unread in unread.drain(..) {
                aside.push(self.store.set_aside(&unread)?);
            }
        }
        let (health, spoilt) = self.store.health()?;
        aside.extend(spoilt);
        for SetAside { path, reason } in aside {
            let note = format!("set aside `{}`, which cannot be read: {reason}", path.display());
            tracing::error!("{note}");
            events.warn_node("RecordUnreadable", &note);
        }
        for Unread { file, reason, .. } in &unread {
            let note =
                format!("record `{file}` cannot be read, so what it is about is held: {reason}");
            tracing::error!("{note}");
            events.warn_node("RecordUnreadable", &note);
        }
        if numbers.boot_id != self.boot_id {
            let gpus = record::numbers_in(&records, &self.boot_id);
            numbers = Numbers { boot_id: self.boot_id.clone(), gpus, described: Vec::new() };
            // From now on there may be records of this boot.
            self.store.save_numbers(&numbers)?;
        }
        Ok(Kept { records, unread, health, numbers })
    }
}
