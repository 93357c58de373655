//! The lines that are printed, and whether their targets are met.

use std::time::Duration;

/// Bytes in what is printed as MB.
const MB: f64 = 1e6;

/// Prints lines as they are measured.
#[derive(Default)]
pub(crate) struct Table {
    missed: bool,
}

/// What is printed beside a figure that is over its target.
const MISSED: &str = "MISSED";

impl Table {
    /// Whether a figure that is no time was over its target.
    pub(crate) fn missed(&self) -> bool {
        self.missed
    }

    pub(crate) fn head(&self) {
        line("", "measured", "at most", "");
    }

    /// A time in milliseconds, with others beside it for which there is no target.
    pub(crate) fn time(&self, what: &str, time: Duration, more: &str, most: Option<f64>) {
        let time = milliseconds(time);
        let target = most.map(|most| format!("{most} ms")).unwrap_or_default();
        line(what, &format!("{time:.2} ms{more}"), &target, verdict(time, most));
    }

    /// A share of a core in percent.
    pub(crate) fn share(&self, what: &str, percent: f64, more: &str, most: Option<f64>) {
        let target = most.map(|most| format!("{most} %")).unwrap_or_default();
        line(what, &format!("{percent:.2} %{more}"), &target, verdict(percent, most));
    }

    /// A figure that does not depend on how fast the machine is.
    pub(crate) fn figure(
        &mut self,
        what: &str,
        figure: f64,
        unit: &str,
        more: &str,
        most: Option<f64>,
    ) {
        self.missed |= most.is_some_and(|most| figure > most);
        let target = most.map(|most| format!("{most}{unit}")).unwrap_or_default();
        line(what, &format!("{figure:.2}{unit}{more}"), &target, verdict(figure, most));
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / MB
}

fn verdict(figure: f64, most: Option<f64>) -> &'static str {
    match most {
        None => "",
        Some(most) if figure <= most => "ok",
        Some(_) => MISSED,
    }
}

fn line(what: &str, measured: &str, target: &str, verdict: &str) {
    println!("{what:<50} {measured:<42} {target:<8} {verdict}");
}
