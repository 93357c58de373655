//! Health of the node's GPUs: what is seen goes in, what is found goes to all who act on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
};

use super::Driver;
use crate::model::{
    gpu::{Gpu, GpuUuid},
    health::{Evicted, Finding, Findings, Health, Readings, Severity, Sign},
    record::Record,
};
use crate::{
    metrics::Recovered,
    node::{kernel_log::Entry, store::Kept},
};

/// What watching over health is given to work with.
pub struct HealthParts {
    /// What is known from before.
    pub health: Health,
    /// From what pods are moved.
    pub evicted: Evicted,
    /// Where the kernel's log is; not read if absent.
    pub kernel_log: Option<PathBuf>,
    /// How far an earlier agent of this boot has read it: by time, and by number where it wrote that.
    pub log_read: (Duration, Option<u64>),
}

/// What is known of the GPUs' health.
pub(super) struct Watch {
    state: Mutex<State>,
    /// One writer at a time, so that the last to write knows the most.
    saving: Mutex<()>,
    findings: watch::Sender<Arc<Findings>>,
    pub(super) evicted: Evicted,
    pub(super) kernel_log: Option<PathBuf>,
    /// Sources of signs that do not work, and why.
    deaf: Mutex<BTreeMap<&'static str, String>>,
    /// GPUs that are to be read soon.
    ask: mpsc::UnboundedSender<GpuUuid>,
    pub(super) asked: tokio::sync::Mutex<mpsc::UnboundedReceiver<GpuUuid>>,
}

struct State {
    health: Health,
    kept: Kept,
    /// Whether `kept` is on disk, or on its way there.
    is_saved: bool,
}

impl Watch {
    pub(super) fn new(parts: HealthParts, boot_id: &str) -> Self {
        let HealthParts { health, evicted, kernel_log, log_read } = parts;
        let findings = watch::Sender::new(Arc::new(health.findings()));
        let (log_read, log_sequence) = log_read;
        let kept = Kept { health: health.save(boot_id), log_read, log_sequence };
        let (ask, asked) = mpsc::unbounded_channel();
        Self {
            state: Mutex::new(State { health, kept, is_saved: true }),
            saving: Mutex::default(),
            findings,
            evicted,
            kernel_log,
            deaf: Mutex::default(),
            ask,
            asked: tokio::sync::Mutex::new(asked),
        }
    }

    pub(super) fn findings(&self) -> Arc<Findings> {
        self.findings.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Findings>> {
        self.findings.subscribe()
    }

    /// When something happens to what is known by time alone.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.state().health.due()
    }

    /// Notes that a source of signs does not work, or that it works again.
    pub(super) fn hears(&self, source: &'static str, problem: Option<&str>) {
        let mut deaf = self.deaf();
        match problem {
            Some(problem) => deaf.insert(source, problem.to_owned()),
            None => deaf.remove(source),
        };
    }

