//! Probes: gRPC health over TCP, as the kubelet asks it, which calls the agent's own sockets.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, UnixStream},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, Uri},
};
use tower::service_fn;

use crate::{
    proto::{
        dra_v1::{NodePrepareResourcesRequest, dra_plugin_client::DraPluginClient},
        grpc_health::{
            HealthCheckRequest, HealthCheckResponse,
            health_check_response::ServingStatus,
            health_server::{Health, HealthServer},
        },
        registration::{InfoRequest, registration_client::RegistrationClient},
    },
    sockets::{Connections, Limits},
};

/// How long the agent's own sockets may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a watcher's answer is looked at again.
const WATCH: Duration = Duration::from_secs(5);

/// What there is to call.
#[derive(Clone, Debug)]
pub enum Target {
    /// No doors are open yet.
    Closed,
    /// The open doors.
    Serving {
        /// Registration socket.
        registration: PathBuf,
        /// DRA socket.
        dra: PathBuf,
    },
}

/// A probe has one connection, with one call on it.
const LIMITS: Limits = Limits { connections: 128, idle: Some(Duration::from_secs(60)) };

/// How long a call may take to arrive and to be answered.
const CALL: Duration = Duration::from_secs(10);

/// Calls at a time on one connection.
const CALLS: u32 = 4;

/// Watchers at a time on all connections.
const WATCHERS: usize = 32;

/// Bytes that a connection may have in flight, those of its headers, and those of a question.
const WINDOW: u32 = 65_535;
const HEADERS: u32 = 8 * 1024;
const QUESTION: usize = 1024;

/// How often a connection has to show that it is there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves probes on `listener` until `end`.
///
/// # Errors
/// A server that fails.
pub async fn serve(
    listener: TcpListener,
    target: watch::Receiver<Target>,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = HealthServer::new(Service::new(target)).max_decoding_message_size(QUESTION);
    Server::builder()
        .max_concurrent_streams(CALLS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(CALL))
        .timeout(CALL)
        .add_service(service)
        .serve_with_incoming_shutdown(
            Connections::new("gRPC health", listener, LIMITS).incoming(),
            end,
        )
        .await
}

#[derive(Clone)]
struct Service {
    target: watch::Receiver<Target>,
    /// What was found last, and when: who asks at the same time is told the same.
    found: Arc<Mutex<Option<(Instant, ServingStatus)>>>,
    watchers: Arc<Semaphore>,
}

impl Service {
    fn new(target: watch::Receiver<Target>) -> Self {
        Self { target, found: Arc::default(), watchers: Arc::new(Semaphore::new(WATCHERS)) }
    }

    /// What the agent's own sockets answer. They are called by one at a time, and not for each who asks.
    async fn status(&self) -> ServingStatus {
        let asked = Instant::now();
        let mut found = self.found.lock().await;
        match *found {
            // Found while we waited.
            Some((at, status)) if at >= asked => status,
            _ => {
                let begun = Instant::now();
                let status = self.ask().await;
                *found = Some((begun, status));
                status
            }
        }
    }

    async fn ask(&self) -> ServingStatus {
        let target = self.target.borrow().clone();
        let Target::Serving { registration, dra } = target else {
            return ServingStatus::Serving;
        };
        match timeout(PATIENCE, call_own(registration, dra)).await {
            Ok(Ok(())) => ServingStatus::Serving,
            Ok(Err(status)) => {
                tracing::warn!(%status, "the agent's own socket answers with an error");
                ServingStatus::NotServing
            }
            Err(_) => {
                tracing::warn!("the agent's own sockets do not answer");
                ServingStatus::NotServing
            }
        }
    }
}

/// A call on each socket; one that asks for no claims costs nothing.
async fn call_own(registration: PathBuf, dra: PathBuf) -> Result<(), Status> {
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let channel = connect(registration).await.map_err(unavailable)?;
    RegistrationClient::new(channel).get_info(InfoRequest {}).await?;
    let channel = connect(dra).await.map_err(unavailable)?;
    let nothing = NodePrepareResourcesRequest { claims: Vec::new() };
    DraPluginClient::new(channel).node_prepare_resources(nothing).await?;
    Ok(())
}

pub(super) async fn connect(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connect = move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://localhost").connect_with_connector(service_fn(connect)).await
}

/// Services by which a probe may ask: the whole, and by NVIDIA's name for it.
fn known(service: &str) -> Result<(), Status> {
    match service {
        "" | "liveness" => Ok(()),
        other => Err(Status::not_found(format!("no service `{other}`"))),
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        known(&request.into_inner().service)?;
        let status = self.status().await.into();
        Ok(Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        known(&request.into_inner().service)?;
        let place = self.watchers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{WATCHERS} watch already; ask with Check"))
        })?;
        let watching = Watching { service: self.clone(), said: None, _place: place };
        let news = stream::unfold(watching, async |mut watching| {
            let status = watching.news().await.into();
            Some((Ok(HealthCheckResponse { status }), watching))
        });
        Ok(Response::new(Box::pin(news)))
    }
}

/// Somebody who is told whenever the answer is another one. It lives in its call, and ends with it.
struct Watching {
    service: Service,
    said: Option<ServingStatus>,
    _place: OwnedSemaphorePermit,
}

impl Watching {
    async fn news(&mut self) -> ServingStatus {
        loop {
            if self.said.is_some() {
                sleep(WATCH).await;
            }
            let status = self.service.status().await;
            if self.said.replace(status) != Some(status) {
                return status;
            }
        }
    }
}
