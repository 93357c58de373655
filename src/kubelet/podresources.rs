//! Which containers have which devices, as the kubelet lists it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::time::timeout;
use tonic::Request;

use super::probe;
use crate::{
    driver::{self, ClaimContainers, Listed},
    model::{
        DRIVER,
        ended::Run,
        holder::{Container, ContainerName},
        kubelet_checkpoint::{self, Entry},
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

/// The kubelet's file of what device plugins gave out, in their directory.
pub const CHECKPOINT: &str = "kubelet_internal_checkpoint";

/// The kubelet's list, and its file.
#[derive(Clone, Debug)]
pub struct PodResources {
    /// Its socket.
    pub socket: PathBuf,
    /// The file: it names init containers, which the list leaves out.
    pub checkpoint: PathBuf,
    /// The kubelet's directory of pods as this process sees it, and the UID of the agent's own pod. Only a
    /// directory that has that one is believed.
    pub pods: Option<(PathBuf, String)>,
    /// Namespace and name of the agent's own pod, where it is in one.
    pub own: Option<(String, String)>,
}

impl PodResources {
    async fn ask(&self) -> Result<Listed, String> {
        // Looked at before the list, it is at worst that of an earlier run.
        let run = self.run().map_err(|error| error.to_string())?;
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
        let cdi = pods.iter().flat_map(cdi_names).collect();
        let named = pods.iter().map(|pod| (pod.namespace.clone(), pod.name.clone())).collect();
        // Read after the list: what was given out between them is in one of them.
        Ok(Listed { devices, claims, cdi, pods: named, kept: self.kept(), run })
    }

    /// A kubelet that starts makes its socket anew.
    fn run(&self) -> io::Result<Run> {
        let found = fs::metadata(&self.socket)?;
        let made = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
        Ok(Run { inode: found.ino(), made })
    }

    /// What the file names, without pods that are gone.
    fn kept(&self) -> Result<Vec<Entry>, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("`{}` cannot be read: {error}", self.checkpoint.display())
        };
        let bytes = fs::read(&self.checkpoint).map_err(|error| failed(&error))?;
        let mut kept = kubelet_checkpoint::parse(&bytes).map_err(|error| failed(&error))?;
        kept.retain(|entry| !self.is_gone(&entry.pod));
        Ok(kept)
    }

    /// Whether a pod has no directory any more: the kubelet removes it when the last container is gone.
    fn is_gone(&self, uid: &str) -> bool {
        let Some((pods, own)) = &self.pods else { return false };
        let is_uid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !uid.is_empty()
            && uid.bytes().all(is_uid)
            && pods.join(own).is_dir()
            && pods.join(uid).try_exists().is_ok_and(|exists| !exists)
    }
}

/// The kubelet's directory of pods, below the host's `/` as this process sees it.
pub fn pods_directory(host_root: &Path, device_plugins: &Path) -> Option<PathBuf> {
    let root = device_plugins.parent()?;
    Some(host_root.join(root.strip_prefix("/").ok()?).join("pods"))
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

    fn owners(&self) -> BoxFuture<'_, Result<Vec<Entry>, String>> {
        async { self.kept() }.boxed()
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
