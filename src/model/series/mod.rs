//! What a node's GPUs are and do, as families of series: under dcgm-exporter's names what it has names for,
//! and what it does not know under Kerf's own.
//!
//! A value is there once: what a GPU's instances have apart is given for each, and all else for the GPU alone.

mod cut;
mod dcgm;
mod entity;
mod events;
mod health;
mod history;
mod holders;

use std::collections::BTreeMap;

use self::{dcgm::Row, entity::Entity, holders::Holders};
pub use self::{
    events::{GpuEvents, LastXid},
    history::GpuHistory,
};
use crate::model::{
    exposition::{Family, Kind, Labels},
    gpu::{GpuUuid, Inventory},
    health::Findings,
    holder::ContainerName,
    record::Record,
    sample::{Activity, MemoryUse, Sample, Samples},
};

/// All that the series are made from, as it is at one time.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The GPUs.
    pub inventory: &'a Inventory,
    /// What they last said of themselves.
    pub samples: &'a Samples,
    /// Who holds what.
    pub records: &'a [Record],
    /// The containers that have a claim, by its namespace and name; what is not known is left out.
    pub containers: &'a BTreeMap<(String, String), Vec<ContainerName>>,
    /// What is wrong.
    pub findings: &'a Findings,
    /// What happened; a GPU to which nothing did may be absent.
    pub events: &'a BTreeMap<GpuUuid, GpuEvents>,
    /// Seconds since the Unix epoch.
    pub now: f64,
    /// How it is said.
    pub options: &'a Options,
}

/// How series are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The node's name, on all series of GPUs; none if empty.
    pub hostname: String,
    /// The name of the label for it.
    pub hostname_label: HostnameLabel,
    /// Seconds after which a sample says nothing any more.
    pub max_age: f64,
    /// Milliseconds in which XIDs are counted.
    pub xid_window: u64,
    /// Milliseconds in which reasons for clock events are counted.
    pub clock_event_window: u64,
}

/// The label that has the node's name: dcgm-exporter renamed it in May 2026.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostnameLabel {
    /// `hostname`, as it is now.
    #[default]
    Lower,
    /// `Hostname`, as it was.
    Upper,
}

impl HostnameLabel {
    /// The label's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lower => "hostname",
            Self::Upper => "Hostname",
        }
    }
}

/// The families. A GPU that does not answer takes away nothing but its own values.
pub fn families(input: &Input<'_>) -> Vec<Family> {
    let holders = Holders::of(input.records, input.containers);
    let entities = Entity::all(input, &holders);
    let mut families = values(input, &entities);
    families.extend(events::families(input, &entities));
    families.extend(health::families(input, &entities));
    families.push(holders.family(&entities));
    families.extend(cut::families(input, &entities));
    families
}

/// What GPUs and instances with a fresh sample say.
fn values(input: &Input<'_>, entities: &[Entity<'_>]) -> Vec<Family> {
    let mut age =
        Family::gauge("kerf_gpu_sample_age_seconds", "Time since the GPU was last sampled.");
    let mut wholes: Vec<(&Labels, &Sample)> = Vec::new();
    let mut memory: Vec<(&Labels, &MemoryUse)> = Vec::new();
    let mut activity: Vec<(&Labels, &Activity)> = Vec::new();
    for entity in entities {
        let Some(taken) = entity.uuid.and_then(|uuid| input.samples.0.get(uuid)) else { continue };
        let seconds = (input.now - taken.at).max(0.0);
        age.add(entity.which.clone(), seconds);
        if seconds > input.options.max_age || entity.gpu.is_none() {
            continue;
        }
        let sample = &*taken.sample;
        wholes.push((&entity.labels, sample));
        if entity.instances.is_empty() {
            memory.extend(sample.memory.as_ref().map(|memory| (&entity.labels, memory)));
            activity.extend(sample.activity.as_ref().map(|activity| (&entity.labels, activity)));
        }
        for instance in &entity.instances {
            let of = sample.instances.iter().find(|of| of.id == instance.id);
            let labels = &instance.labels;
            memory.extend(of.and_then(|of| Some((labels, of.memory.as_ref()?))));
            activity.extend(of.and_then(|of| Some((labels, of.activity.as_ref()?))));
        }
    }
    let links =
        wholes.iter().filter_map(|(labels, sample)| Some((*labels, sample.activity.as_ref()?)));
    let links: Vec<_> = links.collect();
    let mut families = table(dcgm::GPU, &wholes);
    families.extend(table(dcgm::MEMORY, &memory));
    families.extend(table(dcgm::ENGINES, &activity));
    families.extend(table(dcgm::LINKS, &links));
    families.extend(table(dcgm::FAULTS, &wholes));
    families.push(age);
    families
}

/// A family for each row, with the value of each that has one.
fn table<S>(rows: &[Row<S>], of: &[(&Labels, &S)]) -> Vec<Family> {
    let family = |&(name, help, kind, value): &Row<S>| {
        let mut family = Family { name, help, kind, series: Vec::with_capacity(of.len()) };
        for (labels, from) in of {
            if let Some(value) = value(from) {
                family.add((*labels).clone(), value);
            }
        }
        family
    };
    rows.iter().map(family).collect()
}

/// A gauge with these series.
fn gauge<'l>(
    name: &'static str,
    help: &'static str,
    series: impl IntoIterator<Item = (&'l Labels, f64)>,
) -> Family {
    let mut family = Family { name, help, kind: Kind::Gauge, series: Vec::new() };
    series.into_iter().for_each(|(labels, value)| family.add(labels.clone(), value));
    family
}

#[cfg(test)]
mod tests;
