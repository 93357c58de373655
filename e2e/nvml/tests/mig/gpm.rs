//! What went on between two samples.

use std::{thread, time::Duration};

use kerf_nvml::{Load, Model};
use nvml_wrapper::{Device, Nvml, enums::gpm::GpmMetricId, error::NvmlError, gpm::GpmSample};

use crate::rig::*;

fn wrapped(rig: &Rig) -> Nvml {
    Nvml::builder().lib_path(rig.machine.library().as_os_str()).init().unwrap()
}

/// Samples of the GPU and of two instances of it.
fn samples<'n>(gpu: &Device<'n>, instances: [u32; 2]) -> [GpmSample<'n>; 3] {
    let of = |id| gpu.gpm_mig_sample(id).unwrap();
    [gpu.gpm_sample().unwrap(), of(instances[0]), of(instances[1])]
}

/// The answer to each metric, rounded.
fn metrics<'n>(
    nvml: &'n Nvml,
    samples: (&GpmSample<'n>, &GpmSample<'n>),
    ids: &[GpmMetricId],
) -> Result<Vec<Option<f64>>, String> {
    let answers = nvml_wrapper::gpm::gpm_metrics_get(nvml, samples.0, samples.1, ids);
    let value = |metric: Result<_, NvmlError>| match metric {
        Ok(nvml_wrapper::struct_wrappers::gpm::GpmMetricResult { value, .. }) => {
            Some(value.round())
        }
        Err(NvmlError::NotSupported) => None,
        Err(error) => panic!("{error}"),
    };
    let answers = answers.map_err(|error| error.to_string())?;
    Ok(answers.into_iter().map(value).collect())
}

/// So much time must lie between samples, or they say nothing.
fn pass() {
    thread::sleep(Duration::from_millis(110));
}

#[test]
fn metrics_are_means_over_the_time_between_samples() {
    let rig = Rig::cut(&[Model::H100_80]);
    let nvml = wrapped(&rig);
    let gpu = nvml.device_by_index(0).unwrap();
    let made = [(9, 0), (19, 4)]
        .map(|(profile, start)| rig.machine.create_instance(0, profile, start, true).unwrap().id);
    rig.machine.start_process(0, Some(0), 4711, "python3").unwrap();
    rig.machine.set_load(4711, Load { utilization: 70, memory: 0 }).unwrap();

    let before = samples(&gpu, made);
    pass();
    let after = samples(&gpu, made);
    let ids = [
        GpmMetricId::GraphicsUtil,
        GpmMetricId::SmUtil,
        GpmMetricId::AnyTensorUtil,
        GpmMetricId::PcieTxPerSec,
        GpmMetricId::NvlinkTotalRxPerSec,
        GpmMetricId::Nvdec0Util,
    ];
    let told = [0, 1, 2].map(|which| metrics(&nvml, (&before[which], &after[which]), &ids));
    let whole = [30.0, 27.0, 18.0, 4800.0, 43200.0].map(Some);
    let [busy, idle] = [[70.0, 63.0, 42.0], [0.0; 3]].map(|values| values.map(Some));
    let none = [None; 3];
    let expected = [[&whole[..], &[None]], [&busy, &none], [&idle, &none]];
    assert_eq!(told, expected.map(|parts| Ok(parts.concat())));

    let invalid = || Err(NvmlError::InvalidArg.to_string());
    let of = |pair| metrics(&nvml, pair, &ids[..1]);
    assert_eq!(of((&after[0], &before[0])), invalid(), "the wrong way round");
    assert_eq!(of((&before[0], &after[1])), invalid(), "not of the same");
    assert_eq!(of((&before[0], &before[0])), invalid(), "no time between");
}

#[test]
fn gpus_are_monitored_from_hopper_on() {
    let rig = Rig::new(&[Model::A100_80, Model::H100_80, Model::RtxPro6000]);
    let nvml = wrapped(&rig);
    let support = [0, 1, 2].map(|index| {
        let gpu = nvml.device_by_index(index).unwrap();
        (gpu.gpm_support().unwrap(), gpu.gpm_sample().is_ok())
    });
    assert_eq!(support, [(false, false), (true, true), (true, true)]);
}
