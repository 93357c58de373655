//! Which records take the place of what NVIDIA's DRA driver kept: its claims become Kerf's.

mod checkpoint;
mod refusal;

use k8s_openapi::{
    api::resource::v1::ResourceClaim, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

pub use self::{
    checkpoint::{Checkpoint, KeptClaim, KeptDevice},
    refusal::{Reason, Refusal},
};
use crate::model::{
    cdi,
    claim::{Allocation, AllocationResult, ClaimRef},
    device::{Part, Target},
    gpu::Inventory,
    plan::{self, Origin, Plan, PlannedDevice},
    record::{self, PreparedDevice, Record, State},
};

/// Where the claims go on.
#[derive(Clone, Copy, Debug)]
pub struct Site<'s> {
    /// Driver name.
    pub driver: &'s str,
    /// Name of the node's pool.
    pub pool: &'s str,
    /// Identity of this boot.
    pub boot_id: &'s str,
    /// The time, RFC 3339.
    pub now: &'s str,
    /// The GPUs.
    pub inventory: &'s Inventory,
    /// Whose work MIG devices are: NVIDIA's driver makes them for their claims, and they are Kerf's
    /// to destroy then, or it finds them. Its file has the same of both.
    pub mig: Option<Origin>,
}

/// The records of a checkpoint's claims. Nothing is changed yet.
///
/// What was prepared is prepared; what had begun is Kerf's to undo, as after a crash of its own; what is
/// of an earlier boot is held, with nothing carved, until the kubelet asks.
pub fn records(checkpoint: &Checkpoint, site: &Site<'_>) -> Result<Vec<Record>, Refusal> {
    let boot_id = checkpoint.boot_id.as_deref().unwrap_or(site.boot_id);
    let record = |kept: &KeptClaim| {
        let record = site.record(kept, boot_id);
        record.map_err(|reason| Refusal::of(&kept.claim.clone().into(), reason))
    };
    let mut records = checkpoint.claims.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    check_apart(&records)?;
    spare_prepared(&mut records);
    Ok(records)
}

impl Site<'_> {
    fn record(&self, kept: &KeptClaim, boot_id: &str) -> Result<Record, Reason> {
        let allocation = Allocation::of(&object(kept), self.driver, self.pool)?;
        let this_boot = boot_id == self.boot_id;
        let mut devices = Vec::new();
        for result in &allocation.results {
            let planned = self.planned(&allocation, result, this_boot)?;
            plan::join(&mut devices, planned);
        }
        let state = match &kept.prepared {
            None => State::Preparing,
            Some(prepared) => {
                let devices = matched(&kept.claim, &devices, prepared, this_boot)?;
                State::Prepared { devices }
            }
        };
        Ok(Record {
            version: record::VERSION,
            boot_id: boot_id.to_owned(),
            since: self.now.to_owned(),
            plan: Plan { holder: kept.claim.clone().into(), pods: allocation.pods, devices },
            state,
            carving: None,
            leftover: false,
        })
    }

    fn planned(
        &self,
        allocation: &Allocation,
        result: &AllocationResult,
        this_boot: bool,
    ) -> Result<PlannedDevice, Reason> {
        if result.share_id.is_some() {
            return Err(Reason::Share(result.device.clone()));
        }
        let device = plan::allocated(self.inventory, allocation, result)?;
        let origin = match device.part {
            _ if result.admin_access => Origin::Observed,
            Part::Whole => Origin::Found,
            // With the boot it went, whoever made it.
            Part::Mig(..) if !this_boot => Origin::Made,
            Part::Mig(..) => self.mig.ok_or_else(|| Reason::Maker(result.device.clone()))?,
        };
        Ok(PlannedDevice::new(result, device.target(), origin))
    }
}

/// The claim as far as the API server would say the same.
fn object(kept: &KeptClaim) -> ResourceClaim {
    let ClaimRef { namespace, name, uid } = kept.claim.clone();
    ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(uid),
            ..ObjectMeta::default()
        },
        status: Some(kept.status.clone()),
        ..ResourceClaim::default()
    }
}

/// What the planned devices were prepared as. Names may mean other GPUs after a boot.
fn matched(
    claim: &ClaimRef,
    planned: &[PlannedDevice],
    kept: &[KeptDevice],
    this_boot: bool,
) -> Result<Vec<PreparedDevice>, Reason> {
    let stray = kept.iter().find(|kept| !planned.iter().any(|one| one.device == kept.device));
    if let Some(stray) = stray {
        return Err(Reason::Unmatched(stray.device.clone()));
    }
    let matched = planned.iter().map(|planned| {
        let device = &planned.device;
        let is_mig = matches!(planned.target, Target::Mig { .. });
        let same = |kept: &&KeptDevice| kept.device == *device && kept.mig.is_some() == is_mig;
        let kept = kept.iter().find(same).ok_or_else(|| Reason::Unmatched(device.clone()))?;
        let gpu = planned.target.gpu();
        if this_boot && kept.gpu != *gpu {
            let (was, is) = (kept.gpu.clone(), gpu.clone());
            return Err(Reason::OtherGpu { device: device.clone(), was, is });
        }
        let ours = cdi::qualified_name(&claim.uid, device);
        if kept.cdi != [ours.as_str()] {
            let told = kept.cdi.join("`, `");
            return Err(Reason::Cdi { device: device.clone(), told, ours });
        }
        let uuid = kept.mig.clone().unwrap_or_else(|| kept.gpu.0.clone());
        Ok(PreparedDevice { uuid: Some(uuid), cdi: kept.cdi.clone() })
    });
    matched.collect()
}

/// A device that two claims were given would be destroyed with the first of them.
fn check_apart(records: &[Record]) -> Result<(), Refusal> {
    let prepared = |record: &&Record| matches!(record.state, State::Prepared { .. });
    let mut before: Vec<record::Held<'_>> = Vec::new();
    for record in records.iter().filter(prepared) {
        for held in record.held() {
            if let Some(other) = before.iter().find(|other| other.target.overlaps(held.target)) {
                let (other, by) = (other.device.to_owned(), Box::new(other.by.clone()));
                let reason = Reason::Overlap { device: held.device.to_owned(), other, by };
                return Err(Refusal::of(held.by, reason));
            }
        }
        before.extend(record.held());
    }
    Ok(())
}

/// What lies where another claim was prepared is that claim's: to undo what had begun does not touch
/// it.
fn spare_prepared(records: &mut [Record]) {
    let prepared = |record: &&Record| matches!(record.state, State::Prepared { .. });
    let held = records.iter().filter(prepared).flat_map(Record::held);
    let held: Vec<Target> = held.map(|held| held.target.clone()).collect();
    for record in records.iter_mut().filter(|record| record.state == State::Preparing) {
        for device in &mut record.plan.devices {
            if device.origin == Origin::Made && held.iter().any(|t| t.overlaps(&device.target)) {
                device.origin = Origin::Found;
            }
        }
    }
}

#[cfg(test)]
mod tests;
