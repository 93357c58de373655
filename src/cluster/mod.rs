//! The API server: claims in, ResourceSlices and events out.
//!
//! [`Cluster`] is the way to it: one client, a time limit on every request, and errors of one line.

use std::{path::Path, time::Duration};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
};

pub use self::error::Error;

mod check;
mod claim_status;
mod claims;
mod content;
mod converge;
mod error;
pub mod events;
pub mod evict;
mod features;
mod node_label;
pub mod publish;
mod quantity;
#[cfg(test)]
mod script;
mod slices;
mod sync;
mod watch;

pub use self::{
    features::{features, serves_dra},
    node_label::node_label,
};

/// How long the API server has for an answer. The kubelet waits 45 s for ours.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who publishes, and for which node. The pool has the node's name.
#[derive(Clone, Debug)]
pub struct PublishSettings {
    /// Driver name.
    pub driver: String,
    /// Node name.
    pub node: String,
}

/// A way to the API server. A clone is cheap and shares its connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Takes "too many requests" for an answer, and does not ask again when the server says to.
    once: Client,
}

impl Cluster {
    /// Takes address and credentials from a kubeconfig file, or else from the service account of the
    /// pod that this runs in. Sends nothing yet.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, Error> {
        let mut config = match kubeconfig {
            Some(path) => from_file(path).await?,
            None => {
                Config::incluster().map_err(|error| Error::connect("service account", &error))?
            }
        };
        let agent = concat!("kerf/", env!("CARGO_PKG_VERSION"));
        let agent = http::HeaderValue::from_static(agent);
        config.headers.push((http::header::USER_AGENT, agent));
        let client =
            |config| Client::try_from(config).map_err(|error| Error::connect("client", &error));
        let all = client(config.clone())?;
        config.default_retry = false;
        Ok(Self { client: all, once: client(config)? })
    }

    /// Uses this client.
    pub fn new(client: Client) -> Self {
        Self { once: client.clone(), client }
    }

    fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

async fn from_file(path: &Path) -> Result<Config, Error> {
    let place = path.display().to_string();
    let file = Kubeconfig::read_from(path).map_err(|error| Error::connect(&place, &error))?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await;
    config.map_err(|error| Error::connect(&place, &error))
}

/// Waits for an answer, for as long as [`PATIENCE`]. `what` says what is asked, for the error.
async fn answer<T>(
    what: impl FnOnce() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::answered(what(), &error)),
        Err(_) => Err(Error::silent(what(), PATIENCE)),
    }
}

#[cfg(test)]
mod tests;
