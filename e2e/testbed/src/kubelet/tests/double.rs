//! A driver that answers as it is told, for the tests of the kubelet.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use kerf::proto::dra_health_v1::dra_resource_health_server::{
    DraResourceHealth as HealthV1, DraResourceHealthServer as HealthV1Server,
};
use kerf::proto::dra_health_v1alpha1::dra_resource_health_server::{
    DraResourceHealth as HealthV1alpha1, DraResourceHealthServer as HealthV1alpha1Server,
};
use kerf::proto::dra_v1::dra_plugin_server::{DraPlugin as DraV1, DraPluginServer as DraV1Server};
use kerf::proto::dra_v1beta1::dra_plugin_server::{
    DraPlugin as DraV1beta1, DraPluginServer as DraV1beta1Server,
};
use kerf::proto::registration::registration_server::{Registration, RegistrationServer};
use kerf::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use kerf::proto::{dra_health_v1, dra_health_v1alpha1, dra_v1, dra_v1beta1};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tower::util::MapRequestLayer;

pub(super) const DRIVER: &str = "gpu.nvidia.com";

/// How to answer a prepare or unprepare.
#[derive(Clone, Debug, Default)]
pub(super) enum Answer {
    /// One result for each claim.
    #[default]
    Each,
    /// This error for each claim.
    Error(&'static str),
    /// Nothing for the last claim.
    Skip,
    /// Something for a claim that was not asked for.
    Stranger,
    /// An empty entry for each claim.
    Nil,
    /// The call fails.
    Fail,
    /// Never.
    Hang,
}

/// What the double is told, and what it has seen.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) info: PluginInfo,
    pub(super) refuse_notify: bool,
    pub(super) answer: Arc<Mutex<Answer>>,
    pub(super) health: watch::Sender<dra_health_v1::NodeWatchResourcesResponse>,
    /// `<method>: <what>`, oldest first.
    pub(super) seen: watch::Sender<Vec<String>>,
}

impl Script {
    pub(super) fn new(root: &Path, instance: &str) -> Self {
        let versions = [
            "v1.DRAPlugin",
            "v1beta1.DRAPlugin",
            "v1.DRAResourceHealth",
            "v1alpha1.DRAResourceHealth",
        ];
        Self {
            info: PluginInfo {
                r#type: "DRAPlugin".into(),
                name: DRIVER.into(),
                endpoint: root.join(format!("plugins/{instance}.sock")).display().to_string(),
                supported_versions: versions.map(str::to_owned).to_vec(),
            },
            refuse_notify: false,
            answer: Arc::default(),
            health: watch::Sender::default(),
            seen: watch::Sender::default(),
        }
    }

