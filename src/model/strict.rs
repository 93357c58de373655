//! Reading JSON objects in which every field must be known, with errors that say where and what.

use std::fmt;

use serde_json::{Map, Value};

/// Why an object is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field that the object does not have.
    #[error("unknown field {} in {at}; {}", Quoted(name), advice(*meant, known))]
    Field {
        /// Path of the object.
        at: String,
        /// The field.
        name: String,
        /// What the user may have meant.
        meant: Option<&'static str>,
        /// The fields that it has.
        known: &'static [&'static str],
    },
    /// A word that is none of those that the field takes.
    #[error("unknown {name} {} in {at}; {}", Quoted(word), advice(*meant, known))]
    Word {
        /// Path of the object.
        at: String,
        /// The field.
        name: &'static str,
        /// What it says.
        word: String,
        /// What the user may have meant.
        meant: Option<&'static str>,
        /// What it takes.
        known: Vec<&'static str>,
    },
    /// A field that must be there is not.
    #[error("`{name}` is missing in {at}; use {}", Words(known))]
    Missing {
        /// Path of the object.
        at: String,
        /// The field.
        name: &'static str,
        /// What it takes.
        known: Vec<&'static str>,
    },
    /// A value of another type, or out of range.
    #[error("{} must be {want}, not {got}", OneLine(at))]
    Type {
        /// Path of the value.
        at: String,
        /// What is expected.
        want: &'static str,
        /// What is there.
        got: String,
    },
}

/// What a document is called that has no name of its own.
const DOCUMENT: &str = "the document";

/// An object and where it is, such as `GpuConfig.sharing`.
pub(super) struct Object<'v> {
    path: String,
    fields: &'v Map<String, Value>,
}

impl<'v> Object<'v> {
    /// Takes the value as an object.
    pub(super) fn new(path: &str, value: &'v Value) -> Result<Self, Error> {
        match value {
            Value::Object(fields) => Ok(Self { path: path.to_owned(), fields }),
            other => Err(Error::Type { at: path.to_owned(), want: "an object", got: of(other) }),
        }
    }

    /// Takes a whole document as an object; its fields have paths without a root.
    pub(super) fn document(value: &'v Value) -> Result<Self, Error> {
        Self::new(DOCUMENT, value)
    }

