//! A machine's directory, opened: what is plugged in, and the files that hold what changes.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cell::Cell,
    code::Code,
    event::Events,
    fault::Faults,
    files, guest,
    load::Meter,
    log,
    node::{GpuDescription, NodeDescription, bus},
    numbers::{Minors, Numbers},
    spec::{MigSpec, Spec},
    state::{Driver, GpuState},
};

/// The file that marks a machine's directory and holds its description.
pub(crate) const MARKER: &str = "kerf-machine.json";

/// A machine.
pub(crate) struct Hardware {
    pub(crate) dir: PathBuf,
    /// Whether it is seen from inside a container.
    pub(crate) guest: bool,
    pub(crate) node: NodeDescription,
    pub(crate) numbers: Numbers,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) driver: Cell<Driver>,
    pub(crate) faults: Cell<Faults>,
    pub(crate) events: Cell<Events>,
}

/// A GPU of it.
pub(crate) struct Gpu {
    pub(crate) facts: Facts,
    pub(crate) state: Cell<GpuState>,
}

/// What never changes about a GPU.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) index: u32,
    pub(crate) minor: u32,
    /// Of its instances' capabilities.
    pub(crate) minors: Minors,
    pub(crate) uuid: String,
    pub(crate) serial: String,
    pub(crate) bus: u32,
    pub(crate) numa: Option<u32>,
    pub(crate) pcie_root: Option<String>,
    pub(crate) spec: &'static Spec,
}

impl Facts {
    fn of(index: usize, gpu: &GpuDescription, numbers: &Numbers) -> io::Result<Self> {
        let number = u32::try_from(index).map_err(io::Error::other)?;
        let (spec, minor) = (gpu.model.spec(), gpu.minor.unwrap_or(number));
        let made = || format!("GPU-{}", uuid_of(spec.name, number));
        Ok(Self {
            index: number,
            minor,
            minors: numbers.instances(minor),
            uuid: gpu.uuid.clone().unwrap_or_else(made),
            serial: format!("13201230{number:05}"),
            bus: u32::try_from(bus(index)).map_err(io::Error::other)?,
            numa: gpu.numa,
            pcie_root: gpu.pcie_root.clone(),
            spec,
        })
    }

    /// The PCI address in sysfs's spelling.
    pub(crate) fn address(&self) -> String {
        format!("0000:{:02x}:00.0", self.bus)
    }

    /// The MIG side, where there is one.
    pub(crate) fn mig(&self) -> Result<&'static MigSpec, Code> {
        self.spec.mig.as_ref().ok_or(Code::NOT_SUPPORTED)
    }

    /// The UUID, without prefix, of the instance with this serial.
    pub(crate) fn derived_uuid(&self, serial: u32) -> String {
        uuid_of(&self.uuid, serial)
    }
}

