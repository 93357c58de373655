//! Stands in for the kubelet: finds plugins by their registration sockets, calls them, checks their
//! answers, reads their health, and wipes ResourceSlices, with the deadlines, refusals and races of
//! the real one. What it does comes from the kubelet of Kubernetes 1.32 to 1.37, and for device
//! plugins of 1.20 to 1.37.
//!
//! Nothing of it is timed by the test: [`Kubelet::wait_for`] waits for a [`State`].

mod authority;
mod calls;
mod claims;
mod devices;
mod health;
mod link;
mod pod_resources;
mod probe;
mod registration;
mod serve;
mod sockets;
mod state;
mod task;
#[cfg(test)]
mod tests;
mod wipe;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use authority::Authority;
pub use calls::{Call, Results};
pub use devices::state::{
    AdmissionError, Allocation, Container, ContainerAllocateResponse, DeviceSpec, Granted, Mount,
    PluginDevice, Pod, PodRef, Resource, RunOptions,
};
pub use probe::{ServingStatus, probe};
pub use state::{
    Device, DeviceHealth, DeviceKey, DraService, Health, HealthService, HeldClaim, Plugin, State,
    Wipe,
};

use devices::Devices;
use link::Link;
use sockets::{Change, Sockets};
use task::Task;

/// Removes ResourceSlices from the API server when the kubelet would.
pub type Wiper = Arc<dyn Fn(Wipe) -> BoxFuture<'static, ()> + Send + Sync>;

/// How this kubelet differs from one of Kubernetes 1.37 with its defaults.
#[derive(Clone)]
pub struct Options {
    /// Minor release of Kubernetes, from 20 on: which services are known, how health is asked for,
    /// how device plugins are called. DRA is there from 32 on.
    pub release: u32,
    /// Whether `v1.DRAPlugin` is unknown, whatever the release.
    pub only_v1beta1: bool,
    /// Whether health is asked for (feature gate ResourceHealthStatus).
    pub health: bool,
    /// Deadline of prepare and unprepare.
    pub deadline: Duration,
    /// First pause after a failed registration; it doubles each time.
    pub registration_backoff: Duration,
    /// Pause after a failed connection to a DRA socket.
    pub reconnect: Duration,
    /// Pause after the end of a health stream.
    pub health_retry: Duration,
    /// How long a driver may be without connected plugin before its slices are wiped.
    pub wipe_after: Duration,
    /// What wipes; without it, wipes are only recorded in the state.
    pub wipe: Option<Wiper>,
    /// Whether device plugins can register from the start on.
    pub device_plugins: bool,
    /// What device plugins are called with, if not what the release does.
    pub plugin_authority: Option<Authority>,
    /// How long a device plugin that registers may take to be connected to.
    pub plugin_dial: Duration,
    /// Deadline of PreStartContainer; Allocate has none.
    pub pre_start: Duration,
    /// Whether podresources is served.
    pub pod_resources: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            release: 37,
            only_v1beta1: false,
            health: true,
            deadline: Duration::from_secs(45),
            registration_backoff: Duration::from_millis(500),
            reconnect: Duration::from_secs(1),
            health_retry: Duration::from_secs(5),
            wipe_after: Duration::from_secs(30),
            wipe: None,
            device_plugins: true,
            plugin_authority: None,
            plugin_dial: Duration::from_secs(10),
            pre_start: Duration::from_secs(30),
            pod_resources: true,
        }
    }
}

impl Options {
    fn plugin_authority(&self) -> Authority {
        let usual = if self.release < 26 { Authority::Path } else { Authority::Localhost };
        self.plugin_authority.unwrap_or(usual)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("release", &self.release).finish_non_exhaustive()
    }
}

/// The stand-in. Ends with its drop.
#[derive(Debug)]
pub struct Kubelet {
    shared: Arc<Shared>,
    session: tokio::sync::Mutex<Option<Session>>,
    devices: Mutex<Option<Arc<Devices>>>,
}

/// What the tasks of a kubelet share.
#[derive(Debug)]
struct Shared {
    options: Options,
    registry: PathBuf,
    device_plugins: PathBuf,
    pod_resources: PathBuf,
    faults: Mutex<Faults>,
    state: watch::Sender<State>,
    links: Mutex<BTreeMap<u64, watch::Receiver<Link>>>,
    ids: AtomicU64,
}

/// What goes wrong because a test wants it so.
#[derive(Debug, Default)]
struct Faults {
    /// Why device plugins are refused.
    registration: Option<String>,
    /// Why calls to podresources fail.
    pod_resources: Option<String>,
}