    pub(super) fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.borrow().clone()
    }

    pub(super) async fn wait_for(&self, line: &str) {
        let mut seen = self.seen.subscribe();
        seen.wait_for(|seen| seen.iter().any(|seen| seen == line)).await.unwrap();
    }

    /// Those lines that start with `method`.
    pub(super) fn calls(&self, method: &str) -> Vec<String> {
        self.seen().into_iter().filter(|line| line.starts_with(method)).collect()
    }

    fn see(&self, line: String) {
        self.seen.send_modify(|seen| seen.push(line));
    }

    fn serve(&self, socket: &Path, routes: Routes, name: &'static str) -> Serving {
        Serving::start(&self.seen, socket, routes, name)
    }

    pub(super) fn serve_registration(&self, socket: &Path) -> Serving {
        self.serve(socket, Routes::new(RegistrationServer::new(self.clone())), "registration")
    }

    pub(super) fn serve_dra(&self) -> Serving {
        let routes = Routes::new(DraV1Server::new(self.clone()))
            .add_service(DraV1beta1Server::new(self.clone()))
            .add_service(HealthV1Server::new(self.clone()))
            .add_service(HealthV1alpha1Server::new(self.clone()));
        self.serve(Path::new(&self.info.endpoint), routes, "dra")
    }

    async fn prepare(
        &self,
        method: &str,
        claims: Vec<dra_v1::Claim>,
    ) -> Result<dra_v1::NodePrepareResourcesResponse, Status> {
        let device = |claim: &dra_v1::Claim| dra_v1::Device {
            request_names: vec!["gpu".into()],
            pool_name: "node-a".into(),
            device_name: format!("gpu-{}", claim.uid),
            cdi_device_ids: vec![format!("k8s.gpu.nvidia.com/claim={}", claim.uid)],
            share_id: Some("share".into()),
        };
        let result = |answer: &Answer, claim: &dra_v1::Claim| match answer {
            Answer::Error(error) => {
                dra_v1::NodePrepareResourceResponse { devices: vec![], error: (*error).into() }
            }
            Answer::Nil => dra_v1::NodePrepareResourceResponse::default(),
            _ => dra_v1::NodePrepareResourceResponse {
                devices: vec![device(claim)],
                error: String::new(),
            },
        };
        let results = self.results(method, claims, result).await?;
        Ok(dra_v1::NodePrepareResourcesResponse { claims: results.into_iter().collect() })
    }

    async fn unprepare(
        &self,
        method: &str,
        claims: Vec<dra_v1::Claim>,
    ) -> Result<dra_v1::NodeUnprepareResourcesResponse, Status> {
        let result = |answer: &Answer, _: &dra_v1::Claim| match answer {
            Answer::Error(error) => {
                dra_v1::NodeUnprepareResourceResponse { error: (*error).into() }
            }
            _ => dra_v1::NodeUnprepareResourceResponse::default(),
        };
        let results = self.results(method, claims, result).await?;
        Ok(dra_v1::NodeUnprepareResourcesResponse { claims: results.into_iter().collect() })
    }

    async fn results<T>(
        &self,
        method: &str,
        claims: Vec<dra_v1::Claim>,
        result: impl Fn(&Answer, &dra_v1::Claim) -> T,
    ) -> Result<Vec<(String, T)>, Status> {
        let uids: Vec<_> = claims.iter().map(|claim| claim.uid.as_str()).collect();
        let _call = Under(self, format!("{method} ended"));
        self.see(format!("{method}: {}", uids.join(",")));
        let answer = self.answer.lock().unwrap().clone();
        let mut results: Vec<_> =
            claims.iter().map(|claim| (claim.uid.clone(), result(&answer, claim))).collect();
        match answer {
            Answer::Fail => return Err(Status::internal("the driver is ill")),
            Answer::Hang => std::future::pending().await,
            Answer::Skip => drop(results.pop()),
            Answer::Stranger => results[0].0 = "stranger".into(),
            Answer::Each | Answer::Error(_) | Answer::Nil => {}
        }
        Ok(results)
    }
}

/// Says when a handler has ended, whether by its answer or by its drop.
struct Under<'a>(&'a Script, String);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.see(self.1.clone());
    }
}

