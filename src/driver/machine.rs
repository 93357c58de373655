//! The loaded NVML and what it last said: loading, reading, and noticing that it is gone.

mod release;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::timeout,
};

use super::locks::{Guard, Locks};
use crate::{
    metrics::Metrics,
    model::{
        cdi::HostFiles,
        gpu::{DriverVersions, Gpu, GpuInstance, GpuUuid, Inventory, Mig, Unreadable},
        topology::{Links, Surroundings},
    },
    node::{
        host::{self, Host},
        nvml::{self, Call, Calls, Nvml},
    },
};

/// A call that takes longer makes its GPU unready. Some take seconds on a busy node.
pub const HUNG: Duration = Duration::from_secs(10);

/// How long reading a GPU may take before it is left out for now.
const READING: Duration = Duration::from_secs(5);

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

/// One GPU's answer to a reading.
enum Reading {
    Read(Box<Gpu>),
    Failed(Unreadable),
    /// Somebody is changing it: what was known stays.
    Busy,
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

    /// Notes the GPUs as they are now, those that have fallen silent as they were.
    fn describe(&self, inventory: &Inventory) {
        let described = inventory.known().into_iter().map(Gpu::uncut).collect();
        *self.described.write().unwrap_or_else(PoisonError::into_inner) = described;
    }

    /// A GPU that has not answered since the start, as an earlier agent read it.
    fn as_described(&self, index: u32, answering: &[Gpu]) -> Option<Arc<Gpu>> {
        let described = self.described.read().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |gpu: &&Gpu| gpu.index == index && answering.iter().all(|other| other.uuid != gpu.uuid);
        described.iter().find(is_it).map(|gpu| Arc::new(gpu.clone()))
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

    /// Loads the library ahead of the first reading, which then is quick.
    pub async fn preload(self: &Arc<Self>) {
        let machine = self.clone();
        if let Ok(Err(reason)) = spawn_blocking(move || machine.load()).await {
            self.unload(&reason);
        }
    }

    /// Loads the library if it is not, and reads all GPUs that nobody is changing. Tells the watchers.
    pub async fn read(self: &Arc<Self>) {
        let _turn = self.reading.lock().await;
        self.read_now().await;
    }

    async fn read_now(self: &Arc<Self>) {
        let machine = self.clone();
        let seen = self.changes();
        let loaded = spawn_blocking(move || machine.load()).await;
        match loaded.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok((nvml, versions, count)) => {
                let inventory = self.read_all(&nvml, versions, count).await;
                self.publish(inventory, &seen);
                self.describe(&self.inventory());
                self.read_links(&nvml).await;
            }
            Err(reason) => self.unload(&reason),
        }
    }

    /// Blocks while NVML answers.
    fn load(&self) -> Result<(Arc<Nvml>, DriverVersions, u32), String> {
        let loaded = self.nvml.read().unwrap_or_else(PoisonError::into_inner).clone();
        let nvml = match loaded {
            Some(nvml) => nvml,
            None if self.old.read().unwrap_or_else(PoisonError::into_inner).strong_count() > 0 => {
                return Err("calls to the driver that was unloaded are still under way".to_owned());
            }
            None => {
                let path = self.path.clone().or_else(|| self.host.library());
                let nvml = Nvml::load(path.as_deref(), self.calls.clone());
                Arc::new(nvml.map_err(|error| error.to_string())?)
            }
        };
        let versions = nvml.versions().map_err(|error| error.to_string())?;
        let count = nvml.count().map_err(|error| error.to_string())?;
        *self.nvml.write().unwrap_or_else(PoisonError::into_inner) = Some(nvml.clone());
        Ok((nvml, versions, count))
    }

