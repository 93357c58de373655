//! Which devices a container is given, before its plugin is told.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use kerf::proto::device_plugin::{ContainerPreferredAllocationRequest, PreferredAllocationRequest};

use super::Devices;
use super::book::Endpoint;
use super::state::PodRef;
use crate::kubelet::calls;
use crate::kubelet::state::State;

/// A container that asks for devices of one resource.
pub(super) struct Want<'a> {
    pub(super) pod: &'a PodRef,
    pub(super) container: &'a str,
    pub(super) resource: &'a str,
    pub(super) count: usize,
}

impl Devices {
    /// Marks free, healthy devices as allocated and returns them; none when the container needs no
    /// more than it has.
    pub(super) async fn pick(&self, want: &Want<'_>) -> Result<BTreeSet<String>, String> {
        let mut available = BTreeSet::new();
        let mut found = Ok(());
        self.change(|_, state| {
            found = self.available(state, want).map(|devices| available = devices);
        });
        found?;
        if available.is_empty() {
            return Ok(available);
        }
        let again = reusable(&self.shared.state.borrow(), want);
        if again.len() >= want.count {
            return Ok(again.into_iter().take(want.count).collect());
        }
        let preferred = self.preferred(want, &available).await?;
        let (first, rest): (Vec<_>, Vec<_>) =
            shuffled(available).into_iter().partition(|device| preferred.contains(device));
        let picked = again.into_iter().chain(first).chain(rest);
        let mut seen = BTreeSet::new();
        let picked: BTreeSet<_> =
            picked.filter(|id| seen.insert(id.clone())).take(want.count).collect();
        self.change(|_, state| {
            if let Some(resource) = state.resources.get_mut(want.resource) {
                resource.allocated.extend(picked.iter().cloned());
            }
        });
        Ok(picked)
    }

    /// Those to choose from; none when there is nothing to choose.
    fn available(&self, state: &State, want: &Want<'_>) -> Result<BTreeSet<String>, String> {
        let Want { resource: name, count, .. } = want;
        let has = held(state, want);
        if let Some(has) = has.as_ref().filter(|has| has.len() != *count) {
            return Err(format!(
                "pod {:?} container {:?} changed request for resource {name:?} from {} to {count}",
                want.pod.uid,
                want.container,
                has.len()
            ));
        }
        // It runs, so it has its devices: the plugin may come back later.
        if self.ran.contains(&(want.pod.uid.clone(), want.container.to_owned())) {
            return Ok(BTreeSet::new());
        }
        let registered = state.resources.get(*name).filter(|resource| resource.registered);
        let resource = registered.ok_or(format!("cannot allocate unregistered device {name}"))?;
        let healthy = resource.healthy();
        if healthy.is_empty() {
            return Err(format!(
                "no healthy devices present; cannot allocate unhealthy devices {name}"
            ));
        }
        let has = has.unwrap_or_default();
        if !has.is_subset(&healthy) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {name}"
            ));
        }
        let needed = count - has.len();
        let free = &healthy - &resource.allocated;
        let available = &free | &reusable(state, want);
        if available.len() < needed {
            return Err(format!(
                "requested number of devices unavailable for {name}. Requested: {needed}, Available: {}",
                available.len()
            ));
        }
        Ok(if needed == 0 { BTreeSet::new() } else { available })
    }

    /// What the plugin would choose; whatever else it names is ignored.
    async fn preferred(
        &self,
        want: &Want<'_>,
        available: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, String> {
        let endpoint = self.endpoint(want.resource).ok_or_else(|| {
            format!("endpoint not found in cache for a registered resource: {}", want.resource)
        })?;
        if !endpoint.options.get_preferred_allocation_available {
            return Ok(BTreeSet::new());
        }
        ask(&endpoint, want, available).await.map_err(|why| {
            format!("device plugin GetPreferredAllocation rpc failed with err: {why}")
        })
    }

    /// Where calls for a resource go.
    pub(super) fn endpoint(&self, resource: &str) -> Option<Endpoint> {
        self.book().as_ref().and_then(|book| book.endpoint(resource)).cloned()
    }
}

async fn ask(
    endpoint: &Endpoint,
    want: &Want<'_>,
    available: &BTreeSet<String>,
) -> Result<BTreeSet<String>, String> {
    let request = ContainerPreferredAllocationRequest {
        available_device_i_ds: shuffled(available.clone()),
        must_include_device_i_ds: vec![],
        allocation_size: i32::try_from(want.count).map_err(|error| error.to_string())?,
    };
    let request = PreferredAllocationRequest { container_requests: vec![request] };
    let answer = endpoint.api()?.get_preferred_allocation(request).await;
    let answer = answer.map_err(|status| calls::text(&status))?.into_inner();
    let first = answer.container_responses.into_iter().next().unwrap_or_default();
    Ok(first.device_i_ds.into_iter().collect())
}

fn held(state: &State, want: &Want<'_>) -> Option<BTreeSet<String>> {
    let container = state.pods.get(&want.pod.uid)?.containers.get(want.container)?;
    Some(container.allocation.get(want.resource)?.devices.keys().cloned().collect())
}

/// Devices of the pod's init containers, which end before the others start.
fn reusable(state: &State, want: &Want<'_>) -> BTreeSet<String> {
    let containers = state.pods.get(&want.pod.uid).map(|pod| &pod.containers);
    let init = containers.into_iter().flatten().filter(|(_, container)| container.init);
    let granted = init.filter_map(|(_, container)| container.allocation.get(want.resource));
    granted.flat_map(|granted| granted.devices.keys().cloned()).collect()
}

/// In no order, as sets are in Go: a plugin that cares says what it prefers.
pub(super) fn shuffled(devices: BTreeSet<String>) -> Vec<String> {
    let random = RandomState::new();
    let mut devices: Vec<_> = devices.into_iter().collect();
    devices.sort_by_cached_key(|device| random.hash_one(device));
    devices
}
