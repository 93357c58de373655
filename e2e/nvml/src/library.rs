//! A process's side of the library: initialised or not, and what each call passes through.

mod handle;
mod hang;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

pub(crate) use handle::{Handle, Kind};

use crate::{
    code::Code,
    fault::Effect,
    files, guest,
    hardware::{Gpu, Hardware, MARKER},
    state::{Compute, GpuState, Instance},
};

/// Where the machine is when the library does not lie in it.
const MACHINE: &str = "KERF_NVML_MACHINE";

static LIBRARY: RwLock<Library> = RwLock::new(Library { uses: 0, session: None });
static SESSIONS: AtomicU32 = AtomicU32::new(1);

struct Library {
    /// `nvmlInit` less `nvmlShutdown`.
    uses: u32,
    session: Option<Arc<Session>>,
}

/// From the first `nvmlInit` to the last `nvmlShutdown`.
pub(crate) struct Session {
    pub(crate) number: u8,
    pub(crate) hardware: Hardware,
    /// Which load of the driver it speaks to.
    loads: u64,
    pub(crate) event_sets: Mutex<BTreeMap<u32, crate::abi::EventSet>>,
    /// Empty until they are taken.
    pub(crate) samples: Mutex<BTreeMap<u32, Option<crate::abi::Sample>>>,
}

/// A GPU as a call finds it.
pub(crate) struct Present<'s> {
    pub(crate) session: &'s Session,
    pub(crate) gpu: &'s Gpu,
    pub(crate) state: Arc<GpuState>,
}

/// What a device handle means: a GPU, or a MIG device.
pub(crate) struct Device<'s> {
    pub(crate) present: Present<'s>,
    /// Serial of the compute instance.
    mig: Option<u32>,
}

/// `nvmlInit`: nothing but a count while it is initialised.
pub(crate) fn init(function: &'static str) -> u32 {
    guarded(|| {
        let hardware = open_machine()?;
        let after = strike(&hardware, function, None)?;
        let answer = enter(hardware);
        after.finish();
        answer
    })
}

fn enter(hardware: Hardware) -> Result<(), Code> {
    let mut library = LIBRARY.write().unwrap_or_else(PoisonError::into_inner);
    if library.uses == 0 {
        let driver = hardware.driver.read()?;
        if !driver.loaded {
            return Err(Code::DRIVER_NOT_LOADED);
        }
        hardware.reachable()?;
        repair(&hardware)?;
        let number = SESSIONS.fetch_add(1, Ordering::Relaxed).to_le_bytes()[0];
        let loads = driver.loads;
        let (event_sets, samples) = (Mutex::default(), Mutex::default());
        let session = Session { number, hardware, loads, event_sets, samples };
        library.session = Some(Arc::new(session));
    }
    library.uses += 1;
    Ok(())
}

/// A process may have been killed between a change and the files that show it; hardware cannot be.
fn repair(hardware: &Hardware) -> Result<(), Code> {
    if hardware.guest {
        return Ok(());
    }
    for gpu in &hardware.gpus {
        files::capabilities::repair(&hardware.dir, &gpu.facts, &*gpu.state.read()?)?;
    }
    Ok(())
}

/// `nvmlShutdown`.
pub(crate) fn shutdown(function: &'static str) -> u32 {
    guarded(|| {
        let session = session()?;
        let after = strike(&session.hardware, function, None)?;
        let mut library = LIBRARY.write().unwrap_or_else(PoisonError::into_inner);
        library.uses = library.uses.checked_sub(1).ok_or(Code::UNINITIALIZED)?;
        if library.uses == 0 {
            library.session = None;
        }
        drop(library);
        after.finish();
        Ok(())
    })
}

fn session() -> Result<Arc<Session>, Code> {
    let library = LIBRARY.read().unwrap_or_else(PoisonError::into_inner);
    library.session.clone().ok_or(Code::UNINITIALIZED)
}

/// A call that is not about one GPU.
pub(crate) fn on_system(
    function: &'static str,
    body: impl FnOnce(&Session) -> Result<(), Code>,
) -> u32 {
    guarded(|| {
        let session = session()?;
        let after = strike(&session.hardware, function, None)?;
        session.alive().or(Err(Code::UNINITIALIZED))?;
        let answer = body(&session);
        after.finish();
        answer
    })
}

