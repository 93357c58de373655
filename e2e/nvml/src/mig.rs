//! The MIG state machine: what may be cut where, and what stands in the way.

use crate::{
    code::Code,
    hardware::Facts,
    spec::{ComputeProfile, Engines, MigSpec, Profile},
    state::{Compute, GpuState, Instance},
};

/// What `nvmlDeviceSetMigMode` says beside its return code.
pub(crate) type Activation = Result<(), Code>;

/// Switches MIG mode. Before Hopper that resets the GPU, and waits for the next reset while anybody
/// uses it; nothing is switched off while it is cut.
pub(crate) fn set_mode(facts: &Facts, state: &mut GpuState, on: bool) -> Result<Activation, Code> {
    facts.mig()?;
    if state.mig == (on, on) {
        return Ok(Ok(()));
    }
    if !state.instances.is_empty() {
        return Ok(Err(Code::IN_USE));
    }
    if !state.processes.is_empty() {
        if facts.spec.switches_without_reset() {
            return Ok(Err(Code::IN_USE));
        }
        state.mig.1 = on;
        return Ok(if state.mig.0 == on { Ok(()) } else { Err(Code::IN_USE) });
    }
    state.mig = (on, on);
    Ok(Ok(()))
}

/// The profile with this id, on a GPU in MIG mode.
pub(crate) fn enabled(
    facts: &Facts,
    state: &GpuState,
    id: u32,
) -> Result<(&'static MigSpec, &'static Profile), Code> {
    let mig = facts.mig()?;
    if !state.mig.0 {
        return Err(Code::NOT_SUPPORTED);
    }
    Ok((mig, mig.by_id(id).ok_or(Code::INVALID_ARGUMENT)?))
}

/// Makes a GPU instance, at `start` or where the driver likes: at the last place that is free.
/// The answer is its id.
pub(crate) fn create(
    facts: &Facts,
    state: &mut GpuState,
    profile: u32,
    start: Option<u32>,
) -> Result<u32, Code> {
    let (mig, profile) = enabled(facts, state, profile)?;
    if start.is_some_and(|start| !profile.starts.contains(&start)) {
        return Err(Code::INVALID_ARGUMENT);
    }
    if !affordable(mig, state, profile) {
        return Err(Code::INSUFFICIENT_RESOURCES);
    }
    let mut places = profile.starts.iter().rev().copied();
    let place =
        places.find(|&at| start.is_none_or(|start| at == start) && free(state, at, profile.size));
    let start = place.ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let id = mig.instance_id(start, profile.size);
    let serial = state.next_serial();
    let (profile, size) = (profile.id, profile.size);
    state.instances.push(Instance {
        id,
        serial,
        profile,
        start,
        size,
        work: 0,
        compute: Vec::new(),
    });
    state.instances.sort_by_key(|instance| instance.id);
    Ok(id)
}

/// How many more instances of a profile fit.
pub(crate) fn remaining(facts: &Facts, state: &GpuState, profile: u32) -> Result<u32, Code> {
    let (mig, profile) = enabled(facts, state, profile)?;
    let mut trial = state.clone();
    let mut fitting = 0;
    for &start in profile.starts {
        if affordable(mig, &trial, profile) && free(&trial, start, profile.size) {
            create(facts, &mut trial, profile.id, Some(start))?;
            fitting += 1;
        }
    }
    Ok(fitting)
}

/// Whether one more leaves slices, instances of the profile and engines enough.
fn affordable(mig: &MigSpec, state: &GpuState, profile: &Profile) -> bool {
    let same = state.instances.iter().filter(|instance| instance.profile == profile.id);
    if same.count() >= profile.instances as usize {
        return false;
    }
    let present = state.instances.iter().filter_map(|instance| mig.by_id(instance.profile));
    let (slices, engines) = present
        .fold((profile.slices, profile.engines), |(slices, sum), other| {
            (slices + other.slices, sum.plus(other.engines))
        });
    slices <= mig.slices && engines.within(mig.engines)
}

fn free(state: &GpuState, start: u32, size: u32) -> bool {
    state
        .instances
        .iter()
        .all(|other| start + size <= other.start || other.start + other.size <= start)
}

