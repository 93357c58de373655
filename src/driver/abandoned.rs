//! Lets go of claims that no longer exist, whose kubelet has lost its state.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{Driver, Error, Listed};
use crate::{
    cluster::Cluster,
    model::{
        abandoned::{Round, Rounds},
        claim::ClaimRef,
        device::Target,
        holder::Holder,
        plan::Origin,
        record::Record,
    },
};

/// How often is asked.
const ROUND: Duration = Duration::from_mins(1);

impl Driver {
    /// Lets go of claims that no longer exist. Runs for as long as it is polled.
    pub async fn release_abandoned(self: &Arc<Self>) {
        let mut rounds = Rounds::default();
        loop {
            sleep(ROUND).await;
            let records = self.ledger.all();
            let claims: Vec<&ClaimRef> = records
                .iter()
                .filter(|record| !record.leftover)
                .filter_map(|record| record.plan.holder.claim())
                .collect();
            if claims.is_empty() {
                continue;
            }
            let listed = self.pods.list().await.ok();
            let round = ask(&self.cluster, &self.node, &claims, listed.as_ref()).await;
            let now = self.began.elapsed();
            for uid in rounds.add(&round, now) {
                if !rounds.may_let_go(now) {
                    break;
                }
                let Some(record) = self.ledger.get(&uid) else { continue };
                if self.release_claim(&record).await {
                    rounds.let_go(&uid, now);
                }
            }
        }
    }

    /// Whether it was tried: not while a process may be on its GPUs.
    async fn release_claim(self: &Arc<Self>, record: &Record) -> bool {
        let Holder::Claim(claim) = &record.plan.holder else { return false };
        let of = record.clone();
        match self.off_thread(move |driver| driver.is_idle(&of)).await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                let error = error.line();
                tracing::debug!(%claim, error, "gone, and held: it is not known who uses its GPUs");
                return false;
            }
        }
        let note =
            "the claim no longer exists and the kubelet does not name it: its devices are released";
        tracing::warn!(%claim, "{note}");
        self.events.warn_claim(claim, "ClaimAbandoned", note);
        if let Err(error) = self.unprepare(claim).await {
            tracing::warn!(%claim, error = %error.line(), "not released yet");
        }
        true
    }

    /// Whether no process computes on the devices of a record, by NVML's own word. Of an instance that Kerf made it
    /// says so when it is destroyed; of others by a list of processes, which is empty where this process is in a
    /// PID namespace of its own.
    fn is_idle(&self, record: &Record) -> Result<bool, Error> {
        let nvml = self.machine.nvml()?;
        let inventory = self.machine.inventory();
        let listed = record.plan.devices.iter().filter(|device| {
            let made = device.origin == Origin::Made && matches!(device.target, Target::Mig { .. });
            !made && device.origin != Origin::Observed
        });
        for device in listed {
            if !in_host_pid_namespace() {
                return Ok(false);
            }
            let gpu = inventory.gpu(device.target.gpu()).ok_or_else(|| Error::Device {
                device: device.device.clone(),
                reason: "its GPU does not answer".to_owned(),
            })?;
            if !nvml.processes(gpu)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The kernel's number of the namespace that all others are in (`PROC_PID_INIT_INO`).
const HOST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

fn in_host_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|found| found.ino() == HOST_PID_NAMESPACE)
}

/// Asks for the claims, and then whether it is still the same cluster that answers.
async fn ask(
    cluster: &Cluster,
    node: &str,
    claims: &[&ClaimRef],
    listed: Option<&Listed>,
) -> Round {
    let mut answers = BTreeMap::new();
    for claim in claims {
        answers.insert(claim.uid.clone(), cluster.claim_exists(claim).await);
    }
    let named = |claim: &&&ClaimRef| {
        let key = (claim.namespace.clone(), claim.name.clone());
        listed.is_some_and(|listed| listed.claims.contains_key(&key))
    };
    Round {
        node: cluster.node_uid_if_claims_are_listed(node).await,
        kubelet: listed.map(|listed| listed.run),
        listed: claims.iter().filter(named).map(|claim| claim.uid.clone()).collect(),
        claims: answers,
    }
}
