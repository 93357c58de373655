//! Which doors are open to the kubelet: claims (DRA), extended resources (device plugin), or both.

use std::{
    fs,
    future::pending,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{
    agent::{End, Ready},
    node::Args,
};
use crate::{
    cluster::{
        self, PublishSettings,
        events::Events,
        publish::{Channels, publish},
    },
    driver::Driver,
    kubelet::{
        self, Doors, Served, plugin,
        podresources::{self, PodResources},
        probe,
    },
    model::{ended::APART, plugin::config::DeviceRef},
    node::watch::{Change, Changes},
};

/// How often the API server is asked whether it has DRA by now, and how soon again when it was away.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const AWAY: Duration = Duration::from_secs(2);

/// How often containers are compared with what the kubelet lists.
const COMPARE: Duration = Duration::from_secs(5);

/// By what pods can ask for GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Interface {
    /// Claims where the API server has `resource.k8s.io/v1`, else extended resources.
    Auto,
    /// Claims (DRA).
    Dra,
    /// Extended resources such as `nvidia.com/gpu`, of which the kubelet decides.
    DevicePlugin,
    /// Both, from one ledger.
    Both,
}

/// Flags of the doors.
#[derive(Clone, Debug, clap::Args)]
pub struct DoorArgs {
    /// By what pods can ask for GPUs.
    #[arg(long, env = "INTERFACE", value_enum, default_value = "auto")]
    pub interface: Interface,
    /// Where the kubelet looks for device plugins.
    #[arg(
        long,
        env = "KUBELET_DEVICE_PLUGINS_DIRECTORY_PATH",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    pub kubelet_device_plugins_directory_path: PathBuf,
    /// Where the kubelet says which containers have which devices.
    #[arg(
        long,
        env = "KUBELET_POD_RESOURCES_SOCKET",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub kubelet_pod_resources_socket: PathBuf,
    /// Offer every MIG placement as an extended resource, and carve it when a pod has got it.
    #[arg(long, env = "MIG_ON_DEMAND")]
    pub mig_on_demand: bool,
    /// GPUs for extended resources alone, by index or UUID, the others being for claims; with
    /// `--interface both`.
    #[arg(long, env = "DEVICE_PLUGIN_GPUS", value_delimiter = ',')]
    pub device_plugin_gpus: Vec<String>,
    /// Name of the agent's pod: a list without it is one of a kubelet that has just started.
    #[arg(long, env = "POD_NAME", requires = "pod_namespace")]
    pub pod_name: Option<String>,
    /// Namespace of the agent's pod.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
}

impl DoorArgs {
    /// `pod_uid` is that of the agent's pod.
    pub(super) fn pod_resources(&self, host_root: &Path, pod_uid: Option<&str>) -> PodResources {
        let directory = &self.kubelet_device_plugins_directory_path;
        let pods = podresources::pods_directory(host_root, directory);
        PodResources {
            socket: self.kubelet_pod_resources_socket.clone(),
            checkpoint: directory.join(podresources::CHECKPOINT),
            pods: pods.zip(pod_uid.map(str::to_owned)),
            own: self.pod_namespace.clone().zip(self.pod_name.clone()),
        }
    }

    /// The GPUs that are the device plugin's alone.
    pub(super) fn split(&self) -> Option<Vec<DeviceRef>> {
        let listed = self.device_plugin_gpus.iter().map(|gpu| match gpu.parse() {
            Ok(index) => DeviceRef::Gpu(index),
            Err(_) => DeviceRef::Uuid(gpu.clone()),
        });
        (self.interface == Interface::Both && !self.device_plugin_gpus.is_empty())
            .then(|| listed.collect())
    }
}

/// A task that ends when it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns when the device plugin has ended, which it does by itself only where it is of no use any more.
async fn ended(plugin: &mut Option<Task>) {
    match plugin {
        Some(task) => drop((&mut task.0).await),
        None => pending().await,
    }
}

