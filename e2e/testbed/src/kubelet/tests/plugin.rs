//! A device plugin that answers as it is told, for the tests of the kubelet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use kerf::proto::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use kerf::proto::device_plugin::registration_client::RegistrationClient;
use kerf::proto::device_plugin::*;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::double::Serving;

pub(super) const RESOURCE: &str = "nvidia.com/gpu";

/// How to answer an Allocate.
#[derive(Clone, Debug, Default)]
pub(super) enum Answer {
    /// With one CDI name for each device.
    #[default]
    Each,
    /// Without an answer for the container.
    Nothing,
    /// With an error.
    Fail,
    /// As [`Answer::Each`], once this is true.
    When(watch::Receiver<bool>),
}

/// A plugin and what it has seen.
#[derive(Clone)]
pub(super) struct Plugin {
    directory: PathBuf,
    pub(super) request: RegisterRequest,
    pub(super) options: DevicePluginOptions,
    /// GetDevicePluginOptions waits for it.
    pub(super) ready: watch::Sender<bool>,
    /// Whether it never sends its list.
    pub(super) silent: bool,
    pub(super) devices: watch::Sender<Vec<Device>>,
    pub(super) answer: Arc<Mutex<Answer>>,
    pub(super) preferred: Arc<Mutex<Result<Vec<String>, &'static str>>>,
    pub(super) seen: watch::Sender<Vec<String>>,
}

impl Plugin {
    /// One that listens on `<name>` in the directory and has these devices, all healthy.
    pub(super) fn new(directory: &Path, name: &str, devices: &[&str]) -> Self {
        let plugin = Self {
            directory: directory.to_path_buf(),
            request: RegisterRequest {
                version: "v1beta1".into(),
                endpoint: name.into(),
                resource_name: RESOURCE.into(),
                options: None,
            },
            options: DevicePluginOptions::default(),
            ready: watch::Sender::new(true),
            silent: false,
            devices: watch::Sender::default(),
            answer: Arc::default(),
            preferred: Arc::new(Mutex::new(Ok(vec![]))),
            seen: watch::Sender::default(),
        };
        plugin.list(devices, &[]);
        plugin
    }

    /// Says that these are healthy and those are not.
    pub(super) fn list(&self, healthy: &[&str], unhealthy: &[&str]) {
        let device = |health: &'static str| {
            move |id: &&str| Device { id: (*id).into(), health: health.into(), topology: None }
        };
        let healthy = healthy.iter().map(device("Healthy"));
        let unhealthy = unhealthy.iter().map(device("Unhealthy"));
        self.devices.send_replace(healthy.chain(unhealthy).collect());
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(&self.request.endpoint)
    }

    pub(super) fn serve(&self) -> Serving {
        let routes = Routes::new(DevicePluginServer::new(self.clone()));
        Serving::start(&self.seen, &self.socket(), routes, "plugin")
    }

    /// What the kubelet says to it.
    pub(super) async fn register(&self) -> Result<(), String> {
        let channel = connect(&self.directory.join("kubelet.sock")).await.unwrap();
        let answer = RegistrationClient::new(channel).register(self.request.clone()).await;
        answer.map(drop).map_err(|status| status.message().to_owned())
    }

    pub(super) fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(super) async fn wait_for(&self, line: &str) {
        let mut seen = self.seen.subscribe();
        seen.wait_for(|seen| seen.iter().any(|seen| seen == line)).await.unwrap();
    }

    /// Those lines that start with `method`.
    pub(super) fn calls(&self, method: &str) -> Vec<String> {
        self.seen.borrow().iter().filter(|line| line.starts_with(method)).cloned().collect()
    }

    fn see(&self, method: &str, mut devices: Vec<String>) {
        devices.sort();
        let line = format!("{method}: {}", devices.join(","));
        self.seen.send_modify(|seen| seen.push(line));
    }
}

/// A connection to a socket of the kubelet.
pub(super) async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// What it answers for these devices.
pub(super) fn answer(devices: &[&str]) -> ContainerAllocateResponse {
    let name = |id: &&str| CdiDevice { name: format!("nvidia.com/gpu={id}") };
    ContainerAllocateResponse {
        envs: BTreeMap::from([("GPUS".into(), devices.len().to_string())]),
        cdi_devices: devices.iter().map(name).collect(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        self.see("options", vec![]);
        let _ended = Ended(self.clone(), "options ended");
        self.ready.subscribe().wait_for(|ready| *ready).await.unwrap();
        Ok(Response::new(self.options))
    }

    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        self.see("list", vec![]);
        let seen = Ended(self.clone(), "list ended");
        let (silent, lists) = (self.silent, WatchStream::new(self.devices.subscribe()));
        let lists = lists.filter(move |_| !silent).map(move |devices| {
            let _until_the_end = &seen;
            Ok(ListAndWatchResponse { devices })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let request = request.into_inner().container_requests.remove(0);
        let method = format!("prefer {} of", request.allocation_size);
        self.see(&method, request.available_device_i_ds);
        let device_i_ds = self.preferred.lock().unwrap().clone().map_err(Status::internal)?;
        let container_responses = vec![ContainerPreferredAllocationResponse { device_i_ds }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut devices = request.into_inner().container_requests.remove(0).devices_ids;
        devices.sort();
        // Before it is seen, so that a test may change it then.
        let how = self.answer.lock().unwrap().clone();
        self.see("allocate", devices.clone());
        let devices: Vec<_> = devices.iter().map(String::as_str).collect();
        let container_responses = match how {
            Answer::Each => vec![answer(&devices)],
            Answer::Nothing => vec![],
            Answer::Fail => return Err(Status::internal("no room")),
            Answer::When(mut now) => {
                now.wait_for(|now| *now).await.unwrap();
                vec![answer(&devices)]
            }
        };
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.see("pre-start", request.into_inner().devices_ids);
        let how = self.answer.lock().unwrap().clone();
        match how {
            Answer::Fail => Err(Status::internal("no room")),
            Answer::When(mut now) => {
                now.wait_for(|now| *now).await.unwrap();
                Ok(Response::new(PreStartContainerResponse {}))
            }
            _ => Ok(Response::new(PreStartContainerResponse {})),
        }
    }
}

/// Says when a handler has ended, whether by its answer or by its drop.
struct Ended(Plugin, &'static str);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.see(self.1, vec![]);
    }
}
