//! The device plugin's doors: a server for each extended resource, registered with the kubelet again
//! whenever it may have forgotten.

mod register;
mod service;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tonic::transport::Server;

use self::{register::Kubelet, service::Service};
use super::socket;
use crate::{driver::Driver, proto::device_plugin::device_plugin_server::DevicePluginServer};

/// How long the kubelet may take to ask for the devices once it has registered us.
const ASKED: Duration = Duration::from_secs(10);

/// Pauses between attempts to register; what changes in the directory ends them.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where the doors are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The kubelet's directory of device plugins.
    pub dir: PathBuf,
    /// UID of the agent's pod: two agents on a node have sockets of their own.
    pub pod_uid: String,
}

/// How the kubelet takes a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceState {
    /// Whether the kubelet knows it and listens.
    pub registered: bool,
    /// Why not.
    pub error: Option<String>,
}

/// How the kubelet takes each resource, by full name.
pub type Resources = BTreeMap<String, ResourceState>;

/// Streams to the kubelet of one resource.
#[derive(Clone, Copy, Debug, Default)]
struct Streams {
    opened: u64,
    open: usize,
}

/// A task that ends when it is dropped.
struct Door {
    task: JoinHandle<()>,
    /// The socket that it serves at the moment.
    socket: Arc<Mutex<PathBuf>>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
        // Gone already where the kubelet cleared its directory.
        _ = std::fs::remove_file(&*self.socket.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Serves each resource that the driver offers, until it is dropped. `changes` counts changes in the
/// kubelet's directory.
pub async fn serve(
    driver: Arc<Driver>,
    settings: Settings,
    changes: watch::Receiver<u64>,
    states: watch::Sender<Resources>,
) {
    socket::remove_unheard(&settings.dir, "nvidia-", "@.sock");
    let mut offers = driver.offers();
    let mut doors: BTreeMap<String, Door> = BTreeMap::new();
    loop {
        let offer = offers.borrow_and_update().offer.clone();
        let offered = |name: &String| offer.resources.contains_key(name);
        doors.retain(|name, _| offered(name));
        states.send_modify(|states| states.retain(|name, _| offered(name)));
        for resource in offer.resources.keys() {
            if !doors.contains_key(resource) {
                let door = open(&driver, &settings, resource, &changes, &states);
                doors.insert(resource.clone(), door);
            }
        }
        tokio::select! {
            changed = offers.changed() => if changed.is_err() { return },
            () = closed(changes.clone()) => return,
        }
    }
}

/// Returns when nobody counts changes any more.
async fn closed(mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {}
}

fn open(
    driver: &Arc<Driver>,
    settings: &Settings,
    resource: &str,
    changes: &watch::Receiver<u64>,
    states: &watch::Sender<Resources>,
) -> Door {
    let socket = Arc::new(Mutex::new(PathBuf::new()));
    let door = Resource {
        driver: driver.clone(),
        name: resource.to_owned(),
        kubelet: Kubelet::new(&settings.dir),
        settings: settings.clone(),
        socket: PathBuf::new(),
        bound: socket.clone(),
        changes: changes.clone(),
        states: states.clone(),
    };
    Door { task: tokio::spawn(door.live()), socket }
}

/// A name that no socket has had: a kubelet of 1.37 that has not noticed the end of a stream takes no second one
/// from the same socket, and those before take the end of the one for the end of the other. With an `@` after
/// which no `%` follows, as for registration: kubelets before 1.26 may send the encoded path as `:authority`.
fn socket_path(settings: &Settings, resource: &str) -> PathBuf {
    let name = resource.rsplit('/').next().unwrap_or(resource);
    let uid = settings.pod_uid.get(..8).unwrap_or(&settings.pod_uid);
    let now = Timestamp::now().as_microsecond();
    settings.dir.join(format!("nvidia-{name}-{uid}-{now:x}@.sock"))
}

/// One resource's door.
struct Resource {
    driver: Arc<Driver>,
    name: String,
    kubelet: Kubelet,
    settings: Settings,
    socket: PathBuf,
    /// The same, for whoever ends this.
    bound: Arc<Mutex<PathBuf>>,
    changes: watch::Receiver<u64>,
    states: watch::Sender<Resources>,
}

impl Resource {
    async fn live(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Err(error) = self.serve().await {
                self.failed(&format!("cannot bind `{}`: {error}", self.socket.display()));
                self.wait(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    /// Serves on a socket until that is taken away.
    async fn serve(&mut self) -> Result<(), io::Error> {
        self.socket = socket_path(&self.settings, &self.name);
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.socket);
        let listener = socket::bind(&self.socket).map_err(io::Error::other)?;
        let streams = watch::Sender::<Streams>::default();
        let told = streams.subscribe();
        // Streams outlive their server; they end when this is dropped.
        let (_open, closed) = watch::channel(());
        let service = Service::new(self.driver.clone(), self.name.clone(), streams, closed);
        let server = Server::builder()
            .add_service(DevicePluginServer::new(service))
            .serve_with_incoming(socket::incoming(listener));
        tokio::select! {
            served = server => served.map_err(io::Error::other),
            () = self.stay_registered(told) => Ok(()),
        }
    }

    /// Registers, and again whenever the kubelet is a new one or has hung up, as long as the socket is there.
    async fn stay_registered(&mut self, mut streams: watch::Receiver<Streams>) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.changes.mark_unchanged();
            let kubelet = self.kubelet.identity();
            let opened = streams.borrow().opened;
            match self.kubelet.register(&self.driver, &self.name, &self.socket).await {
                Err(error) => {
                    self.failed(&error);
                    self.wait(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Ok(()) => {
                    tracing::info!(resource = self.name, "registered with the kubelet");
                    self.registered();
                    let since = Instant::now();
                    self.while_it_listens(&kubelet, &mut streams, opened, since).await;
                    // One that hangs up at once is not asked all the time.
                    pause = if since.elapsed() > ASKED { FIRST_PAUSE } else { pause };
                    if self.kubelet.identity() == kubelet {
                        sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
            if !self.socket.exists() {
                return;
            }
        }
    }

    /// Returns when the kubelet is a new one or has hung up, or the socket is gone.
    async fn while_it_listens(
        &mut self,
        kubelet: &register::Identity,
        streams: &mut watch::Receiver<Streams>,
        opened: u64,
        since: Instant,
    ) {
        loop {
            let now = *streams.borrow_and_update();
            let asked = now.opened > opened;
            if asked && now.open == 0 {
                return self.failed("the kubelet has hung up");
            }
            tokio::select! {
                changed = streams.changed() => if changed.is_err() { return },
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    if self.kubelet.identity() != *kubelet || !self.socket.exists() {
                        return self.failed("the kubelet has cleared its directory");
                    }
                }
                () = sleep_until(since + ASKED), if !asked => {
                    return self.failed(
                        "the kubelet has registered it and does not call: one before 1.26 that dials by path \
                         is not served; update the kubelet",
                    );
                }
            }
        }
    }

    async fn wait(&mut self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            changed = self.changes.changed() => if changed.is_err() { sleep(pause).await },
        }
    }

    fn registered(&self) {
        let state = ResourceState { registered: true, error: None };
        self.states.send_modify(|states| drop(states.insert(self.name.clone(), state)));
    }

    fn failed(&self, error: &str) {
        let known = self.states.borrow().get(&self.name).and_then(|state| state.error.clone());
        if known.as_deref() != Some(error) {
            tracing::warn!(resource = self.name, error, "not registered with the kubelet");
        }
        let state = ResourceState { registered: false, error: Some(error.to_owned()) };
        self.states.send_modify(|states| drop(states.insert(self.name.clone(), state)));
    }
}

/// Name of a socket in the kubelet's directory.
fn endpoint(socket: &Path) -> String {
    socket.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
