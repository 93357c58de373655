//! Admission: a pod's container is given its devices, or the pod ends here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kerf::proto::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
};

use super::Devices;
use super::book::Endpoint;
use super::pick::{Want, shuffled};
use super::plugin::Api;
use super::state::{AdmissionError, Allocation, Granted, Pod, PodRef};
use crate::kubelet::state::State;
use crate::kubelet::{Kubelet, calls};

impl Kubelet {
    /// What happens before a pod runs: its container is given so many of each resource. After a
    /// restart of the kubelet this is called again for each pod, and those that run keep what they
    /// have. Resources that no plugin has listed are passed over.
    ///
    /// # Errors
    /// Why the pod was rejected; it is forgotten then, with all its containers.
    pub async fn admit(
        &self,
        pod: &PodRef,
        container: &str,
        requests: &[(&str, usize)],
    ) -> Result<Allocation, AdmissionError> {
        self.admit_container(pod, container, requests, false).await
    }

    /// The same for an init container, which is admitted before the others: they are given its devices again.
    ///
    /// # Errors
    /// As those of [`Self::admit`].
    pub async fn admit_init(
        &self,
        pod: &PodRef,
        container: &str,
        requests: &[(&str, usize)],
    ) -> Result<Allocation, AdmissionError> {
        self.admit_container(pod, container, requests, true).await
    }

    async fn admit_container(
        &self,
        pod: &PodRef,
        container: &str,
        requests: &[(&str, usize)],
        init: bool,
    ) -> Result<Allocation, AdmissionError> {
        let stopped = || AdmissionError("the kubelet has stopped".into());
        let devices = self.devices().ok_or_else(stopped)?;
        let _alone = devices.admission.lock().await;
        let requests = requests.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        devices.change(|_, state| {
            enter(state, pod, container, requests);
            let entered = state.pods.get_mut(&pod.uid);
            if let Some(one) = entered.and_then(|pod| pod.containers.get_mut(container)) {
                one.init = init;
            }
        });
        let directory = self.pod_directory(&pod.uid);
        std::fs::create_dir_all(directory).map_err(|error| AdmissionError(error.to_string()))?;
        match devices.allocate_container(pod, container).await {
            Ok(()) => Ok(allocation(&self.shared.state.borrow(), pod, container)),
            Err(why) => {
                self.end_pod(pod);
                Err(AdmissionError(why))
            }
        }
    }

    /// One Allocate for these devices, past all checks and while others are admitted.
    ///
    /// # Errors
    /// Why there is no answer, as the kubelet says it.
    pub async fn allocate(
        &self,
        resource: &str,
        devices: &[&str],
    ) -> Result<AllocateResponse, String> {
        let endpoint = self.devices().and_then(|run| run.endpoint(resource));
        let endpoint = endpoint.ok_or_else(|| format!("unknown Device Plugin {resource}"))?;
        allocate(&endpoint, devices.iter().map(|id| (*id).to_owned()).collect()).await
    }

    /// What happens when a pod has ended: its devices are free, though the checkpoint names them until it is
    /// written for another reason, and its directory goes.
    pub fn end_pod(&self, pod: &PodRef) {
        if let Some(devices) = self.devices() {
            devices.change(|_, state| forget(state, &pod.uid));
        }
        let _gone = std::fs::remove_dir_all(self.pod_directory(&pod.uid));
    }

    /// The kubelet's directory of a pod.
    pub fn pod_directory(&self, uid: &str) -> PathBuf {
        self.shared.device_plugins.with_file_name("pods").join(uid)
    }
}

impl Devices {
    /// Gives a container what it asks for and does not have yet, resource by resource.
    pub(super) async fn allocate_container(
        &self,
        pod: &PodRef,
        container: &str,
    ) -> Result<(), String> {
        let mut wanted = BTreeMap::new();
        self.change(|_, state| wanted = requests(state, pod, container));
        let mut changed = false;
        for (resource, count) in &wanted {
            let want = Want { pod, container, resource, count: *count };
            let picked = self.pick(&want).await?;
            if !picked.is_empty() {
                self.grant(&want, picked).await?;
                changed = true;
            }
        }
        if changed { self.write_checkpoint() } else { Ok(()) }
    }

