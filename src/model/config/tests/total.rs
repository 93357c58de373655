//! Any parameters are read or refused in one line, whatever a user sends.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Number, Value, json};

use crate::model::config::{API_VERSION, Config};

/// Words that lead deep into the reader.
const WORDS: [&str; 21] = [
    API_VERSION,
    "apiVersion",
    "kind",
    "GpuConfig",
    "MigDeviceConfig",
    "VfioDeviceConfig",
    "sharing",
    "strategy",
    "TimeSlicing",
    "MPS",
    "timeSlicingConfig",
    "interval",
    "Short",
    "mpsConfig",
    "defaultActiveThreadPercentage",
    "defaultPinnedDeviceMemoryLimit",
    "defaultPerDevicePinnedMemoryLimit",
    "multiUser",
    "iommu",
    "backendPolicy",
    "4Gi",
];
/// Kinds, and a field in each.
const FIELDS: [(&str, &str); 6] = [
    ("GpuConfig", "sharing"),
    ("GpuConfig", "mpsConfig"),
    ("GpuConfig", "timeSlicingConfig"),
    ("MigDeviceConfig", "sharing"),
    ("MigDeviceConfig", "mpsConfig"),
    ("VfioDeviceConfig", "iommu"),
];
/// More than the 10 KiB that the API server takes.
const HUGE: usize = 20_000;
/// As deep as serde_json reads.
const DEEP: usize = 126;

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(&WORDS[..]).prop_map(str::to_owned),
        2 => any::<String>(),
        1 => "[\\x00-\\x1f\\x7f-\\x9f\u{2028}-\u{202e}`]{0,200}",
        1 => (any::<char>(), 0..HUGE).prop_map(|(c, times)| c.to_string().repeat(times)),
    ]
}

fn numbers() -> impl Strategy<Value = Number> {
    prop_oneof![
        any::<i64>().prop_map(Number::from),
        any::<u64>().prop_map(Number::from),
        (0..=101).prop_map(Number::from),
        any::<f64>().prop_filter_map("JSON has no infinity", Number::from_f64),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    let leaves = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        numbers().prop_map(Value::Number),
        texts().prop_map(Value::String),
    ];
    leaves.prop_recursive(5, 48, 5, |inner| {
        let fields = vec((texts(), inner.clone()), 0..5);
        prop_oneof![
            1 => vec(inner.clone(), 0..3).prop_map(Value::Array),
            4 => fields.prop_map(|fields| Value::Object(Map::from_iter(fields))),
            1 => (inner, 0..DEEP).prop_map(|(inner, depth)| {
                (0..depth).fold(inner, |value, _| json!({ "sharing": value }))
            }),
        ]
    })
}

/// Parameters of a kind that exists, so that what is in them is looked at.
fn plausible() -> impl Strategy<Value = Value> {
    let strategies = select(&["TimeSlicing", "MPS"][..]);
    (select(&FIELDS[..]), strategies, values()).prop_map(|((kind, field), strategy, value)| {
        let fields = match field {
            "sharing" | "iommu" => json!({ field: value }),
            _ => json!({ "sharing": { "strategy": strategy, field: value } }),
        };
        let mut parameters = json!({ "apiVersion": API_VERSION, "kind": kind });
        parameters.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        parameters
    })
}

/// Two of a user's texts at most, each of 120 characters, which take up to 8 when escaped.
const LONGEST: usize = 2 * 120 * 8;

/// A text that stays on its line.
fn is_one_short_line(text: &str) -> bool {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}');
    !text.is_empty() && !text.contains(breaks) && text.chars().count() <= LONGEST
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_refused_is_refused_in_one_short_line(
        parameters in prop_oneof![values(), plausible()],
    ) {
        if let Err(error) = Config::parse(&parameters) {
            let text = error.to_string();
            prop_assert!(is_one_short_line(&text), "{} characters: {text:?}", text.chars().count());
        }
    }
}
