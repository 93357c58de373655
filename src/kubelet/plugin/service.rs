//! One resource's answers to the kubelet.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::Streams;
use crate::{
    driver::{self, Driver, Versioned},
    model::plugin::{offer::Offered, response},
    proto::device_plugin::{
        AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
        ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, Device,
        DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, Mount, NumaNode,
        PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
        PreferredAllocationResponse, TopologyInfo, device_plugin_server::DevicePlugin,
    },
};

/// Version of the API.
pub(super) const VERSION: &str = "v1beta1";

/// Answers for one resource.
pub(super) struct Service {
    driver: Arc<Driver>,
    resource: String,
    streams: watch::Sender<Streams>,
    /// Nobody sends to it once the door is closed.
    closed: watch::Receiver<()>,
}

/// What the kubelet is to do for a resource: containers whose devices are carved are announced, since after
/// a reboot nothing is carved.
pub(super) fn options(driver: &Driver, resource: &str) -> DevicePluginOptions {
    let offer = driver.offer();
    let devices = offer.resources.get(resource);
    DevicePluginOptions {
        pre_start_required: devices.into_iter().flatten().any(|device| device.id.is_placement()),
        get_preferred_allocation_available: true,
    }
}

impl Service {
    pub(super) fn new(
        driver: Arc<Driver>,
        resource: String,
        streams: watch::Sender<Streams>,
        closed: watch::Receiver<()>,
    ) -> Self {
        Self { driver, resource, streams, closed }
    }

    fn preferred(&self, request: &ContainerPreferredAllocationRequest) -> Vec<String> {
        self.driver.preferred(
            &self.resource,
            &request.available_device_i_ds,
            &request.must_include_device_i_ds,
            usize::try_from(request.allocation_size).unwrap_or(0),
        )
    }
}

/// One stream of complete lists.
struct Telling {
    offers: watch::Receiver<Versioned>,
    resource: String,
    /// What the kubelet was sent last; nothing yet.
    told: Option<Vec<Device>>,
    repeats: u64,
    version: u64,
    stream: driver::Stream,
    closed: watch::Receiver<()>,
    _open: Open,
}

/// Counts a stream while it is there.
struct Open(watch::Sender<Streams>);

impl Open {
    fn new(streams: watch::Sender<Streams>) -> Self {
        streams.send_modify(|streams| {
            streams.opened += 1;
            streams.open += 1;
        });
        Self(streams)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|streams| streams.open -= 1);
    }
}

impl Telling {
    /// The next list that is not the one before, or is asked for again.
    async fn next(&mut self) -> Option<ListAndWatchResponse> {
        loop {
            if self.told.is_some() {
                self.stream.sent(self.version);
                tokio::select! {
                    changed = self.offers.changed() => changed.ok()?,
                    _ = self.closed.changed() => return None,
                }
            }
            let now = self.offers.borrow_and_update().clone();
            self.version = now.version;
            let offered = now.offer.resources.get(&self.resource);
            let devices: Vec<_> = offered.into_iter().flatten().map(device).collect();
            let again = std::mem::replace(&mut self.repeats, now.repeats) != now.repeats;
            if again || self.told.as_ref() != Some(&devices) {
                self.told = Some(devices.clone());
                return Some(ListAndWatchResponse { devices });
            }
        }
    }
}

fn device(offered: &Offered) -> Device {
    let numa =
        offered.numa_node.map(|node| TopologyInfo { nodes: vec![NumaNode { id: node.into() }] });
    let health = if offered.unhealthy.is_none() { "Healthy" } else { "Unhealthy" };
    Device { id: offered.id.to_string(), health: health.to_owned(), topology: numa }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options(&self.driver, &self.resource)))
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let telling = Telling {
            offers: self.driver.offers(),
            resource: self.resource.clone(),
            told: None,
            repeats: 0,
            version: 0,
            stream: self.driver.stream(),
            closed: self.closed.clone(),
            _open: Open::new(self.streams.clone()),
        };
        let lists = stream::unfold(telling, |mut telling| async move {
            telling.next().await.map(|list| (Ok(list), telling))
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let responses = requests.iter().map(|request| ContainerPreferredAllocationResponse {
            device_i_ds: self.preferred(request),
        });
        Ok(Response::new(PreferredAllocationResponse { container_responses: responses.collect() }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let given = self.driver.allocate(&self.resource, &container.devices_ids).await;
            container_responses.push(given.map_err(|error| refused(&error))?.into());
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids;
        let ready = self.driver.before_start(&self.resource, &ids).await;
        ready.map_err(|error| refused(&error))?;
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// A claim is asked for again; a pod of the device plugin has failed for good.
fn refused(error: &driver::Error) -> Status {
    let line = error.line().replace("the kubelet will ask again", "make the pod again");
    tracing::warn!("{line}");
    match error {
        driver::Error::HandingOver => Status::unavailable(line),
        _ => Status::failed_precondition(line),
    }
}

impl From<response::Response> for ContainerAllocateResponse {
    fn from(response: response::Response) -> Self {
        let mounts = response.mounts.into_iter().map(|(container_path, host_path)| Mount {
            container_path,
            host_path,
            read_only: false,
        });
        let devices = response.devices.into_iter().map(|(container_path, host_path)| DeviceSpec {
            container_path,
            host_path,
            permissions: "rw".to_owned(),
        });
        Self {
            envs: response.envs,
            mounts: mounts.collect(),
            devices: devices.collect(),
            annotations: response.annotations,
            cdi_devices: response.cdi.into_iter().map(|name| CdiDevice { name }).collect(),
        }
    }
}
