//! Field selectors: `spec.driver=gpu.nvidia.com,spec.nodeName=n1`, `metadata.name!=x`.

use serde_json::Value;

use super::kinds::Kind;
use super::refusal::Refusal;

/// All terms must hold.
#[derive(Default)]
pub(super) struct Selector(Vec<Term>);

struct Term {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Refuses what the kind cannot be selected by, as the real server does.
    pub(super) fn parse(kind: &Kind, text: &str) -> Result<Self, Refusal> {
        let terms = text.split(',').filter(|term| !term.is_empty());
        let terms: Result<_, _> = terms.map(|term| Term::parse(kind, term)).collect();
        Ok(Self(terms?))
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| (field(object, &term.path) == term.value) == term.equal)
    }
}

impl Term {
    fn parse(kind: &Kind, term: &str) -> Result<Self, Refusal> {
        let split = match term.split_once("!=") {
            Some((path, value)) => Some((path, value, false)),
            None => term.split_once('=').map(|(p, v)| (p, v.strip_prefix('=').unwrap_or(v), true)),
        };
        let Some((path, value, equal)) = split else {
            return Err(Refusal::bad_request(format!("invalid selector: '{term}'")));
        };
        let always = ["metadata.name", "metadata.namespace"];
        if !always.contains(&path) && !kind.fields.contains(&path) {
            return Err(Refusal::bad_request(format!("field label not supported: {path}")));
        }
        Ok(Self { path: path.to_owned(), value: value.to_owned(), equal })
    }
}

/// The text at a path; an absent field is an empty text.
fn field<'o>(object: &'o Value, path: &str) -> &'o str {
    let found = path.split('.').fold(object, |value, step| &value[step]);
    found.as_str().unwrap_or_default()
}
