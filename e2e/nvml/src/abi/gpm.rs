//! GPU performance monitoring: what went on between two samples, on Hopper and later.

use std::{
    ffi::{CStr, c_uint},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use nvml_wrapper_sys::bindings::{
    nvmlGpmMetric_t, nvmlGpmMetric_t__bindgen_ty_1 as MetricInfo, nvmlGpmSupport_t,
};

use super::{
    export,
    wire::{Metrics, Opaque, Out, Versioned, give},
};
use crate::{
    cell::locked,
    clock,
    code::Code,
    library::{Handle, Kind, Present, Session, on_device, on_gpu, on_system},
    load::WHOLE,
    spec::{Architecture, NvLinks},
    state::Instance,
};

/// Samples that are closer together, in microseconds, say nothing.
const APART: u64 = 100_000;
/// `NVML_GPM_SUPPORT_VERSION`, a plain number.
const SUPPORT_VERSION: c_uint = 1;

static SAMPLES: AtomicU32 = AtomicU32::new(1);

/// What a sample holds once it was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    gpu: usize,
    /// Serial of the GPU instance; nothing for the whole GPU.
    instance: Option<u32>,
    /// In microseconds since 1970.
    at: u64,
    /// Activity times microseconds until then.
    work: u64,
}

export! {
    fn nvmlGpmQueryDeviceSupport(device: Opaque, support: Versioned) = |name| {
        on_device(name, device.handle(), |device| {
            let isSupportedDevice = u32::from(monitored(&device.present).is_ok());
            let answer = nvmlGpmSupport_t { version: SUPPORT_VERSION, isSupportedDevice };
            support.give_as(SUPPORT_VERSION, answer)
        })
    };
    fn nvmlGpmSampleAlloc(sample: Out<'_, Opaque>) = |name| on_system(name, |session| {
        let number = SAMPLES.fetch_add(1, Ordering::Relaxed);
        locked(&session.samples).insert(number, None);
        give(sample, Opaque::new(Handle::new(session.number, Kind::Sample, 0, number)))
    });
    fn nvmlGpmSampleFree(sample: Opaque) = |name| on_system(name, |session| {
        let number = number(session, sample.handle())?;
        locked(&session.samples).remove(&number).map(|_| ()).ok_or(Code::INVALID_ARGUMENT)
    });
    fn nvmlGpmSampleGet(device: Opaque, sample: Opaque) = |name| {
        on_device(name, device.handle(), |device| {
            let within = device.compute()?.map(|(gi, _)| gi);
            take(&device.present, within, sample)
        })
    };
    fn nvmlGpmMigSampleGet(device: Opaque, id: c_uint, sample: Opaque) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            take(gpu, Some(gpu.state.instance(id).ok_or(Code::INVALID_ARGUMENT)?), sample)
        })
    };
    fn nvmlGpmMetricsGet(metrics: Metrics) = |name| on_system(name, |session| {
        let samples = metrics.samples()?;
        let span = Span::between(taken(session, samples[0])?, taken(session, samples[1])?)?;
        metrics.answer(|id| metric(id, span.value(session, id)))
    });
}

