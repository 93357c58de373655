//! The start of a container: its plugins are told, and the runtime is told what they answered.

use std::collections::BTreeSet;

use kerf::proto::device_plugin::PreStartContainerRequest;

use super::Devices;
use super::book::Endpoint;
use super::pick::shuffled;
use super::state::{Allocation, Container, Granted, PodRef, RunOptions};
use crate::kubelet::{Kubelet, calls};

impl Kubelet {
    /// What happens before each start of a container of an admitted pod.
    ///
    /// # Errors
    /// Why it cannot start now; the real one tries again later.
    pub async fn start_container(
        &self,
        pod: &PodRef,
        container: &str,
    ) -> Result<RunOptions, String> {
        let devices = self.devices().ok_or("the kubelet has stopped")?;
        if devices.pre_start(pod, container).await? {
            let _alone = devices.admission.lock().await;
            devices.allocate_container(pod, container).await?;
        }
        let mut started = Container::default();
        devices.change(|_, state| {
            let pod = state.pods.get_mut(&pod.uid);
            if let Some(container) = pod.and_then(|pod| pod.containers.get_mut(container)) {
                container.running = true;
                started = container.clone();
            }
        });
        Ok(run_options(started.allocation))
    }
}

impl Devices {
    /// Tells the plugins, and says whether the container lacks devices: the kubelet has lost its
    /// checkpoint then.
    async fn pre_start(&self, pod: &PodRef, container: &str) -> Result<bool, String> {
        let (known, asks) = {
            let state = self.shared.state.borrow();
            let asks = state.pods.get(&pod.uid).and_then(|pod| pod.containers.get(container));
            (state.resources.clone(), asks.cloned().unwrap_or_default())
        };
        let mut lacks = false;
        for (name, _) in asks.requests.iter().filter(|(_, count)| **count > 0) {
            let Some(resource) = known.get(name) else { continue };
            if !resource.registered && resource.allocated.is_empty() {
                continue;
            }
            let has = asks.allocation.get(name);
            self.pre_start_with(name, pod, container, has).await?;
            lacks |= has.is_none();
        }
        Ok(lacks)
    }

    async fn pre_start_with(
        &self,
        name: &str,
        pod: &PodRef,
        container: &str,
        has: Option<&Granted>,
    ) -> Result<(), String> {
        let Some(endpoint) = self.endpoint(name) else { return self.without_endpoint(name) };
        if !endpoint.options.pre_start_required {
            return Ok(());
        }
        let has = has.ok_or_else(|| {
            format!(
                "no devices found allocated in local cache for pod {}, container {container}, resource {name}",
                pod.uid
            )
        })?;
        self.call(&endpoint, has.devices.keys().cloned().collect())
            .await
            .map_err(|why| format!("device plugin PreStartContainer rpc failed with err: {why}"))
    }

    /// After a restart there is a stopped endpoint that asks for nothing, until it is forgotten.
    fn without_endpoint(&self, resource: &str) -> Result<(), String> {
        let state = self.shared.state.borrow();
        if state.resources.get(resource).is_some_and(|resource| resource.registered) {
            return Ok(());
        }
        Err(format!("endpoint not found in cache for a registered resource: {resource}"))
    }

    async fn call(&self, endpoint: &Endpoint, devices: BTreeSet<String>) -> Result<(), String> {
        let deadline = self.shared.options.pre_start;
        let request = PreStartContainerRequest { devices_ids: shuffled(devices) };
        let mut api = endpoint.api()?;
        let answer = api.pre_start_container(calls::request(request, deadline));
        let answer = calls::within(deadline, answer).await;
        answer.map(drop).map_err(|status| calls::text(&status))
    }
}

/// All answers as one. The first value for a name or path counts.
fn run_options(allocation: Allocation) -> RunOptions {
    let mut options = RunOptions::default();
    for answer in allocation.into_values().map(|granted| granted.answer) {
        for (name, value) in answer.envs {
            options.envs.entry(name).or_insert(value);
        }
        for (name, value) in answer.annotations {
            options.annotations.entry(name).or_insert(value);
        }
        options.mounts.extend(answer.mounts);
        options.devices.extend(answer.devices);
        options.cdi_devices.extend(answer.cdi_devices.into_iter().map(|device| device.name));
    }
    first_of_each(&mut options.mounts, |mount| mount.container_path.clone());
    first_of_each(&mut options.devices, |device| device.container_path.clone());
    first_of_each(&mut options.cdi_devices, Clone::clone);
    options
}

fn first_of_each<T, K: Ord>(all: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut seen = BTreeSet::new();
    all.retain(|one| seen.insert(key(one)));
}