    async fn grant(&self, want: &Want<'_>, picked: BTreeSet<String>) -> Result<(), String> {
        let answer = match self.endpoint(want.resource) {
            Some(endpoint) => allocate(&endpoint, shuffled(picked.clone())).await,
            None => Err(format!("unknown Device Plugin {}", want.resource)),
        };
        let answer = answer.inspect_err(|_| self.change(|_, state| recount(state)))?;
        // The devices stay marked as allocated here, until a pod ends.
        let answer = answer.container_responses.into_iter().next();
        let answer = answer.ok_or("no containers return in allocation response ")?;
        let mut kept = Ok(());
        self.change(|_, state| kept = keep(state, want, picked, answer));
        kept
    }
}

impl Endpoint {
    /// To call it with, unless its stream has ended.
    pub(super) fn api(&self) -> Result<Api, String> {
        if self.stopped {
            return Err(format!("endpoint {} has been stopped", self.client.resource));
        }
        self.client.api()
    }
}

/// The kubelet waits for the answer for ever.
async fn allocate(endpoint: &Endpoint, devices: Vec<String>) -> Result<AllocateResponse, String> {
    let request = ContainerAllocateRequest { devices_ids: devices };
    let request = AllocateRequest { container_requests: vec![request] };
    let answer = endpoint.api()?.allocate(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| calls::text(&status))
}

fn enter(state: &mut State, pod: &PodRef, container: &str, requests: BTreeMap<String, usize>) {
    let uid = pod.uid.clone();
    let new = || Pod { pod: pod.clone(), containers: BTreeMap::new() };
    let pod = state.pods.entry(uid).or_insert_with(new);
    pod.containers.entry(container.to_owned()).or_default().requests = requests;
}

/// Those that device plugins answer for, now or when they were given.
fn requests(state: &State, pod: &PodRef, container: &str) -> BTreeMap<String, usize> {
    let pod = state.pods.get(&pod.uid);
    let container = pod.and_then(|pod| pod.containers.get(container));
    let mut requests = container.map(|container| container.requests.clone()).unwrap_or_default();
    requests.retain(|name, _| {
        let resource = state.resources.get(name);
        resource.is_some_and(|resource| resource.registered || !resource.allocated.is_empty())
    });
    requests
}

fn keep(
    state: &mut State,
    want: &Want<'_>,
    picked: BTreeSet<String>,
    answer: ContainerAllocateResponse,
) -> Result<(), String> {
    let listed = state.resources.get(want.resource).map(|resource| &resource.devices);
    let mut devices = BTreeMap::new();
    for id in picked {
        // Its list was replaced while the plugin allocated it.
        let device = listed.and_then(|listed| listed.get(&id)).ok_or_else(|| {
            format!("device {id} is no longer listed (the real kubelet crashes here)")
        })?;
        devices.insert(id, device.numa.clone().unwrap_or_default());
    }
    let pod = state.pods.get_mut(&want.pod.uid);
    if let Some(container) = pod.and_then(|pod| pod.containers.get_mut(want.container)) {
        container.allocation.insert(want.resource.to_owned(), Granted { devices, answer });
    }
    Ok(())
}

fn allocation(state: &State, pod: &PodRef, container: &str) -> Allocation {
    let pod = state.pods.get(&pod.uid);
    let container = pod.and_then(|pod| pod.containers.get(container));
    container.map(|container| container.allocation.clone()).unwrap_or_default()
}

fn forget(state: &mut State, uid: &str) {
    let pod = state.pods.remove(uid);
    if pod.is_some_and(|pod| pod.containers.values().any(|one| !one.allocation.is_empty())) {
        recount(state);
    }
}

/// Allocated is what pods hold.
fn recount(state: &mut State) {
    let State { pods, resources, .. } = state;
    resources.values_mut().for_each(|resource| resource.allocated.clear());
    for container in pods.values().flat_map(|pod| pod.containers.values()) {
        for (name, granted) in &container.allocation {
            let resource = resources.entry(name.clone()).or_default();
            resource.allocated.extend(granted.devices.keys().cloned());
        }
    }
}
