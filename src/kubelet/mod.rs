//! The kubelet's doors: its sockets, registration, DRA, device health and probes.

mod dra;
mod health;
pub mod plugin;
pub mod podresources;
pub mod probe;
mod registration;
pub mod rival;
mod socket;
mod turn;

use std::{future::Future, io, path::PathBuf, sync::Arc};

use futures::future;
pub use registration::Registration;
pub use socket::{Error, Sockets, remove_stale};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};
use tonic::transport::Server;

use self::turn::Turn;
use crate::{
    driver::Driver,
    proto::{
        dra_health_v1::dra_resource_health_server::DraResourceHealthServer as HealthV1,
        dra_health_v1alpha1::dra_resource_health_server::DraResourceHealthServer as HealthV1Alpha1,
        dra_v1::dra_plugin_server::DraPluginServer as DraV1,
        dra_v1beta1::dra_plugin_server::DraPluginServer as DraV1Beta1,
        registration::registration_server::RegistrationServer,
    },
};

/// Where the doors are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the kubelet looks for registration sockets.
    pub registry: PathBuf,
    /// The plugin's own directory.
    pub plugin_dir: PathBuf,
    /// UID of the agent's pod: two agents on a node have sockets of their own.
    pub pod_uid: Option<String>,
}

/// The doors, bound and not yet served.
pub struct Doors {
    sockets: Sockets,
    dra: UnixListener,
    registration: UnixListener,
}

impl Doors {
    /// Binds the DRA socket, then the registration socket: the kubelet may call at once.
    ///
    /// # Errors
    /// A directory that is not there, or a path that is too long for a socket.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let sockets = Sockets::new(settings)?;
        let dra = socket::bind(&sockets.dra)?;
        let registration = socket::bind(&sockets.registration)?;
        Ok(Self { sockets, dra, registration })
    }

    /// Paths of the sockets.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Serves until `end`: what the kubelet asks before there is an `acting` driver is passed on to the
    /// agent that acts, or waits.
    pub fn serve(
        self,
        acting: watch::Receiver<Option<Arc<Driver>>>,
        registered: watch::Sender<Registration>,
        end: impl Future<Output = ()> + Send + Clone + 'static,
    ) -> Served {
        let Self { sockets, dra, registration } = self;
        let service = registration::Service::new(sockets.dra.clone(), registered);
        let registration = Server::builder()
            .add_service(RegistrationServer::new(service))
            .serve_with_incoming_shutdown(socket::incoming(registration), end.clone());
        let turn = Turn::new(acting, &sockets.dra);
        let claims = dra::Service::new(turn.clone());
        let health = health::Service::new(turn);
        let dra = Server::builder()
            .add_service(DraV1::new(claims.clone()))
            .add_service(DraV1Beta1::new(claims))
            .add_service(HealthV1::new(health.clone()))
            .add_service(HealthV1Alpha1::new(health))
            .serve_with_incoming_shutdown(socket::incoming(dra), end.clone());
        let served = async { future::try_join(registration, dra).await.map_err(io::Error::other) };
        // A stream of device health never ends by itself: the end does not wait for the servers.
        let task = tokio::spawn(async {
            tokio::select! {
                served = served => served.map(|_| ()),
                () = end => Ok(()),
            }
        });
        Served { task, _sockets: sockets }
    }
}

/// The doors while they are served. Dropped, the registration socket is removed first, so that the kubelet
/// turns elsewhere, and then the other.
pub struct Served {
    task: JoinHandle<io::Result<()>>,
    _sockets: Sockets,
}

impl Served {
    /// Returns when the serving has ended.
    ///
    /// # Errors
    /// A server that failed before the end.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.task).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}
