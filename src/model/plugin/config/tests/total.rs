//! Any document is read or refused in one line, whatever it is.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value};

use super::read;

/// Keys and values that lead deep into the reader.
const WORDS: [&str; 32] = [
    "version",
    "v1",
    "flags",
    "migStrategy",
    "mixed",
    "gdsEnabled",
    "plugin",
    "passDeviceSpecs",
    "deviceListStrategy",
    "envvar,cdi-cri",
    "deviceIDStrategy",
    "cdiAnnotationPrefix",
    "gfd",
    "resources",
    "gpus",
    "mig",
    "pattern",
    "*",
    "name",
    "gpu",
    "sharing",
    "timeSlicing",
    "mps",
    "renameByDefault",
    "rename",
    "devices",
    "all",
    "0:1",
    "replicas",
    "imex",
    "channelIDs",
    "MIG-GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c/1/0",
];
/// Where a value is put, so that what is in it is looked at.
const PATHS: [&[&str]; 8] = [
    &[],
    &["flags"],
    &["flags", "plugin"],
    &["resources"],
    &["sharing"],
    &["sharing", "timeSlicing"],
    &["sharing", "mps"],
    &["imex"],
];
/// Deeper than any stack: the reader has to stop before.
const DEEP: usize = 100_000;

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(&WORDS[..]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "[\\x00-\\x1f\\x7f-\\x9f\u{2028}-\u{202e}`]{0,200}",
    ]
}

fn values() -> impl Strategy<Value = Value> {
    let leaves = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        (0..4).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts().prop_map(Value::String),
    ];
    leaves.prop_recursive(5, 48, 5, |inner| {
        let fields = vec((texts(), inner.clone()), 0..5);
        prop_oneof![
            vec(inner, 0..3).prop_map(Value::Array),
            fields.prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

/// A JSON document with a value somewhere in it.
fn documents() -> impl Strategy<Value = String> {
    (select(&PATHS[..]), values()).prop_map(|(path, value)| {
        let wrap = |value, key: &&str| serde_json::json!({ *key: value });
        path.iter().rev().fold(value, wrap).to_string()
    })
}

/// Lines that look like YAML.
fn lines() -> impl Strategy<Value = String> {
    let marks = select(
        &[": ", "- ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", "&a ", "*a", "|", "!!"][..],
    );
    vec(prop_oneof![texts(), marks.prop_map(str::to_owned)], 0..40).prop_map(|parts| parts.concat())
}

fn is_one_short_line(text: &str) -> bool {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}');
    !text.is_empty() && !text.contains(breaks) && text.chars().count() < 2048
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_refused_is_refused_in_one_short_line(
        text in prop_oneof![documents(), lines(), any::<String>()],
    ) {
        if let Err(line) = read(&text) {
            prop_assert!(is_one_short_line(&line), "{text:?}: {line:?}");
        }
    }
}

#[test]
fn depth_and_aliases_have_their_limits() {
    let bomb = (1..40).fold("a0: &a0 [x]\n".to_owned(), |text, i| {
        let before = i - 1;
        format!("{text}a{i}: &a{i} [*a{before}, *a{before}]\n")
    });
    for text in ["[".repeat(DEEP), "{a: ".repeat(DEEP), "- ".repeat(DEEP), bomb] {
        let line = read(&text).unwrap_err();
        assert!(line.starts_with("neither YAML nor JSON: ") && is_one_short_line(&line), "{line}");
    }
}
