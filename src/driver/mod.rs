//! The order of things: prepare, unprepare, recover. Sync work behind an async front: what a call
//! waits for is awaited, what changes the machine runs off the async threads and to its end.

mod abandoned;
mod claim_status;
mod containers;
mod error;
mod evict;
mod health;
mod ledger;
mod locks;
pub mod machine;
mod obtain;
mod offer;
mod prepare;
mod publish;
mod recover;
mod release;
mod samples;
mod senses;
mod spec;
mod takeover;
mod undo;
mod unread;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use containers::{ClaimContainers, Listed, PodResources};
pub use error::Error;
pub use health::HealthParts;
use k8s_openapi::jiff::Timestamp;
pub use offer::{Stream, Versioned};
use tokio::{
    sync::{OwnedRwLockReadGuard, RwLock, watch},
    task::{JoinError, spawn_blocking},
    time::timeout,
};

use self::{ledger::Ledger, locks::Locks, machine::Machine, offer::Offers};
use crate::{
    cluster::{Cluster, events::Events},
    metrics::Metrics,
    model::{
        claim::{AllocationResult, ClaimRef},
        device,
        ended::Looks,
        gpu::GpuUuid,
        holder::Holder,
        plugin::config::{Config, DeviceRef},
        record::Record,
        sample::Samples,
        series::GpuHistory,
        unread::Unread,
    },
    node::{lock, store::Store},
};

/// An NVML call that takes longer is what a claim waits for.
const SLOW: Duration = Duration::from_secs(1);

/// What the driver is given to work with.
pub struct Parts {
    /// Name of the node, and so of its pool.
    pub node: String,
    /// Identity of the boot.
    pub boot_id: String,
    /// The hook binary to name in CDI files; none for files without hooks.
    pub hook: Option<PathBuf>,
    /// The hardware.
    pub machine: Arc<Machine>,
    /// Records and CDI files.
    pub store: Store,
    /// The records found there.
    pub records: Vec<Record>,
    /// The records there that cannot be read.
    pub unread: Vec<Unread>,
    /// The API server.
    pub cluster: Cluster,
    /// Where warnings go.
    pub events: Events,
    /// The lock that makes this the node's acting agent.
    pub lock: AgentLock,
    /// Which containers have which devices.
    pub pods: Arc<dyn PodResources>,
    /// The device plugin's part.
    pub plugin: PluginParts,
    /// What is known of the GPUs' health, and what follows from it.
    pub health: HealthParts,
    /// Where it counts what it does.
    pub metrics: Metrics,
}

/// What the device plugin is given to work with.
pub struct PluginParts {
    /// Its configuration, once there is one.
    pub config: watch::Receiver<Option<Arc<Config>>>,
    /// Whether MIG devices are carved for containers.
    pub on_demand: bool,
    /// The GPUs that are the device plugin's alone, the others being for claims; absent where both have all.
    pub split: Option<Vec<DeviceRef>>,
}

/// The node's one acting agent holds this.
#[derive(Debug)]
pub struct AgentLock {
    /// The lock file, locked.
    pub file: File,
    /// Its path, under which a successor may have put another file.
    pub path: PathBuf,
}

/// Prepares and unprepares claims. One a node.
pub struct Driver {
    node: String,
    boot_id: String,
    hook: Option<PathBuf>,
    machine: Arc<Machine>,
    ledger: Ledger,
    /// A claim's turn: a second call for a claim waits for the first and then finds its record.
    claims: Locks,
    cluster: Cluster,
    events: Events,
    lock: AgentLock,
    /// Read by all work under way, so that the end can wait for it.
    work: Arc<RwLock<()>>,
    closing: AtomicBool,
    pods: Arc<dyn PodResources>,
    /// One comparison with the kubelet at a time.
    comparing: tokio::sync::Mutex<()>,
    plugin: watch::Receiver<Option<Arc<Config>>>,
    on_demand: bool,
    split: Option<Vec<DeviceRef>>,
    offers: Offers,
    /// The writer of the device plugin's CDI file.
    plugin_spec: Mutex<()>,
    /// When devices were given to containers, of the last seconds.
    given_at: Mutex<BTreeMap<String, Instant>>,
    /// What earlier comparisons with the kubelet found.
    looks: Mutex<Looks>,
    /// Whether what only the kubelet's file names was taken up.
    kept_taken_up: AtomicBool,
    /// When this driver began: the zero of its own clock.
    began: Instant,
    health: health::Watch,
    samples: std::sync::RwLock<Arc<Samples>>,
    history: Mutex<BTreeMap<GpuUuid, GpuHistory>>,
    claim_containers: Mutex<ClaimContainers>,
    metrics: Metrics,
}

/// A prepared device, as the kubelet is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Requests that it serves.
    pub requests: Vec<String>,
    /// Pool.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// Qualified CDI names; none for a MIG device that admin access found not carved.
    pub cdi: Vec<String>,
    /// Which share of a shared device.
    pub share_id: Option<String>,
}

type Work = OwnedRwLockReadGuard<()>;

