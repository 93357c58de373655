//! Pages as they are written, and which format a scraper gets.

use super::{Family, Format, Labels, Series, page};

/// A gauge, a counter of each spelling and a histogram.
fn families() -> Vec<Family> {
    let mut gauge = Family::gauge("kerf_gauge", "A gauge.");
    gauge.add(Labels::default(), 1.5);
    gauge.add(Labels::new([("name", "a\\b\"c\nd"), ("empty", "")]), f64::NAN);
    gauge.add(Labels::new([("name", "a\\b\"c\nd"), ("empty", "")]), 1e18);
    let mut counter = Family::counter("kerf_counter_total", "A counter.");
    counter.add(Labels::new([("a", "1")]).with([("b", "2")]), 3.0);
    let mut dcgm = Family::counter("DCGM_COUNTER", "Another.");
    dcgm.add(Labels::default(), 0.0);
    let mut histogram = Family::histogram("kerf_seconds", "A histogram.");
    for (suffix, le, value) in
        [("_bucket", "0.5", 1.0), ("_bucket", "+Inf", 2.0), ("_sum", "", 0.75), ("_count", "", 2.0)]
    {
        histogram.series.push(Series { suffix, labels: Labels::new([("le", le)]), value });
    }
    vec![gauge, Family::gauge("kerf_nothing", "Left out."), counter, dcgm, histogram]
}

#[test]
fn text() {
    insta::assert_snapshot!(page(&families(), Format::Text));
}

#[test]
fn open_metrics() {
    insta::assert_snapshot!(page(&families(), Format::OpenMetrics));
}

#[test]
fn a_scraper_gets_what_it_likes_best() {
    let old = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
               q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let new = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
               application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
               escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let table = [
        ("", Format::Text),
        ("*/*", Format::Text),
        ("text/html, */*;q=0.8", Format::Text),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Text),
        (old, Format::OpenMetrics),
        (new, Format::OpenMetrics),
        ("application/openmetrics-text", Format::OpenMetrics),
        ("application/openmetrics-text; version=\"1.0.0\"; q=1", Format::OpenMetrics),
        ("application/openmetrics-text;version=0.0.1", Format::Text),
        ("application/openmetrics-text;q=0", Format::Text),
        ("application/openmetrics-text;q=much", Format::Text),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.5", Format::Text),
        ("Application/OpenMetrics-Text;Q=0.5,text/plain;q=0.5", Format::OpenMetrics),
    ];
    for (accept, format) in table {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}