const DIRECTORY_GONE: &str = "the kubelet's directory of device plugins was removed under its mount; started again, \
     the agent sees the one that is there";

impl Ready {
    /// The DRA doors of an agent that stands by: registered now, the kubelet finds it as soon as the other has
    /// ended. None where claims are not served, or that is not known yet.
    pub(super) async fn early_doors(
        &self,
        args: &Args,
        end: &End,
    ) -> Result<Option<Served>, kubelet::Error> {
        let wanted = match args.doors.interface {
            Interface::Dra | Interface::Both => true,
            Interface::DevicePlugin => false,
            Interface::Auto => matches!(cluster::serves_dra(&self.cluster).await, Ok(true)),
        };
        if wanted { self.open_dra(args, end.clone()).map(Some) } else { Ok(None) }
    }

    /// Keeps the doors open that are wanted; returns at the end.
    pub(super) async fn keep_doors(
        &self,
        args: &Args,
        early: Option<Served>,
        end: End,
        driver: &Arc<Driver>,
        publisher: (PublishSettings, Events),
    ) -> anyhow::Result<()> {
        let interface = args.doors.interface;
        let mut plugin = None;
        if matches!(interface, Interface::DevicePlugin | Interface::Both) {
            plugin = Some(self.open_plugin(args, driver));
        }
        if interface == Interface::DevicePlugin {
            tokio::select! {
                () = end => return Ok(()),
                () = ended(&mut plugin) => bail!(DIRECTORY_GONE),
            }
        }
        // What was served before goes on without an API server.
        let claims = driver.holders().iter().any(|holder| holder.claim().is_some());
        if interface == Interface::Auto && early.is_none() && !claims {
            tokio::select! {
                until = self.until_dra(args, driver, &mut plugin) => until?,
                () = end.clone() => return Ok(()),
            }
        }
        let mut dra = match early {
            Some(dra) => dra,
            None => self.open_dra(args, end)?,
        };
        self.publish(driver, publisher);
        if plugin.is_some() && interface == Interface::Auto {
            tokio::select! {
                served = dra.ended() => return Ok(served?),
                () = ended(&mut plugin) => bail!(DIRECTORY_GONE),
                () = self.dra_at_work() => {}
            }
            tracing::info!("claims are served: extended resources are left to them");
            self.reporter.plugin_closed();
            plugin = None;
        }
        tokio::select! {
            served = dra.ended() => Ok(served?),
            () = ended(&mut plugin) => bail!(DIRECTORY_GONE),
        }
    }

    /// Returns when the API server has DRA. As long as it has not, the device plugin is open.
    async fn until_dra(
        &self,
        args: &Args,
        driver: &Arc<Driver>,
        plugin: &mut Option<Task>,
    ) -> anyhow::Result<()> {
        let containers = driver.holders().iter().any(|holder| holder.container().is_some());
        loop {
            let served = cluster::serves_dra(&self.cluster).await;
            let pause = match &served {
                Ok(true) => return Ok(()),
                Ok(false) => ASK_AGAIN,
                Err(error) => {
                    tracing::warn!(%error, "not known yet whether claims are served");
                    AWAY
                }
            };
            if plugin.is_none() && (served.is_ok() || containers) {
                tracing::info!("no claims are served: extended resources are");
                *plugin = Some(self.open_plugin(args, driver));
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = ended(plugin) => bail!(DIRECTORY_GONE),
            }
        }
    }

    /// Returns when the kubelet knows us as a DRA driver and the slices are published: what containers hold is
    /// then out of the scheduler's reach.
    async fn dra_at_work(&self) {
        let mut registered = self.reporter.registered().subscribe();
        let mut published = self.reporter.published_state();
        let known = registered.wait_for(|registration| registration.registered).await.is_ok();
        let there = published.wait_for(|state| state.at.is_some()).await.is_ok();
        if !known || !there {
            pending::<()>().await;
        }
    }

