//! What is wrong with GPUs.

use std::collections::BTreeSet;

use super::{Entity, Input};
use crate::model::{
    exposition::{Family, Labels},
    health::{Class, Extent, Finding, Severity},
};

/// The watch for what is in no subsystem.
const UNCLASSIFIED: &str = "ALL";

/// What DCGM watches.
const WATCHES: [&str; 11] =
    ["PCIE", "NVLINK", "PMU", "MCU", "MEM", "SM", "INFOROM", "THERMAL", "POWER", "DRIVER", "ALL"];

pub(super) fn families(input: &Input<'_>, entities: &[Entity<'_>]) -> [Family; 3] {
    let mut dcgm = Family::gauge(
        "DCGM_EXP_GPU_HEALTH_STATUS",
        "Current GPU health status by subsystem: 0 pass, 10 warning, 20 failure.",
    );
    let mut health = Family::gauge(
        "kerf_gpu_health",
        "Health of the GPU and of all its parts: 0 healthy, 1 warning, 2 unhealthy.",
    );
    let mut details = BTreeSet::new();
    for entity in entities {
        let findings = entity.uuid.map(|uuid| input.findings.of_gpu(uuid)).unwrap_or_default();
        // One that does not answer has failed, whether or not anybody says why.
        let silent = entity.gpu.is_none() && findings.is_empty();
        for watch in WATCHES {
            let of = findings.iter().filter(|finding| self::watch(finding.class) == watch);
            let worst = of.max_by_key(|finding| finding.severity);
            let (code, level) = match worst {
                Some(finding) => (&*finding.reason, level(finding.severity)),
                None if silent && watch == UNCLASSIFIED => ("no-answer", 2),
                None => ("DCGM_FR_OK", 0),
            };
            let watch = [("health_watch", watch), ("health_error_code", code)];
            dcgm.add(entity.labels.with(watch), f64::from(10 * level));
        }
        let worst = findings.iter().map(|finding| level(finding.severity)).max();
        let worst = if silent { 2 } else { worst.unwrap_or(0) };
        health.add(entity.which.clone(), f64::from(worst));
        details.extend(findings.iter().map(|finding| detail(entity, finding)));
    }
    let mut finding =
        Family::gauge("kerf_gpu_finding", "Something that is wrong with the GPU or a part of it.");
    details.into_iter().for_each(|labels| finding.add(labels, 1.0));
    [dcgm, health, finding]
}

fn level(severity: Severity) -> u32 {
    match severity {
        Severity::Warning => 1,
        Severity::Unhealthy => 2,
    }
}

fn watch(class: Class) -> &'static str {
    match class {
        Class::Driver => "DRIVER",
        Class::Firmware => "MCU",
        Class::Memory => "MEM",
        Class::Link => "NVLINK",
        Class::Bus => "PCIE",
        Class::Power => "POWER",
        Class::Thermal => "THERMAL",
        Class::Application | Class::Security | Class::Unknown => UNCLASSIFIED,
    }
}

fn detail(entity: &Entity<'_>, finding: &Finding) -> Labels {
    let extent = match finding.extent {
        Extent::Gpu => "gpu".to_owned(),
        Extent::Instance(place) => {
            format!("slices-{}-{}", place.start, place.end().saturating_sub(1))
        }
    };
    let at = |place| entity.instances.iter().find(|instance| instance.placement == place);
    let which = match finding.extent {
        Extent::Gpu => &entity.which,
        Extent::Instance(place) => at(place).map_or(&entity.which, |instance| &instance.which),
    };
    which.with([
        ("reason", &*finding.reason),
        ("class", finding.class.name()),
        ("severity", finding.severity.name()),
        ("extent", &extent),
    ])
}
