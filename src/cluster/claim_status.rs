//! A claim's `status.devices`: our own entries, and nothing else.

use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{
    cluster::{Cluster, Error, answer},
    model::claim::ClaimRef,
};

/// Who owns the entries, as server-side apply knows it.
const MANAGER: &str = "kerf";

impl Cluster {
    /// Makes these the entries of the claim that are ours; none takes them away. A claim that is gone
    /// needs none.
    ///
    /// # Errors
    /// A server that refuses or does not answer.
    pub async fn tell_claim(
        &self,
        claim: &ClaimRef,
        devices: &[AllocatedDeviceStatus],
    ) -> Result<(), Error> {
        let what = || format!("patch status of ResourceClaim `{claim}`");
        let claims = self.namespaced::<ResourceClaim>(&claim.namespace);
        let applied = json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            // Another claim of the same name is not meant.
            "metadata": { "name": claim.name, "namespace": claim.namespace, "uid": claim.uid },
            "status": { "devices": devices },
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&applied);
        let patched = claims.patch_status(&claim.name, &params, &patch);
        match answer(what, patched).await {
            Ok(_) | Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
