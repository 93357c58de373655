//! Evicting pods, through the API that honours disruption budgets.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::Eviction as Request},
    apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions, Status},
};
use kube::{Api, api::PostParams};

use crate::cluster::{Cluster, Error, answer};

/// What became of a pod that was to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// It ends.
    Begun,
    /// It is not on the node any more, or ends already.
    Gone,
}

impl Cluster {
    /// Evicts the pod of this name from a node, if it has one of these UIDs: one of its name that has another, or
    /// is on another node, is another pod.
    ///
    /// # Errors
    /// A disruption budget that does not allow it now, or a server that does not answer.
    pub async fn evict(
        &self,
        namespace: &str,
        name: &str,
        uids: &BTreeSet<String>,
        node: &str,
    ) -> Result<Eviction, Error> {
        let pods = self.namespaced::<Pod>(namespace);
        let what = || format!("get Pod `{namespace}/{name}`");
        let pod = match answer(what, pods.get(name)).await {
            Err(Error::NotFound { .. }) => return Ok(Eviction::Gone),
            found => found?,
        };
        let runs_on = pod.spec.and_then(|spec| spec.node_name);
        let uid = pod.metadata.uid.filter(|uid| uids.contains(uid));
        let is_it = runs_on.as_deref() == Some(node) && pod.metadata.deletion_timestamp.is_none();
        let Some(uid) = uid.filter(|_| is_it) else { return Ok(Eviction::Gone) };
        let eviction = eviction(namespace, name, uid);
        let what = || format!("evict Pod `{namespace}/{name}`");
        // A budget that does not allow it is told as too many requests, to be tried again in 10 s. kube's own
        // call leaves out what makes sure that it is this pod.
        let pods = Api::<Pod>::namespaced(self.once.clone(), namespace);
        let params = PostParams::default();
        let evicted = pods.create_subresource::<_, Status>("eviction", name, &params, &eviction);
        match answer(what, evicted).await {
            Ok(_) => Ok(Eviction::Begun),
            Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(Eviction::Gone),
            Err(error) => Err(error),
        }
    }
}

/// Of the pod with this UID, and of no other that has its name by then.
fn eviction(namespace: &str, name: &str, uid: String) -> Request {
    let this = Preconditions { uid: Some(uid), ..Preconditions::default() };
    Request {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            preconditions: Some(this),
            ..DeleteOptions::default()
        }),
    }
}

#[cfg(test)]
mod tests;
