//! Tells claims what they have: `status.devices`, kept as the ledger and the GPUs' health are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::resource::v1::AllocatedDeviceStatus;
use tokio::time::sleep;

use super::Driver;
use crate::model::{DRIVER, claim::ClaimRef, claim_status};

/// Preparing one claim changes things several times.
const SETTLE: Duration = Duration::from_millis(100);

/// How soon a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl Driver {
    /// Keeps the status of claims up to date for as long as it is polled.
    pub async fn tell_claims_of_devices(self: &Arc<Self>) {
        let mut machine = self.machine.watch();
        let mut findings = self.watch_findings();
        let mut ledger = self.ledger_changes();
        let mut told: BTreeMap<ClaimRef, Vec<AllocatedDeviceStatus>> = BTreeMap::new();
        loop {
            machine.mark_unchanged();
            findings.mark_unchanged();
            ledger.mark_unchanged();
            let mut failed = false;
            for (claim, devices) in self.news_for_claims(&told) {
                match self.cluster.tell_claim(&claim, &devices).await {
                    Ok(()) if devices.is_empty() => drop(told.remove(&claim)),
                    Ok(()) => drop(told.insert(claim, devices)),
                    Err(error) => {
                        tracing::warn!(%claim, %error, "claim not told of its devices");
                        failed = true;
                    }
                }
            }
            tokio::select! {
                Ok(()) = machine.changed() => {}
                Ok(()) = findings.changed() => {}
                Ok(()) = ledger.changed() => {}
                () = sleep(AGAIN), if failed => {}
            }
            sleep(SETTLE).await;
        }
    }

    /// What claims have not been told yet; nothing is what those are told that hold nothing any more.
    fn news_for_claims(
        &self,
        told: &BTreeMap<ClaimRef, Vec<AllocatedDeviceStatus>>,
    ) -> BTreeMap<ClaimRef, Vec<AllocatedDeviceStatus>> {
        let inventory = self.machine.inventory();
        let findings = self.findings();
        let mut wanted: BTreeMap<ClaimRef, Vec<AllocatedDeviceStatus>> =
            told.keys().map(|claim| (claim.clone(), Vec::new())).collect();
        for record in self.records().iter().filter(|record| !record.leftover) {
            if let Some(claim) = record.plan.holder.claim() {
                let devices = claim_status::devices(DRIVER, record, &inventory, &findings);
                wanted.insert(claim.clone(), devices);
            }
        }
        let nothing = Vec::new();
        wanted.retain(|claim, devices| told.get(claim).unwrap_or(&nothing) != devices);
        wanted
    }
}
