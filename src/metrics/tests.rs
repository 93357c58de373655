//! What instruments say.

use std::time::Duration;

use super::{Door, Metrics, Outcome, Recovered};
use crate::model::{
    exposition::{Format, page},
    gpu::GpuUuid,
};

#[test]
fn each_instrument_by_name() {
    let metrics = Metrics::default();
    let clone = metrics.clone();
    for milliseconds in [0, 1, 50, 51, 90_000] {
        clone.gpu_lock_waited(Duration::from_millis(milliseconds));
    }
    metrics.nvml_called("nvmlDeviceGetHandleByUUID", Duration::from_micros(250));
    metrics.nvml_called("nvmlDeviceCreateGpuInstance", Duration::from_millis(400));
    metrics.carved("1g.10gb");
    metrics.carved("1g.10gb");
    metrics.destroyed("1g.10gb");
    metrics.published(Outcome::Ok);
    metrics.published(Outcome::Failed);
    metrics.recovered(Recovered::Record);
    metrics.recovered(Recovered::Gpu);
    metrics.evicted(Outcome::Refused);
    metrics.xid(3, &GpuUuid("GPU-3".to_owned()), 79);
    insta::assert_snapshot!(page(&metrics.families(), Format::Text));
}

#[test]
fn calls_that_end_in_any_way_are_counted() {
    let metrics = Metrics::default();
    metrics.prepare(Door::Dra).end(Outcome::Ok);
    metrics.prepare(Door::Dra).end(Outcome::Refused);
    drop(metrics.prepare(Door::Dra));
    metrics.prepare(Door::DevicePlugin).end(Outcome::Ok);
    metrics.unprepare(Door::Dra).end(Outcome::Failed);
    metrics.unprepare(Door::DevicePlugin).cancel();
    let page = page(&metrics.families(), Format::Text);
    let counts: Vec<_> = page.lines().filter(|line| line.contains("_count{")).collect();
    let expected = [
        "kerf_prepare_duration_seconds_count{door=\"dra\",outcome=\"ok\"} 1",
        "kerf_prepare_duration_seconds_count{door=\"dra\",outcome=\"refused\"} 1",
        "kerf_prepare_duration_seconds_count{door=\"dra\",outcome=\"failed\"} 1",
        "kerf_prepare_duration_seconds_count{door=\"device-plugin\",outcome=\"ok\"} 1",
        "kerf_unprepare_duration_seconds_count{door=\"dra\",outcome=\"failed\"} 1",
    ];
    assert_eq!(counts, expected);
}
