//! What goes wrong with the API server, in one line each.

use std::time::Duration;

/// Why the API server did not do what it was asked.
///
/// kube's errors are told here as text and not kept as sources: their texts already hold their causes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no usable address or credential.
    #[error("connect to the API server with `{from}`: {why}")]
    Connect {
        /// The kubeconfig file, or what else was used.
        from: String,
        /// In one line.
        why: String,
    },
    /// The object, or its whole kind, does not exist.
    #[error("{what}: {why}")]
    NotFound {
        /// What was asked.
        what: String,
        /// The server's words.
        why: String,
    },
    /// An object of this name exists, and is another one.
    #[error("{what}: replaced: uid `{found}`, asked for `{asked}`")]
    Replaced {
        /// What was asked.
        what: String,
        /// UID of the object that is there.
        found: String,
        /// UID of the object that is gone.
        asked: String,
    },
    /// Somebody else changed the object since it was read.
    #[error("{what}: {why}")]
    Conflict {
        /// What was asked.
        what: String,
        /// The server's words.
        why: String,
    },
    /// The server calls the object invalid: asking again is of no use.
    #[error("{what}: {why}")]
    Invalid {
        /// What was asked.
        what: String,
        /// The server's words.
        why: String,
    },
    /// Anything else; may go better another time.
    #[error("{what}: {why}")]
    Failed {
        /// What was asked.
        what: String,
        /// The server's words, or what stopped them.
        why: String,
    },
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::Failed { .. })
    }

    pub(super) fn connect(from: &str, error: &dyn std::error::Error) -> Self {
        Self::Connect { from: from.to_owned(), why: causes(error) }
    }

    pub(super) fn silent(what: String, waited: Duration) -> Self {
        Self::Failed { what, why: format!("no good answer in {} s", waited.as_secs()) }
    }

    pub(super) fn answered(what: String, error: &kube::Error) -> Self {
        let why = reason(error);
        match error {
            kube::Error::Api(status) if status.is_not_found() => Self::NotFound { what, why },
            kube::Error::Api(status) if status.is_conflict() => Self::Conflict { what, why },
            kube::Error::Api(status) if status.is_invalid() => Self::Invalid { what, why },
            _ => Self::Failed { what, why },
        }
    }
}

/// Why, once and in one line.
pub(super) fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => one_line(&status.message),
        kube::Error::Api(status) => format!("{} {}", status.code, status.reason).trim().to_owned(),
        // These two say nothing of their own but which layer failed.
        kube::Error::Service(source) => causes(source.as_ref()),
        kube::Error::HyperError(source) => causes(source),
        other => causes(other),
    }
}

/// An error and its sources, leaving out those that the text before them already tells.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let line = source.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        next = source.source();
    }
    one_line(&text)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