    async fn read_all(
        self: &Arc<Self>,
        nvml: &Arc<Nvml>,
        driver: DriverVersions,
        count: u32,
    ) -> Inventory {
        let readings: Vec<_> = (0..count)
            .map(|index| tokio::spawn(self.clone().read_one(nvml.clone(), index)))
            .collect();
        let known = self.inventory();
        let mut inventory = Inventory { driver, ..Inventory::default() };
        for (index, reading) in (0..count).zip(readings) {
            match reading.await {
                Ok(Reading::Read(gpu)) => inventory.gpus.push(*gpu),
                Ok(Reading::Failed(unreadable)) => inventory.unreadable.push(unreadable),
                Ok(Reading::Busy) => {
                    let gpu = known.gpus.iter().find(|gpu| gpu.index == index);
                    let silent = known.unreadable.iter().find(|gpu| gpu.index == index);
                    inventory.gpus.extend(gpu.cloned());
                    inventory.unreadable.extend(silent.cloned());
                }
                Err(panic) => {
                    inventory.unreadable.push(Unreadable::silent(index, None, panic.to_string()));
                }
            }
        }
        for silent in &mut inventory.unreadable {
            let known = as_last_read(&known, silent);
            silent.known = known.or_else(|| self.as_described(silent.index, &inventory.gpus));
            if let (None, Some(gpu)) = (&silent.uuid, &silent.known) {
                silent.uuid = Some(gpu.uuid.clone());
            }
        }
        inventory.gpus.sort_by_key(|gpu| gpu.number);
        inventory
    }

    /// Reads one GPU off the async threads. One that hangs keeps its lock and is not asked again.
    async fn read_one(self: Arc<Self>, nvml: Arc<Nvml>, index: u32) -> Reading {
        let known = self.known(index);
        if known.as_ref().is_some_and(|uuid| self.is_released(uuid)) {
            return release::reading(index, known);
        }
        let failed = |reason| Reading::Failed(Unreadable::silent(index, known.clone(), reason));
        // Asked again, a GPU that hangs would take one thread each time.
        if self.hung().iter().any(|call| call.gpu == Some(index)) {
            return failed(self.slow(index));
        }
        let guard = match &known {
            None => None,
            Some(uuid) => match self.locks.try_lock(&uuid.0) {
                None => return Reading::Busy,
                guard => guard,
            },
        };
        let machine = self.clone();
        let task = spawn_blocking(move || {
            let _guard: Option<Guard> = guard;
            // An error that passes is not worth that all of the GPU's devices are withdrawn.
            let gpu = nvml.gpu(index).or_else(|gpu| match gpu.lost {
                true => Err(gpu),
                false => nvml.gpu(index),
            });
            gpu.map(|gpu| machine.complete(gpu))
        });
        match timeout(READING, task).await {
            Ok(Ok(Ok(gpu))) => Reading::Read(Box::new(gpu)),
            // One that is lost does not even say which it is.
            Ok(Ok(Err(unreadable))) => {
                let uuid = unreadable.uuid.clone().or(known);
                Reading::Failed(Unreadable { uuid, ..unreadable })
            }
            Ok(Err(panic)) => failed(panic.to_string()),
            Err(_) => failed(self.slow(index)),
        }
    }

    /// Reads what joins the GPUs if there are others than were asked. One that is busy is asked next time.
    async fn read_links(self: &Arc<Self>, nvml: &Arc<Nvml>) {
        let inventory = self.inventory();
        let all: BTreeSet<_> = inventory.gpus.iter().map(asked).collect();
        if self.joined.read().unwrap_or_else(PoisonError::into_inner).asked == all {
            return;
        }
        let busy = self.slower_than(Duration::ZERO);
        let idle = |gpu: &&Gpu| busy.iter().all(|call| call.gpu != Some(gpu.index));
        let gpus: Arc<[Gpu]> = inventory.gpus.iter().filter(idle).cloned().collect();
        let looks: Vec<_> = (0..gpus.len())
            .map(|at| tokio::spawn(self.clone().look_around(nvml.clone(), gpus.clone(), at)))
            .collect();
        let (mut answered, mut found) = (BTreeSet::new(), Vec::new());
        for (gpu, look) in gpus.iter().zip(looks) {
            if let Ok(Some(surroundings)) = look.await {
                answered.insert(asked(gpu));
                found.push(surroundings);
            }
        }
        let joined = Joined { asked: answered, links: Arc::new(Links::of(&found)) };
        *self.joined.write().unwrap_or_else(PoisonError::into_inner) = joined;
    }

