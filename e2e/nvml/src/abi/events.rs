//! Event sets: who waits for what.

use std::{
    ffi::{c_uint, c_ulonglong},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::nvmlEventData_t;

use super::{
    export,
    wire::{Opaque, Out, give},
};
use crate::{
    cell::locked,
    changes::Changes,
    code::Code,
    event::{Event, supported},
    library::{Handle, Kind, Session, on_gpu, on_system},
};

/// How often a wait looks that nobody tells of changes.
const LOOK: Duration = Duration::from_millis(5);
/// "None" for the ids of an event.
const NONE: u32 = u32::MAX;

static SETS: AtomicU32 = AtomicU32::new(1);

/// What a set waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventSet {
    /// GPU, bits of event types.
    registered: Vec<(u32, u64)>,
    /// Number of the first event that it has not given out.
    next: u64,
}

export! {
    fn nvmlEventSetCreate(set: Out<'_, Opaque>) = |name| on_system(name, |session| {
        let number = SETS.fetch_add(1, Ordering::Relaxed);
        let next = session.hardware.events.read()?.next;
        locked(&session.event_sets).insert(number, EventSet { registered: Vec::new(), next });
        give(set, Opaque::new(Handle::new(session.number, Kind::EventSet, 0, number)))
    });
    fn nvmlEventSetFree(set: Opaque) = |name| on_system(name, |session| {
        let number = number(session, set)?;
        locked(&session.event_sets).remove(&number).map(|_| ()).ok_or(Code::INVALID_ARGUMENT)
    });
    fn nvmlDeviceGetSupportedEventTypes(device: Opaque, types: Out<'_, c_ulonglong>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(types, supported(&gpu.session.hardware.node)))
    };
    fn nvmlDeviceRegisterEvents(device: Opaque, types: c_ulonglong, set: Opaque) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let number = number(gpu.session, set)?;
            if types & !supported(&gpu.session.hardware.node) != 0 {
                return Err(Code::NOT_SUPPORTED);
            }
            let mut sets = locked(&gpu.session.event_sets);
            let set = sets.get_mut(&number).ok_or(Code::INVALID_ARGUMENT)?;
            set.registered.push((gpu.gpu.facts.index, types));
            Ok(())
        })
    };
    fn nvmlEventSetWait(set: Opaque, data: Out<'_, nvmlEventData_t>, timeout: c_uint) = |name| {
        on_system(name, |session| wait(session, set, data, timeout))
    };
    fn nvmlEventSetWait_v2(set: Opaque, data: Out<'_, nvmlEventData_t>, timeout: c_uint) = |name| {
        on_system(name, |session| wait(session, set, data, timeout))
    };
}

fn number(session: &Session, set: Opaque) -> Result<u32, Code> {
    let target = set.handle().open(session.number).ok_or(Code::INVALID_ARGUMENT)?;
    if target.kind == Kind::EventSet { Ok(target.serial) } else { Err(Code::INVALID_ARGUMENT) }
}

/// Waits for the first event that the set is registered for. A GPU of the set that is lost ends every
/// wait at once.
fn wait(
    session: &Session,
    set: Opaque,
    data: Out<'_, nvmlEventData_t>,
    timeout: c_uint,
) -> Result<(), Code> {
    let number = number(session, set)?;
    let data = data.ok_or(Code::INVALID_ARGUMENT)?;
    let end = Instant::now() + Duration::from_millis(timeout.into());
    let changes = Changes::of(&session.hardware).ok();
    loop {
        if let Some(event) = take(session, number)? {
            data.write(layout(session, &event));
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Code::TIMEOUT);
        }
        match &changes {
            Some(changes) => changes.wait(left)?,
            None => thread::sleep(left.min(LOOK)),
        }
    }
}

/// The set's next event, if there is one.
fn take(session: &Session, number: u32) -> Result<Option<Event>, Code> {
    session.alive()?;
    let events = session.hardware.events.read()?;
    let mut sets = locked(&session.event_sets);
    let set = sets.get_mut(&number).ok_or(Code::INVALID_ARGUMENT)?;
    let wanted = |event: &Event| {
        set.registered.iter().any(|&(gpu, types)| gpu == event.gpu && types & event.kind != 0)
    };
    if let Some(event) = events.first(set.next, wanted) {
        set.next = event.number + 1;
        return Ok(Some(event.clone()));
    }
    for &(gpu, _) in &set.registered {
        session.present(gpu as usize)?;
    }
    Ok(None)
}

fn layout(session: &Session, event: &Event) -> nvmlEventData_t {
    nvmlEventData_t {
        device: session.gpu(event.gpu).cast(),
        eventType: event.kind,
        eventData: event.data,
        gpuInstanceId: event.instance.0.unwrap_or(NONE),
        computeInstanceId: event.instance.1.unwrap_or(NONE),
    }
}
