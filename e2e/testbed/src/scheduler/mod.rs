//! Stands in for the scheduler and the claim controller: which devices a claim is given.

mod cel;
mod claims;
mod client;
mod fit;
mod pools;
mod requests;
#[cfg(test)]
mod tests;

use std::fmt;

use k8s_openapi::api::resource::v1::ResourceClaim;

pub use client::{Error, PodRef, Scheduler};
pub use fit::fit;

/// Why a claim cannot be allocated now: one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable(pub String);

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unschedulable {}

/// A device that a claim was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Driver.
    pub driver: String,
    /// Pool.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// Whether for admin access, which keeps it from nobody.
    pub admin: bool,
}

impl Allocated {
    /// What claims were given, in their order.
    pub fn of<'c>(claims: impl IntoIterator<Item = &'c ResourceClaim>) -> Vec<Self> {
        let allocations =
            claims.into_iter().filter_map(|claim| claim.status.as_ref()?.allocation.as_ref());
        let results = allocations
            .filter_map(|allocation| allocation.devices.as_ref()?.results.as_ref())
            .flatten();
        let given = results.map(|result| Self {
            driver: result.driver.clone(),
            pool: result.pool.clone(),
            device: result.device.clone(),
            admin: result.admin_access.unwrap_or(false),
        });
        given.collect()
    }

    fn key(&self) -> (&str, &str, &str) {
        (&self.driver, &self.pool, &self.device)
    }

    fn is(&self, driver: &str, pool: &str, device: &str) -> bool {
        self.key() == (driver, pool, device)
    }
}
