//! Reading a claim and a node.

use k8s_openapi::api::{core::v1::Node, resource::v1::ResourceClaim};

use kube::core::{Status, response::StatusDetails};
use tokio::time::timeout;

use crate::{
    cluster::{Cluster, Error, PATIENCE, answer},
    model::{abandoned::Answer, claim::ClaimRef},
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

    /// Whether a claim still exists, as far as the server says so in so many words. A 404 of a proxy, of a group
    /// that is not served or of a namespace is no word about this claim.
    pub async fn claim_exists(&self, claim: &ClaimRef) -> Answer {
        let claims = self.namespaced::<ResourceClaim>(&claim.namespace);
        match timeout(PATIENCE, claims.get_metadata(&claim.name)).await {
            Ok(Ok(found)) => match found.metadata.uid {
                Some(uid) if uid == claim.uid => Answer::There,
                Some(uid) if !uid.is_empty() => Answer::Gone,
                _ => Answer::Unknown,
            },
            Ok(Err(kube::Error::Api(status))) if is_word_of_absence(&status, &claim.name) => {
                Answer::Gone
            }
            _ => Answer::Unknown,
        }
    }

    /// UID of a node, which changes when a node is deleted and registers again.
    pub async fn node_uid(&self, node: &str) -> Result<String, Error> {
        let what = || format!("get Node `{node}`");
        let found = answer(what, self.all::<Node>().get_metadata(node)).await?;
        let uid = found.metadata.uid;
        uid.ok_or_else(|| Error::Failed { what: what(), why: "it has no uid".to_owned() })
    }

    /// UID of a node whose kubelet names claims in its pod resources: since 1.34. Of an older one's list a claim
    /// is absent whether or not it is there.
    pub async fn node_uid_if_claims_are_listed(&self, node: &str) -> Option<String> {
        let found = timeout(PATIENCE, self.all::<Node>().get(node)).await.ok()?.ok()?;
        let version = found.status?.node_info?.kubelet_version;
        lists_claims(&version).then_some(found.metadata.uid?)
    }
}

/// Whether a server of claims says that there is none of this name.
fn is_word_of_absence(status: &Status, name: &str) -> bool {
    let of_claim = |details: &StatusDetails| {
        details.name == name
            && details.group == "resource.k8s.io"
            && details.kind == "resourceclaims"
    };
    status.code == 404
        && status.reason == "NotFound"
        && status.details.as_ref().is_some_and(of_claim)
}

/// Of a version such as `v1.34.2`.
fn lists_claims(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split('.');
    let mut next = || parts.next()?.parse::<u32>().ok();
    matches!((next(), next()), (Some(1), Some(34..)) | (Some(2..), _))
}

#[cfg(test)]
mod tests {
    use super::lists_claims;

    #[test]
    fn kubelets_list_claims_since_1_34() {
        for (version, lists) in [
            ("v1.34.0", true),
            ("v1.37.2-gke.1", true),
            ("v2.0.0", true),
            ("v1.33.9", false),
            ("", false),
            ("v1.x", false),
        ] {
            assert_eq!(lists_claims(version), lists, "{version}");
        }
    }
}
