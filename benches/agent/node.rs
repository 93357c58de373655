//! A node of eight GPUs, its claims, and how long calls about them take.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kerf::model::claim::ClaimRef;
use kerf_nvml::node::{Model, NodeDescription};
use kerf_testbed::node::{Builder, DRIVER, Testbed};
use serde_json::json;

/// GPUs of the node.
pub(crate) const GPUS: usize = 8;

pub(crate) fn node() -> Builder {
    let machine = NodeDescription::uniform(Model::H100_80, GPUS);
    Testbed::builder(machine, [env!("CARGO_BIN_EXE_kerf")])
}

/// A claim for one device, allocated and reserved.
pub(crate) fn claim(testbed: &Testbed, device: &str) -> anyhow::Result<ClaimRef> {
    let claim: ResourceClaim = serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "name": device, "namespace": "default" },
        "spec": { "devices": { "requests": [
            { "name": "gpu", "exactly": { "deviceClassName": DRIVER } },
        ] } },
    }))?;
    let mut claim = testbed.api.create(&claim)?;
    claim.status = Some(serde_json::from_value(json!({
        "allocation": { "devices": { "results": [
            { "request": "gpu", "driver": DRIVER, "pool": testbed.name(), "device": device },
        ] } },
        "reservedFor": [{ "resource": "pods", "name": "pod", "uid": "pod-uid" }],
    }))?);
    let claim = testbed.api.update_status(&claim)?;
    let uid = claim.metadata.uid.context("a claim without UID")?;
    Ok(ClaimRef { namespace: "default".to_owned(), name: device.to_owned(), uid })
}

/// A whole GPU.
pub(crate) fn whole(gpu: usize) -> String {
    format!("gpu-{gpu}")
}

/// The smallest MIG device at this place of a GPU.
pub(crate) fn mig(gpu: usize, place: usize) -> String {
    format!("gpu-{gpu}-mig-1g10gb-19-{place}")
}

/// Claims for one such device on each GPU.
pub(crate) fn one_each(
    testbed: &Testbed,
    device: impl Fn(usize) -> String,
) -> anyhow::Result<Vec<ClaimRef>> {
    (0..GPUS).map(|gpu| claim(testbed, &device(gpu))).collect()
}

/// How long one call took that prepared all of these claims.
pub(crate) async fn prepare(testbed: &Testbed, claims: &[ClaimRef]) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let results = testbed.kubelet.prepare(DRIVER, claims).await;
    done(begin, results)
}

/// How long one call took that unprepared all of these claims.
pub(crate) async fn unprepare(testbed: &Testbed, claims: &[ClaimRef]) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let results = testbed.kubelet.unprepare(DRIVER, claims).await;
    done(begin, results)
}

fn done<T>(
    begin: Instant,
    results: BTreeMap<String, Result<T, String>>,
) -> anyhow::Result<Duration> {
    let took = begin.elapsed();
    let failed = results.into_values().find_map(Result::err);
    failed.map_or(Ok(took), |error| Err(anyhow!(error)))
}

/// Times of the same thing done again and again.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// The time that this share of all took at most.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).copied().unwrap_or_default()
    }
}

/// Times of `rounds` calls that prepare these claims, and of those that unprepare them, after some
/// that do not count.
pub(crate) async fn rounds(
    testbed: &Testbed,
    claims: &[ClaimRef],
    rounds: usize,
) -> anyhow::Result<(Times, Times)> {
    for _ in 0..rounds / 10 {
        prepare(testbed, claims).await?;
        unprepare(testbed, claims).await?;
    }
    let (mut prepared, mut unprepared) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        prepared.push(prepare(testbed, claims).await?);
        unprepared.push(unprepare(testbed, claims).await?);
    }
    Ok((Times::new(prepared), Times::new(unprepared)))
}
