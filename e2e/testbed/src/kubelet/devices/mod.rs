//! The kubelet's side of device plugins, as of Kubernetes 1.20 to 1.37: who is registered, which
//! devices there are, and who is given them.
//!
//! Left out: topology hints, and the five minutes after
//! which a stopped resource is forgotten, for which there is [`Kubelet::expire_stopped`].

mod admission;
mod book;
mod containers;
mod directory;
mod pick;
mod plugin;
mod registration;
pub(super) mod state;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::state::State;
use super::task::Task;
use super::{Kubelet, Shared};
use book::Book;

/// One run of the kubelet, as far as device plugins go.
#[derive(Debug)]
pub(super) struct Devices {
    shared: Arc<Shared>,
    directory: PathBuf,
    ids: AtomicU64,
    /// None once this run has ended: what is still under way then changes nothing.
    book: Mutex<Option<Book>>,
    /// Containers, by pod UID and name, that ran when it started.
    ran: BTreeSet<(String, String)>,
    /// Pods are admitted one after another.
    admission: tokio::sync::Mutex<()>,
    server: Mutex<Option<Task>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Devices {
    /// Starts to serve, if the options say so.
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Arc<Self>> {
        let devices = Arc::new(Self {
            shared: shared.clone(),
            directory: shared.device_plugins.clone(),
            ids: AtomicU64::new(0),
            book: Mutex::new(Some(Book::new(shared.options.release))),
            ran: running(&shared.state.borrow()),
            admission: tokio::sync::Mutex::default(),
            server: Mutex::default(),
            tasks: Mutex::default(),
        });
        devices.read_checkpoint();
        if shared.options.device_plugins {
            devices.listen()?;
        }
        Ok(devices)
    }

    /// Ends this run: the connections of plugins are closed both ways.
    pub(super) async fn stop(&self) {
        let server = self.server().take();
        if let Some(server) = server {
            server.end().await;
        }
        self.forget();
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    fn forget(&self) {
        let mut book = self.book();
        *book = None;
        self.shared.state.send_modify(|state| {
            state.plugin_streams = 0;
            for resource in state.resources.values_mut() {
                resource.endpoint = None;
                resource.connected = false;
                resource.mark_unhealthy();
            }
        });
    }

    /// Changes book and state as one, and shows in the state where calls go.
    fn change(&self, change: impl FnOnce(&mut Book, &mut State)) {
        let mut book = self.book();
        let Some(book) = book.as_mut() else { return };
        self.shared.state.send_modify(|state| {
            change(book, state);
            for (name, resource) in &mut state.resources {
                let endpoint = book.endpoint(name);
                resource.endpoint = endpoint.map(|endpoint| endpoint.client.socket.clone());
                resource.connected = endpoint.is_some_and(|endpoint| !endpoint.stopped);
            }
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn book(&self) -> MutexGuard<'_, Option<Book>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server(&self) -> MutexGuard<'_, Option<Task>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a plugin says that it listens: a name in the directory, whatever it begins with.
    fn socket(&self, endpoint: &str) -> PathBuf {
        self.directory.join(endpoint.trim_start_matches('/'))
    }
}

impl Kubelet {
    /// Makes `kubelet.sock` (again) and the directory that it is in, and removes all other sockets
    /// there. For a kubelet that is late with it, started without `device_plugins`.
    ///
    /// # Errors
    /// When it is stopped, or the directory or socket cannot be made.
    pub fn serve_device_plugins(&self) -> io::Result<()> {
        self.devices().ok_or(io::ErrorKind::NotConnected)?.listen()
    }

    /// Refuses all registrations with this error from now on, or no more.
    pub fn refuse_registrations(&self, why: Option<&str>) {
        self.shared.faults().registration = why.map(str::to_owned);
    }

    /// Breaks the connection to the plugin of a resource, and with it its list of devices. The
    /// kubelet notices; it never connects again by itself.
    pub fn disconnect_plugin(&self, resource: &str) {
        if let Some(devices) = self.devices() {
            let book = devices.book();
            let endpoint = book.as_ref().and_then(|book| book.endpoint(resource));
            endpoint.into_iter().for_each(|endpoint| endpoint.client.close());
        }
    }

    /// Forgets the resources of stopped plugins, as the real one does after five minutes.
    pub fn expire_stopped(&self) {
        let Some(devices) = self.devices() else { return };
        devices.change(|book, state| {
            let expired = book.expire();
            state.resources.retain(|name, resource| {
                let stopped = resource.endpoint.is_none() || expired.contains(name);
                if stopped {
                    resource.registered = false;
                    resource.devices.clear();
                }
                !stopped || !resource.allocated.is_empty()
            });
        });
        // The real one only logs it.
        let _logged = devices.write_checkpoint();
    }

    /// The directory of `kubelet.sock` and of the sockets of device plugins.
    pub fn device_plugins_dir(&self) -> &Path {
        &self.shared.device_plugins
    }
}

fn running(state: &State) -> BTreeSet<(String, String)> {
    let containers = state.pods.values().flat_map(|pod| {
        pod.containers
            .iter()
            .map(|(name, container)| (pod.pod.uid.clone(), name.clone(), container))
    });
    containers
        .filter(|(.., container)| container.running)
        .map(|(uid, name, _)| (uid, name))
        .collect()
}