/// A UUID that depends on nothing but its arguments.
fn uuid_of(name: &str, number: u32) -> String {
    let bytes = || name.bytes().chain(number.to_le_bytes());
    let hash = |basis: u64| {
        let mixed = bytes()
            .fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    let (high, low) = (hash(0xcbf2_9ce4_8422_2325), hash(0x9e37_79b9_7f4a_7c15));
    let high = high & !0xf000 | 0x5000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let (high, low) = (format!("{high:016x}"), format!("{low:016x}"));
    format!("{}-{}-{}-{}-{}", &high[..8], &high[8..12], &high[12..], &low[..4], &low[4..])
}

impl Hardware {
    /// Makes a machine in a directory, with its driver loaded.
    pub(crate) fn create(dir: &Path, node: &NodeDescription) -> io::Result<Self> {
        if !(1..=16).contains(&node.gpus.len()) {
            return Err(io::Error::other(format!(
                "a node has 1 to 16 GPUs, not {}",
                node.gpus.len()
            )));
        }
        fs::create_dir_all(dir.join("state"))?;
        let dir = &dir.canonicalize()?;
        let driver = Driver::booted(1, new_boot_id()?);
        let numbers = Numbers::of(node);
        let gpus = node.gpus.iter().enumerate().map(|(index, gpu)| {
            let on = gpu.mig_enabled && gpu.model.has_mig();
            let meter = Meter::begin(&gpu.model.spec().board, driver.booted);
            let state = GpuState { mig: (on, on), meter, ..GpuState::default() };
            Ok(Gpu {
                facts: Facts::of(index, gpu, &numbers)?,
                state: Cell::create(&state_file(dir, &format!("gpu{index}")), &state)?,
            })
        });
        let hardware = Self {
            dir: dir.clone(),
            guest: false,
            node: node.clone(),
            gpus: gpus.collect::<io::Result<_>>()?,
            numbers,
            driver: Cell::create(&state_file(dir, "driver"), &driver)?,
            faults: Cell::create(&state_file(dir, "faults"), &Faults::default())?,
            events: Cell::create(&state_file(dir, "events"), &Events::default())?,
        };
        files::lay_out(&hardware)?;
        log::begin(dir)?;
        let mut marker = fs::File::create(dir.join(MARKER))?;
        marker.write_all(&serde_json::to_vec_pretty(node)?)?;
        if node.for_containers {
            guest::share(&hardware)?;
        }
        Ok(hardware)
    }

    /// Opens a machine that was made before.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        Self::load(&Files { dir, guest: false })
    }

    /// Opens what was mounted of a machine into this container.
    pub(crate) fn open_as_guest(dir: &Path) -> io::Result<Self> {
        Self::load(&Files { dir, guest: true })
    }

    fn load(files: &Files<'_>) -> io::Result<Self> {
        let node: NodeDescription = serde_json::from_slice(&fs::read(files.description())?)?;
        let numbers = Numbers::of(&node);
        let gpus = node.gpus.iter().enumerate().map(|(index, gpu)| {
            let facts = Facts::of(index, gpu, &numbers)?;
            Ok(Gpu { facts, state: files.cell(&format!("gpu{index}"))? })
        });
        Ok(Self {
            gpus: gpus.collect::<io::Result<_>>()?,
            numbers,
            driver: files.cell("driver")?,
            faults: files.cell("faults")?,
            events: files.cell("events")?,
            dir: files.dir.to_owned(),
            guest: files.guest,
            node,
        })
    }

    /// The GPU with this index.
    pub(crate) fn gpu(&self, index: usize) -> io::Result<&Gpu> {
        let missing = || io::Error::other(format!("no GPU {index} in {}", self.dir.display()));
        self.gpus.get(index).ok_or_else(missing)
    }

    /// Changes a GPU's state, and what procfs shows of it.
    pub(crate) fn change<R>(
        &self,
        gpu: &Gpu,
        change: impl FnOnce(&Facts, &mut GpuState) -> Result<R, Code>,
    ) -> Result<R, Code> {
        self.allowed()?;
        gpu.state.update(
            |state| change(&gpu.facts, state),
            |old, new| files::capabilities::update(&self.dir, &gpu.facts, old, new),
        )
    }

    /// The state of all GPUs that are seen, in the order of their index.
    pub(crate) fn states(&self) -> io::Result<Vec<Arc<GpuState>>> {
        self.seen().map(|gpu| self.state(gpu)).collect()
    }
}

/// Where a machine keeps what changes.
pub(crate) fn state_file(dir: &Path, name: &str) -> PathBuf {
    dir.join("state").join(name)
}

/// The files of a machine that exists, under their own names or those that they have in a container.
struct Files<'d> {
    dir: &'d Path,
    guest: bool,
}

impl Files<'_> {
    fn description(&self) -> PathBuf {
        match self.guest {
            true => self.dir.join(guest::shared_name(guest::DESCRIPTION)),
            false => self.dir.join(MARKER),
        }
    }

    fn cell<T>(&self, name: &str) -> io::Result<Cell<T>>
    where
        T: Serialize + DeserializeOwned + Clone + PartialEq,
    {
        match self.guest {
            true => Cell::open_to_read(&self.dir.join(guest::shared_name(name))),
            false => Cell::open(&state_file(self.dir, name)),
        }
    }
}

/// A boot's id, as the kernel makes one.
pub(crate) fn new_boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
