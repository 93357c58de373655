//! Which configuration applies to a device, and why one cannot.

use crate::model::{
    config::{Config, Configuration, Interval, Sharing, check, choose},
    device::Part,
    fixtures::gpus::{H100, gpu},
    gpu::Gpu,
};

const PLAIN: Config = Config::Gpu(None);
const SHORT: Config = Config::Gpu(Some(Sharing::TimeSlicing(Interval::Short)));
const MPS: Config = Config::Gpu(Some(Sharing::Mps));
const MIG: Config = Config::Mig(None);
const MIG_MPS: Config = Config::Mig(Some(Sharing::Mps));

fn configurations(all: &[(&[&str], Config)]) -> Vec<Configuration> {
    let of = |(requests, config): &(&[&str], Config)| Configuration {
        requests: requests.iter().map(|&request| request.to_owned()).collect(),
        config: *config,
    };
    all.iter().map(of).collect()
}

/// A part of an H100.
fn mig(gpu: &Gpu) -> Part<'_> {
    let profile = &gpu.mig.as_ref().unwrap().profiles[0];
    Part::Mig(profile, profile.placements[0])
}

/// A case: in the order of precedence, for a request for a whole GPU, this one applies.
type Case<'c> = (&'c [(&'c [&'c str], Config)], &'c str, Option<Config>);

#[test]
fn the_last_that_names_the_request_or_none_applies_to_a_whole_gpu() {
    let cases: [Case; 17] = [
        (&[], "gpu", None),
        (&[(&[], PLAIN), (&[], SHORT)], "gpu", Some(SHORT)),
        (&[(&[], SHORT), (&[], PLAIN)], "gpu", Some(PLAIN)),
        // A name does not beat what comes later, and has no need to beat what comes earlier.
        (&[(&["gpu"], SHORT), (&[], PLAIN)], "gpu", Some(PLAIN)),
        (&[(&[], PLAIN), (&["gpu"], SHORT)], "gpu", Some(SHORT)),
        (&[(&["gpu/big"], SHORT), (&["gpu"], PLAIN)], "gpu/big", Some(PLAIN)),
        (&[(&[], PLAIN), (&["other"], SHORT)], "gpu", Some(PLAIN)),
        (&[(&["other", "gpu"], SHORT)], "gpu", Some(SHORT)),
        // A main request stands for its subrequests, and never the other way round.
        (&[(&["gpu"], SHORT)], "gpu/big", Some(SHORT)),
        (&[(&["gpu/big"], SHORT), (&["gpu/small"], MPS)], "gpu/big", Some(SHORT)),
        (&[(&["gpu/big"], SHORT), (&["big"], SHORT), (&["gp"], SHORT)], "gpu", None),
        // Without names, only what fits; with names, even what does not.
        (&[(&[], PLAIN), (&[], MIG), (&[], Config::Vfio)], "gpu", Some(PLAIN)),
        (&[(&[], PLAIN), (&["gpu"], MIG)], "gpu", Some(MIG)),
        (&[(&[], PLAIN), (&["gpu"], Config::Vfio)], "gpu", Some(Config::Vfio)),
        // What fits nothing is for what has no other.
        (&[(&[], Config::Vfio)], "gpu", Some(Config::Vfio)),
        (&[(&["other"], PLAIN), (&[], Config::Vfio), (&[], MIG)], "gpu", Some(Config::Vfio)),
        (&[(&["other"], Config::Vfio)], "gpu", None),
    ];
    for (all, request, expected) in cases {
        let chosen = choose(&configurations(all), request, &Part::Whole);
        assert_eq!(chosen, expected, "{request} of {all:?}");
    }
}

#[test]
fn a_mig_device_has_its_own_kind() {
    let gpu = gpu(&H100, 0);
    let cases: [Case; 4] = [
        (&[(&[], MIG), (&[], SHORT), (&[], Config::Vfio)], "part", Some(MIG)),
        (&[(&[], SHORT), (&[], Config::Vfio)], "part", Some(Config::Vfio)),
        (&[(&[], SHORT)], "part", None),
        (&[(&[], MIG), (&["part"], SHORT)], "part/small", Some(SHORT)),
    ];
    for (all, request, expected) in cases {
        let chosen = choose(&configurations(all), request, &mig(&gpu));
        assert_eq!(chosen, expected, "{request} of {all:?}");
    }
}

#[test]
fn configuration_that_changes_nothing_fits() {
    let gpu = gpu(&H100, 0);
    let default = Some(Sharing::TimeSlicing(Interval::Default));
    for (part, config) in [
        (Part::Whole, PLAIN),
        (Part::Whole, Config::Gpu(default)),
        (mig(&gpu), MIG),
        (mig(&gpu), Config::Mig(default)),
    ] {
        assert_eq!(check(&configurations(&[(&["a"], config)]), "a", &part), Ok(()), "{config:?}");
    }
    assert_eq!(check(&[], "a", &Part::Whole), Ok(()));
    let beaten = configurations(&[(&["a"], MPS), (&["a"], PLAIN)]);
    assert_eq!(check(&beaten, "a", &Part::Whole), Ok(()), "only the one that applies is checked");
}

#[test]
fn a_refusal_says_what_to_do() {
    let gpu = gpu(&H100, 0);
    let (whole, mig) = (Part::Whole, mig(&gpu));
    let sliced = |interval| Config::Gpu(Some(Sharing::TimeSlicing(interval)));
    let vfio = "VfioDeviceConfig is not supported yet: Kerf passes no GPU through to a virtual machine; remove it";
    let mps = "strategy `MPS` is not supported yet; remove `sharing`, or claim a MIG device for a part of a GPU";
    let cases = [
        (MIG, whole, "MigDeviceConfig does not apply to a whole GPU; use GpuConfig or remove it"),
        (
            MIG_MPS,
            whole,
            "MigDeviceConfig does not apply to a whole GPU; use GpuConfig or remove it",
        ),
        (PLAIN, mig, "GpuConfig does not apply to a MIG device; use MigDeviceConfig or remove it"),
        (Config::Vfio, whole, vfio),
        (Config::Vfio, mig, vfio),
        (MPS, whole, mps),
        (MIG_MPS, mig, mps),
        (
            sliced(Interval::Short),
            whole,
            "interval `Short` of strategy `TimeSlicing` is not supported yet; use `Default` or remove `sharing`",
        ),
        (
            sliced(Interval::Medium),
            whole,
            "interval `Medium` of strategy `TimeSlicing` is not supported yet; use `Default` or remove `sharing`",
        ),
        (
            sliced(Interval::Long),
            whole,
            "interval `Long` of strategy `TimeSlicing` is not supported yet; use `Default` or remove `sharing`",
        ),
    ];
    for (config, part, text) in cases {
        let unfit = check(&configurations(&[(&["a"], config)]), "a", &part).unwrap_err();
        assert_eq!(unfit.to_string(), text);
    }
}