    /// Asks one of these GPUs for its way to those after it, off the async threads; like a reading, one
    /// that hangs keeps its lock.
    async fn look_around(
        self: Arc<Self>,
        nvml: Arc<Nvml>,
        gpus: Arc<[Gpu]>,
        at: usize,
    ) -> Option<Surroundings> {
        let (gpu, others) = gpus[at..].split_first()?;
        let guard = self.locks.try_lock(&gpu.uuid.0)?;
        let (gpu, others) = (gpu.clone(), others.to_vec());
        let task = spawn_blocking(move || {
            let _guard: Guard = guard;
            nvml.surroundings(&gpu, &others)
        });
        timeout(READING, task).await.ok()?.ok()
    }

    /// The GPU that has had this index, whether or not it answers now.
    fn known(&self, index: u32) -> Option<GpuUuid> {
        let inventory = self.inventory();
        let answering = inventory.gpus.iter().find(|gpu| gpu.index == index);
        let silent = inventory.unreadable.iter().find(|gpu| gpu.index == index);
        answering.map(|gpu| gpu.uuid.clone()).or_else(|| silent?.uuid.clone())
    }

    /// What keeps a GPU from being read.
    fn slow(&self, index: u32) -> String {
        let mut calls = self.calls.longer_than(Duration::ZERO).into_iter();
        match calls.find(|call| call.gpu == Some(index)) {
            Some(call) => call.to_string(),
            None => format!("not read within {} s", READING.as_secs()),
        }
    }

    /// Adds what NVML does not say: the number, and what sysfs knows.
    fn complete(&self, gpu: Gpu) -> Gpu {
        Gpu {
            number: self.number(&gpu),
            numa_node: self.host.numa_node(&gpu.pci),
            pci_class: self.host.pci_class(&gpu.pci),
            pcie_root: self.host.pcie_root(&gpu.pci),
            ..gpu
        }
    }