impl Engines {
    fn plus(self, other: Self) -> Self {
        Self {
            copy: self.copy + other.copy,
            decoders: self.decoders + other.decoders,
            encoders: self.encoders + other.encoders,
            jpeg: self.jpeg + other.jpeg,
            ofa: self.ofa + other.ofa,
        }
    }

    /// Copy engines are shared out as slices are and never run out first.
    fn within(self, limit: Self) -> bool {
        self.decoders <= limit.decoders
            && self.encoders <= limit.encoders
            && self.jpeg <= limit.jpeg
            && self.ofa <= limit.ofa
    }
}

/// Destroys a GPU instance that nothing is in.
pub(crate) fn destroy(state: &mut GpuState, serial: u32) -> Result<(), Code> {
    let place = state.instances.iter().position(|instance| instance.serial == serial);
    let place = place.ok_or(Code::INVALID_ARGUMENT)?;
    if !state.instances[place].compute.is_empty() {
        return Err(Code::IN_USE);
    }
    state.instances.remove(place);
    Ok(())
}

/// The instance with this serial, and its profile.
fn instance<'s>(
    facts: &Facts,
    state: &'s GpuState,
    serial: u32,
) -> Result<(&'s Instance, &'static Profile), Code> {
    let found = state.instances.iter().find(|instance| instance.serial == serial);
    let found = found.ok_or(Code::INVALID_ARGUMENT)?;
    Ok((found, facts.mig()?.by_id(found.profile).ok_or(Code::UNKNOWN)?))
}

/// Makes a compute instance in a GPU instance, at a slice or at the first that is free. The answer is
/// its id.
pub(crate) fn create_compute(
    facts: &Facts,
    state: &mut GpuState,
    serial: u32,
    profile: u32,
    start: Option<u32>,
) -> Result<u32, Code> {
    let (gi, parent) = instance(facts, state, serial)?;
    let gi_id = gi.id;
    let profile = parent.compute_by_id(profile).ok_or(Code::INVALID_ARGUMENT)?;
    let starts = parent.compute_starts(profile.slices);
    if start.is_some_and(|start| !starts.contains(&start)) {
        return Err(Code::INVALID_ARGUMENT);
    }
    let fits = |at: &u32| start.is_none_or(|start| *at == start) && free_compute(gi, *at, profile);
    let start = starts.into_iter().find(fits).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let taken = |id: &u32| gi.compute.iter().any(|compute| compute.id == *id);
    let id = (0..8).find(|id| !taken(id)).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let serial = state.next_serial();
    let uuid = format!("MIG-{}", facts.derived_uuid(serial));
    let made = Compute { id, serial, profile: profile.id, start, size: profile.slices, uuid };
    let gi = state.instances.iter_mut().find(|gi| gi.id == gi_id).ok_or(Code::UNKNOWN)?;
    gi.compute.push(made);
    gi.compute.sort_by_key(|compute| compute.id);
    Ok(id)
}

/// How many more compute instances of a profile fit.
pub(crate) fn remaining_compute(
    facts: &Facts,
    state: &GpuState,
    serial: u32,
    profile: u32,
) -> Result<u32, Code> {
    let mut trial = state.clone();
    let mut fitting = 0;
    loop {
        match create_compute(facts, &mut trial, serial, profile, None) {
            Ok(_) => fitting += 1,
            Err(Code::INSUFFICIENT_RESOURCES) => return Ok(fitting),
            Err(code) => return Err(code),
        }
    }
}

fn free_compute(gi: &Instance, start: u32, profile: ComputeProfile) -> bool {
    let apart = |other: &Compute| {
        start + profile.slices <= other.start || other.start + other.size <= start
    };
    gi.compute.iter().all(apart)
}

/// Destroys a compute instance that no process runs in.
pub(crate) fn destroy_compute(state: &mut GpuState, serial: u32) -> Result<(), Code> {
    for gi in &mut state.instances {
        let Some(place) = gi.compute.iter().position(|compute| compute.serial == serial) else {
            continue;
        };
        let here = Some((gi.id, gi.compute[place].id));
        if state.processes.iter().any(|process| process.instance == here) {
            return Err(Code::IN_USE);
        }
        gi.compute.remove(place);
        return Ok(());
    }
    Err(Code::INVALID_ARGUMENT)
}
