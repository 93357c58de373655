//! Reading a claim and a node.

use k8s_openapi::api::{core::v1::Node, resource::v1::ResourceClaim};

use crate::{
    cluster::{Cluster, Error, answer},
    model::claim::ClaimRef,
};

impl Cluster {
    /// Reads a claim, which has to be the one with this UID: its name may have been used again.
    pub async fn claim(&self, claim: &ClaimRef) -> Result<ResourceClaim, Error> {
        let what = || format!("get ResourceClaim `{claim}`");
        let claims = self.namespaced::<ResourceClaim>(&claim.namespace);
        let found = answer(what, claims.get(&claim.name)).await?;
        match found.metadata.uid.as_deref() {
            Some(uid) if uid == claim.uid => Ok(found),
            other => Err(Error::Replaced {
                what: what(),
                found: other.unwrap_or_default().to_owned(),
                asked: claim.uid.clone(),
            }),
        }
    }

    /// UID of a node, which changes when a node is deleted and registers again.
    pub async fn node_uid(&self, node: &str) -> Result<String, Error> {
        let what = || format!("get Node `{node}`");
        let found = answer(what, self.all::<Node>().get_metadata(node)).await?;
        let uid = found.metadata.uid;
        uid.ok_or_else(|| Error::Failed { what: what(), why: "it has no uid".to_owned() })
    }
}
