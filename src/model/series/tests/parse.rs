//! A strict reader of pages, in both formats.

use std::collections::BTreeMap;

use crate::model::exposition::Format;

/// A series as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    /// With suffix.
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// Reads a page: each family has help, type and series, in this order and once.
pub(super) fn read(page: &str, format: Format) -> Vec<Read> {
    let page = match format {
        Format::Text => page,
        Format::OpenMetrics => page.strip_suffix("# EOF\n").expect("an end"),
    };
    assert!(page.is_empty() || page.ends_with('\n'), "a last line without an end");
    let (mut series, mut seen) = (Vec::new(), Vec::new());
    let (mut family, mut kind) = (String::new(), String::new());
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect(line);
            assert!(!text.is_empty() && !text.contains(['"', '\\']), "{line}");
            assert!(!seen.contains(&name.to_owned()), "{name} twice");
            (family, kind) = (name.to_owned(), String::new());
            seen.push(family.clone());
        } else if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, of) = of.split_once(' ').expect(line);
            assert_eq!(name, family, "{line}");
            assert!(["gauge", "counter", "histogram", "unknown"].contains(&of), "{line}");
            kind = of.to_owned();
        } else {
            let read = self::line(line);
            let suffixes: &[&str] = match (&*kind, format) {
                ("counter", Format::OpenMetrics) => &["_total"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                ("", _) => panic!("no type before {line}"),
                _ => &[""],
            };
            let fits = |suffix: &&str| read.name == format!("{family}{suffix}");
            assert!(suffixes.iter().any(fits), "{line} in {family}");
            series.push(read);
        }
    }
    series
}

fn line(line: &str) -> Read {
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            rest = if labels.is_empty() { rest } else { rest.strip_prefix(',').expect(line) };
            let (label, after) = rest.split_once("=\"").expect(line);
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{label} twice in {line}");
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').expect(line).parse().expect(line);
    Read { name: name.to_owned(), labels, value }
}

/// The text up to the next quote that is not escaped, and what follows it.
fn quoted(text: &str) -> (String, &str) {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        value.push(match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next() {
                Some((_, 'n')) => '\n',
                Some((_, escaped @ ('\\' | '"'))) => escaped,
                other => panic!("escaped {other:?}"),
            },
            other => other,
        });
    }
    panic!("no end of {text}");
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.chars().all(fits) && text.starts_with(|c: char| !c.is_ascii_digit())
}
