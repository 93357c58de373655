//! The library itself, the driver, and finding GPUs.

use std::ffi::{c_char, c_int, c_uint};

use super::{
    export,
    wire::{Array, Opaque, Out, Text, give},
};
use crate::{
    code::Code,
    hardware::Facts,
    library::{Session, init, on_system, shutdown},
};

/// `nvmlErrorString`: the only function that needs nothing.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: c_uint) -> *const c_char {
    Code(result).text().as_ptr()
}

export! {
    fn nvmlInit() = init;
    fn nvmlInit_v2() = init;
    fn nvmlInitWithFlags(_flags: c_uint) = init;
    fn nvmlShutdown() = shutdown;

    fn nvmlSystemGetDriverVersion(version: Array<c_char>, length: c_uint) = |name| {
        on_system(name, |session| version.text(length, &session.hardware.node.driver))
    };
    fn nvmlSystemGetNVMLVersion(version: Array<c_char>, length: c_uint) = |name| {
        on_system(name, |session| {
            let node = &session.hardware.node;
            version.text(length, &format!("{}.{}", node.cuda / 1000, node.driver))
        })
    };
    fn nvmlSystemGetCudaDriverVersion(version: Out<'_, c_int>) = |name| cuda(name, version);
    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<'_, c_int>) = |name| cuda(name, version);
    fn nvmlSystemGetProcessName(pid: c_uint, text: Array<c_char>, length: c_uint) = |name| {
        on_system(name, |session| {
            let states = session.hardware.states()?;
            let mut processes = states.iter().flat_map(|state| &state.processes);
            let process = processes.find(|process| process.pid == pid).ok_or(Code::NOT_FOUND)?;
            text.text(length, &process.name)
        })
    };

    fn nvmlDeviceGetCount(count: Out<'_, c_uint>) = |name| gpus(name, count);
    fn nvmlDeviceGetCount_v2(count: Out<'_, c_uint>) = |name| gpus(name, count);
    fn nvmlDeviceGetHandleByIndex(index: c_uint, device: Out<'_, Opaque>) = |name| {
        by_index(name, index, device)
    };
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: Out<'_, Opaque>) = |name| {
        by_index(name, index, device)
    };
    fn nvmlDeviceGetHandleBySerial(serial: Text, device: Out<'_, Opaque>) = |name| {
        on_system(name, |session| {
            let serial = serial.get()?;
            gpu(session, device, |facts| facts.serial == serial)
        })
    };
    fn nvmlDeviceGetHandleByPciBusId(address: Text, device: Out<'_, Opaque>) = |name| {
        by_address(name, &address, device)
    };
    fn nvmlDeviceGetHandleByPciBusId_v2(address: Text, device: Out<'_, Opaque>) = |name| {
        by_address(name, &address, device)
    };
    fn nvmlDeviceGetHandleByUUID(uuid: Text, device: Out<'_, Opaque>) = |name| {
        on_system(name, |session| {
            let uuid = uuid.get()?;
            if uuid.starts_with("MIG-") {
                return give(device, super::mig::by_uuid(session, &uuid)?);
            }
            gpu(session, device, |facts| facts.uuid == uuid)
        })
    };
}

fn cuda(name: &'static str, version: Out<'_, c_int>) -> u32 {
    on_system(name, |session| {
        give(version, c_int::try_from(session.hardware.node.cuda).or(Err(Code::UNKNOWN))?)
    })
}

fn gpus(name: &'static str, count: Out<'_, c_uint>) -> u32 {
    on_system(name, |session| {
        give(count, c_uint::try_from(session.hardware.seen().count()).or(Err(Code::UNKNOWN))?)
    })
}

fn by_index(name: &'static str, index: c_uint, device: Out<'_, Opaque>) -> u32 {
    on_system(name, |session| {
        let found = session.hardware.seen().nth(index as usize).ok_or(Code::INVALID_ARGUMENT)?;
        session.present(found.facts.index as usize)?;
        give(device, session.gpu(found.facts.index))
    })
}

/// Addresses have a domain of four or eight digits, in any case.
fn by_address(name: &'static str, address: &Text, device: Out<'_, Opaque>) -> u32 {
    on_system(name, |session| {
        let wanted = address.get()?.to_lowercase();
        let wanted = wanted.trim_start_matches('0');
        gpu(session, device, |facts| facts.address().trim_start_matches('0') == wanted)
    })
}

/// The handle of the GPU that is meant, if it answers.
fn gpu(
    session: &Session,
    device: Out<'_, Opaque>,
    meant: impl Fn(&Facts) -> bool,
) -> Result<(), Code> {
    let found = session.hardware.seen().find(|gpu| meant(&gpu.facts)).ok_or(Code::NOT_FOUND)?;
    session.present(found.facts.index as usize)?;
    give(device, session.gpu(found.facts.index))
}