fn monitored(gpu: &Present<'_>) -> Result<(), Code> {
    let since = gpu.gpu.facts.spec.architecture >= Architecture::Hopper;
    if since { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

fn number(session: &Session, sample: Handle) -> Result<u32, Code> {
    let target = sample.open(session.number).filter(|target| target.kind == Kind::Sample);
    Ok(target.ok_or(Code::INVALID_ARGUMENT)?.serial)
}

/// Fills a sample with what the GPU or an instance of it has done until now.
fn take(gpu: &Present<'_>, instance: Option<&Instance>, sample: Opaque) -> Result<(), Code> {
    monitored(gpu)?;
    let (facts, now) = (&gpu.gpu.facts, clock::now());
    let work = match instance {
        Some(instance) => gpu.state.work_of(facts.mig()?, instance, now),
        None => gpu.state.sensors(facts.spec, now).work,
    };
    let number = number(gpu.session, sample.handle())?;
    let mut samples = locked(&gpu.session.samples);
    let place = samples.get_mut(&number).ok_or(Code::INVALID_ARGUMENT)?;
    *place = Some(Sample {
        gpu: facts.index as usize,
        instance: instance.map(|instance| instance.serial),
        at: now,
        work,
    });
    Ok(())
}

/// What a sample holds.
fn taken(session: &Session, sample: Handle) -> Result<Sample, Code> {
    let number = number(session, sample)?;
    locked(&session.samples).get(&number).copied().flatten().ok_or(Code::INVALID_ARGUMENT)
}

/// The time between two samples of the same.
struct Span {
    gpu: usize,
    whole: bool,
    /// Mean, of 1.
    activity: f64,
}

impl Span {
    fn between(first: Sample, second: Sample) -> Result<Self, Code> {
        let same = (first.gpu, first.instance) == (second.gpu, second.instance);
        let time = second.at.checked_sub(first.at).filter(|&time| same && time >= APART);
        let work = second.work.checked_sub(first.work).ok_or(Code::INVALID_ARGUMENT)?;
        let most = time.ok_or(Code::INVALID_ARGUMENT)? * WHOLE;
        let activity = work as f64 / most as f64;
        Ok(Self { gpu: first.gpu, whole: first.instance.is_none(), activity })
    }

    /// In percent, or in MiB/s on the ways out of the GPU, which are no instance's own.
    fn value(&self, session: &Session, id: c_uint) -> Result<f64, Code> {
        let gpu = session.hardware.gpus.get(self.gpu).ok_or(Code::INVALID_ARGUMENT)?;
        let board = &gpu.facts.spec.board;
        let most = match (id, gpu.facts.spec.nvlinks) {
            (20 | 21, _) if self.whole => board.pcie.into(),
            (60 | 61, NvLinks::Bridged(links) | NvLinks::Switched(links)) if self.whole => {
                f64::from(links * board.nvlink)
            }
            _ => 100.0 * share(id)?,
        };
        Ok(most * self.activity)
    }
}

/// How busy the work of the simulation keeps a part of the GPU: it multiplies matrices of halves.
fn share(id: c_uint) -> Result<f64, Code> {
    match id {
        1 => Ok(1.0),
        2 => Ok(0.9),
        3 => Ok(0.4),
        4 => Ok(0.15),
        5 | 7 => Ok(0.6),
        6 | 9 | 11 => Ok(0.0),
        10 => Ok(0.45),
        12 => Ok(0.2),
        13 => Ok(0.1),
        _ => Err(Code::NOT_SUPPORTED),
    }
}

fn metric(id: c_uint, value: Result<f64, Code>) -> nvmlGpmMetric_t {
    let (name, unit) = words(id);
    nvmlGpmMetric_t {
        metricId: id,
        nvmlReturn: value.map_or_else(|code| code.0, |_| 0),
        value: value.unwrap_or(0.0),
        metricInfo: MetricInfo {
            shortName: ptr::from_ref(name).cast_mut().cast(),
            longName: ptr::from_ref(name).cast_mut().cast(),
            unit: ptr::from_ref(unit).cast_mut().cast(),
        },
    }
}

/// Name and unit.
fn words(id: c_uint) -> (&'static CStr, &'static CStr) {
    match id {
        1 => (c"Graphics utilization", c"%"),
        2 => (c"SM utilization", c"%"),
        3 => (c"SM occupancy", c"%"),
        4 => (c"Integer utilization", c"%"),
        5 => (c"Tensor utilization", c"%"),
        6 => (c"DFMA tensor utilization", c"%"),
        7 => (c"HMMA tensor utilization", c"%"),
        9 => (c"IMMA tensor utilization", c"%"),
        10 => (c"DRAM bandwidth utilization", c"%"),
        11 => (c"FP64 utilization", c"%"),
        12 => (c"FP32 utilization", c"%"),
        13 => (c"FP16 utilization", c"%"),
        20 => (c"PCIe sent", c"MiB/s"),
        21 => (c"PCIe received", c"MiB/s"),
        60 => (c"NVLink received", c"MiB/s"),
        61 => (c"NVLink sent", c"MiB/s"),
        _ => (c"", c""),
    }
}
