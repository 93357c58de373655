//! What operators want to be watched.

use std::collections::BTreeSet;

use super::rules;

/// Which faults count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// XIDs that are never a finding.
    pub ignored: BTreeSet<u32>,
    /// XIDs that count although they are ignored, or are a program's own: those are unhealthy then.
    pub enabled: BTreeSet<u32>,
    /// Whether XIDs count; if not, those that are enabled do.
    pub xids: bool,
    /// Whether readings count, and events without an XID.
    pub readings: bool,
}

/// A word that a list of XIDs cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{variable}` has `{word}`: it takes {takes}, or XIDs with commas between them")]
pub struct UnknownWord {
    /// The environment variable.
    pub variable: &'static str,
    /// The word.
    pub word: String,
    takes: &'static str,
}

impl Default for Policy {
    fn default() -> Self {
        let none = BTreeSet::new;
        Self { ignored: none(), enabled: none(), xids: true, readings: true }
    }
}

impl Policy {
    /// What `DP_DISABLE_HEALTHCHECKS` (`all`, `xids` or XIDs) and `DP_ENABLE_HEALTHCHECKS` (`all` or
    /// XIDs) of NVIDIA's device plugin say together. What is enabled wins, also over `all`.
    pub fn from_nvidia(disable: Option<&str>, enable: Option<&str>) -> Result<Self, UnknownWord> {
        let mut policy = Self::default();
        for word in words(disable) {
            match word {
                "all" => (policy.xids, policy.readings) = (false, false),
                "xids" => policy.xids = false,
                _ => {
                    let code = code("DP_DISABLE_HEALTHCHECKS", word, "`all`, `xids`")?;
                    policy.ignored.insert(code);
                }
            }
        }
        for word in words(enable) {
            if word == "all" {
                policy.ignored.clear();
                (policy.xids, policy.readings) = (true, true);
                policy.enabled.extend(rules::of_applications());
            } else {
                policy.enabled.insert(code("DP_ENABLE_HEALTHCHECKS", word, "`all`")?);
            }
        }
        Ok(policy)
    }

    /// Whether an XID may be a finding.
    pub(super) fn counts(&self, code: u32) -> bool {
        self.enabled.contains(&code) || self.xids && !self.ignored.contains(&code)
    }
}

fn words(list: Option<&str>) -> impl Iterator<Item = &str> {
    list.into_iter().flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn code(variable: &'static str, word: &str, takes: &'static str) -> Result<u32, UnknownWord> {
    word.parse().map_err(|_| UnknownWord { variable, word: word.to_owned(), takes })
}

#[cfg(test)]
mod tests;
