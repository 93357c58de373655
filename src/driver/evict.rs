//! Pods that the device plugin serves are moved by nobody else: their eviction, where the operator wants it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use super::Driver;
use crate::{
    cluster::evict::Eviction,
    metrics::Outcome,
    model::{
        holder::{Container, ContainerName},
        kubelet_checkpoint::Entry,
    },
};

/// How soon an eviction is tried again that a disruption budget did not allow.
const AGAIN: Duration = Duration::from_secs(5);

/// What a cluster runs on is not evicted, whatever GPU it has.
const SYSTEM: &str = "kube-system";

/// Why a pod is to leave.
struct Leaving {
    /// Its devices with faults, as the kubelet knows them.
    ids: BTreeSet<String>,
    why: String,
}

impl Driver {
    /// Evicts pods with devices of the device plugin from GPUs with faults that the operator has named. Runs
    /// for as long as it is polled.
    pub async fn evict_pods(self: &Arc<Self>) {
        let mut findings = self.watch_findings();
        let mut ledger = self.ledger_changes();
        loop {
            findings.mark_unchanged();
            ledger.mark_unchanged();
            let leaving = self.pods_to_evict();
            let owners = if leaving.is_empty() { Ok(Vec::new()) } else { self.pods.owners().await };
            let mut waiting = false;
            for ((namespace, pod), leaving) in leaving {
                waiting |= !self.evict(&namespace, &pod, &leaving, &owners).await;
            }
            tokio::select! {
                Ok(()) = findings.changed() => {}
                Ok(()) = ledger.changed() => {}
                () = sleep(AGAIN), if waiting => {}
            }
        }
    }

    /// Whether nothing is left to be tried: the pod ends or has ended, or is left alone.
    async fn evict(
        &self,
        namespace: &str,
        pod: &str,
        leaving: &Leaving,
        owners: &Result<Vec<Entry>, String>,
    ) -> bool {
        match self.try_evict(namespace, pod, leaving, owners).await {
            Ok(Eviction::Begun) => {
                self.metrics.evicted(Outcome::Ok);
                let note = format!("pod `{namespace}/{pod}` is evicted: {}", leaving.why);
                tracing::warn!("{note}");
                self.events.warn_node("PodEvicted", &note);
                true
            }
            Ok(Eviction::Gone) => true,
            Err(reason) => {
                self.metrics.evicted(Outcome::Refused);
                let note = format!("pod `{namespace}/{pod}` is not evicted yet: {reason}");
                tracing::warn!("{note}");
                self.events.warn_node("PodNotEvicted", &note);
                namespace == SYSTEM
            }
        }
    }

    /// The pod that was given the devices, and no other that has its name by now.
    async fn try_evict(
        &self,
        namespace: &str,
        pod: &str,
        Leaving { ids, .. }: &Leaving,
        owners: &Result<Vec<Entry>, String>,
    ) -> Result<Eviction, String> {
        if namespace == SYSTEM {
            return Err(format!("pods of {SYSTEM} are left alone; delete it yourself"));
        }
        let unknown = |why: &str| format!("which pod has its devices is not known: {why}");
        let owners = owners.as_ref().map_err(|error| unknown(error))?;
        let uids = owners.iter().filter(|owner| ids.contains(&owner.id));
        let uids: BTreeSet<String> = uids.map(|owner| owner.pod.clone()).collect();
        if uids.is_empty() {
            return Err(unknown("the kubelet's file names none"));
        }
        let evicted = self.cluster.evict(namespace, pod, &uids, &self.node).await;
        evicted.map_err(|error| error.to_string())
    }

    /// By namespace and name of the pods.
    fn pods_to_evict(&self) -> BTreeMap<(String, String), Leaving> {
        let findings = self.findings();
        let mut leaving = BTreeMap::new();
        for record in self.records() {
            let Some(Container { id, name: Some(name), .. }) = record.plan.holder.container()
            else {
                continue;
            };
            let Some(device) = record.plan.devices.first() else { continue };
            let mut worst = findings.of(&device.target);
            let Some(finding) = worst.find(|finding| self.health.evicted.because_of(finding))
            else {
                continue;
            };
            let why = format!("device `{}`: {}", device.device, finding.line());
            let ContainerName { namespace, pod, .. } = name.clone();
            let of_pod = leaving.entry((namespace, pod));
            let of_pod = of_pod.or_insert_with(|| Leaving { ids: BTreeSet::new(), why });
            of_pod.ids.insert(id.clone());
        }
        leaving
    }
}
