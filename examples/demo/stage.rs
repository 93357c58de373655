//! The simulated node, and what is done on it: apply, schedule, prepare, release.

mod fault;
mod load;
mod reset;

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use k8s_openapi::api::{core::v1::Pod, resource::v1::ResourceClaim};
use kerf::{
    model::{
        claim::ClaimRef,
        gpu::{Gpu, GpuUuid, Inventory},
        record::{Held, Record},
    },
    node::{
        nvml::{Calls, Nvml},
        store,
    },
};
use kerf_nvml::node::{Model, NodeDescription};
use kerf_testbed::{
    manifests::{self, Manifest},
    node::{Builder, DRIVER, Testbed},
    scheduler::{PodRef, Scheduler},
};

use self::load::Place;
pub(crate) use self::{fault::Fault, reset::Healed};

/// How long anything may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The running node.
pub(crate) struct Stage {
    testbed: Testbed,
    scheduler: Scheduler,
    nvml: Nvml,
    /// What the API server was given, and the pods that run.
    applied: Vec<Manifest>,
    pods: Vec<Pod>,
    /// What works on the GPUs.
    work: Vec<Place>,
    pub(crate) started_in: Duration,
    pub(crate) slices: usize,
    pub(crate) devices: usize,
}

/// What became of one manifest.
pub(crate) struct Act {
    /// The file's first paragraph.
    pub(crate) title: String,
    pub(crate) pods: Vec<PodAct>,
    /// GPUs whose use changed.
    pub(crate) changed: BTreeSet<GpuUuid>,
}

/// What became of one pod.
pub(crate) struct PodAct {
    pub(crate) name: String,
    pub(crate) scheduled_in: Duration,
    pub(crate) prepared_in: Duration,
    pub(crate) devices: Vec<Given>,
}

/// A device that a pod's containers get.
pub(crate) struct Given {
    pub(crate) claim: String,
    pub(crate) request: String,
    pub(crate) device: String,
    pub(crate) cdi: Vec<String>,
}

impl Stage {
    /// Eight GPUs, an API server with the device classes, a kubelet, and the agent: this program.
    pub(crate) async fn set(classes: &Path) -> anyhow::Result<Self> {
        let machine = NodeDescription::uniform(Model::H100_80, 8);
        let testbed = Testbed::builder(machine, [std::env::current_exe()?]);
        // No container is started, and cargo builds no hook for an example. Who watches is not made to wait.
        let flags = ["--no-cdi-hooks", "--sampling-interval=1", "--hold-down=1"];
        let testbed = flags.into_iter().fold(testbed, Builder::flag);
        let mut testbed = testbed.start_without_agent().await?;
        let classes = manifests::device_classes(classes)?;
        manifests::apply(&testbed.api.client(), &classes).await?;
        let begin = Instant::now();
        testbed.start_agent("demo").await?;
        let slices = tokio::time::timeout(PATIENCE, testbed.published()).await;
        let slices = slices.map_err(|_| anyhow!("no slices published: {}", log(&testbed)))?;
        let devices = slices.iter().filter_map(|slice| slice.spec.devices.as_ref()).map(Vec::len);
        let nvml = Nvml::load(Some(&testbed.machine.library()), Calls::default())?;
        Ok(Self {
            started_in: begin.elapsed(),
            slices: slices.len(),
            devices: devices.sum(),
            scheduler: Scheduler::new(testbed.api.client()),
            nvml,
            applied: Vec::new(),
            pods: Vec::new(),
            work: Vec::new(),
            testbed,
        })
    }

    /// The GPUs as they are now.
    pub(crate) fn inventory(&self) -> anyhow::Result<Inventory> {
        let gpus = (0..self.nvml.count()?).map(|index| self.nvml.gpu(index));
        let gpus = gpus.collect::<Result<Vec<Gpu>, _>>().map_err(|gpu| anyhow!(gpu.reason))?;
        Ok(Inventory { driver: self.nvml.versions()?, gpus, unreadable: Vec::new() })
    }

    /// What the agent keeps of the claims.
    pub(crate) fn records(&self) -> anyhow::Result<Vec<Record>> {
        Ok(store::look(&self.testbed.state_dir())?.0)
    }

    /// Applies a manifest, schedules its pods and prepares their claims.
    pub(crate) async fn act(&mut self, file: &Path) -> anyhow::Result<Act> {
        let text = std::fs::read_to_string(file)?;
        let title = text.lines().map(|line| line.trim_start_matches(['#', ' ']));
        let title: Vec<&str> = title.take_while(|line| !line.is_empty()).collect();
        let manifests = manifests::read(file)?;
        manifests::apply(&self.testbed.api.client(), &manifests).await?;
        let before = self.held()?;
        let mut pods = Vec::new();
        for manifest in &manifests {
            let Manifest::Pod(pod) = manifest else { continue };
            let pod = self.stored(pod)?;
            pods.push(self.start(&pod).await?);
            self.pods.push(pod);
        }
        self.applied.extend(manifests);
        let after = self.held()?;
        let changed = after.symmetric_difference(&before).map(|(gpu, _)| gpu.clone());
        Ok(Act { title: title.join("\n"), pods, changed: changed.collect() })
    }

