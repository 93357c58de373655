//! Reading the GPUs, all at once and off the async threads: one that hangs keeps nobody from the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::{Joined, Library, Machine, release};
use crate::{
    driver::locks::Guard,
    model::{
        gpu::{DriverVersions, Gpu, GpuUuid, Inventory, Unreadable},
        topology::{Links, Surroundings},
    },
    node::nvml::Nvml,
};

/// How long reading a GPU may take before it is left out for now.
const READING: Duration = Duration::from_secs(5);

/// One GPU's answer to a reading.
pub(super) enum Reading {
    Read(Box<Gpu>),
    Failed(Unreadable),
    /// Somebody is changing it: what was known stays.
    Busy,
}

impl Machine {
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

    pub(super) async fn read_now(self: &Arc<Self>) {
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
    pub(super) fn complete(&self, gpu: Gpu) -> Gpu {
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

    /// Reading all GPUs takes as long as the slowest: what was changed since it began, `seen`, stays.
    fn publish(&self, mut inventory: Inventory, seen: &BTreeMap<GpuUuid, u64>) {
        *self.missing_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
