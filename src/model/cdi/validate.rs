//! Whether a CDI document is one that container runtimes read: their rules, before they apply them.

use std::collections::BTreeSet;

use thiserror::Error;

use super::spec::{ContainerEdits, Hook, Mount, NodeEdit, Spec, VERSIONS};

const HOOK_NAMES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Characters of a rule in words, with what it quotes.
const LONGEST_RULE: usize = 200;

/// Where a document breaks a rule, and which.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{at}`: {rule}")]
pub struct Invalid {
    /// Path of the value, such as `devices[0].name`.
    pub at: String,
    /// What is wrong with it.
    pub rule: String,
}

impl Invalid {
    /// What it quotes may have come from anywhere: it stays one line, and not a long one.
    fn new(at: impl Into<String>, rule: impl Into<String>) -> Self {
        let mut shown = String::new();
        for c in rule.into().chars().take(LONGEST_RULE) {
            match c.is_control() {
                true => shown.extend(c.escape_default()),
                false => shown.push(c),
            }
        }
        Self { at: at.into(), rule: shown }
    }

    fn within(mut self, outer: &str) -> Self {
        let dot = if self.at.is_empty() { "" } else { "." };
        self.at = format!("{outer}{dot}{}", self.at);
        self
    }
}

impl Spec {
    /// Refuses what the CDI library of container runtimes would refuse, as runtimes drop such a file
    /// with a line in their log and then say only that the device is unknown.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_version()?;
        self.validate_kind()?;
        if self.devices.is_empty() {
            return Err(Invalid::new("devices", "is empty"));
        }
        let mut names = BTreeSet::new();
        for (index, device) in self.devices.iter().enumerate() {
            let outer = format!("devices[{index}]");
            device_name(&device.name).map_err(|error| error.within(&outer))?;
            if !names.insert(&device.name) {
                let rule = format!("`{}` is in the document twice", device.name);
                return Err(Invalid::new("name", rule).within(&outer));
            }
            if device.container_edits.is_empty() {
                return Err(Invalid::new("containerEdits", "is empty").within(&outer));
            }
            let edits = device.container_edits.validate();
            edits.map_err(|error| error.within("containerEdits").within(&outer))?;
        }
        self.container_edits.validate().map_err(|error| error.within("containerEdits"))
    }

    fn validate_version(&self) -> Result<(), Invalid> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let refuse = |rule| Err(Invalid::new("cdiVersion", rule));
        if !VERSIONS.contains(&version) {
            return refuse(format!("`{version}` is not a version of CDI"));
        }
        let required = self.required_version();
        if version < required {
            return refuse(format!("`{version}` is below {required}, which the content needs"));
        }
        Ok(())
    }

    fn validate_kind(&self) -> Result<(), Invalid> {
        let Some((vendor, class)) = self.kind.split_once('/') else {
            return Err(Invalid::new("kind", format!("`{}` is not `vendor/class`", self.kind)));
        };
        for (part, name) in [("vendor", vendor), ("class", class)] {
            if !is_name(name, |c| c.is_ascii_alphabetic(), "_-.") {
                return Err(Invalid::new("kind", format!("`{name}` cannot be a {part}")));
            }
        }
        Ok(())
    }
}

impl ContainerEdits {
    fn validate(&self) -> Result<(), Invalid> {
        each("env", &self.env, |entry| env(entry))?;
        each("deviceNodes", &self.device_nodes, node)?;
        each("hooks", &self.hooks, hook)?;
        each("mounts", &self.mounts, mount)
    }
}

fn each<T>(
    list: &str,
    items: &[T],
    check: impl Fn(&T) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    items.iter().enumerate().try_for_each(|(index, item)| {
        check(item).map_err(|error| error.within(&format!("{list}[{index}]")))
    })
}

fn env(entry: &str) -> Result<(), Invalid> {
    match entry.find('=') {
        None | Some(0) => Err(Invalid::new("", format!("`{entry}` is not `KEY=value`"))),
        Some(_) => Ok(()),
    }
}

fn node(node: &NodeEdit) -> Result<(), Invalid> {
    required("path", &node.path)?;
    let kind = node.kind.as_deref().unwrap_or("");
    if !["", "b", "c", "u", "p"].contains(&kind) {
        return Err(Invalid::new("type", format!("`{kind}` is not a type of device")));
    }
    let permissions = node.permissions.as_deref().unwrap_or("");
    if permissions != "none" && permissions.contains(|c| !"rwm".contains(c)) {
        return Err(Invalid::new("permissions", format!("`{permissions}` is not some of `rwm`")));
    }
    Ok(())
}

fn hook(hook: &Hook) -> Result<(), Invalid> {
    if !HOOK_NAMES.contains(&&*hook.hook_name) {
        return Err(Invalid::new("hookName", format!("`{}` is not a hook", hook.hook_name)));
    }
    if !hook.path.starts_with('/') {
        return Err(Invalid::new("path", format!("`{}` is not an absolute path", hook.path)));
    }
    each("env", &hook.env, |entry| env(entry))
}

fn mount(mount: &Mount) -> Result<(), Invalid> {
    required("hostPath", &mount.host_path)?;
    required("containerPath", &mount.container_path)
}

fn required(key: &str, value: &str) -> Result<(), Invalid> {
    if value.is_empty() { Err(Invalid::new(key, "is missing")) } else { Ok(()) }
}

fn device_name(name: &str) -> Result<(), Invalid> {
    if is_name(name, |c| c.is_ascii_alphanumeric(), ":_-.") {
        Ok(())
    } else {
        Err(Invalid::new("name", format!("`{name}` cannot be the name of a device")))
    }
}

/// A first character of its own kind, an alphanumeric last one, and between them those and `inner`.
fn is_name(name: &str, first: fn(char) -> bool, inner: &str) -> bool {
    name.starts_with(first)
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || inner.contains(c))
}
