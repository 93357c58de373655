//! Another driver of our name on this node: whether one is still there to answer the kubelet.
//!
//! Sockets of Kerf's agents have an `@` in their names and are none of these: one agent at a time acts,
//! and whoever ends closes its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixStream, time::timeout};

use super::probe;
use crate::{
    model::DRIVER,
    proto::registration::{InfoRequest, registration_client::RegistrationClient},
};

/// How long a socket's owner may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Another process serves the kubelet under our name.
#[derive(Debug, thiserror::Error)]
#[error(
    "another driver named `{DRIVER}` is alive on this node, at `{}`; remove NVIDIA's DRA driver first (its DaemonSet, \
     or the label that brings it to this node)",
    .0.display()
)]
pub struct Rival(PathBuf);

/// Looks for sockets of another driver of our name in `registry`, where the kubelet finds drivers, and
/// in `plugin_dir`, which is the driver's own. A socket that nobody listens to is nobody's, and stays.
///
/// # Errors
/// There is one.
pub async fn check(registry: &Path, plugin_dir: &Path) -> Result<(), Rival> {
    for socket in sockets(registry, |name| name.ends_with("-reg.sock")) {
        if registers_as_us(&socket).await {
            return Err(Rival(socket));
        }
    }
    for socket in sockets(plugin_dir, |name| name == "dra.sock" || name.starts_with("dra-")) {
        if answers(&socket).await {
            return Err(Rival(socket));
        }
    }
    Ok(())
}

/// The sockets in a directory that have such a name and are not of ours, in order.
fn sockets(directory: &Path, named: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let theirs = names.filter(|name| named(name) && name.ends_with(".sock") && !name.contains('@'));
    let mut theirs: Vec<_> = theirs.map(|name| directory.join(name)).collect();
    theirs.sort();
    theirs
}

async fn answers(socket: &Path) -> bool {
    matches!(timeout(PATIENCE, UnixStream::connect(socket)).await, Ok(Ok(_)))
}

/// Whether who listens there is a driver of our name: it says so, or does not say otherwise at a socket
/// that is named after it.
async fn registers_as_us(socket: &Path) -> bool {
    if !answers(socket).await {
        return false;
    }
    match timeout(PATIENCE, name(socket)).await {
        Ok(Some(name)) => name == DRIVER,
        _ => {
            let file = socket.file_name().unwrap_or_default().to_string_lossy();
            file.strip_prefix(DRIVER).is_some_and(|rest| rest.starts_with('-'))
        }
    }
}

async fn name(socket: &Path) -> Option<String> {
    let channel = probe::connect(socket.to_owned()).await.ok()?;
    let answer = RegistrationClient::new(channel).get_info(InfoRequest {}).await.ok()?;
    Some(answer.into_inner().name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status, transport::Server};

    use super::*;
    use crate::proto::registration::{
        PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::{Registration, RegistrationServer},
    };

    struct Driver(&'static str);

    #[tonic::async_trait]
    impl Registration for Driver {
        async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
            Ok(Response::new(PluginInfo { name: self.0.to_owned(), ..PluginInfo::default() }))
        }

        async fn notify_registration_status(
            &self,
            _: Request<RegistrationStatus>,
        ) -> Result<Response<RegistrationStatusResponse>, Status> {
            Ok(Response::new(RegistrationStatusResponse {}))
        }
    }

    /// A driver that answers at this socket until the test ends.
    fn serve(socket: &Path, name: &'static str) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let server = Server::builder().add_service(RegistrationServer::new(Driver(name)));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }

    async fn found(dir: &Path) -> Option<String> {
        let found = check(dir, dir).await.err();
        found.map(|Rival(path)| path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn a_driver_of_our_name_is_found_by_what_it_says() {
        for (socket, name, rival) in [
            ("gpu.nvidia.com-reg.sock", DRIVER, true),
            ("gpu.nvidia.com-0b7c6f1e-reg.sock", DRIVER, true),
            ("dra-Zm9vYmFy-reg.sock", DRIVER, true),
            ("dra-Zm9vYmFy-reg.sock", "nic.example.com", false),
            ("gpu.nvidia.com-reg.sock", "nic.example.com", false),
            ("gpu.nvidia.com-0b7c6f1e@reg.sock", DRIVER, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            serve(&dir.path().join(socket), name);
            // In the registry alone: in a driver's own directory `dra-…` is its service.
            let registry = check(dir.path(), Path::new("/nowhere")).await;
            assert_eq!(registry.is_err(), rival, "{socket} {name}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_listened_to_is_a_driver_where_its_name_says_so() {
        for (socket, rival) in [
            ("dra.sock", true),
            ("dra-0b7c6f1e.sock", true),
            ("dra@0b7c6f1e.sock", false),
            ("agent.sock", false),
            ("nic.example.com-reg.sock", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join(socket)).unwrap();
            // One that hears a call out and hangs up.
            std::thread::spawn(move || listener.incoming().for_each(drop));
            assert_eq!(found(dir.path()).await, rival.then(|| socket.to_owned()));
        }
        let dir = tempfile::tempdir().unwrap();
        let mute = dir.path().join("gpu.nvidia.com-reg.sock");
        let listener = UnixListener::bind(&mute).unwrap();
        std::thread::spawn(move || listener.incoming().for_each(drop));
        assert_eq!(
            check(dir.path(), dir.path()).await.unwrap_err().to_string(),
            format!(
                "another driver named `gpu.nvidia.com` is alive on this node, at `{}`; remove NVIDIA's DRA driver \
                 first (its DaemonSet, or the label that brings it to this node)",
                mute.display()
            )
        );
    }

    #[tokio::test]
    async fn what_a_dead_driver_left_is_no_driver() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["gpu.nvidia.com-reg.sock", "dra.sock"] {
            drop(UnixListener::bind(dir.path().join(name)).unwrap());
        }
        std::fs::File::create(dir.path().join("gpu.nvidia.com-file-reg.sock")).unwrap();
        assert_eq!(found(dir.path()).await, None);
        assert_eq!(found(Path::new("/nowhere")).await, None);
        assert!(dir.path().join("dra.sock").exists());
    }
}
