//! The page of metrics: how it is made, and from what.

use std::{num::NonZeroU32, time::Duration};

use clap::builder::PossibleValue;
use k8s_openapi::jiff::Timestamp;

use super::report::Reporter;
use crate::{
    driver::Driver,
    metrics::{Metrics, readiness},
    model::{
        exposition::{self, Family, Format},
        sample,
        series::{self, HostnameLabel, Input, Options},
    },
};

/// Milliseconds in which XIDs and clock events are counted: as dcgm-exporter does.
const WINDOW: u64 = 300_000;

/// Looks in a row that a GPU may miss before its values are stale.
const MISSED: f64 = 3.0;

/// Flags of the metrics.
#[derive(Clone, Debug, clap::Args)]
pub struct MetricsArgs {
    /// Seconds between looks at what each GPU does.
    #[arg(long, env = "SAMPLING_INTERVAL", value_name = "SECONDS", default_value = "10")]
    pub sampling_interval: NonZeroU32,
    /// The label with the node's name: `Hostname` is what dcgm-exporter called it until May 2026.
    #[arg(long, env = "HOSTNAME_LABEL", value_enum, default_value = "hostname")]
    pub hostname_label: Label,
}

/// A label's name.
#[derive(Clone, Copy, Debug)]
pub struct Label(HostnameLabel);

impl clap::ValueEnum for Label {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(HostnameLabel::Lower), Self(HostnameLabel::Upper)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

impl MetricsArgs {
    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs(self.sampling_interval.get().into())
    }

    fn options(&self, node: &str) -> Options {
        Options {
            hostname: node.to_owned(),
            hostname_label: self.hostname_label.0,
            max_age: self.interval().as_secs_f64() * MISSED,
            xid_window: WINDOW,
            clock_event_window: WINDOW,
        }
    }
}

/// Makes the page, from what is known.
pub(super) struct Page {
    metrics: Metrics,
    reporter: Reporter,
    options: Options,
}

impl Page {
    pub(super) fn new(
        args: &MetricsArgs,
        node: &str,
        metrics: Metrics,
        reporter: Reporter,
    ) -> Self {
        Self { metrics, reporter, options: args.options(node) }
    }

    pub(super) fn text(&self, format: Format) -> String {
        let mut families = self.metrics.families();
        families.push(readiness(self.reporter.unready().is_empty()));
        if let Some(driver) = self.reporter.acting() {
            families.extend(self.of_gpus(&driver));
        }
        exposition::page(&families, format)
    }

    fn of_gpus(&self, driver: &Driver) -> Vec<Family> {
        let now = sample::seconds(Timestamp::now());
        series::families(&Input {
            inventory: &driver.machine().inventory(),
            samples: &driver.samples(),
            records: &driver.records(),
            containers: &driver.claim_containers(),
            findings: &driver.findings(),
            events: &driver.gpu_events(now, &self.options),
            now,
            options: &self.options,
        })
    }
}
