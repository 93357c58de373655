//! Which pods hold which devices, for whoever asks on the kubelet's podresources socket.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use kerf::proto::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use kerf::proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource,
    ContainerDevices, ContainerResources, DynamicResource, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, NumaNode,
    PodResources, TopologyInfo,
};
use tokio::net::UnixListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::devices::state::{Granted, Pod, PodRef};
use super::state::{HeldClaim, State};
use super::task::Task;
use super::{Kubelet, Shared, serve};

/// Serves for as long as the task lives, if the options say so.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Option<Task>> {
    if !shared.options.pod_resources {
        return Ok(None);
    }
    if let Some(directory) = shared.pod_resources.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let listener = bind(&shared.pod_resources)?;
    let service = PodResourcesListerServer::new(Server(shared.clone()));
    Ok(Some(serve::serve(listener, Routes::new(service))))
}

impl Kubelet {
    /// Fails all podresources calls with this error from now on, or no more.
    pub fn fail_pod_resources(&self, why: Option<&str>) {
        self.shared.faults().pod_resources = why.map(str::to_owned);
    }

    /// The socket of podresources.
    pub fn pod_resources_socket(&self) -> &Path {
        &self.shared.pod_resources
    }
}

/// A listener on a path that may hold the socket of an earlier kubelet. It appears by rename, as
/// with the real one, so that whoever sees it can connect.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    let made = socket.with_extension("new");
    for path in [&made, socket] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&made)?;
    std::fs::rename(&made, socket)?;
    Ok(listener)
}

struct Server(Arc<Shared>);

impl Server {
    fn state(&self) -> Result<State, Status> {
        match self.0.faults().pod_resources.clone() {
            Some(why) => Err(Status::unknown(why)),
            None => Ok(self.0.state.borrow().clone()),
        }
    }

    fn pods(&self) -> Result<Vec<PodResources>, Status> {
        let state = self.state()?;
        // Before 1.34 claims are behind a gate that is off.
        let claims =
            if self.0.options.release >= 34 { state.claims.clone() } else { BTreeMap::new() };
        Ok(pods(&state).iter().map(|pod| pod_resources(pod, &claims)).collect())
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Server {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(ListPodResourcesResponse { pod_resources: self.pods()? }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let mut devices = vec![];
        for (name, resource) in self.state()?.resources {
            for (id, device) in resource.devices.iter().filter(|(_, device)| device.healthy) {
                devices.extend(container_devices(&name, id, device.numa.as_deref()));
            }
        }
        Ok(Response::new(AllocatableResourcesResponse { devices, ..Default::default() }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        if self.0.options.release < 34 {
            return Err(Status::unknown("PodResources API Get method disabled"));
        }
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let mut pods = self.pods()?.into_iter();
        let pod = pods.find(|pod| pod.name == pod_name && pod.namespace == pod_namespace);
        let missing = || format!("pod {pod_name} in namespace {pod_namespace} not found");
        let pod = pod.ok_or_else(|| Status::unknown(missing()))?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(pod) }))
    }
}

/// Admitted pods, and those that only claims are known of: their UID is all that they have for a
/// name, and one container.
fn pods(state: &State) -> Vec<Pod> {
    let mut pods = state.pods.clone();
    for held in state.claims.values() {
        for uid in &held.pods {
            let namespace = held.claim.namespace.clone();
            let pod = PodRef { namespace, name: uid.clone(), uid: uid.clone() };
            let containers = BTreeMap::from([("main".to_owned(), Default::default())]);
            pods.entry(uid.clone()).or_insert(Pod { pod, containers });
        }
    }
    pods.into_values().collect()
}

fn pod_resources(pod: &Pod, claims: &BTreeMap<String, HeldClaim>) -> PodResources {
    let held = claims.values().filter(|held| held.pods.contains(&pod.pod.uid));
    let claims: Vec<_> = held.map(dynamic_resource).collect();
    let listed = pod.containers.iter().filter(|(_, container)| !container.init);
    let containers = listed.map(|(name, container)| ContainerResources {
        name: name.clone(),
        devices: container.allocation.iter().flat_map(granted).collect(),
        dynamic_resources: claims.clone(),
        ..Default::default()
    });
    PodResources {
        name: pod.pod.name.clone(),
        namespace: pod.pod.namespace.clone(),
        containers: containers.collect(),
    }
}

fn granted((resource, granted): (&String, &Granted)) -> Vec<ContainerDevices> {
    let device = |(id, numa): (&String, &Vec<i64>)| {
        let numa = Some(numa.as_slice()).filter(|numa| !numa.is_empty());
        container_devices(resource, id, numa)
    };
    granted.devices.iter().flat_map(device).collect()
}

/// One entry for each NUMA node: a device with an empty topology has none at all.
fn container_devices(resource: &str, id: &str, numa: Option<&[i64]>) -> Vec<ContainerDevices> {
    let entry = |node: Option<i64>| ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: node.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] }),
    };
    match numa {
        None => vec![entry(None)],
        Some(nodes) => nodes.iter().map(|node| entry(Some(*node))).collect(),
    }
}

/// Each device is listed with the CDI names of those before it, too.
fn dynamic_resource(held: &HeldClaim) -> DynamicResource {
    let mut cdi_devices = vec![];
    let resource = |device: &super::Device| {
        cdi_devices
            .extend(device.cdi_device_ids.iter().map(|name| CdiDevice { name: name.clone() }));
        ClaimResource {
            cdi_devices: cdi_devices.clone(),
            driver_name: held.driver.clone(),
            pool_name: device.pool_name.clone(),
            device_name: device.device_name.clone(),
            share_id: device.share_id.clone(),
        }
    };
    DynamicResource {
        claim_name: held.claim.name.clone(),
        claim_namespace: held.claim.namespace.clone(),
        claim_resources: held.devices.iter().map(resource).collect(),
    }
}
