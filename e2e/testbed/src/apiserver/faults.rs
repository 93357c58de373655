//! What the server does to requests on purpose: latency, failures, hangs, and calls at a moment.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Something that befalls chosen requests, once or as often as said.
pub struct Fault {
    method: Option<String>,
    path: String,
    skip: usize,
    left: usize,
    effect: Effect,
}

type Call = Arc<Mutex<dyn FnMut() + Send>>;

#[derive(Clone)]
pub(super) enum Effect {
    Status(u16),
    Hang,
    Delay(Duration),
    Before(Call),
    After(Call),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = self.method.as_deref().unwrap_or("*");
        write!(f, "{method} {} after {}, {} times", self.path, self.skip, self.left)
    }
}

impl Fault {
    fn new(effect: Effect) -> Self {
        Self { method: None, path: String::new(), skip: 0, left: 1, effect }
    }

    /// Answers with an HTTP status and leaves the store as it is.
    pub fn status(code: u16) -> Self {
        Self::new(Effect::Status(code))
    }

    /// Never answers, and leaves the store as it is.
    pub fn hang() -> Self {
        Self::new(Effect::Hang)
    }

    /// Waits before the request takes effect.
    pub fn delay(latency: Duration) -> Self {
        Self::new(Effect::Delay(latency))
    }

    /// Calls when the request has come, before it takes effect; it then goes on.
    pub fn before(call: impl FnMut() + Send + 'static) -> Self {
        Self::new(Effect::Before(Arc::new(Mutex::new(call))))
    }

    /// Calls when the request has taken effect, before it is answered.
    pub fn after(call: impl FnMut() + Send + 'static) -> Self {
        Self::new(Effect::After(Arc::new(Mutex::new(call))))
    }

    /// Only requests of a method, and whose path and query contain a text.
    pub fn on(mut self, method: &str, path: &str) -> Self {
        self.method = Some(method.to_owned());
        path.clone_into(&mut self.path);
        self
    }

    /// Begins with the nth matching request, counted from 1.
    pub fn nth(mut self, nth: usize) -> Self {
        self.skip = nth.saturating_sub(1);
        self
    }

    /// Befalls so many matching requests in a row instead of one.
    pub fn times(mut self, times: usize) -> Self {
        self.left = times;
        self
    }

    /// Befalls every matching request, until `clear_faults`.
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    /// What happens to this request, if it is one that it befalls; counts it.
    pub(super) fn on_request(&mut self, method: &str, path: &str) -> Option<Effect> {
        self.befalls(method, path).then(|| self.effect.clone())
    }

    fn befalls(&mut self, method: &str, path: &str) -> bool {
        let matches =
            self.method.as_deref().is_none_or(|m| m == method) && path.contains(&self.path);
        if !matches || self.left == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.left != usize::MAX {
            self.left -= 1;
        }
        true
    }
}
