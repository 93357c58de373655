//! Registration: what the kubelet asks of a socket that it found, and what it says became of it.

use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{
    model::DRIVER,
    proto::registration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::Registration as RegistrationRpc,
    },
};

/// Services in the order in which the kubelet is to prefer them.
const SERVED: [&str; 4] =
    ["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"];

/// What the kubelet last said of our registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// How often it has said that we are registered: its start wipes our slices.
    pub times: u64,
    /// Whether we are.
    pub registered: bool,
    /// When that became so.
    pub since: Option<Timestamp>,
    /// Why not.
    pub error: Option<String>,
}

/// Answers on the registration socket.
pub(super) struct Service {
    endpoint: PathBuf,
    state: watch::Sender<Registration>,
}

impl Service {
    pub(super) fn new(endpoint: PathBuf, state: watch::Sender<Registration>) -> Self {
        Self { endpoint, state }
    }
}

#[tonic::async_trait]
impl RegistrationRpc for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: SERVED.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("registered with the kubelet");
        } else {
            tracing::error!(error, "the kubelet refused the registration");
        }
        self.state.send_modify(|state| {
            state.times += u64::from(plugin_registered);
            state.registered = plugin_registered;
            state.since = Some(Timestamp::now());
            state.error = (!plugin_registered).then_some(error);
        });
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
