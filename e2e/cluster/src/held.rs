//! A pod that holds a device while something happens to the node, and that must not notice.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    manifests::{devices, mig, pod, template},
};

/// A pod with a MIG device.
pub(crate) struct Held {
    name: &'static str,
    /// Its container, and what of its GPU it has.
    was: Value,
}

impl Held {
    /// Starts it.
    pub(crate) fn new(cluster: &Cluster, name: &'static str) -> anyhow::Result<Self> {
        let part = template(name, devices(&[mig("part", "1g.10gb")]));
        cluster.apply(&[part, pod(name, name)])?;
        cluster.running(&[name])?;
        cluster.check_devices(name)?;
        let was = Self::look(cluster, name)?;
        Ok(Self { name, was })
    }

    fn look(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
        let pod = cluster.get(&["pod", name])?;
        let container = &pod["status"]["containerStatuses"][0];
        let listed = cluster.exec(name, "main", &["nvidia-smi", "-L"])?;
        let mig = listed.lines().find(|line| line.contains("MIG-")).context("no MIG device")?;
        Ok(json!([container["containerID"], container["restartCount"], mig]))
    }

    /// Checks that nothing has happened to it.
    pub(crate) fn goes_on(&self, cluster: &Cluster) -> anyhow::Result<()> {
        cluster.running(&[self.name])?;
        // A kubelet that has just been started does not know its pods yet.
        crate::wait::until("the kubelet to reach into the pod", || {
            Ok(cluster.exec(self.name, "main", &["true"]).is_ok())
        })?;
        let is = Self::look(cluster, self.name)?;
        ensure!(is == self.was, "pod {} was {}, and is {is}", self.name, self.was);
        cluster.check_devices(self.name)
    }
}
