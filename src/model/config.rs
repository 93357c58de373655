//! Opaque configuration of `resource.nvidia.com/v1beta1`: what it may say, and which one applies.

use serde_json::Value;

use crate::model::{
    device::Part,
    strict::{self, Object},
};

/// The one version of the configuration kinds.
pub const API_VERSION: &str = "resource.nvidia.com/v1beta1";

/// A configuration, checked. What Kerf does not do yet keeps no parameters: it is only refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config {
    /// `GpuConfig`, for whole GPUs.
    Gpu(Option<Sharing>),
    /// `MigDeviceConfig`, for MIG devices.
    Mig(Option<Sharing>),
    /// `VfioDeviceConfig`, for GPUs that are passed through to a virtual machine.
    Vfio,
}

/// How containers share a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// In turns.
    TimeSlicing(Interval),
    /// At once, through a control daemon.
    Mps,
}

/// How long a turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// As the driver sets it: nothing is to be changed.
    Default,
    /// Shorter than `Medium`.
    Short,
    /// Between the two.
    Medium,
    /// Longer than `Medium`.
    Long,
}

/// A configuration of a claim's allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Requests, or `request/subrequest`, that it is for; empty for all that it fits.
    pub requests: Vec<String>,
    /// What it says.
    pub config: Config,
}

/// Why parameters are no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field or value that is not known.
    #[error(transparent)]
    Strict(#[from] strict::Error),
    /// The parameters of one strategy beside another strategy.
    #[error("`{field}` does not go with strategy `{strategy}` in {at}; remove one of them")]
    Mixed {
        /// Path of the object.
        at: String,
        /// The parameters.
        field: &'static str,
        /// The strategy.
        strategy: &'static str,
    },
}

/// Why a configuration cannot be applied to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is of a kind for other devices.
    #[error("{kind} does not apply to {device}; use {fitting} or remove it")]
    Kind {
        /// The configuration's kind.
        kind: &'static str,
        /// What was allocated.
        device: &'static str,
        /// The kind for that.
        fitting: &'static str,
    },
    /// `VfioDeviceConfig`.
    #[error(
        "VfioDeviceConfig is not supported yet: Kerf passes no GPU through to a virtual machine; remove it"
    )]
    Vfio,
    /// MPS.
    #[error(
        "strategy `MPS` is not supported yet; remove `sharing`, or claim a MIG device for a part of a GPU"
    )]
    Mps,
    /// A time slice other than the driver's own.
    #[error(
        "interval `{0}` of strategy `TimeSlicing` is not supported yet; use `Default` or remove `sharing`"
    )]
    Interval(&'static str),
}

#[derive(Clone, Copy)]
enum Kind {
    Gpu,
    Mig,
    Vfio,
}

const KINDS: [(&str, Kind); 3] =
    [("GpuConfig", Kind::Gpu), ("MigDeviceConfig", Kind::Mig), ("VfioDeviceConfig", Kind::Vfio)];
const INTERVALS: [(&str, Interval); 4] = [
    ("Default", Interval::Default),
    ("Short", Interval::Short),
    ("Medium", Interval::Medium),
    ("Long", Interval::Long),
];

impl Config {
    /// Checks opaque parameters. Nothing is ignored: a field that is not known is an error.
    pub fn parse(parameters: &Value) -> Result<Self, Error> {
        let object = Object::new("parameters", parameters)?;
        object.required("apiVersion", &[(API_VERSION, ())])?;
        match object.required("kind", &KINDS)? {
            Kind::Gpu => gpu(&object.named("GpuConfig")).map(Self::Gpu),
            Kind::Mig => mig(&object.named("MigDeviceConfig")).map(Self::Mig),
            Kind::Vfio => Ok(vfio(&object.named("VfioDeviceConfig")).map(|()| Self::Vfio)?),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Gpu(_) => "GpuConfig",
            Self::Mig(_) => "MigDeviceConfig",
            Self::Vfio => "VfioDeviceConfig",
        }
    }

    fn fits(self, part: &Part<'_>) -> bool {
        matches!((self, part), (Self::Gpu(_), Part::Whole) | (Self::Mig(_), Part::Mig(..)))
    }

    /// Whether Kerf can give the device with this configuration.
    fn check(self, part: &Part<'_>) -> Result<(), Unfit> {
        let (device, fitting) = match part {
            Part::Whole => ("a whole GPU", "GpuConfig"),
            Part::Mig(..) => ("a MIG device", "MigDeviceConfig"),
        };
        match self {
            Self::Vfio => Err(Unfit::Vfio),
            other if !other.fits(part) => Err(Unfit::Kind { kind: other.kind(), device, fitting }),
            Self::Gpu(sharing) | Self::Mig(sharing) => sharing.map_or(Ok(()), Sharing::check),
        }
    }
}

