//! Pods that the device plugin serves are moved by nobody else: their eviction, where the operator wants it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::Driver;
use crate::{cluster::evict::Eviction, metrics::Outcome, model::holder::ContainerName};

/// How soon an eviction is tried again that a disruption budget did not allow.
const AGAIN: Duration = Duration::from_secs(5);

impl Driver {
    /// Evicts pods with devices of the device plugin from GPUs with faults that the operator has named. Runs
    /// for as long as it is polled.
    pub async fn evict_pods(self: &Arc<Self>) {
        let mut findings = self.watch_findings();
        let mut ledger = self.ledger_changes();
        loop {
            findings.mark_unchanged();
            ledger.mark_unchanged();
            let mut waiting = false;
            for ((namespace, pod), why) in self.pods_to_evict() {
                waiting |= !self.evict(&namespace, &pod, &why).await;
            }
            tokio::select! {
                Ok(()) = findings.changed() => {}
                Ok(()) = ledger.changed() => {}
                () = sleep(AGAIN), if waiting => {}
            }
        }
    }

    /// Whether the pod ends or has ended.
    async fn evict(&self, namespace: &str, pod: &str, why: &str) -> bool {
        match self.cluster.evict(namespace, pod, &self.node).await {
            Ok(Eviction::Begun) => {
                self.metrics.evicted(Outcome::Ok);
                let note = format!("pod `{namespace}/{pod}` is evicted: {why}");
                tracing::warn!("{note}");
                self.events.warn_node("PodEvicted", &note);
                true
            }
            Ok(Eviction::Gone) => true,
            Err(error) => {
                self.metrics.evicted(Outcome::Refused);
                let note = format!("pod `{namespace}/{pod}` is not evicted yet: {error}");
                tracing::warn!("{note}");
                self.events.warn_node("PodNotEvicted", &note);
                false
            }
        }
    }

    /// Namespace and name of the pods, and why.
    fn pods_to_evict(&self) -> BTreeMap<(String, String), String> {
        let findings = self.findings();
        let records = self.records();
        let of_containers = records.iter().filter_map(|record| {
            let ContainerName { namespace, pod, .. } =
                record.plan.holder.container()?.name.clone()?;
            let device = record.plan.devices.first()?;
            let mut worst = findings.of(&device.target);
            let finding = worst.find(|finding| self.health.evicted.because_of(finding))?;
            Some(((namespace, pod), format!("device `{}`: {}", device.device, finding.line())))
        });
        of_containers.collect()
    }
}