    /// Opens the DRA doors and serves them until `end`.
    fn open_dra(&self, args: &Args, end: End) -> Result<Served, kubelet::Error> {
        let doors = Doors::open(&door_settings(args))?;
        let sockets = doors.sockets();
        self.probed.send_replace(probe::Target::Serving {
            registration: sockets.registration.clone(),
            dra: sockets.dra.clone(),
        });
        self.reporter.dra_open();
        let acting = self.acting.subscribe();
        Ok(doors.serve(acting, self.reporter.registered(), end))
    }

    fn open_plugin(&self, args: &Args, driver: &Arc<Driver>) -> Task {
        let settings = plugin::Settings {
            dir: args.doors.kubelet_device_plugins_directory_path.clone(),
            pod_uid: args.pod_uid.clone().unwrap_or_else(|| std::process::id().to_string()),
        };
        let states = self.reporter.plugin_open();
        let driver = driver.clone();
        let (count, changes) = watch::channel(0);
        let dir = settings.dir.clone();
        Task(tokio::spawn(async move {
            let offer = driver.clone().describe_offer();
            tokio::select! {
                () = offer => {}
                () = plugin::serve(driver, settings, changes, states) => {}
                () = count_changes(dir, count) => {}
            }
        }))
    }

    /// Compares containers with what the kubelet lists, again and again: nobody tells of their end.
    pub(super) async fn compare(&self, driver: &Arc<Driver>) {
        let mut pause = COMPARE;
        loop {
            sleep(pause).await;
            driver.read_again().await;
            pause = if driver.release_ended(false).await { APART } else { COMPARE };
        }
    }

    fn publish(&self, driver: &Arc<Driver>, (settings, events): (PublishSettings, Events)) {
        let (desired, wanted) = watch::channel(None);
        let (tell_server, features) = watch::channel(None);
        let (kick, kicks) = watch::channel(0);
        let published = self.reporter.published(features.clone());
        tokio::spawn(driver.clone().describe_pool(features, desired));
        let cluster = self.cluster.clone();
        let channels = Channels { desired: wanted, kicks, state: published, server: tell_server };
        let metrics = self.metrics.clone();
        let publish = publish(cluster, settings, channels, events, metrics);
        let mut registration = self.reporter.registered().subscribe();
        let mut first = registration.clone();
        tokio::spawn(async move {
            // A pod that the scheduler sent here earlier would fail, and the kubelet tries it again only
            // after a minute.
            if first.wait_for(|now| now.times > 0).await.is_ok() {
                publish.await;
            }
        });
        // The kubelet's start wipes our slices, and then it registers us.
        tokio::spawn(async move {
            while registration.changed().await.is_ok() {
                kick.send_replace(registration.borrow_and_update().times);
            }
        });
    }
}

/// Where the DRA doors are.
pub(super) fn door_settings(args: &Args) -> kubelet::Settings {
    kubelet::Settings {
        registry: args.kubelet_registrar_directory_path.clone(),
        plugin_dir: args.machine.state_dir(),
        pod_uid: args.pod_uid.clone(),
    }
}

/// Counts the changes in a directory, through its end and its return. Ends where it cannot return: a pod that it
/// was mounted into keeps the one that was removed.
async fn count_changes(dir: PathBuf, count: watch::Sender<u64>) {
    loop {
        match Changes::of(&dir) {
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "changes are not seen"),
            Ok(mut changes) => {
                count.send_modify(|count| *count += 1);
                while let Ok(change) = changes.next().await {
                    count.send_modify(|count| *count += 1);
                    if change == Change::Gone {
                        break;
                    }
                }
            }
        }
        if fs::metadata(&dir).is_ok_and(|found| found.nlink() == 0) {
            return;
        }
        appears(&dir).await;
    }
}

/// Returns when there is a directory, which the kubelet makes at its start.
async fn appears(dir: &Path) {
    loop {
        let changes = Changes::of(dir.parent().unwrap_or(Path::new("/")));
        if dir.is_dir() {
            return;
        }
        match changes {
            Ok(mut changes) => drop(changes.next().await),
            Err(_) => sleep(AWAY).await,
        }
    }
}
