//! The loaded NVML and what it last said.

mod change;
mod read;
mod release;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub(super) use release::LETTING_GO;
use tokio::sync::{Notify, watch};

use super::locks::Locks;
use crate::{
    metrics::Metrics,
    model::{
        cdi::HostFiles,
        gpu::{Gpu, GpuUuid, Inventory},
        topology::Links,
    },
    node::{
        host::{self, Host},
        nvml::{Call, Calls, Nvml},
    },
};

/// A call that takes longer makes its GPU unready. Some take seconds on a busy node.
pub const HUNG: Duration = Duration::from_secs(10);

/// What the NVIDIA driver is to this node now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Library {
    /// Loaded, with the GPUs as last read.
    Loaded(Arc<Inventory>),
    /// Not loaded, and why: it may come.
    Missing(String),
}

/// The node's hardware.
#[derive(Debug)]
pub struct Machine {
    path: Option<PathBuf>,
    host: Host,
    calls: Calls,
    nvml: RwLock<Option<Arc<Nvml>>>,
    /// The library that was let go last: NVML can only be initialised anew once it is shut down.
    old: RwLock<Weak<Nvml>>,
    files: RwLock<Option<Arc<HostFiles>>>,
    numbers: RwLock<BTreeMap<GpuUuid, u32>>,
    /// The GPUs as they were read in this boot, if need be by an earlier agent.
    described: RwLock<Vec<Gpu>>,
    state: watch::Sender<Library>,
    /// Since when there is no library, if there is none.
    missing_since: Mutex<Option<Instant>>,
    joined: RwLock<Joined>,
    /// How often what is known of a GPU was changed by who had its lock.
    changes: Mutex<BTreeMap<GpuUuid, u64>>,
    suspicion: Notify,
    /// How often a driver was found that was not there before.
    loads: AtomicU64,
    /// GPUs that were let go.
    released: RwLock<BTreeSet<GpuUuid>>,
    /// One reading at a time, and none while the library is let go.
    reading: tokio::sync::Mutex<()>,
    pub(super) locks: Locks,
}

/// What joins the GPUs. It takes hundreds of calls to read, so it is only read when it may have changed.
#[derive(Debug, Default)]
struct Joined {
    /// The GPUs that were asked, and whether in MIG mode, in which some have no NVLinks.
    asked: BTreeSet<(GpuUuid, bool)>,
    links: Arc<Links>,
}

impl Machine {
    /// Nothing is loaded yet. `path` names the library; else the driver root and the dynamic linker
    /// are asked.
    pub fn new(path: Option<PathBuf>, host: Host, metrics: Metrics) -> Self {
        let calls = Calls::default();
        calls.observed_by(move |function, took| metrics.nvml_called(function, took));
        Self {
            path,
            host,
            calls,
            nvml: RwLock::default(),
            old: RwLock::default(),
            files: RwLock::default(),
            numbers: RwLock::default(),
            described: RwLock::default(),
            state: watch::Sender::new(Library::Missing("not looked for yet".to_owned())),
            missing_since: Mutex::new(Some(Instant::now())),
            joined: RwLock::default(),
            changes: Mutex::default(),
            suspicion: Notify::new(),
            loads: AtomicU64::new(0),
            released: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
            locks: Locks::default(),
        }
    }

    /// The files beside the hardware.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The inventory as it changes.
    pub fn watch(&self) -> watch::Receiver<Library> {
        self.state.subscribe()
    }