    /// The minor number at first sight, or the next free one if that was given away.
    fn number(&self, gpu: &Gpu) -> u32 {
        let mut numbers = self.numbers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&number) = numbers.get(&gpu.uuid) {
            return number;
        }
        let taken = |number| numbers.values().any(|&other| other == number);
        let number = (gpu.minor..).find(|&number| !taken(number)).unwrap_or(gpu.minor);
        numbers.insert(gpu.uuid.clone(), number);
        number
    }

    fn changes(&self) -> BTreeMap<GpuUuid, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a change, before anybody can see it.
    fn count_change(&self, uuid: &GpuUuid) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        *changes.entry(uuid.clone()).or_default() += 1;
    }

    /// Reading all GPUs takes as long as the slowest: what was changed since it began, `seen`, stays.
    fn publish(&self, mut inventory: Inventory, seen: &BTreeMap<GpuUuid, u64>) {
        self.state.send_if_modified(|state| {
            if let Library::Loaded(known) = state {
                let changes = self.changes();
                let changed =
                    changes.iter().filter(|(uuid, count)| seen.get(*uuid) != Some(*count));
                changed.for_each(|(uuid, _)| inventory.keep(known, uuid));
            }
            let same = matches!(state, Library::Loaded(known) if **known == inventory);
            if let Library::Missing(_) = state {
                self.loads.fetch_add(1, Ordering::Relaxed);
            }
            if !same {
                *state = Library::Loaded(Arc::new(inventory));
            }
            !same
        });
    }

    /// Lets the library go, to be loaded again when the driver is back.
    pub(super) fn unload(&self, reason: &str) {
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

    /// Reads the MIG side of a GPU again and notes it. The caller holds the GPU's lock.
    pub(super) fn refresh(&self, nvml: &Nvml, uuid: &GpuUuid) -> Result<(), nvml::Error> {
        let inventory = self.inventory();
        let Some(gpu) = inventory.gpu(uuid) else { return Ok(()) };
        let now = nvml.mig_now(gpu)?;
        let minor = nvml.minor(gpu)?;
        if now != gpu.mig || minor != gpu.minor {
            self.note(uuid, now, minor);
        }
        Ok(())
    }

    /// Reads a GPU again that did not answer, and notes it if it does now. The caller holds its lock.
    pub(super) fn read_again(&self, nvml: &Nvml, index: u32) -> Result<Gpu, Unreadable> {
        let gpu = self.complete(nvml.gpu(index)?);
        self.state.send_modify(|state| {
            let Library::Loaded(inventory) = state else { return };
            let inventory = Arc::make_mut(inventory);
            inventory.unreadable.retain(|silent| silent.index != index);
            inventory.gpus.retain(|known| known.uuid != gpu.uuid);
            inventory.gpus.push(gpu.clone());
            inventory.gpus.sort_by_key(|gpu| gpu.number);
            self.count_change(&gpu.uuid);
        });
        Ok(gpu)
    }

    /// Notes an instance that was just made. Reading it would take many calls. The caller holds the GPU's
    /// lock.
    pub(super) fn add_instance(&self, uuid: &GpuUuid, instance: GpuInstance) {
        self.change_instances(uuid, |instances| {
            instances.push(instance);
            instances.sort_by_key(|instance| instance.placement);
        });
    }

    /// Notes that an instance was just destroyed. The caller holds the GPU's lock.
    pub(super) fn remove_instance(&self, uuid: &GpuUuid, id: u32) {
        self.change_instances(uuid, |instances| instances.retain(|instance| instance.id != id));
    }

    fn change_instances(&self, uuid: &GpuUuid, change: impl FnOnce(&mut Vec<GpuInstance>)) {
        self.state.send_modify(|state| {
            let Library::Loaded(inventory) = state else { return };
            let mut gpus = Arc::make_mut(inventory).gpus.iter_mut();
            let gpu = gpus.find(|gpu| gpu.uuid == *uuid);
            if let Some(mig) = gpu.and_then(|gpu| gpu.mig.as_mut()) {
                change(&mut mig.instances);
                self.count_change(uuid);
            }
        });
    }

    fn note(&self, uuid: &GpuUuid, mig: Option<Mig>, minor: u32) {
        self.state.send_modify(|state| {
            let Library::Loaded(inventory) = state else { return };
            let inventory = Arc::make_mut(inventory);
            if let Some(gpu) = inventory.gpus.iter_mut().find(|gpu| gpu.uuid == *uuid) {
                gpu.mig = mig;
                gpu.minor = minor;
                self.count_change(uuid);
            }
        });
    }
}

/// A GPU that does not answer, as it was when it last did.
fn as_last_read(known: &Inventory, silent: &Unreadable) -> Option<Arc<Gpu>> {
    let uuid = silent.uuid.as_ref()?;
    let answered = known.gpu(uuid).map(|gpu| Arc::new(gpu.clone()));
    answered.or_else(|| known.silence(uuid)?.known.clone())
}

/// How [`Joined`] names a GPU.
fn asked(gpu: &Gpu) -> (GpuUuid, bool) {
    (gpu.uuid.clone(), gpu.mig.as_ref().is_some_and(|mig| mig.enabled))
}

/// There is no NVIDIA driver to ask.
#[derive(Debug, thiserror::Error)]
#[error("the NVIDIA driver is not loaded: {0}; once it is loaded, the kubelet will ask again")]
pub struct Missing(String);
