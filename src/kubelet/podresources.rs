//! Which containers have which devices, as the kubelet lists it.

use std::{path::PathBuf, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::time::timeout;
use tonic::Request;

use super::probe;
use crate::{
    driver::{self, ClaimContainers, Listed},
    model::{
        DRIVER,
        holder::{Container, ContainerName},
    },
    proto::podresources::{
        ContainerResources, ListPodResourcesRequest, PodResources as Pod,
        pod_resources_lister_client::PodResourcesListerClient,
    },
};

/// The kubelet answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node's list may be long: 110 pods with devices of 16 GPUs and their shares.
const LONGEST: usize = 64 << 20;

/// The kubelet's list.
#[derive(Clone, Debug)]
pub struct PodResources {
    /// Its socket.
    pub socket: PathBuf,
    /// Namespace and name of the agent's own pod, where it is in one.
    pub own: Option<(String, String)>,
}

impl PodResources {
    async fn ask(&self) -> Result<Listed, String> {
        let channel =
            probe::connect(self.socket.clone()).await.map_err(|error| error.to_string())?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(LONGEST);
        let listed = client.list(Request::new(ListPodResourcesRequest {})).await;
        let pods = listed.map_err(|status| status.message().to_owned())?.into_inner().pod_resources;
        // A kubelet that has just started lists nothing until it has heard of its pods.
        if let Some((namespace, name)) = &self.own
            && !pods.iter().any(|pod| pod.namespace == *namespace && pod.name == *name)
        {
            return Err("the kubelet does not list this agent's own pod yet".to_owned());
        }
        let mut claims = ClaimContainers::new();
        for (claim, name) in pods.iter().flat_map(claims_of) {
            claims.entry(claim).or_default().push(name);
        }
        let devices = pods.iter().flat_map(containers).collect();
        Ok(Listed { devices, claims, cdi: pods.iter().flat_map(cdi_names).collect() })
    }
}

impl driver::PodResources for PodResources {
    fn list(&self) -> BoxFuture<'_, Result<Listed, String>> {
        async {
            let late = || format!("not answered within {} s", PATIENCE.as_secs());
            let listed = timeout(PATIENCE, self.ask()).await.unwrap_or_else(|_| Err(late()));
            listed.map_err(|error| format!("pod resources (`{}`): {error}", self.socket.display()))
        }
        .boxed()
    }
}

/// Namespace and name of each claim of a pod's containers, and the container.
fn claims_of(pod: &Pod) -> impl Iterator<Item = ((String, String), ContainerName)> {
    pod.containers.iter().flat_map(move |container| {
        let ours = container.dynamic_resources.iter().filter(|claim| {
            claim.claim_resources.iter().any(|resource| resource.driver_name == DRIVER)
        });
        ours.map(move |claim| {
            let key = (claim.claim_namespace.clone(), claim.claim_name.clone());
            (key, name_of(pod, container))
        })
    })
}

/// What a pod's containers have of our claims, in the words of runtimes.
fn cdi_names(pod: &Pod) -> impl Iterator<Item = String> {
    let claims = pod.containers.iter().flat_map(|container| &container.dynamic_resources);
    let resources = claims.flat_map(|claim| &claim.claim_resources);
    let ours = resources.filter(|resource| resource.driver_name == DRIVER);
    ours.flat_map(|resource| resource.cdi_devices.iter().map(|device| device.name.clone()))
}

fn name_of(pod: &Pod, container: &ContainerResources) -> ContainerName {
    ContainerName {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        container: container.name.clone(),
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = Container> {
    pod.containers.iter().flat_map(move |container| {
        let name = name_of(pod, container);
        container.devices.iter().flat_map(move |devices| {
            let name = name.clone();
            devices.device_ids.iter().map(move |id| Container {
                id: id.clone(),
                resource: devices.resource_name.clone(),
                name: Some(name.clone()),
            })
        })
    })
}