impl Sharing {
    fn check(self) -> Result<(), Unfit> {
        match self {
            Self::TimeSlicing(Interval::Default) => Ok(()),
            Self::TimeSlicing(interval) => {
                let name = INTERVALS.iter().find(|(_, known)| *known == interval);
                Err(Unfit::Interval(name.map_or("", |(name, _)| name)))
            }
            Self::Mps => Err(Unfit::Mps),
        }
    }
}

impl Configuration {
    /// Whether it names the request: as it is, or by the main request of a subrequest.
    fn names(&self, request: &str) -> bool {
        let main = request.split_once('/').map_or(request, |(main, _)| main);
        self.requests.iter().any(|named| named == request || named == main)
    }
}

/// Checks the configuration that applies to a device which a request was given: the last that names
/// the request, or names none and fits the device. Without one, the defaults change nothing.
///
/// From 1.37 on schedulers leave out the names where a configuration names all requests of its claim.
/// One for a virtual machine fits nothing here, so it is for whatever has no other: a container must not
/// get a GPU in its stead.
///
/// `configurations` are in the order of precedence: those of classes, then those of the claim.
pub fn check(
    configurations: &[Configuration],
    request: &str,
    part: &Part<'_>,
) -> Result<(), Unfit> {
    choose(configurations, request, part).map_or(Ok(()), |config| config.check(part))
}

fn choose(configurations: &[Configuration], request: &str, part: &Part<'_>) -> Option<Config> {
    let applies =
        |of: &&Configuration| of.names(request) || (of.requests.is_empty() && of.config.fits(part));
    let passes_through = |of: &&Configuration| of.requests.is_empty() && of.config == Config::Vfio;
    let chosen = configurations.iter().rfind(applies);
    chosen.or_else(|| configurations.iter().rfind(passes_through)).map(|of| of.config)
}

fn gpu(object: &Object<'_>) -> Result<Option<Sharing>, Error> {
    object.only(&["apiVersion", "kind", "sharing"])?;
    let Some(sharing) = object.object("sharing")? else { return Ok(None) };
    sharing.only(&["strategy", "timeSlicingConfig", "mpsConfig"])?;
    let interval = match sharing.object("timeSlicingConfig")? {
        Some(slicing) => interval(&slicing)?,
        None => Interval::Default,
    };
    self::sharing(&sharing, interval).map(Some)
}

fn mig(object: &Object<'_>) -> Result<Option<Sharing>, Error> {
    object.only(&["apiVersion", "kind", "sharing"])?;
    let Some(sharing) = object.object("sharing")? else { return Ok(None) };
    sharing.only(&["strategy", "mpsConfig"])?;
    self::sharing(&sharing, Interval::Default).map(Some)
}

fn interval(slicing: &Object<'_>) -> Result<Interval, Error> {
    slicing.only(&["interval"])?;
    Ok(slicing.choice("interval", &INTERVALS)?.unwrap_or(Interval::Default))
}

/// The strategy, which must not stand beside the parameters of the other one.
fn sharing(object: &Object<'_>, interval: Interval) -> Result<Sharing, Error> {
    let strategies = [("TimeSlicing", Sharing::TimeSlicing(interval)), ("MPS", Sharing::Mps)];
    let sharing = object.required("strategy", &strategies)?;
    if let Some(mps) = object.object("mpsConfig")? {
        self::mps(&mps)?;
    }
    let (strategy, stranger) = match sharing {
        Sharing::TimeSlicing(_) => ("TimeSlicing", "mpsConfig"),
        Sharing::Mps => ("MPS", "timeSlicingConfig"),
    };
    if object.has(stranger) {
        return Err(Error::Mixed { at: object.path().to_owned(), field: stranger, strategy });
    }
    Ok(sharing)
}

fn mps(object: &Object<'_>) -> Result<(), strict::Error> {
    object.only(&[
        "defaultActiveThreadPercentage",
        "defaultPinnedDeviceMemoryLimit",
        "defaultPerDevicePinnedMemoryLimit",
        "multiUser",
    ])?;
    object.percentage("defaultActiveThreadPercentage")?;
    object.quantity("defaultPinnedDeviceMemoryLimit")?;
    if let Some(limits) = object.object("defaultPerDevicePinnedMemoryLimit")? {
        limits.quantities()?;
    }
    object.boolean("multiUser")
}

fn vfio(object: &Object<'_>) -> Result<(), strict::Error> {
    object.only(&["apiVersion", "kind", "iommu"])?;
    let Some(iommu) = object.object("iommu")? else { return Ok(()) };
    iommu.only(&["backendPolicy", "enableAPIDevice"])?;
    iommu.choice("backendPolicy", &[("LegacyOnly", ()), ("PreferIommuFD", ())])?;
    iommu.boolean("enableAPIDevice")
}

#[cfg(test)]
mod tests;
