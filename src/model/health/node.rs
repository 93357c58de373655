//! The health of a node: signs and readings of its GPUs go in, findings come out.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Attribution, Extent, Findings, LinkSeverity, Notice, Policy, Readings, Sign,
    cause::Cause,
    gpu::GpuHealth,
    incident::Evidence,
    rules::{self, Condition, Scope, Verdict},
    xids::{LastXid, Xids},
};
use crate::model::gpu::{Gpu, GpuUuid, Placement};

/// Format of what this program saves.
pub const VERSION: u32 = 1;

/// What is known of the health of a node's GPUs.
///
/// Every call is told the time. One that is earlier than the call before heals nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    policy: Policy,
    gpus: BTreeMap<GpuUuid, GpuHealth>,
    xids: BTreeMap<GpuUuid, Xids>,
    /// The latest time that it was told.
    seen: Timestamp,
}

/// What has to outlive the program: open faults, and how often they came. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// The boot in which it was written.
    pub boot_id: String,
    /// The latest time that was known then.
    pub at: Timestamp,
    gpus: BTreeMap<GpuUuid, GpuHealth>,
}

impl Saved {
    /// Whether it would lead to other findings than what was saved before; each look changes the rest.
    pub fn is_news(&self, before: &Self) -> bool {
        let same = |(uuid, gpu): (&GpuUuid, &GpuHealth)| {
            before.gpus.get(uuid).is_some_and(|before| !gpu.is_news(before))
        };
        self.boot_id != before.boot_id
            || self.gpus.len() != before.gpus.len()
            || !self.gpus.iter().all(same)
    }
}

/// What a sign led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether the GPU's readings have to be taken now, and again after 2 s and 10 s: the driver needs
    /// a while to say what has to be done (field 230).
    pub read_again: bool,
}

/// What a report names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Nothing,
    Instance(Placement),
    /// An instance that is not there.
    Unknown,
}

impl Health {
    /// Of GPUs of which nothing is known.
    pub fn new(policy: Policy) -> Self {
        let seen = Timestamp::UNIX_EPOCH;
        Self { policy, gpus: BTreeMap::new(), xids: BTreeMap::new(), seen }
    }

    /// With what was saved. In another boot, what a boot ends is over; all else goes on, also a wait
    /// that has begun. What the policy no longer wants is dropped.
    pub fn restore(policy: Policy, saved: Saved, boot_id: &str) -> Self {
        let Saved { gpus, at, .. } = saved;
        let mut health = Self { gpus, seen: at, ..Self::new(policy) };
        for gpu in health.gpus.values_mut() {
            gpu.keep(&health.policy);
            if saved.boot_id != boot_id {
                gpu.booted(at);
            }
        }
        health
    }

    /// What has to be known after a restart.
    pub fn save(&self, boot_id: &str) -> Saved {
        let boot_id = boot_id.to_owned();
        Saved { version: VERSION, boot_id, at: self.seen, gpus: self.gpus.clone() }
    }

    /// Takes what a GPU or its driver reported, each report once: one that is told again after its
    /// fault was over begins it anew. After a restart that is what came after [`Saved::at`].
    pub fn sign(&mut self, gpu: &Gpu, sign: &Sign, now: Timestamp) -> Seen {
        self.see(now);
        match *sign {
            Sign::Xid { code, attribution, link } => {
                let named = named(gpu, attribution);
                let extent = match named {
                    Named::Instance(placement) => Extent::Instance(placement),
                    Named::Nothing | Named::Unknown => Extent::Gpu,
                };
                let xid = LastXid { code, at: now, extent };
                let xids = self.xids.entry(gpu.uuid.clone());
                xids.and_modify(|xids| xids.add(xid)).or_insert_with(|| Xids::new(xid));
                self.xid(gpu, (code, named, link), now)
            }
            Sign::Notice(notice) => self.notice(gpu, notice, now),
        }
    }

    fn xid(
        &mut self,
        gpu: &Gpu,
        (code, named, link): (u32, Named, Option<LinkSeverity>),
        now: Timestamp,
    ) -> Seen {
        let fatal = link.map(|link| link == LinkSeverity::Fatal);
        let before_ampere = before_ampere(gpu);
        let rule = rules::of(code, fatal, before_ampere);
        let seen = Seen {
            read_again: code == 154
                || rule.scope != Scope::Application && rule.verdict != Verdict::Notice,
        };
        if self.policy.counts(code)
            && let Some(extent) = extent(gpu, rule.scope, named)
        {
            let cause = Cause::Xid { code, fatal, before_ampere };
            let enabled = self.policy.enabled.contains(&code);
            self.gpu(&gpu.uuid).report((code, cause), extent, (rule, enabled), now);
        }
        seen
    }

