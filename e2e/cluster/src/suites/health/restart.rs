//! What is wrong with a GPU outlives the agent that found it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::{Deserializer, Value};

use super::{
    NO_PROGRESS,
    ward::{Gpu, Tainted, Ward, tainted},
};
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
        gpu.shows_in_status(NO_PROGRESS)?;
        gpu.tainted(&taints)?;
        // What only the new agent can have written shows how far the watch has come.
        let later = ward.gpu_at(FAILS_LATER)?;
        later.makes_no_progress()?;
        wait::until("the new agent's slices", || {
            let seen = watch.seen()?;
            let mut devices = seen.iter().flat_map(|version| &version.devices);
            Ok(devices.any(|((node, device), has)| later.has(node, device) && !has.is_empty()))
        })?;
        stays_tainted(&gpu, &taints, &watch.seen()?)
    })
}

/// Fails if a version of a slice had a device of the GPU without these taints, or not all that it had at first.
fn stays_tainted(gpu: &Gpu<'_>, taints: &[String], seen: &[Version]) -> anyhow::Result<()> {
    let mut at_first: BTreeMap<&str, Vec<&Tainted>> = BTreeMap::new();
    for Version { slice, devices } in seen {
        let own = devices.iter().filter(|((node, device), _)| gpu.has(node, device));
        let mut own: Vec<_> = own.collect();
        own.sort();
        let free = own.iter().find(|(_, has)| has != taints);
        ensure!(free.is_none(), "a device was published without its taint: {free:?}");
        let first = at_first.entry(slice).or_insert_with(|| own.clone());
        ensure!(*first == own, "slice {slice} had {first:?}, and then {own:?}");
    }
    ensure!(at_first.values().any(|own| !own.is_empty()), "the watch saw none of its devices");
    Ok(())
}

/// What a slice was at some time.
struct Version {
    slice: String,
    devices: Vec<Tainted>,
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

    /// All versions so far. No slice has gone.
    fn seen(&self) -> anyhow::Result<Vec<Version>> {
        let text = fs::read_to_string(&self.printed)?;
        let mut seen = Vec::new();
        // The last may be half written.
        for event in Deserializer::from_str(&text).into_iter::<Value>().map_while(Result::ok) {
            ensure!(event["type"] != "DELETED", "a slice was deleted: {event}");
            let slice = event["object"]["metadata"]["name"].as_str();
            let slice = slice.context("a slice has a name")?.to_owned();
            seen.push(Version { slice, devices: tainted(&event["object"]) });
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
