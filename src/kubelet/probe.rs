//! Probes: gRPC health over TCP, as the kubelet asks it, which calls the agent's own sockets.

use std::{future::Future, path::PathBuf, pin::Pin, time::Duration};

use futures::Stream;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, UnixStream},
    sync::{mpsc, watch},
    time::{interval, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, Uri},
};
use tower::service_fn;

use crate::proto::{
    dra_v1::{NodePrepareResourcesRequest, dra_plugin_client::DraPluginClient},
    grpc_health::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus,
        health_server::{Health, HealthServer},
    },
    registration::{InfoRequest, registration_client::RegistrationClient},
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

/// Serves probes on `listener` until `end`.
///
/// # Errors
/// A server that fails.
pub async fn serve(
    listener: TcpListener,
    target: watch::Receiver<Target>,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(HealthServer::new(Service { target }))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), end)
        .await
}

#[derive(Clone)]
struct Service {
    target: watch::Receiver<Target>,
}

impl Service {
    async fn status(&self) -> ServingStatus {
        let target = self.target.borrow().clone();
        match target {
            Target::Closed => ServingStatus::Serving,
            Target::Serving { registration, dra } => {
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
        let (sender, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let mut again = interval(WATCH);
            let mut said = None;
            while !sender.is_closed() {
                again.tick().await;
                let status = service.status().await;
                if said.replace(status) == Some(status) {
                    continue;
                }
                let status = status.into();
                if sender.send(Ok(HealthCheckResponse { status })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
