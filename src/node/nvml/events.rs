//! What GPUs report of themselves: a set of events that one thread waits on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nvml_wrapper_sys::bindings as sys;

use super::{
    Error, Nvml,
    raw::{DeviceHandle, EventSetHandle, Told},
};
use crate::model::{
    gpu::{Gpu, GpuUuid},
    health::{Attribution, Notice, Sign},
};

/// What is listened for, and what each bit of it means besides XIDs and changes of MIG.
const NOTICES: [(u32, Notice); 8] = [
    (sys::nvmlEventTypeDoubleBitEccError, Notice::DoubleBitEccError),
    (sys::nvmlEventTypeSingleBitEccErrorStorm, Notice::SingleBitEccErrorStorm),
    (sys::nvmlEventTypeDramRetirementEvent, Notice::DramRetirement),
    (sys::nvmlEventTypeDramRetirementFailure, Notice::DramRetirementFailure),
    (sys::nvmlEventTypeNonFatalPoisonError, Notice::NonFatalPoison),
    (sys::nvmlEventTypeFatalPoisonError, Notice::FatalPoison),
    (sys::nvmlEventTypeGpuUnavailableError, Notice::GpuUnavailable),
    (sys::nvmlEventTypeGpuRecoveryAction, Notice::RecoveryActionChanged),
];
const XID: u64 = sys::nvmlEventTypeXidCriticalError as u64;
const MIG_CHANGED: u64 = sys::nvmlEventMigConfigChange as u64;

/// What NVML says for an XID that it does not know.
const UNKNOWN_XID: u32 = 999;

/// An event set. It keeps the library loaded: drop it when the driver goes, and wait but shortly.
///
/// Once a GPU of the set is lost each wait fails at once: make a new set without the GPUs that are.
#[derive(Debug)]
pub struct EventSet {
    nvml: Arc<Nvml>,
    set: EventSetHandle,
    registered: Mutex<Vec<(DeviceHandle, GpuUuid)>>,
}

/// What a GPU reports to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Events of these types: bits of `nvmlEventType…`.
    Types(u64),
    /// Nothing: it is too old.
    TooOld,
}

/// Something that was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// By which GPU.
    pub gpu: GpuUuid,
    /// What.
    pub what: Reported,
}

/// What is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// News of its health.
    Sign(Sign),
    /// MIG mode or instances changed (`nvmlEventMigConfigChange`).
    MigChanged,
}

impl Nvml {
    /// A set that no GPU reports to yet.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn event_set(self: &Arc<Self>) -> Result<EventSet, Error> {
        let set = self.create_event_set()?;
        Ok(EventSet { nvml: self.clone(), set, registered: Mutex::default() })
    }
}

impl EventSet {
    /// Lets a GPU report all of its events that are known here, from now on.
    ///
    /// # Errors
    /// As NVML answers. After [`Error::unknown`] the set is of no use any more
    /// (`nvmlDeviceRegisterEvents`); after any other the GPU is not in it.
    pub fn register(&self, gpu: &Gpu) -> Result<Registered, Error> {
        let on = self.nvml.on(gpu)?;
        // One type that is not supported would keep out all.
        let registered = on.supported_events().and_then(|supported| match supported & wanted() {
            0 => Ok(Registered::TooOld),
            types => on.register_events(types, &self.set).map(|()| Registered::Types(types)),
        });
        let registered = match registered {
            Err(error) if error.not_supported() => Registered::TooOld,
            registered => registered?,
        };
        let mut known = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        known.push((on.handle, gpu.uuid.clone()));
        Ok(registered)
    }

    /// Blocks until the next event; `None` if there is none in time.
    ///
    /// # Errors
    /// As NVML answers. After [`Error::lost`] one of the set's GPUs is lost, and each of them has to be
    /// asked which.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Event>, Error> {
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let told = match self.nvml.wait_for_event(&self.set, milliseconds) {
            Ok(told) => told,
            Err(error) if error.timed_out() => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(what) = reported(&told) else { return Ok(None) };
        Ok(Some(Event { gpu: self.uuid(told.device)?, what }))
    }

    fn uuid(&self, device: DeviceHandle) -> Result<GpuUuid, Error> {
        let known = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, uuid)) = known.iter().find(|(handle, _)| *handle == device) {
            return Ok(uuid.clone());
        }
        drop(known);
        let uuid = self.nvml.node_call("nvmlDeviceGetUUID", |_| device.device(&self.nvml).uuid());
        uuid.map(GpuUuid)
    }
}

impl Drop for EventSet {
    fn drop(&mut self) {
        if let Err(error) = self.nvml.free_event_set(&self.set) {
            tracing::debug!(%error, "an event set is left behind");
        }
    }
}

fn wanted() -> u64 {
    NOTICES.iter().fold(XID | MIG_CHANGED, |types, (kind, _)| types | u64::from(*kind))
}

/// `None` for an event that was not asked for.
fn reported(told: &Told) -> Option<Reported> {
    match told.kind {
        XID => Some(Reported::Sign(Sign::Xid {
            code: u32::try_from(told.data).unwrap_or(UNKNOWN_XID),
            attribution: attribution(told.gpu_instance, told.compute_instance),
            link: None,
        })),
        MIG_CHANGED => Some(Reported::MigChanged),
        kind => {
            let (_, notice) = NOTICES.iter().find(|(known, _)| u64::from(*known) == kind)?;
            Some(Reported::Sign(Sign::Notice(*notice)))
        }
    }
}

/// NVML says all ones for an instance that it does not know.
fn attribution(gpu_instance: u32, compute_instance: u32) -> Attribution {
    match (gpu_instance, compute_instance) {
        (u32::MAX, _) => Attribution::Gpu,
        (gpu_instance, u32::MAX) => Attribution::GpuInstance(gpu_instance),
        (gpu_instance, compute_instance) => {
            Attribution::ComputeInstance(gpu_instance, compute_instance)
        }
    }
}