/// One run of the kubelet, from its start to its stop.
#[derive(Debug)]
struct Session {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Kubelet {
    /// Starts on a kubelet root, whose `plugins_registry/` and `plugins/` are made where missing.
    /// As with the real one, the slices of the node are wiped first.
    ///
    /// # Errors
    /// When the folders and sockets cannot be made or watched.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(root: &Path, options: Options) -> anyhow::Result<Self> {
        let registry = root.join("plugins_registry");
        for dir in [&registry, &root.join("plugins")] {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot create `{}`", dir.display()))?;
        }
        let shared = Arc::new(Shared {
            options,
            registry,
            device_plugins: root.join("device-plugins"),
            pod_resources: root.join("pod-resources/kubelet.sock"),
            faults: Mutex::default(),
            state: watch::Sender::new(State::default()),
            links: Mutex::default(),
            ids: AtomicU64::new(0),
        });
        let (session, devices) = Session::start(&shared)?;
        let session = tokio::sync::Mutex::new(Some(session));
        Ok(Self { shared, session, devices: Mutex::new(Some(devices)) })
    }

    /// Stops it: all connections are closed, all plugins forgotten, calls under way fail. Claims and
    /// devices of pods stay in its state files, its sockets as dead files.
    pub async fn stop(&self) {
        *self.current() = None;
        if let Some(session) = self.session.lock().await.take() {
            session.stop().await;
        }
        self.shared.state.send_modify(|state| {
            state.refused.clear();
            state.health.clear();
            state.claims.values_mut().for_each(|claim| claim.prepared = false);
        });
    }

    /// Stops it and starts it again: wipes the slices of the node, finds plugins in random order.
    ///
    /// # Errors
    /// When a folder or socket cannot be made or watched.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await;
        let (session, devices) = Session::start(&self.shared)?;
        *self.session.lock().await = Some(session);
        *self.current() = Some(devices);
        Ok(())
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// A receiver of every state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// The first state, from now on, that is as wanted.
    pub async fn wait_for(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut states = self.watch();
        match states.wait_for(wanted).await {
            Ok(state) => state.clone(),
            Err(_closed) => unreachable!("the sender lives as long as the kubelet"),
        }
    }

    /// Waits until a plugin of the driver is registered, knows it, and is connected.
    pub async fn registered(&self, driver: &str) -> Plugin {
        let ready = |state: &State| {
            let mut plugins = state.plugins.iter().rev();
            plugins.find(|p| p.driver == driver && p.acknowledged && p.connected).cloned()
        };
        let mut found = None;
        self.wait_for(|state| {
            found = ready(state);
            found.is_some()
        })
        .await;
        match found {
            Some(plugin) => plugin,
            None => unreachable!("it was just found"),
        }
    }

    /// This run, unless it is stopped.
    fn devices(&self) -> Option<Arc<Devices>> {
        self.current().clone()
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Devices>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<u64, watch::Receiver<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Session {
    fn start(shared: &Arc<Shared>) -> anyhow::Result<(Self, Arc<Devices>)> {
        let watched = Sockets::watch(&shared.registry);
        let (sockets, mut found) =
            watched.with_context(|| format!("cannot watch `{}`", shared.registry.display()))?;
        let random = RandomState::new();
        found.sort_by_cached_key(|socket| random.hash_one(socket));
        let devices = Devices::start(shared).context("cannot serve device plugins")?;
        let pod_resources = pod_resources::start(shared).context("cannot serve podresources")?;
        let (stop, stopped) = oneshot::channel();
        let (shared, run_devices) = (shared.clone(), devices.clone());
        let task = tokio::spawn(async move {
            run(shared, sockets, found, stopped).await;
            run_devices.stop().await;
            if let Some(server) = pod_resources {
                server.end().await;
            }
        });
        Ok((Self { stop, task }, devices))
    }

    async fn stop(self) {
        // Failing to send, or to join, both mean that it has ended.
        let _ended = self.stop.send(());
        let _joined = self.task.await;
    }
}

async fn run(
    shared: Arc<Shared>,
    sockets: Sockets,
    found: Vec<PathBuf>,
    stopped: oneshot::Receiver<()>,
) {
    let wiper = Task::spawn(wipe::run(shared.clone()));
    let mut live = BTreeMap::new();
    for socket in found {
        live.insert(socket.clone(), Task::spawn(registration::live(shared.clone(), socket)));
    }
    tokio::select! {
        () = follow(&shared, sockets, &mut live) => {}
        // Dropped with the kubelet, or told.
        _ = stopped => {}
    }
    for task in live.into_values() {
        task.end().await;
    }
    wiper.end().await;
}

async fn follow(shared: &Arc<Shared>, mut sockets: Sockets, live: &mut BTreeMap<PathBuf, Task>) {
    loop {
        let changes = match sockets.next().await {
            Ok(changes) => changes,
            Err(error) => {
                let (registry, why) = (shared.registry.clone(), format!("watch failed: {error}"));
                shared.state.send_modify(|state| drop(state.refused.insert(registry, why)));
                return std::future::pending().await;
            }
        };
        for change in changes {
            let (Change::Appeared(socket) | Change::Removed(socket)) = &change;
            if let Some(task) = live.remove(socket) {
                task.end().await;
            }
            shared.state.send_modify(|state| drop(state.refused.remove(socket)));
            if let Change::Appeared(socket) = change {
                live.insert(
                    socket.clone(),
                    Task::spawn(registration::live(shared.clone(), socket)),
                );
            }
        }
    }
}