    /// Some events say what an XID says, so that both are one fault.
    fn notice(&mut self, gpu: &Gpu, notice: Notice, now: Timestamp) -> Seen {
        let condition = match notice {
            Notice::SingleBitEccErrorStorm => return self.like_xid(gpu, 92, now),
            Notice::DramRetirement => return self.like_xid(gpu, 63, now),
            Notice::NonFatalPoison => return self.like_xid(gpu, 94, now),
            Notice::FatalPoison => return self.like_xid(gpu, 95, now),
            Notice::DoubleBitEccError => Some(Condition::Uncorrected),
            Notice::DramRetirementFailure => Some(Condition::RemapFailed),
            Notice::GpuUnavailable => Some(Condition::Unavailable),
            Notice::RecoveryActionChanged => None,
        };
        if let Some(condition) = condition
            && self.policy.readings
        {
            self.gpu(&gpu.uuid).told(condition, now);
        }
        Seen { read_again: true }
    }

    fn like_xid(&mut self, gpu: &Gpu, code: u32, now: Timestamp) -> Seen {
        self.xid(gpu, (code, Named::Nothing, None), now)
    }

    /// Takes what a look at a GPU found.
    pub fn reading(&mut self, gpu: &GpuUuid, readings: &Readings, now: Timestamp) {
        self.see(now);
        let count = self.policy.readings;
        self.gpu(gpu).read(readings, count, now);
    }

    /// There is proof that the GPU was reset, or that its driver was loaded anew.
    pub fn reset(&mut self, gpu: &GpuUuid, now: Timestamp) {
        self.see(now);
        self.gpu(gpu).weigh(Evidence::Reset, now);
    }

    /// The GPU is gone for good and another one is in its slot: it is forgotten.
    pub fn replaced(&mut self, gpu: &GpuUuid) {
        self.gpus.remove(gpu);
        self.xids.remove(gpu);
    }

    /// A person says that the GPU is well. What is read of it may say otherwise at the next look, save
    /// for flags that nothing but another GPU takes back.
    pub fn cleared(&mut self, gpu: &GpuUuid, now: Timestamp) {
        self.see(now);
        self.gpu(gpu).clear();
    }

    /// Ends what has been clean, or quiet, for long enough.
    pub fn tick(&mut self, now: Timestamp) {
        self.see(now);
        for gpu in self.gpus.values_mut() {
            gpu.expire(now);
        }
    }

    /// When [`Health::tick`] next ends something, if nothing comes between.
    pub fn due(&self) -> Option<Timestamp> {
        self.gpus.values().filter_map(GpuHealth::due).min()
    }

    /// How many faults with an XID a GPU had since the program started: reports of one code within 3 min are one.
    pub fn faults(&self, gpu: &GpuUuid) -> u64 {
        self.xids.get(gpu).map_or(0, |xids| xids.counts.values().sum())
    }

    /// All that is wrong.
    pub fn findings(&self) -> Findings {
        let findings = self.gpus.iter().map(|(uuid, gpu)| (uuid.clone(), gpu.findings()));
        Findings(findings.filter(|(_, findings)| !findings.is_empty()).collect())
    }

    /// The XIDs of each GPU that had any since the program started, also of those that are ignored.
    pub fn last_xids(&self) -> &BTreeMap<GpuUuid, Xids> {
        &self.xids
    }

    fn gpu(&mut self, uuid: &GpuUuid) -> &mut GpuHealth {
        self.gpus.entry(uuid.clone()).or_insert_with(|| GpuHealth::new(&self.policy))
    }

    fn see(&mut self, now: Timestamp) {
        self.seen = self.seen.max(now);
    }
}

/// Whether the GPU is of an architecture before Ampere, which cannot be cut either.
fn before_ampere(gpu: &Gpu) -> bool {
    gpu.compute_capability < (8, 0)
}

fn named(gpu: &Gpu, attribution: Attribution) -> Named {
    let (Attribution::GpuInstance(id) | Attribution::ComputeInstance(id, _)) = attribution else {
        return Named::Nothing;
    };
    let mut instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
    match instances.find(|instance| instance.id == id) {
        Some(instance) => Named::Instance(instance.placement),
        None => Named::Unknown,
    }
}

/// What a report concerns, if anything.
fn extent(gpu: &Gpu, scope: Scope, named: Named) -> Option<Extent> {
    let cut = gpu.mig.as_ref().is_some_and(|mig| mig.enabled && !mig.instances.is_empty());
    match (scope, named) {
        (Scope::Gpu, _) | (Scope::Instance, Named::Unknown) => Some(Extent::Gpu),
        (_, Named::Instance(placement)) => Some(Extent::Instance(placement)),
        (Scope::Instance, Named::Nothing) | (Scope::Application, Named::Unknown) => None,
        // On a GPU that is cut the program was in an instance, and nobody says in which.
        (Scope::Application, Named::Nothing) => (!cut).then_some(Extent::Gpu),
    }
}
