//! Registration of a resource: a call to the kubelet, which dials back before it answers.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use tonic::Request;

use super::{endpoint, service};
use crate::{
    driver::Driver,
    kubelet::probe,
    proto::device_plugin::{RegisterRequest, registration_client::RegistrationClient},
};

/// The kubelet has 10 s for dialling back.
const PATIENCE: Duration = Duration::from_secs(15);

/// What tells one run of the kubelet from another: its socket's device, inode and time of change.
pub(super) type Identity = Option<(u64, u64, i64, i64)>;

/// The kubelet, as device plugins find it.
pub(super) struct Kubelet {
    socket: PathBuf,
}

impl Kubelet {
    pub(super) fn new(dir: &Path) -> Self {
        Self { socket: dir.join("kubelet.sock") }
    }

    /// Which kubelet runs now; `None` for none.
    pub(super) fn identity(&self) -> Identity {
        let file = std::fs::symlink_metadata(&self.socket).ok()?;
        Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
    }

    /// Registers a resource that is served at `socket`.
    pub(super) async fn register(
        &self,
        driver: &Arc<Driver>,
        resource: &str,
        socket: &Path,
    ) -> Result<(), String> {
        let request = RegisterRequest {
            version: service::VERSION.to_owned(),
            endpoint: endpoint(socket),
            resource_name: resource.to_owned(),
            options: Some(service::options(driver, resource)),
        };
        let registered = async {
            let channel = probe::connect(self.socket.clone()).await;
            let channel =
                channel.map_err(|error| format!("the kubelet does not answer: {error}"))?;
            let registered = RegistrationClient::new(channel).register(Request::new(request)).await;
            registered.map(drop).map_err(|status| status.message().to_owned())
        };
        let late = || format!("the kubelet has not answered within {} s", PATIENCE.as_secs());
        timeout(PATIENCE, registered).await.unwrap_or_else(|_| Err(late()))
    }
}