    /// The same object under another name.
    pub(super) fn named(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// Refuses fields that are not in `known`; of several, the first by name.
    pub(super) fn only(&self, known: &'static [&'static str]) -> Result<(), Error> {
        let unknown = self.fields.keys().filter(|name| !known.contains(&name.as_str())).min();
        unknown.map_or(Ok(()), |name| {
            Err(Error::Field {
                at: self.path.clone(),
                name: name.clone(),
                meant: closest(name, known),
                known,
            })
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where a field of it is.
    pub(super) fn at(&self, name: &str) -> String {
        match self.path.as_str() {
            DOCUMENT => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// A field that is there; `null` is as good as absent, as in Kubernetes.
    pub(super) fn get(&self, name: &str) -> Option<&'v Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Says that a field must be something else.
    pub(super) fn wrong<T>(&self, name: &str, want: &'static str, got: &Value) -> Result<T, Error> {
        Err(Error::Type { at: self.at(name), want, got: of(got) })
    }

    /// An object in this one.
    pub(super) fn object(&self, name: &str) -> Result<Option<Self>, Error> {
        self.get(name).map(|value| Self::new(&self.at(name), value)).transpose()
    }

    /// The objects of a list in this one; none without a list.
    pub(super) fn objects(&self, name: &str) -> Result<Vec<Self>, Error> {
        let at = self.at(name);
        let items = match self.get(name) {
            None => &[][..],
            Some(Value::Array(items)) => items,
            Some(other) => return self.wrong(name, "a list", other),
        };
        let item = |(i, item): (usize, &'v Value)| Self::new(&format!("{at}[{i}]"), item);
        items.iter().enumerate().map(item).collect()
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'v str>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.wrong(name, "a string", other),
        }
    }

    /// Checks a boolean.
    pub(super) fn boolean(&self, name: &str) -> Result<(), Error> {
        match self.get(name) {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(other) => self.wrong(name, "true or false", other),
        }
    }

    /// Checks an integer from 0 to 100.
    pub(super) fn percentage(&self, name: &str) -> Result<(), Error> {
        match self.get(name) {
            Some(value) if value.as_u64().is_none_or(|number| number > 100) => {
                self.wrong(name, "an integer from 0 to 100", value)
            }
            _ => Ok(()),
        }
    }

    /// Checks a quantity, such as `"4Gi"` or a bare number.
    pub(super) fn quantity(&self, name: &str) -> Result<(), Error> {
        match self.get(name) {
            None | Some(Value::Number(_)) => Ok(()),
            Some(Value::String(text)) if is_quantity(text) => Ok(()),
            Some(other) => self.wrong(name, "a quantity such as `4Gi`", other),
        }
    }

    /// Checks that all fields are quantities, whatever their names.
    pub(super) fn quantities(&self) -> Result<(), Error> {
        self.fields.keys().try_for_each(|name| self.quantity(name))
    }

    /// One of the words in `choices`.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<T>, Error> {
        self.text(name)?.map(|text| self.one_of(name, text, choices)).transpose()
    }

    /// What a word of field `name` stands for.
    pub(super) fn one_of<T: Copy>(
        &self,
        name: &'static str,
        word: &str,
        choices: &[(&'static str, T)],
    ) -> Result<T, Error> {
        if let Some((_, chosen)) = choices.iter().find(|(known, _)| *known == word) {
            return Ok(*chosen);
        }
        let known: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let meant = closest(word, &known);
        Err(Error::Word { at: self.path.clone(), name, word: word.to_owned(), meant, known })
    }

    /// One of the words in `choices`, which must be there.
    pub(super) fn required<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<T, Error> {
        self.choice(name, choices)?.ok_or_else(|| {
            let known = choices.iter().map(|(word, _)| *word).collect();
            Error::Missing { at: self.path.clone(), name, known }
        })
    }
}

/// What a value is, in a word.
fn of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(number) => format!("`{number}`"),
        Value::String(text) => Quoted(text).to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The known word that a user may have meant: less than a third of its letters wrong, case aside.
fn closest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let typed = word.to_lowercase();
    let distances = known.iter().map(|&name| (distance(&typed, &name.to_lowercase()), name));
    distances.filter(|&(wrong, name)| wrong * 3 < name.len()).min().map(|(_, name)| name)
}

/// Levenshtein's edit distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.chars().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = replaced.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
        row[0] = i + 1;
    }
    row.last().copied().unwrap_or(0)
}

/// Whether a text is a quantity by the grammar of `resource.Quantity` in k8s.io/apimachinery: a
/// signed decimal number and a binary, decimal or exponent suffix.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let is_number = number.matches('.').count() <= 1 && number.contains(|c| c != '.');
    is_number && (SUFFIXES.contains(&suffix) || is_exponent(suffix))
}

/// `e` or `E` and an integer.
fn is_exponent(suffix: &str) -> bool {
    let digits =
        suffix.strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// What a user may do about a word that is not known.
fn advice(meant: Option<&'static str>, known: &[&'static str]) -> String {
    match meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("use {}", Words(known)),
    }
}

/// Words to choose from: "`a`, `b` or `c`".
struct Words<'w>(&'w [&'static str]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.0.iter().enumerate() {
            let before = match self.0.len() - i {
                _ if i == 0 => "",
                1 => " or ",
                _ => ", ",
            };
            write!(f, "{before}`{word}`")?;
        }
        Ok(())
    }
}

/// A user's text on one line of bounded length: an event holds 1 KiB, parameters 10.
pub(crate) struct OneLine<'t>(pub(crate) &'t str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 120;
        for c in self.0.chars().take(LONGEST) {
            if breaks(c) { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        f.write_str(if self.0.chars().nth(LONGEST).is_some() { "…" } else { "" })
    }
}

/// Whether a character ends the line, or turns what follows it round.
fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same in backticks.
pub(super) struct Quoted<'t>(pub(super) &'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", OneLine(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_follow_the_grammar_of_kubernetes() {
        for text in ["0", "4Gi", "1.5G", "-1", "+1Ki", ".5", "5.", "1e3", "1E-3", "100m", "2E"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", ".", "Gi", "4gi", "4 Gi", "1.2.3", "1e", "1e+", "--1", "4GB", "NaN", "1x"]
        {
            assert!(!is_quantity(text), "{text}");
        }
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("strateggy", "strategy", 1),
            ("kitten", "sitting", 3),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn suggestions_are_close_or_absent() {
        let known = ["strategy", "mpsConfig", "timeSlicingConfig"];
        assert_eq!(closest("strateggy", &known), Some("strategy"));
        assert_eq!(closest("MPSCONFIG", &known), Some("mpsConfig"));
        assert_eq!(closest("timeSliceConfig", &known), Some("timeSlicingConfig"));
        assert_eq!(closest("colour", &known), None);
        let kinds = ["GpuConfig", "MigDeviceConfig"];
        assert_eq!(closest("MigConfig", &kinds), None, "a part in common is not enough");
    }
}