#[tonic::async_trait]
impl Registration for Script {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        self.see("info".into());
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.see(format!("notify: {} {}", status.plugin_registered, status.error));
        if self.refuse_notify {
            return Err(Status::failed_precondition("not like this"));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DraV1 for Script {
    async fn node_prepare_resources(
        &self,
        request: Request<dra_v1::NodePrepareResourcesRequest>,
    ) -> Result<Response<dra_v1::NodePrepareResourcesResponse>, Status> {
        self.prepare("v1 prepare", request.into_inner().claims).await.map(Response::new)
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<dra_v1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<dra_v1::NodeUnprepareResourcesResponse>, Status> {
        self.unprepare("v1 unprepare", request.into_inner().claims).await.map(Response::new)
    }
}

fn new_claims(claims: Vec<dra_v1beta1::Claim>) -> Vec<dra_v1::Claim> {
    let claim = |claim: dra_v1beta1::Claim| dra_v1::Claim {
        namespace: claim.namespace,
        uid: claim.uid,
        name: claim.name,
    };
    claims.into_iter().map(claim).collect()
}

#[tonic::async_trait]
impl DraV1beta1 for Script {
    async fn node_prepare_resources(
        &self,
        request: Request<dra_v1beta1::NodePrepareResourcesRequest>,
    ) -> Result<Response<dra_v1beta1::NodePrepareResourcesResponse>, Status> {
        let answer =
            self.prepare("v1beta1 prepare", new_claims(request.into_inner().claims)).await?;
        let device = |device: dra_v1::Device| dra_v1beta1::Device {
            request_names: device.request_names,
            pool_name: device.pool_name,
            device_name: device.device_name,
            cdi_device_ids: device.cdi_device_ids,
        };
        let result = |(uid, result): (String, dra_v1::NodePrepareResourceResponse)| {
            let devices = result.devices.into_iter().map(device).collect();
            (uid, dra_v1beta1::NodePrepareResourceResponse { devices, error: result.error })
        };
        let claims = answer.claims.into_iter().map(result).collect();
        Ok(Response::new(dra_v1beta1::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<dra_v1beta1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<dra_v1beta1::NodeUnprepareResourcesResponse>, Status> {
        let answer =
            self.unprepare("v1beta1 unprepare", new_claims(request.into_inner().claims)).await?;
        let result = |(uid, result): (String, dra_v1::NodeUnprepareResourceResponse)| {
            (uid, dra_v1beta1::NodeUnprepareResourceResponse { error: result.error })
        };
        let claims = answer.claims.into_iter().map(result).collect();
        Ok(Response::new(dra_v1beta1::NodeUnprepareResourcesResponse { claims }))
    }
}

#[tonic::async_trait]
impl HealthV1 for Script {
    type NodeWatchResourcesStream =
        BoxStream<'static, Result<dra_health_v1::NodeWatchResourcesResponse, Status>>;

    async fn node_watch_resources(
        &self,
        _: Request<dra_health_v1::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        self.see("v1 health".into());
        Ok(Response::new(Box::pin(WatchStream::new(self.health.subscribe()).map(Ok))))
    }
}

#[tonic::async_trait]
impl HealthV1alpha1 for Script {
    type NodeWatchResourcesStream =
        BoxStream<'static, Result<dra_health_v1alpha1::NodeWatchResourcesResponse, Status>>;

    async fn node_watch_resources(
        &self,
        _: Request<dra_health_v1alpha1::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        self.see("v1alpha1 health".into());
        let device = |said: dra_health_v1::DeviceHealth| dra_health_v1alpha1::DeviceHealth {
            device: said.device.map(|device| dra_health_v1alpha1::DeviceIdentifier {
                pool_name: device.pool_name,
                device_name: device.device_name,
            }),
            health: said.health,
            last_updated_time: said.last_updated_time,
            health_check_timeout_seconds: said.health_check_timeout_seconds,
            message: said.message,
        };
        let news = WatchStream::new(self.health.subscribe()).map(move |news| {
            Ok(dra_health_v1alpha1::NodeWatchResourcesResponse {
                devices: news.devices.into_iter().map(device).collect(),
            })
        });
        Ok(Response::new(Box::pin(news)))
    }
}

/// A server on a runtime of its own, which ends with its connections as a process would.
pub(super) struct Serving(Option<Runtime>);

impl Serving {
    /// Notes in `seen` who connects, and with which authority calls are made.
    pub(super) fn start(
        seen: &watch::Sender<Vec<String>>,
        socket: &Path,
        routes: Routes,
        name: &'static str,
    ) -> Self {
        // As a driver does after a crash.
        let _stale = std::fs::remove_file(socket);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let listener = UnixListener::bind(socket).unwrap();
        let (accepts, calls) = (seen.clone(), seen.clone());
        let incoming = UnixListenerStream::new(listener).map(move |stream| {
            accepts.send_modify(|seen| seen.push(format!("{name}: accept")));
            stream
        });
        let authority = MapRequestLayer::new(move |request: http::Request<_>| {
            let authority = request.uri().authority().unwrap();
            calls.send_modify(|seen| seen.push(format!("{name} authority: {authority}")));
            request
        });
        let server = Server::builder().layer(authority).add_routes(routes);
        runtime.spawn(server.serve_with_incoming(incoming));
        Self(Some(runtime))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running double: both sockets.
pub(super) struct Double {
    pub(super) script: Script,
    pub(super) socket: PathBuf,
    pub(super) registration: Serving,
    pub(super) dra: Serving,
}

impl Double {
    /// Serves DRA, then registration under `gpu.nvidia.com@<instance>-reg.sock`.
    pub(super) fn start(root: &Path, instance: &str, script: Script) -> Self {
        let socket = root.join(format!("plugins_registry/{DRIVER}@{instance}-reg.sock"));
        let dra = script.serve_dra();
        let registration = script.serve_registration(&socket);
        Self { script, socket, registration, dra }
    }
}
