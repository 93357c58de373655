//! Health: which errors count, and what follows from those that do.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::{
    driver::HealthParts,
    model::health::{Class, Evicted, Health, Policy},
    node::store::Kept,
};

/// Flags of health.
#[derive(Clone, Debug, clap::Args)]
pub struct HealthArgs {
    /// XIDs that are not looked at: codes separated by commas, `xids` or `all` for all of them.
    #[arg(long, env = "DP_DISABLE_HEALTHCHECKS")]
    pub disable_health_checks: Option<String>,
    /// XIDs that make a GPU unhealthy though they would not: codes separated by commas, or `all`.
    #[arg(long, env = "DP_ENABLE_HEALTHCHECKS")]
    pub enable_health_checks: Option<String>,
    /// Further XIDs that are not looked at.
    #[arg(long, env = "ADDITIONAL_XIDS_TO_IGNORE", value_delimiter = ',')]
    pub additional_xids_to_ignore: Vec<u32>,
    /// Move pods from devices with faults of these classes: `application`, `driver`, `firmware`, `memory`,
    /// `link`, `bus`, `power`, `thermal`, `security`, `unknown`, or `all`.
    #[arg(long, env = "EVICT_ON", value_delimiter = ',', value_parser = classes)]
    pub evict_on: Vec<Classes>,
    /// Evict pods with devices of the device plugin too, as disruption budgets allow.
    #[arg(long, env = "EVICT_PLUGIN_PODS", requires = "evict_on")]
    pub evict_plugin_pods: bool,
    /// Seconds that a GPU has to be well after a fault before it is served again; five times as long after
    /// heat, and after faults of links and power.
    #[arg(long, env = "HOLD_DOWN", value_name = "SECONDS", default_value_t = 60)]
    pub hold_down: u32,
    /// The kernel's log, which has errors that come by no other way; none if empty.
    #[arg(long, env = "KERNEL_LOG", default_value = "/dev/kmsg", value_parser = path_or_none())]
    pub kernel_log: PathBuf,
    /// Tell claims in their `status.devices` what they have and whether it is healthy.
    #[arg(long, env = "CLAIM_STATUS")]
    pub claim_status: bool,
}

/// A path, which may be empty.
fn path_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// One class, or all.
type Classes = BTreeSet<Class>;

fn classes(text: &str) -> Result<Classes, String> {
    if text == "all" {
        return Ok(Class::ALL.into_iter().collect());
    }
    let class = serde_json::from_value(text.into());
    class.map(|class| Classes::from([class])).map_err(|error| error.to_string())
}

impl HealthArgs {
    /// What the driver needs of this, after what was `kept` of an earlier agent.
    pub(super) fn parts(&self, kept: Option<Kept>, boot_id: &str) -> anyhow::Result<HealthParts> {
        let mut policy = Policy::from_nvidia(
            self.disable_health_checks.as_deref(),
            self.enable_health_checks.as_deref(),
        )?;
        policy.hold_down = self.hold_down;
        policy.ignored.extend(&self.additional_xids_to_ignore);
        let same_boot = kept.as_ref().filter(|kept| kept.health.boot_id == boot_id);
        let log_read =
            same_boot.map_or((Duration::ZERO, None), |kept| (kept.log_read, kept.log_sequence));
        let health = match kept {
            Some(kept) => Health::restore(policy, kept.health, boot_id),
            None => Health::new(policy),
        };
        let evicted = Evicted(self.evict_on.iter().flatten().copied().collect());
        let kernel_log = Some(self.kernel_log.clone()).filter(|path| !path.as_os_str().is_empty());
        Ok(HealthParts { health, evicted, kernel_log, log_read })
    }
}
