//! The claims of pods, as the kubelet's DRA manager keeps them: shared claims are prepared once,
//! given back with their last pod, and prepared again after a restart.

use std::collections::BTreeSet;

use kerf::model::claim::ClaimRef;

use super::state::{Device, HeldClaim, State};
use super::{Kubelet, calls};

impl Kubelet {
    /// What happens before a pod's sandbox is made: one call for those claims that are not prepared
    /// yet. Returns the devices of all of them.
    ///
    /// # Errors
    /// The first failure, in the order of the claims; all that were sent are sent again next time.
    pub async fn prepare_pod(
        &self,
        driver: &str,
        pod: &str,
        claims: &[ClaimRef],
    ) -> Result<Vec<Device>, String> {
        if self.shared.state.borrow().plugin(driver).is_none() {
            return Err(format!("DRA driver {driver} is not registered"));
        }
        self.hold(driver, pod, claims)?;
        let missing: Vec<ClaimRef> = {
            let state = self.shared.state.borrow();
            claims.iter().filter(|claim| !prepared(&state, claim)).cloned().collect()
        };
        if !missing.is_empty() {
            let results = self.prepare(driver, &missing).await;
            self.keep(&missing, results)?;
        }
        let state = self.shared.state.borrow();
        let held = claims.iter().filter_map(|claim| state.claims.get(&claim.to_string()));
        Ok(held.flat_map(|held| held.devices.clone()).collect())
    }

    /// What happens when a pod has ended: one call for those claims that no other pod uses.
    ///
    /// # Errors
    /// The first failure; the pod holds its claims until a later call succeeds.
    pub async fn unprepare_pod(&self, driver: &str, pod: &str) -> Result<(), String> {
        let last = self.release(driver, pod);
        if last.is_empty() {
            return Ok(());
        }
        let mut results = self.unprepare(driver, &last).await;
        for claim in &last {
            results.remove(&claim.uid).unwrap_or(Ok(()))?;
        }
        self.shared.state.send_modify(|state| {
            last.iter().for_each(|claim| drop(state.claims.remove(&claim.to_string())))
        });
        Ok(())
    }

    fn hold(&self, driver: &str, pod: &str, claims: &[ClaimRef]) -> Result<(), String> {
        let mut refusal = Ok(());
        self.shared.state.send_modify(|state| {
            refusal = claims.iter().try_for_each(|claim| stale(state, claim));
            if refusal.is_ok() {
                claims.iter().for_each(|claim| add_pod(state, driver, pod, claim));
            }
        });
        refusal
    }

    fn keep(
        &self,
        sent: &[ClaimRef],
        mut results: calls::Results<Vec<Device>>,
    ) -> Result<(), String> {
        let answer = |claim: &ClaimRef| results.remove(&claim.uid).unwrap_or(Ok(vec![]));
        let devices = sent.iter().map(answer).collect::<Result<Vec<_>, _>>()?;
        let append = self.shared.options.release < 37;
        self.shared.state.send_modify(|state| {
            for (claim, devices) in sent.iter().zip(devices) {
                let Some(held) = state.claims.get_mut(&claim.to_string()) else { continue };
                if !append {
                    held.devices.clear();
                }
                held.devices.extend(devices);
                held.prepared = true;
            }
        });
        Ok(())
    }

    /// Takes the pod off shared claims, and returns those that it alone holds.
    fn release(&self, driver: &str, pod: &str) -> Vec<ClaimRef> {
        let mut last = vec![];
        self.shared.state.send_modify(|state| {
            let held = state
                .claims
                .values_mut()
                .filter(|held| held.driver == driver && held.pods.contains(pod));
            for held in held {
                if held.pods.len() == 1 {
                    last.push(held.claim.clone());
                } else {
                    held.pods.remove(pod);
                }
            }
        });
        last
    }
}

fn prepared(state: &State, claim: &ClaimRef) -> bool {
    state.claims.get(&claim.to_string()).is_some_and(|held| held.prepared)
}

fn stale(state: &State, claim: &ClaimRef) -> Result<(), String> {
    match state.claims.get(&claim.to_string()) {
        Some(HeldClaim { claim: ClaimRef { name, uid, .. }, .. }) if *uid != claim.uid => {
            Err(format!(
                "old ResourceClaim with same name {name} and different UID {uid} still exists (previous pod force-deleted?!)"
            ))
        }
        _ => Ok(()),
    }
}

fn add_pod(state: &mut State, driver: &str, pod: &str, claim: &ClaimRef) {
    let held = state.claims.entry(claim.to_string()).or_insert_with(|| HeldClaim {
        claim: claim.clone(),
        driver: driver.to_owned(),
        pods: BTreeSet::new(),
        prepared: false,
        devices: vec![],
    });
    held.pods.insert(pod.to_owned());
}
