//! The sockets' names and files.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use futures::Stream;
use k8s_openapi::jiff::Timestamp;
use tokio::net::{self, UnixListener};

use super::Settings;
use crate::{
    model::DRIVER,
    sockets::{self, Connection, Connections, Limits},
};

/// `sun_path` less its NUL.
pub(super) const LONGEST: usize = 107;

/// Paths of an agent's sockets. Dropped, they are removed.
#[derive(Debug)]
pub struct Sockets {
    /// Where the kubelet learns of the agent.
    pub registration: PathBuf,
    /// Where it calls it.
    pub dra: PathBuf,
}

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No name of ours fits.
    #[error(
        "socket path `{}` is longer than {LONGEST} bytes; use a shorter kubelet directory",
        .0.display()
    )]
    TooLong(PathBuf),
    /// It cannot be bound.
    #[error("cannot bind `{}`", path.display())]
    Bind {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Sockets {
    /// Names with the pod's UID, or with its beginning where that is too long. Without one, with what no
    /// other agent has: the sockets of two must never be the same files.
    ///
    /// The kubelet dials the registration socket with its percent-encoded path as `:authority`, which
    /// the `http` crate takes only if no `%` follows the last `@`: hence the `@`.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        let unique = || format!("{:08x}", Timestamp::now().as_nanosecond() & 0xffff_ffff);
        let uid = settings.pod_uid.clone().unwrap_or_else(unique);
        let mut sockets = Self::named(settings, &uid);
        if sockets.too_long().is_some() {
            sockets = Self::named(settings, uid.get(..8).unwrap_or(&uid));
        }
        match sockets.too_long() {
            Some(path) => Err(Error::TooLong(path)),
            None => Ok(sockets),
        }
    }

    fn named(settings: &Settings, uid: &str) -> Self {
        Self {
            registration: settings.registry.join(format!("{DRIVER}-{uid}@reg.sock")),
            dra: settings.plugin_dir.join(format!("dra@{uid}.sock")),
        }
    }

    fn too_long(&self) -> Option<PathBuf> {
        let paths = [&self.registration, &self.dra];
        paths.into_iter().find(|path| path.as_os_str().len() > LONGEST).cloned()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in [&self.registration, &self.dra] {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "socket not removed");
            }
        }
    }
}

/// The DRA sockets of other agents, beside this one.
pub(super) fn others(own: &Path) -> Vec<PathBuf> {
    let entries = own.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let is_dra = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("dra@") && name.ends_with(".sock")
    };
    paths.filter(|path| path != own && is_dra(path)).collect()
}

/// Removes the sockets of agents that are dead: nobody listens to them. For who acts: a socket that is
/// bound this moment is not listened to yet.
pub fn remove_stale(settings: &Settings) {
    remove_unheard(&settings.registry, DRIVER, "@reg.sock");
    remove_unheard(&settings.plugin_dir, "dra@", ".sock");
}

pub(super) fn remove_unheard(dir: &Path, prefix: &str, suffix: &str) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with(prefix) || !name.ends_with(suffix) {
            continue;
        }
        let refused = UnixStream::connect(entry.path())
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if refused && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "stale socket not removed");
        }
    }
}

/// Binds a socket, in the place of one that nobody listens to.
pub(super) fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Bind { path: path.to_owned(), source };
    match sockets::bind(path) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Nobody else has this name: an earlier agent of the same pod was killed.
            std::fs::remove_file(path).map_err(failed)?;
            sockets::bind(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The kubelet has a connection or two to a socket, and keeps them for days.
const LIMITS: Limits = Limits { connections: 64, idle: None };

/// Connections to a socket of ours.
pub(super) fn incoming(
    listener: UnixListener,
) -> impl Stream<Item = io::Result<Connection<net::UnixStream>>> {
    Connections::new("socket of the kubelet", listener, LIMITS).incoming()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b7c6f1e-7c55-4f0e-9a5e-2f3f8d1c9b11";

    fn settings(root: &str, uid: Option<&str>) -> Settings {
        Settings {
            registry: Path::new(root).join("plugins_registry"),
            plugin_dir: Path::new(root).join("plugins/gpu.nvidia.com"),
            pod_uid: uid.map(str::to_owned),
        }
    }

    /// As grpc-go's `encodeAuthority` does it.
    fn authority(path: &Path) -> String {
        let kept = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:[]@".contains(c);
        let text = path.to_str().unwrap();
        text.chars()
            .map(|c| if kept(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) })
            .collect()
    }

    #[test]
    fn the_kubelets_authority_for_the_registration_socket_is_valid() {
        let sockets = Sockets::new(&settings("/var/lib/kubelet", Some(UID))).unwrap();
        let parsed = http::uri::Authority::try_from(authority(&sockets.registration));
        assert!(parsed.is_ok());
        let conventional = Path::new("/var/lib/kubelet/plugins_registry/gpu.nvidia.com-reg.sock");
        assert!(http::uri::Authority::try_from(authority(conventional)).is_err());
    }

    #[test]
    fn a_uid_is_cut_where_the_path_would_be_too_long() {
        let root = format!("/{}", "k".repeat(40));
        let sockets = Sockets::new(&settings(&root, Some(UID))).unwrap();
        assert!(sockets.registration.ends_with("gpu.nvidia.com-0b7c6f1e@reg.sock"));
        let root = format!("/{}", "k".repeat(90));
        assert!(matches!(Sockets::new(&settings(&root, Some(UID))), Err(Error::TooLong(_))));
    }

    #[test]
    fn without_a_uid_two_agents_have_sockets_of_their_own() {
        let names = || Sockets::new(&settings("/var/lib/kubelet", None)).unwrap();
        let [first, second] = [names(), names()];
        assert_ne!(first.registration, second.registration);
        assert_ne!(first.dra, second.dra);
    }

    #[test]
    fn only_sockets_without_a_listener_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path().to_str().unwrap(), Some("a"));
        std::fs::create_dir_all(&settings.registry).unwrap();
        std::fs::create_dir_all(&settings.plugin_dir).unwrap();
        let stale = settings.registry.join("gpu.nvidia.com-dead@reg.sock");
        let live = settings.registry.join("gpu.nvidia.com-live@reg.sock");
        let other = settings.registry.join("other@reg.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
        let _listening = std::os::unix::net::UnixListener::bind(&live).unwrap();
        remove_stale(&settings);
        assert_eq!([stale.exists(), live.exists(), other.exists()], [false, true, true]);
    }
}
