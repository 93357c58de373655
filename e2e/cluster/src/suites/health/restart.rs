//! What is wrong with a GPU outlives the agent that found it.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::{Deserializer, Value};

use super::ward::{Gpu, Tainted, Ward, tainted};
use crate::{cluster::Cluster, install, wait};

/// GPUs without pods.
const FAILS: usize = 3;
const FAILS_LATER: usize = 5;

pub(super) fn a_taint_outlives_the_agent(cluster: &mut Cluster) -> anyhow::Result<()> {
    Ward::with(cluster, &[], |ward| {
        let taints = ["gpu.nvidia.com/xid=46:NoSchedule".to_owned()];
        let gpu = ward.gpu_at(FAILS)?;
        gpu.makes_no_progress()?;
        gpu.tainted(&taints)?;
        let watch = Watch::start(ward.cluster)?;
        let agent = ward.agent()?;
        let name = agent["metadata"]["name"].as_str().context("a pod has a name")?;
        ward.cluster.kubectl(&["delete", "pod", "--namespace", install::NAMESPACE, name])?;
        wait::until("another agent", || {
            let new = ward.agent();
            Ok(new.is_ok_and(|new| new["metadata"]["uid"] != agent["metadata"]["uid"]))
        })?;
        install::rolled_out(ward.cluster)?;
        gpu.shows_in_status(
            "GPU made no progress (XID 46); stop all work on this GPU and reset it",
        )?;
        gpu.tainted(&taints)?;
        // What only the new agent can have written shows how far the watch has come.
        let later = ward.gpu_at(FAILS_LATER)?;
        later.makes_no_progress()?;
        wait::until("the new agent's slices", || {
            let all = watch.seen()?;
            Ok(all
                .iter()
                .any(|((node, device), taints)| later.has(node, device) && !taints.is_empty()))
        })?;
        stays_tainted(&gpu, &taints, &watch.seen()?)
    })
}

/// Whether no version of any slice had a device of the GPU without its taint.
fn stays_tainted(gpu: &Gpu<'_>, taints: &[String], seen: &[Tainted]) -> anyhow::Result<()> {
    let mut own = seen.iter().filter(|((node, device), _)| gpu.has(node, device)).peekable();
    ensure!(own.peek().is_some(), "the watch saw none of its devices");
    let free = own.find(|(_, has)| has != taints);
    ensure!(free.is_none(), "a device was published without its taint: {free:?}");
    Ok(())
}

/// All versions of all slices from now on.
struct Watch {
    kubectl: Child,
    printed: PathBuf,
}

impl Watch {
    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let printed = cluster.dir().join("slices.json");
        let mut kubectl = cluster.kubectl_command();
        let watch = ["get", "resourceslices", "--watch", "--output-watch-events"];
        kubectl.args(watch).args(["--output", "json"]).stdin(Stdio::null());
        let kubectl = kubectl.stdout(File::create(&printed)?).spawn()?;
        let watch = Self { kubectl, printed };
        wait::until("the slices of now", || Ok(!watch.seen()?.is_empty()))?;
        Ok(watch)
    }

    /// The devices of all versions so far. No slice has gone.
    fn seen(&self) -> anyhow::Result<Vec<Tainted>> {
        let text = fs::read_to_string(&self.printed)?;
        let mut seen = Vec::new();
        // The last may be half written.
        for event in Deserializer::from_str(&text).into_iter::<Value>().map_while(Result::ok) {
            ensure!(event["type"] != "DELETED", "a slice was deleted: {event}");
            seen.extend(tainted(&event["object"]));
        }
        Ok(seen)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It has ended already if it is not there.
        let _ended = self.kubectl.kill().and_then(|()| self.kubectl.wait());
    }
}
