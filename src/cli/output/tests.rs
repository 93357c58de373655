use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

fn text(write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn words_that_yaml_takes_for_something_else_are_quoted() {
    let words = [
        "no",
        "on",
        "null",
        "~",
        "1e3",
        "0x1f",
        "1_000",
        "12:30:00",
        "2026-03-04",
        "",
        "=",
        "- a",
        "a: b",
        "a #b",
    ];
    let yaml = text(|out| yaml(out, &words));
    let expected: String = words.iter().map(|word| format!("- \"{word}\"\n")).collect();
    assert_eq!(yaml, expected);
}

#[test]
fn a_long_line_stays_one() {
    let value = "nvmlDeviceGetMemoryInfo_v2 on GPU 3: GPU is lost ".repeat(4);
    assert_eq!(text(|out| yaml(out, &value)).lines().count(), 1);
}

#[test]
fn a_document_ends_its_line() {
    assert_eq!(text(|out| json(out, &1)), "1\n");
    assert_eq!(text(|out| yaml(out, &1)), "1\n");
}

struct Failing(io::ErrorKind);

impl Write for Failing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(self.0.into())
    }
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let ends = |kind| {
        let done = json(&mut Failing(kind), &["a"]).map(|()| ExitCode::FAILURE);
        quiet_pipe(done).map(|code| code == ExitCode::SUCCESS).map_err(|error| error.to_string())
    };
    assert_eq!(ends(io::ErrorKind::BrokenPipe), Ok(true));
    assert_eq!(ends(io::ErrorKind::StorageFull), Err("no storage space".to_owned()));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        "[-:#?!&*|>'\"%@` ~a0.\n\t]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from);
        let map = prop::collection::btree_map("[-:#a0. ]{0,4}|.{0,8}", inner, 0..5)
            .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>()));
        prop_oneof![list, map]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(value in value()) {
        let written = text(|out| yaml(out, &value));
        prop_assert_eq!(serde_saphyr::from_str::<Value>(&written).unwrap(), value);
    }
}