    /// How often a driver was found that was not there before: at the start, and when it was loaded again.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// Whether this is the library in use.
    pub(super) fn is_loaded(&self, nvml: &Arc<Nvml>) -> bool {
        let loaded = self.nvml.read().unwrap_or_else(PoisonError::into_inner);
        loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, nvml))
    }

    /// The GPUs as last read; none while no driver is loaded.
    pub fn inventory(&self) -> Arc<Inventory> {
        match &*self.state.borrow() {
            Library::Loaded(inventory) => inventory.clone(),
            Library::Missing(_) => Arc::default(),
        }
    }

    /// What joins the GPUs, as far as they were read.
    pub fn links(&self) -> Arc<Links> {
        self.joined.read().unwrap_or_else(PoisonError::into_inner).links.clone()
    }

    /// Takes up the numbers that an earlier agent gave in this boot, and what it read of the GPUs.
    pub fn use_numbers(&self, numbers: BTreeMap<GpuUuid, u32>, described: Vec<Gpu>) {
        *self.numbers.write().unwrap_or_else(PoisonError::into_inner) = numbers;
        *self.described.write().unwrap_or_else(PoisonError::into_inner) = described;
    }

    /// The GPUs as they were read in this boot.
    pub fn described(&self) -> Vec<Gpu> {
        self.described.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Numbers given so far, fixed for a boot.
    pub fn numbers(&self) -> BTreeMap<GpuUuid, u32> {
        self.numbers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The NVML calls that hang, oldest first.
    pub fn hung(&self) -> Vec<Call> {
        self.slower_than(HUNG)
    }

    /// The NVML calls that have been under way for longer than this, oldest first.
    pub(super) fn slower_than(&self, limit: Duration) -> Vec<Call> {
        self.calls.longer_than(limit)
    }

    /// NVML's index of a GPU, whether or not it answers now.
    pub(super) fn index(&self, uuid: &GpuUuid) -> Option<u32> {
        let inventory = self.inventory();
        let silent = inventory.unreadable.iter().find(|gpu| gpu.uuid.as_ref() == Some(uuid));
        inventory.gpu(uuid).map(|gpu| gpu.index).or_else(|| Some(silent?.index))
    }

    /// A GPU's index and the call that it hangs in.
    pub(super) fn hung_on(&self, uuid: &GpuUuid) -> Option<(u32, Call)> {
        let index = self.index(uuid)?;
        let call = self.hung().into_iter().find(|call| call.gpu == Some(index))?;
        Some((index, call))
    }

    /// Says that something failed which may be news of the hardware.
    pub(super) fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// Returns when something has failed that makes another look worth while.
    pub async fn suspected(&self) {
        self.suspicion.notified().await;
    }

    /// The library.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn nvml(&self) -> Result<Arc<Nvml>, Missing> {
        match &*self.state.borrow() {
            Library::Missing(reason) => Err(Missing(reason.clone())),
            // Loaded, but not yet read, it would seem to have no GPUs.
            Library::Loaded(_) => {
                let loaded = self.nvml.read().unwrap_or_else(PoisonError::into_inner).clone();
                loaded.ok_or_else(|| Missing("it is being loaded".to_owned()))
            }
        }
    }

    /// The driver's files, looked for once a load.
    pub(super) fn files(&self) -> Result<Arc<HostFiles>, host::Error> {
        let known = self.files.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(files) = known {
            return Ok(files);
        }
        let files = Arc::new(self.host.files(&self.inventory().driver.driver)?);
        let mut slot = self.files.write().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(files.clone());
        Ok(files)
    }

    /// Why there is no library, if there has been none for so long that it is not just being loaded again.
    pub(super) fn missing(&self) -> Option<String> {
        let since = *self.missing_since.lock().unwrap_or_else(PoisonError::into_inner);
        match &*self.state.borrow() {
            Library::Missing(reason) if since?.elapsed() >= HUNG => Some(reason.clone()),
            _ => None,
        }
    }

    /// Lets the library go, to be loaded again when the driver is back.
    pub(super) fn unload(&self, reason: &str) {
        self.missing_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(Instant::now);
        let old = self.nvml.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(old) = old {
            *self.old.write().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&old);
        }
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.joined.write().unwrap_or_else(PoisonError::into_inner) = Joined::default();
        let missing = Library::Missing(reason.to_owned());
        self.state.send_if_modified(|state| {
            let same = *state == missing;
            if !same {
                tracing::warn!(reason, "no NVIDIA driver; waiting for one");
                *state = missing;
            }
            !same
        });
    }
}

/// There is no NVIDIA driver to ask.
#[derive(Debug, thiserror::Error)]
#[error("the NVIDIA driver is not loaded: {0}; once it is loaded, the kubelet will ask again")]
pub struct Missing(String);
