//! What the server answers when it refuses: one `Status` object, as Kubernetes writes it.

use std::fmt;

use serde_json::{Value, json};

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// `NotFound`, `Conflict`, `Invalid`, …: what clients decide by.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Of `Invalid`: what is wrong with which field.
    pub causes: Vec<FieldError>,
}

/// One fault in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.devices[3].name`.
    pub field: String,
    /// `FieldValueInvalid`, `FieldValueTooMany`, …, as in `Status.details.causes`.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.detail)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), causes: Vec::new() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// As of a URL that the server does not know.
    pub(super) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(super) fn not_found(resource: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"))
    }

    pub(super) fn already_exists(resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
    }

    pub(super) fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message)
    }

    pub(super) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    pub(super) fn invalid(kind: &str, name: &str, causes: Vec<FieldError>) -> Self {
        let texts: Vec<String> = causes.iter().map(ToString::to_string).collect();
        let list = match &texts[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{kind} \"{name}\" is invalid: {list}");
        Self { causes, ..Self::new(422, "Invalid", message) }
    }

    /// An injected failure of any status.
    pub(super) fn injected(code: u16) -> Self {
        let reason = match code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "Unknown",
        };
        Self::new(code, reason, "injected failure")
    }

    /// The body of the answer.
    pub(super) fn status(&self) -> Value {
        let causes: Vec<Value> = self
            .causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.detail, "field": c.field}))
            .collect();
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
            "details": {"causes": causes},
        })
    }
}

/// Collects the faults of one object.
#[derive(Default)]
pub(super) struct Faults(Vec<FieldError>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, reason: &'static str, detail: String) {
        self.0.push(FieldError { field: field.into(), reason, detail });
    }

    pub(super) fn required(&mut self, field: impl Into<String>, detail: &str) {
        self.add(field, "FieldValueRequired", format!("Required value: {detail}"));
    }

    pub(super) fn invalid(&mut self, field: impl Into<String>, value: impl fmt::Debug, why: &str) {
        self.add(field, "FieldValueInvalid", format!("Invalid value: {value:?}: {why}"));
    }

    pub(super) fn forbidden(&mut self, field: impl Into<String>, why: &str) {
        self.add(field, "FieldValueForbidden", format!("Forbidden: {why}"));
    }

    pub(super) fn duplicate(&mut self, field: impl Into<String>, value: &str) {
        self.add(field, "FieldValueDuplicate", format!("Duplicate value: {value:?}"));
    }

    pub(super) fn not_found(&mut self, field: impl Into<String>, value: &str) {
        self.add(field, "FieldValueNotFound", format!("Not found: {value:?}"));
    }

    pub(super) fn unsupported(&mut self, field: impl Into<String>, value: &str, known: &[&str]) {
        let detail = format!("Unsupported value: {value:?}: supported values: {known:?}");
        self.add(field, "FieldValueNotSupported", detail);
    }

    pub(super) fn too_long(&mut self, field: impl Into<String>, limit: usize) {
        self.add(
            field,
            "FieldValueTooLong",
            format!("Too long: may not be more than {limit} bytes"),
        );
    }

    /// Nothing where `count` is within `limit`.
    pub(super) fn at_most(&mut self, field: impl Into<String>, count: usize, limit: usize) {
        if count > limit {
            let detail = format!("Too many: {count}: must have at most {limit} items");
            self.add(field, "FieldValueTooMany", detail);
        }
    }

    pub(super) fn refuse(self, kind: &str, name: &str) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal::invalid(kind, name, self.0)) }
    }
}