    fn stored(&self, pod: &Pod) -> anyhow::Result<Pod> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let stored = self.testbed.api.get(namespace, name);
        stored.map_err(|refusal| anyhow!("get pod `{namespace}/{name}`: {}", refusal.message))
    }

    fn held(&self) -> anyhow::Result<BTreeSet<(GpuUuid, String)>> {
        let records = self.records()?;
        let held = records.iter().flat_map(Record::held);
        Ok(held.map(|held: Held<'_>| (held.target.gpu().clone(), held.device.to_owned())).collect())
    }

    async fn start(&self, pod: &Pod) -> anyhow::Result<PodAct> {
        let (namespace, reference) = names(pod)?;
        let name = format!("{namespace}/{}", reference.name);
        let begin = Instant::now();
        let mut claims = Vec::new();
        for claim in self.scheduler.claims_of(pod).await.map_err(|error| anyhow!("{error}"))? {
            let claim = claim.metadata.name.unwrap_or_default();
            let allocated = self.scheduler.allocate(namespace, &claim, reference).await;
            claims.push(allocated.map_err(|error| anyhow!("schedule pod `{name}`: {error}"))?);
        }
        let scheduled_in = begin.elapsed();
        let asked: Vec<ClaimRef> = claims.iter().map(claim_ref).collect();
        let begin = Instant::now();
        let devices = self.testbed.kubelet.prepare_pod(DRIVER, &name, &asked).await;
        let devices = devices.map_err(|error| anyhow!("{error}; {}", log(&self.testbed)))?;
        let prepared_in = begin.elapsed();
        let devices = devices.into_iter().map(|device| {
            let uid = device.cdi_device_ids.first().cloned().unwrap_or_default();
            let claim = asked.iter().find(|claim| uid.contains(&claim.uid));
            Given {
                claim: claim.map(ToString::to_string).unwrap_or_default(),
                request: device.request_names.join(", "),
                device: device.device_name,
                cdi: device.cdi_device_ids,
            }
        });
        Ok(PodAct { name, scheduled_in, prepared_in, devices: devices.collect() })
    }

    /// Ends all pods, newest first, and deletes what was applied. In milliseconds.
    pub(crate) async fn release(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        while let Some(pod) = self.pods.pop() {
            self.end(&pod).await?;
        }
        manifests::delete(&self.testbed.api.client(), &self.applied).await?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    /// Ends a pod and gives its claims back.
    async fn end(&self, pod: &Pod) -> anyhow::Result<()> {
        let (namespace, reference) = names(pod)?;
        let name = format!("{namespace}/{}", reference.name);
        let ended = self.testbed.kubelet.unprepare_pod(DRIVER, &name).await;
        ended.map_err(|error| anyhow!("{error}; {}", log(&self.testbed)))?;
        for claim in self.scheduler.claims_of(pod).await.map_err(|error| anyhow!("{error}"))? {
            let claim = claim.metadata.name.unwrap_or_default();
            let released = self.scheduler.release(namespace, &claim, reference).await;
            released.map_err(|error| anyhow!("release `{claim}`: {error}"))?;
        }
        Ok(())
    }

    /// Ends the agent and says what is left of anything.
    pub(crate) async fn strike(mut self) -> anyhow::Result<Vec<String>> {
        let mut left = self.testbed.leftovers()?;
        let claims = self.testbed.api.list::<ResourceClaim>();
        left.extend(claims.iter().map(|claim| format!("ResourceClaim `{}`", claim_ref(claim))));
        if let Some(agent) = self.testbed.agent.take() {
            let status = tokio::time::timeout(PATIENCE, agent.terminate()).await;
            let status = status.context("the agent does not end")??;
            if !status.success() {
                left.push(format!("the agent ended with {status}"));
            }
        }
        left.extend(self.testbed.leftovers()?);
        Ok(left)
    }
}

fn names(pod: &Pod) -> anyhow::Result<(&str, PodRef<'_>)> {
    let metadata = &pod.metadata;
    let name = metadata.name.as_deref().context("a pod without name")?;
    let uid = metadata.uid.as_deref().context("a pod without UID")?;
    Ok((metadata.namespace.as_deref().unwrap_or("default"), PodRef { name, uid }))
}

fn claim_ref(claim: &ResourceClaim) -> ClaimRef {
    let metadata = &claim.metadata;
    ClaimRef {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    }
}

fn log(testbed: &Testbed) -> String {
    let tail = testbed.agent.as_ref().map(|agent| agent.tail()).unwrap_or_default();
    format!("the agent's log ends with:\n{tail}")
}