    fn deaf(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    /// What is wrong with the GPUs now.
    pub fn findings(&self) -> Arc<Findings> {
        self.health.findings()
    }

    /// What is wrong with the GPUs, as it changes.
    pub fn watch_findings(&self) -> watch::Receiver<Arc<Findings>> {
        self.health.watch()
    }

    /// The sources of signs that do not work, one line each.
    pub fn deaf(&self) -> Vec<String> {
        let deaf = self.health.deaf();
        deaf.iter().map(|(source, problem)| format!("{source}: {problem}")).collect()
    }

    /// Takes in a sign that NVML reported.
    pub(super) fn sense(&self, gpu: &Gpu, sign: &Sign) {
        self.sense_at(gpu, sign, Timestamp::now(), None);
    }

    /// Takes in a sign of the kernel's log, unless an agent has before.
    pub(super) fn sense_logged(&self, gpu: &Gpu, sign: &Sign, entry: &Entry, at: Timestamp) {
        if !self.has_read(entry) {
            self.sense_at(gpu, sign, at, Some(entry));
        }
    }

    /// Whether a record of the kernel's log was taken in before.
    pub(super) fn has_read(&self, entry: &Entry) -> bool {
        self.health.state().kept.has_read(entry)
    }

    /// `entry` is there for a sign of the log.
    fn sense_at(&self, gpu: &Gpu, sign: &Sign, at: Timestamp, entry: Option<&Entry>) {
        tracing::info!(gpu = gpu.index, ?sign, "sign");
        let (mut again, mut faults) = (false, 0);
        let sense = |health: &mut Health| {
            let before = health.faults(&gpu.uuid);
            again = health.sign(gpu, sign, at).read_again;
            faults = health.faults(&gpu.uuid) - before;
        };
        self.change_kept(sense, entry);
        // Most come by two ways, and some a thousand times.
        if let Sign::Xid { code, .. } = sign
            && faults > 0
        {
            self.metrics.xid(gpu.index, &gpu.uuid, *code);
            self.note_xid(&gpu.uuid, *code, at);
        }
        if again {
            // Whoever reads has ended only when the agent has.
            let _ = self.health.ask.send(gpu.uuid.clone());
        }
    }

    /// Takes in what a GPU was read to be.
    pub(super) fn diagnose(&self, gpu: &GpuUuid, readings: &Readings) {
        self.change_health(|health| health.reading(gpu, readings, Timestamp::now()));
    }

    /// Changes what is known, keeps it for a next agent, and tells of what it led to.
    pub(super) fn change_health(&self, change: impl FnOnce(&mut Health)) {
        self.change_kept(change, None);
    }

    /// `entry` is the record of the kernel's log that leads to the change, if one does.
    pub(super) fn change_kept(&self, change: impl FnOnce(&mut Health), entry: Option<&Entry>) {
        let mut state = self.health.state();
        change(&mut state.health);
        let now = state.health.findings();
        let mut kept = Kept { health: state.health.save(&self.boot_id), ..state.kept.clone() };
        if let Some(entry) = entry {
            kept.note_read(entry);
        }
        if entry.is_some() || kept.health.is_news(&state.kept.health) {
            state.kept = kept;
            state.is_saved = false;
        }
        let is_saved = state.is_saved;
        let before = self.findings();
        if now != *before {
            self.health.findings.send_replace(Arc::new(now.clone()));
            self.tell_of_health(&before, &now);
        }
        drop(state);
        if !is_saved {
            // A disk that hangs stops neither probes nor whoever reads what is known.
            block_in_place(|| self.save_health());
        }
    }

    /// Writes what is known last; what could not be written is tried again with the next change.
    fn save_health(&self) {
        let _turn = self.health.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let mut state = self.health.state();
            if state.is_saved {
                return;
            }
            state.is_saved = true;
            state.kept.clone()
        };
        if let Err(error) = self.ledger.store().save_health(&kept) {
            tracing::error!(%error, "health of GPUs not kept");
            self.health.state().is_saved = false;
        }
    }

    /// Events of what is new and of what has ended.
    fn tell_of_health(&self, before: &Findings, now: &Findings) {
        let gpus: BTreeSet<&GpuUuid> = before.0.keys().chain(now.0.keys()).collect();
        let records = self.records();
        for gpu in gpus {
            let name = self.gpu_name(gpu);
            let (old, new) = (before.of_gpu(gpu), now.of_gpu(gpu));
            for finding in new.iter().filter(|finding| !old.iter().any(|old| same(old, finding))) {
                let note = format!("{name}: {}", finding.line());
                tracing::warn!("{note}");
                self.events.warn_node(reason(finding.severity), &note);
                self.tell_claims(&records, gpu, finding);
            }
            if new.is_empty() {
                self.metrics.recovered(Recovered::Gpu);
                let ended: Vec<_> = old.iter().map(|old| old.reason.as_str()).collect();
                let over = if ended.len() == 1 { "is over" } else { "are over" };
                let note = format!("{name} is healthy again: {} {over}", ended.join(", "));
                tracing::info!("{note}");
                self.events.tell_node("GpuHealthy", &note);
            }
        }
    }

    fn tell_claims(&self, records: &[Record], gpu: &GpuUuid, finding: &Finding) {
        for record in records.iter().filter(|record| !record.leftover) {
            let Some(claim) = record.plan.holder.claim() else { continue };
            let devices =
                record.plan.devices.iter().filter(|device| {
                    device.target.gpu() == gpu && finding.concerns(&device.target)
                });
            for device in devices {
                let note = format!("device `{}`: {}", device.device, finding.line());
                self.events.warn_claim(claim, reason(finding.severity), &note);
            }
        }
    }

    /// As people know a GPU.
    pub(super) fn gpu_name(&self, gpu: &GpuUuid) -> String {
        match self.machine.index(gpu) {
            Some(index) => format!("GPU {index} ({gpu})"),
            None => format!("GPU {gpu}"),
        }
    }
}

/// Whether it is the finding of before, though perhaps in other words.
fn same(old: &Finding, new: &Finding) -> bool {
    old.reason == new.reason && old.extent == new.extent && old.severity >= new.severity
}

fn reason(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "GpuWarning",
        Severity::Unhealthy => "GpuUnhealthy",
    }
}