impl Driver {
    /// Nothing is done yet: see [`Driver::recover`].
    pub fn new(parts: Parts) -> Self {
        let Parts {
            node,
            boot_id,
            hook,
            machine,
            store,
            records,
            unread,
            cluster,
            events,
            lock,
            pods,
            plugin: PluginParts { config: plugin, on_demand, split },
            health,
            metrics,
        } = parts;
        Self {
            node,
            health: health::Watch::new(health, &boot_id),
            samples: std::sync::RwLock::default(),
            history: Mutex::default(),
            claim_containers: Mutex::default(),
            metrics,
            boot_id,
            hook,
            machine,
            ledger: Ledger::new(store, records, unread),
            claims: Locks::default(),
            cluster,
            events,
            lock,
            work: Arc::default(),
            closing: AtomicBool::new(false),
            pods,
            comparing: tokio::sync::Mutex::default(),
            plugin,
            on_demand,
            split,
            offers: Offers::default(),
            plugin_spec: Mutex::default(),
            given_at: Mutex::default(),
            looks: Mutex::default(),
            kept_taken_up: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    /// The node's hardware.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Name of the node, and so of its pool.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Identity of the boot.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// All records.
    pub fn records(&self) -> Vec<Record> {
        self.ledger.all()
    }

    /// Who has a record, whether or not it can be read.
    pub fn holders(&self) -> Vec<Holder> {
        let unread = self.ledger.unread().into_iter().map(|unread| unread.holder);
        self.ledger.all().into_iter().map(|record| record.plan.holder).chain(unread).collect()
    }

    /// Changes whenever a record does.
    pub fn ledger_changes(&self) -> watch::Receiver<u64> {
        self.ledger.changes()
    }

    /// Refuses new work from now on and waits for what is under way, for at most `limit`. `false` if
    /// some is still under way then.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.closing.store(true, Ordering::SeqCst);
        timeout(limit, self.work.write()).await.is_ok()
    }

    fn begin(&self) -> Result<Work, Error> {
        let work = self.work.clone().try_read_owned().map_err(|_| Error::HandingOver)?;
        if self.closing.load(Ordering::SeqCst) { Err(Error::HandingOver) } else { Ok(work) }
    }

    /// Fails once a successor has taken over from this agent, which it thought dead.
    fn acting(&self) -> Result<(), Error> {
        if lock::is_current(&self.lock.file, &self.lock.path) {
            Ok(())
        } else {
            Err(Error::HandingOver)
        }
    }

    /// The GPUs that these results are on, and those that the claim's record names.
    fn gpus_of(&self, results: &[AllocationResult], record: Option<&Record>) -> BTreeSet<GpuUuid> {
        let numbers = self.machine.numbers().into_iter();
        // By the numbers, which GPUs keep that do not answer.
        let allocated = numbers.filter(|(_, number)| {
            results.iter().any(|result| device::is_of(&result.device, *number))
        });
        let recorded = record.into_iter().flat_map(|record| &record.plan.devices);
        let recorded = recorded.map(|device| device.target.gpu().clone());
        allocated.map(|(gpu, _)| gpu).chain(recorded).collect()
    }

    /// Locks the GPUs' files, which agents that were thought dead may still hold.
    fn lock_files(&self, gpus: &BTreeSet<GpuUuid>) -> Result<Vec<File>, Error> {
        gpus.iter().map(|gpu| self.lock_file(gpu)).collect()
    }

    fn lock_file(&self, gpu: &GpuUuid) -> Result<File, Error> {
        let path = self.ledger.store().gpu_lock(gpu);
        let reason = |reason: String| Error::Device { device: gpu.0.clone(), reason };
        match lock::try_lock(&path) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(Error::Locked { gpu: gpu.0.clone(), lock: path.display().to_string() }),
            Err(error) => Err(reason(format!("lock `{}`: {error}", path.display()))),
        }
    }

    /// Runs work that blocks to its end, whether or not anybody still waits for it.
    async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let driver = self.clone();
        let done = spawn_blocking(move || {
            let done = work(&driver);
            if let Err(error) = &done {
                if let Error::Unloaded(answer) = error {
                    driver.machine.unload(&answer.to_string());
                }
                driver.machine.suspect();
            }
            done
        });
        done.await.unwrap_or_else(|panic: JoinError| Err(Error::Panic(panic.to_string())))
    }

    /// Waits for the locks of GPUs, and counts how long that takes.
    async fn lock_gpus(&self, gpus: &BTreeSet<GpuUuid>) -> Vec<locks::Guard> {
        let begun = Instant::now();
        let guards = self.machine.locks.lock_gpus(gpus).await;
        self.metrics.gpu_lock_waited(begun.elapsed());
        guards
    }

    /// Why a claim waits, for the answer that is given before the kubelet's deadline.
    pub fn delay(&self, claim: &ClaimRef) -> String {
        let record = self.ledger.get(&claim.uid);
        let gpus = self.gpus_of(&[], record.as_ref());
        let indices: Vec<_> = gpus.iter().filter_map(|gpu| self.machine.index(gpu)).collect();
        let of_claim = |index| indices.is_empty() || indices.contains(&index);
        let slow = self.machine.slower_than(SLOW);
        match slow.iter().find(|call| call.gpu.is_none_or(of_claim)) {
            Some(call) => match call.gpu {
                Some(index) => format!("GPU {index}: {call}"),
                None => call.to_string(),
            },
            None => "other work on its GPUs is under way".to_owned(),
        }
    }
}

/// The time now, RFC 3339 with seconds.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