/// A call on anything that belongs to a GPU.
fn on_handle(
    function: &'static str,
    handle: Handle,
    body: impl FnOnce(Present<'_>, u32) -> Result<(), Code>,
    kinds: &[Kind],
) -> u32 {
    guarded(|| {
        let session = session()?;
        let target = handle.open(session.number).filter(|target| kinds.contains(&target.kind));
        let after = strike(&session.hardware, function, target.map(|target| target.gpu))?;
        let target = target.ok_or(Code::INVALID_ARGUMENT)?;
        let present = session.present(target.gpu)?;
        let answer = body(present, target.serial);
        after.finish();
        answer
    })
}

/// A call on a GPU or a MIG device.
pub(crate) fn on_device(
    function: &'static str,
    handle: Handle,
    body: impl FnOnce(&Device<'_>) -> Result<(), Code>,
) -> u32 {
    let either = |present: Present<'_>, serial| {
        let device = Device { present, mig: (serial != 0).then_some(serial) };
        device.compute()?;
        body(&device)
    };
    on_handle(function, handle, either, &[Kind::Gpu, Kind::Mig])
}

/// A call that a GPU answers and a MIG device does not support.
pub(crate) fn on_gpu(
    function: &'static str,
    handle: Handle,
    body: impl FnOnce(&Present<'_>) -> Result<(), Code>,
) -> u32 {
    on_device(function, handle, |device| match device.mig {
        None => body(&device.present),
        Some(_) => Err(Code::NOT_SUPPORTED),
    })
}

/// A call on a GPU instance.
pub(crate) fn on_instance(
    function: &'static str,
    handle: Handle,
    body: impl FnOnce(&Present<'_>, &Instance) -> Result<(), Code>,
) -> u32 {
    let found = |present: Present<'_>, serial| {
        let instance = present.state.instances.iter().find(|gi| gi.serial == serial);
        body(&present, instance.ok_or(Code::INVALID_ARGUMENT)?)
    };
    on_handle(function, handle, found, &[Kind::GpuInstance])
}

/// A call on a compute instance.
pub(crate) fn on_compute(
    function: &'static str,
    handle: Handle,
    body: impl FnOnce(&Present<'_>, &Instance, &Compute) -> Result<(), Code>,
) -> u32 {
    let found = |present: Present<'_>, serial| {
        let found = present.state.devices().find(|(_, ci)| ci.serial == serial);
        let (gi, ci) = found.ok_or(Code::INVALID_ARGUMENT)?;
        body(&present, gi, ci)
    };
    on_handle(function, handle, found, &[Kind::ComputeInstance])
}

impl Session {
    /// Whether the driver that it speaks to is still there.
    pub(crate) fn alive(&self) -> Result<(), Code> {
        let driver = self.hardware.driver.read()?;
        if driver.loaded && driver.loads == self.loads { Ok(()) } else { Err(Code::GPU_IS_LOST) }
    }

    /// A GPU, if it answers.
    pub(crate) fn present(&self, index: usize) -> Result<Present<'_>, Code> {
        self.alive()?;
        let gpu = self.hardware.gpus.get(index).ok_or(Code::INVALID_ARGUMENT)?;
        if !self.hardware.sees(&gpu.facts) {
            return Err(Code::INVALID_ARGUMENT);
        }
        let state = self.hardware.state(gpu)?;
        if state.lost { Err(Code::GPU_IS_LOST) } else { Ok(Present { session: self, gpu, state }) }
    }
}

impl Present<'_> {
    /// Another GPU that the same call is about, if it answers.
    pub(crate) fn other(&self, handle: Handle) -> Result<Present<'_>, Code> {
        let target = handle.open(self.session.number).filter(|target| target.kind == Kind::Gpu);
        self.session.present(target.ok_or(Code::INVALID_ARGUMENT)?.gpu)
    }
}

impl Device<'_> {
    /// The MIG device's instances; nothing for a GPU.
    pub(crate) fn compute(&self) -> Result<Option<(&Instance, &Compute)>, Code> {
        let Some(serial) = self.mig else { return Ok(None) };
        let found = self.present.state.devices().find(|(_, ci)| ci.serial == serial);
        found.map(Some).ok_or(Code::INVALID_ARGUMENT)
    }

    /// The same, where only a MIG device makes sense.
    pub(crate) fn mig(&self) -> Result<(&Instance, &Compute), Code> {
        self.compute()?.ok_or(Code::INVALID_ARGUMENT)
    }
}

/// A panic is an answer, not the end of the process that called.
fn guarded(body: impl FnOnce() -> Result<(), Code>) -> u32 {
    let answer = catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Code::UNKNOWN));
    answer.map_or_else(|code| code.0, |()| 0)
}

/// What is left of a fault when the call has done its work.
struct After {
    kill: bool,
}

impl After {
    fn finish(self) {
        if self.kill {
            hang::kill();
        }
    }
}

/// Counts the call and lets happen what is to happen to it.
fn strike(hardware: &Hardware, function: &str, gpu: Option<usize>) -> Result<After, Code> {
    let faults = hardware.faults.read()?;
    // A container can count no calls, so nothing is meant for it.
    if hardware.guest || !faults.watching() {
        return Ok(After { kill: false });
    }
    let tell = |faults: &mut crate::fault::Faults| {
        Ok::<_, Code>((faults.call(function, gpu), faults.epoch))
    };
    let (effect, epoch) = hardware.faults.update(tell, |_, _| Ok(()))?;
    match effect {
        None => {}
        Some(Effect::Fail(code)) => return Err(Code(code)),
        Some(Effect::Delay(time)) => std::thread::sleep(time),
        Some(Effect::Hang) => hang::until_cleared(hardware, epoch)?,
        Some(Effect::Kill) => hang::kill(),
        Some(Effect::KillAfter) => return Ok(After { kill: true }),
    }
    Ok(After { kill: false })
}

/// The machine that this library lies in, else the one that the environment names, else what this
/// container was given of one.
fn open_machine() -> Result<Hardware, Code> {
    let own = own_file();
    let marked = |dir: &&Path| dir.join(MARKER).is_file();
    let around = own.as_deref().and_then(|file| file.ancestors().find(marked));
    let named = || std::env::var_os(MACHINE).map(PathBuf::from);
    if let Some(machine) = around.map(Path::to_owned).or_else(named) {
        return Ok(Hardware::open(&machine)?);
    }
    let mounted = own.as_deref().and_then(guest::around);
    Ok(Hardware::open_as_guest(&mounted.ok_or(Code::DRIVER_NOT_LOADED)?)?)
}

/// The file that this code was loaded from, as the kernel knows it.
fn own_file() -> Option<PathBuf> {
    let here = own_file as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| {
        let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        bounds.is_some_and(|(start, end)| {
            number(start).is_some_and(|start| start <= here)
                && number(end).is_some_and(|end| here < end)
        })
    })?;
    line.find('/').map(|at| PathBuf::from(&line[at..]))
}
