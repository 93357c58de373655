//! Families of series, and the page that Prometheus reads: its text format and OpenMetrics.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.0. A counter without the suffix `_total`, which there must be, is of unknown type.
    OpenMetrics,
}

impl Format {
    /// The header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a scraper with this header `Accept` likes best: OpenMetrics only where it is named, and then not
    /// less than text.
    pub fn accepted(accept: &str) -> Self {
        let offers = || accept.split(',').map(|offer| offer.split(';').map(str::trim));
        let best = |wanted: &dyn Fn(&str, Option<&str>) -> bool| {
            let fitting = offers().filter_map(|mut parts| {
                let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
                let parameter = |name| parts.clone().find_map(|part| value(part, name));
                let quality = parameter("q").map_or(Some(1.0), |q| q.parse::<f64>().ok())?;
                wanted(&kind, parameter("version")).then_some(quality)
            });
            fitting.fold(0.0, f64::max)
        };
        let open = best(&|kind, version| {
            kind == "application/openmetrics-text" && matches!(version, None | Some("1.0.0"))
        });
        let text = best(&|kind, _| matches!(kind, "text/plain" | "text/*" | "*/*"));
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }
}

/// The value of a parameter such as `q=0.5` with this name.
fn value<'p>(parameter: &'p str, name: &str) -> Option<&'p str> {
    let (key, value) = parameter.split_once('=')?;
    key.trim_end().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
}

/// What the values of a family mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up, and starts anew at zero.
    Counter,
    /// Series end in `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// All series of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// As Prometheus has it, with the suffix of a counter.
    pub name: &'static str,
    /// One line without quotes and backslashes.
    pub help: &'static str,
    /// What values mean.
    pub kind: Kind,
    /// No two have the same labels and suffix.
    pub series: Vec<Series>,
}

impl Family {
    /// A gauge without series.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge, series: Vec::new() }
    }

    /// A counter without series.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Counter, series: Vec::new() }
    }

    /// A histogram without series.
    pub fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Histogram, series: Vec::new() }
    }

    /// Adds a series.
    pub fn add(&mut self, labels: Labels, value: f64) {
        self.series.push(Series { suffix: "", labels, value });
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What follows the family's name; empty outside histograms.
    pub suffix: &'static str,
    /// The labels.
    pub labels: Labels,
    /// The value.
    pub value: f64,
}

/// Labels as they are written, with values escaped: many series have the same ones, and share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<str>);

impl Labels {
    /// With labels of these names, each once. Empty values are left out, which Prometheus takes for the same.
    pub fn new<'l>(labels: impl IntoIterator<Item = (&'static str, &'l str)>) -> Self {
        Self::default().with(labels)
    }

    /// With more labels, of other names.
    pub fn with<'l>(&self, labels: impl IntoIterator<Item = (&'static str, &'l str)>) -> Self {
        let mut text = String::from(&*self.0);
        for (name, value) in labels {
            if value.is_empty() {
                continue;
            }
            text.push_str(if text.is_empty() { "" } else { "," });
            text.push_str(name);
            text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
        }
        Self(text.into())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The page with these families; one without series is left out, and so is a value that is no number.
pub fn page(families: &[Family], format: Format) -> String {
    let mut page = Page(String::new());
    families.iter().for_each(|family| page.family(family, format));
    if format == Format::OpenMetrics {
        page.0.push_str("# EOF\n");
    }
    page.0
}

struct Page(String);

impl Page {
    fn family(&mut self, family: &Family, format: Format) {
        if family.series.is_empty() {
            return;
        }
        let stem = family.name.strip_suffix("_total");
        let (name, kind) = match (family.kind, format) {
            (Kind::Gauge, _) => (family.name, "gauge"),
            (Kind::Histogram, _) => (family.name, "histogram"),
            (Kind::Counter, Format::Text) => (family.name, "counter"),
            (Kind::Counter, Format::OpenMetrics) => {
                stem.map_or((family.name, "unknown"), |stem| (stem, "counter"))
            }
        };
        self.line(format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", family.help));
        for Series { suffix, labels, value } in &family.series {
            let name = family.name;
            match (value.is_finite(), labels.0.is_empty()) {
                (false, _) => {}
                (true, true) => self.line(format_args!("{name}{suffix} {value}\n")),
                (true, false) => self.line(format_args!("{name}{suffix}{{{labels}}} {value}\n")),
            }
        }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a `String` cannot fail.
        let _ = self.0.write_fmt(line);
    }
}

#[cfg(test)]
mod tests;
