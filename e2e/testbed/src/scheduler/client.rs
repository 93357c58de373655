//! Writes allocations and reservations to the API server, and takes them away.

use std::{collections::BTreeSet, fmt};

use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClass, ResourceClaim, ResourceClaimConsumerReference,
    ResourceClaimStatus, ResourceSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::sync::Mutex;

use crate::scheduler::{Allocated, Unschedulable, fit};

/// The scheduler and the claim controller of a cluster whose pods run on any node that has slices.
///
/// It acts when it is asked to, and allocates one claim at a time.
pub struct Scheduler {
    pub(super) client: Client,
    /// Held from reading what is allocated until the next allocation is written.
    turn: Mutex<()>,
}

/// The pod that a claim is reserved for.
#[derive(Clone, Copy, Debug)]
pub struct PodRef<'p> {
    /// `metadata.name`.
    pub name: &'p str,
    /// `metadata.uid`.
    pub uid: &'p str,
}

/// Why a claim was not allocated, made or released.
#[derive(Debug)]
pub enum Error {
    /// Nothing fits now.
    Unschedulable {
        /// Namespace and name.
        claim: String,
        /// Why.
        why: Unschedulable,
    },
    /// The API server refused.
    Api {
        /// What was done to which object.
        what: String,
        /// Its answer.
        why: Box<kube::Error>,
    },
    /// A pod that does not say which claim it wants.
    Pod {
        /// Its name.
        pod: String,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable { claim, why } => write!(f, "claim `{claim}`: {why}"),
            Self::Api { what, why } => write!(f, "{what}: {why}"),
            Self::Pod { pod, why } => write!(f, "pod `{pod}`: {why}"),
        }
    }
}

impl std::error::Error for Error {}

/// The API server's answer, or the error that says what it was asked.
pub(super) fn answer<T>(
    result: kube::Result<T>,
    what: impl FnOnce() -> String,
) -> Result<T, Error> {
    result.map_err(|why| Error::Api { what: what(), why: Box::new(why) })
}

impl Scheduler {
    /// Acts through this client.
    pub fn new(client: Client) -> Self {
        Self { client, turn: Mutex::new(()) }
    }

    /// Allocates a claim, unless it is allocated, and reserves it for the pod. Returns it as stored.
    pub async fn allocate(
        &self,
        namespace: &str,
        claim: &str,
        pod: PodRef<'_>,
    ) -> Result<ResourceClaim, Error> {
        let _turn = self.turn.lock().await;
        let claims = self.claims(namespace);
        loop {
            let mut found = answer(claims.get(claim).await, || {
                format!("get ResourceClaim `{namespace}/{claim}`")
            })?;
            let mut status = found.status.take().unwrap_or_default();
            if status.allocation.is_none() {
                status.allocation = Some(self.place(&found).await?);
            } else if reserved(&status).any(|reference| reference.uid == pod.uid) {
                found.status = Some(status);
                return Ok(found);
            }
            status.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: pod.name.to_owned(),
                uid: pod.uid.to_owned(),
            });
            found.status = Some(status);
            if let Some(stored) = self.write_status(&claims, &found).await? {
                return Ok(stored);
            }
        }
    }

    /// Takes the pod's reservation away; with the last one the allocation goes too, and a claim that
    /// was made for the pod goes with it, as the garbage collector sees to. A claim that is gone is no
    /// error.
    pub async fn release(
        &self,
        namespace: &str,
        claim: &str,
        pod: PodRef<'_>,
    ) -> Result<(), Error> {
        let claims = self.claims(namespace);
        loop {
            let found = answer(claims.get_opt(claim).await, || {
                format!("get ResourceClaim `{namespace}/{claim}`")
            })?;
            let Some(mut found) = found else { return Ok(()) };
            let mut status = found.status.take().unwrap_or_default();
            status
                .reserved_for
                .get_or_insert_default()
                .retain(|reference| reference.uid != pod.uid);
            if reserved(&status).next().is_none() {
                status = ResourceClaimStatus::default();
            }
            found.status = Some(status);
            if self.write_status(&claims, &found).await?.is_some() {
                return if is_owned(&found, pod.uid) {
                    self.delete(&claims, claim).await
                } else {
                    Ok(())
                };
            }
        }
    }

    /// Devices for a claim, on the first node that has them.
    async fn place(&self, claim: &ResourceClaim) -> Result<AllocationResult, Error> {
        let everything = ListParams::default();
        let slices: Api<ResourceSlice> = Api::all(self.client.clone());
        let slices =
            answer(slices.list(&everything).await, || "list ResourceSlices".to_owned())?.items;
        let classes: Api<DeviceClass> = Api::all(self.client.clone());
        let classes =
            answer(classes.list(&everything).await, || "list DeviceClasses".to_owned())?.items;
        let claims: Api<ResourceClaim> = Api::all(self.client.clone());
        let claims = answer(claims.list(&everything).await, || "list ResourceClaims".to_owned())?;

        let allocated = Allocated::of(&claims.items);
        let nodes: BTreeSet<_> =
            slices.iter().filter_map(|slice| slice.spec.node_name.as_deref()).collect();
        let mut why = Unschedulable("no node has a ResourceSlice".to_owned());
        for node in nodes {
            match fit(&slices, node, &allocated, claim, &classes) {
                Ok(allocation) => return Ok(allocation),
                Err(here) => why = here,
            }
        }
        Err(Error::Unschedulable { claim: label(claim), why })
    }

    /// The claim as stored, or nothing when it has changed since it was read.
    async fn write_status(
        &self,
        claims: &Api<ResourceClaim>,
        claim: &ResourceClaim,
    ) -> Result<Option<ResourceClaim>, Error> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        match claims.replace_status(name, &PostParams::default(), claim).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
            other => answer(other.map(Some), || {
                format!("write the status of ResourceClaim `{}`", label(claim))
            }),
        }
    }

    async fn delete(&self, claims: &Api<ResourceClaim>, claim: &str) -> Result<(), Error> {
        match claims.delete(claim, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => answer(other.map(drop), || format!("delete ResourceClaim `{claim}`")),
        }
    }

    pub(super) fn claims(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

fn reserved(status: &ResourceClaimStatus) -> impl Iterator<Item = &ResourceClaimConsumerReference> {
    status.reserved_for.iter().flatten()
}

/// Whether the claim was made for the pod with this UID.
pub(super) fn is_owned(claim: &ResourceClaim, pod: &str) -> bool {
    claim.metadata.owner_references.iter().flatten().any(|owner| owner.uid == pod)
}

fn label(claim: &ResourceClaim) -> String {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", claim.metadata.name.as_deref().unwrap_or_default())
}
