//! What a ResourceClaim asks of this node.

use std::fmt;

use k8s_openapi::{
    api::resource::v1::{
        DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
        ResourceClaim, ResourceClaimStatus,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

use crate::model::{
    config::{self, Config, Configuration},
    holder::Holder,
};

/// A claim by its names. The UID is the key: a name may have been used before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a claim was given on this node by this driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Whose.
    pub holder: Holder,
    /// Names of the pods that a claim is reserved for.
    pub pods: Vec<String>,
    /// One for each result that is ours, in the claim's order.
    pub results: Vec<AllocationResult>,
    /// Those for this driver: of classes, then of the claim, so that a later one goes first.
    pub configurations: Vec<Configuration>,
}

/// A device that the scheduler chose for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationResult {
    /// `request`, or `request/subrequest`.
    pub request: String,
    /// Pool, which is the node's name.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// Whether it may be in use by others, and must then not be touched.
    pub admin_access: bool,
    /// Set when the device allows several allocations.
    pub share_id: Option<String>,
}

impl AllocationResult {
    /// The request without subrequest, as the kubelet wants it.
    pub fn base_request(&self) -> &str {
        self.request.split_once('/').map_or(self.request.as_str(), |(base, _)| base)
    }
}

/// Why a claim is not to be prepared here, whatever the node's devices are. Whoever is told knows which
/// claim was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An object that the API server cannot have sent.
    #[error("has no `metadata.{0}`")]
    Nameless(&'static str),
    /// Nothing was allocated, or it was deallocated since.
    #[error("not allocated; delete the pod so that it is scheduled again")]
    NotAllocated,
    /// On its way out, with nobody left to use it.
    #[error("being deleted and reserved for nobody; delete the pod and make the claim again")]
    Deleted,
    /// A device of another node.
    #[error(
        "device `{device}` is of pool `{pool}` and this node's pool is `{own}`; delete the pod so that it is \
         scheduled again"
    )]
    Pool {
        /// The device.
        device: String,
        /// Its pool.
        pool: String,
        /// Ours.
        own: String,
    },
    /// A source of configuration that DRA v1 does not have.
    #[error("opaque configuration has unknown source `{0}`; update Kerf")]
    Source(String),
    /// Parameters for this driver that are no configuration.
    #[error("opaque configuration{whose} {requests}: {error}")]
    Config {
        /// ` of the device class` where the claim's author cannot change it.
        whose: &'static str,
        /// For which requests.
        requests: String,
        /// What is wrong.
        error: Box<config::Error>,
    },
}

impl Allocation {
    /// Reads a claim's allocation for `driver` on the node whose pool is `pool`.
    ///
    /// Results and configuration of other drivers are ignored. A claim that is being deleted while
    /// pods have it reserved is read: they may need it again after a restart of the kubelet.
    pub fn of(claim: &ResourceClaim, driver: &str, pool: &str) -> Result<Self, Error> {
        let status = claim.status.as_ref().ok_or(Error::NotAllocated)?;
        let allocation = status.allocation.as_ref().ok_or(Error::NotAllocated)?;
        let unused = status.reserved_for.as_ref().is_none_or(Vec::is_empty);
        if claim.metadata.deletion_timestamp.is_some() && unused {
            return Err(Error::Deleted);
        }
        let none = DeviceAllocationResult::default();
        let devices = allocation.devices.as_ref().unwrap_or(&none);
        let results = devices.results.iter().flatten().filter(|result| result.driver == driver);
        Ok(Self {
            holder: ClaimRef::of(&claim.metadata)?.into(),
            pods: pods(status),
            results: results
                .map(|result| AllocationResult::of(result, pool))
                .collect::<Result<_, _>>()?,
            configurations: configurations(devices, driver)?,
        })
    }
}

impl ClaimRef {
    fn of(metadata: &ObjectMeta) -> Result<Self, Error> {
        let named = |field: &Option<String>, name| field.clone().ok_or(Error::Nameless(name));
        Ok(Self {
            namespace: named(&metadata.namespace, "namespace")?,
            name: named(&metadata.name, "name")?,
            uid: named(&metadata.uid, "uid")?,
        })
    }
}

impl AllocationResult {
    fn of(result: &DeviceRequestAllocationResult, own: &str) -> Result<Self, Error> {
        let (device, pool) = (result.device.clone(), result.pool.clone());
        if pool != own {
            return Err(Error::Pool { device, pool, own: own.to_owned() });
        }
        Ok(Self {
            request: result.request.clone(),
            pool,
            device,
            admin_access: result.admin_access.unwrap_or(false),
            share_id: result.share_id.clone(),
        })
    }
}

/// Names of the pods among those that a claim is reserved for.
fn pods(status: &ResourceClaimStatus) -> Vec<String> {
    let users = status.reserved_for.iter().flatten();
    let pods = users.filter(|user| {
        user.resource == "pods" && user.api_group.as_deref().unwrap_or_default().is_empty()
    });
    pods.map(|pod| pod.name.clone()).collect()
}

/// The configurations for a driver, in the order of precedence.
fn configurations(
    devices: &DeviceAllocationResult,
    driver: &str,
) -> Result<Vec<Configuration>, Error> {
    let (mut of_class, mut of_claim) = (Vec::new(), Vec::new());
    for configuration in devices.config.iter().flatten() {
        let Some(opaque) = &configuration.opaque else { continue };
        if opaque.driver != driver {
            continue;
        }
        let (list, whose) = match configuration.source.as_str() {
            "FromClass" => (&mut of_class, " of the device class"),
            "FromClaim" => (&mut of_claim, ""),
            other => return Err(Error::Source(other.to_owned())),
        };
        let config = Config::parse(&opaque.parameters.0).map_err(|error| {
            let requests = requests(configuration);
            Error::Config { whose, requests, error: Box::new(error) }
        })?;
        let requests = configuration.requests.clone().unwrap_or_default();
        list.push(Configuration { requests, config });
    }
    of_class.append(&mut of_claim);
    Ok(of_class)
}

/// Whom a configuration is for, in words.
fn requests(configuration: &DeviceAllocationConfiguration) -> String {
    match configuration.requests.as_deref().unwrap_or_default() {
        [] => "for all requests".to_owned(),
        [only] => format!("for request `{only}`"),
        several => format!("for requests `{}`", several.join("`, `")),
    }
}

#[cfg(test)]
mod tests;
