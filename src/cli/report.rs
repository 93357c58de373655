//! What the agent says about itself, gathered from its parts.

use std::{
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    cluster::{self, publish::Server},
    driver::{
        Driver,
        machine::{Library, Machine},
    },
    kubelet::{Registration, plugin},
    model::{
        plugin::offer::Offered,
        status::{
            AgentState, AgentStatus, ClaimStatus, ContainerStatus, GpuStatus, KubeletStatus, Load,
            NotServed, Published, ResourceStatus, Status,
        },
    },
};

/// How far the agent is.
#[derive(Clone)]
pub(super) enum Phase {
    /// Not there yet.
    Starting,
    /// Another agent acts.
    StandingBy,
    /// This one does.
    Acting(Arc<Driver>),
}

/// Gathers. Clones share what they know.
#[derive(Clone)]
pub(super) struct Reporter {
    started_at: String,
    boot_id: String,
    machine: Arc<Machine>,
    phase: Arc<Mutex<Phase>>,
    registration: watch::Sender<Registration>,
    published: watch::Sender<cluster::publish::Published>,
    server: Arc<Mutex<Option<watch::Receiver<Option<Server>>>>>,
    warnings: Arc<Mutex<Vec<String>>>,
    open: Arc<Mutex<Open>>,
    /// What keeps the device plugin's configuration from being the one that is wanted.
    configuration: Arc<Mutex<Option<watch::Receiver<Option<String>>>>>,
}

/// The doors that are open.
#[derive(Default)]
struct Open {
    dra: bool,
    plugin: Option<watch::Sender<plugin::Resources>>,
}

impl Reporter {
    pub(super) fn new(machine: Arc<Machine>, boot_id: String) -> Self {
        Self {
            started_at: rfc3339(Timestamp::now()),
            boot_id,
            machine,
            phase: Arc::new(Mutex::new(Phase::Starting)),
            registration: watch::Sender::default(),
            published: watch::Sender::default(),
            server: Arc::default(),
            warnings: Arc::default(),
            open: Arc::default(),
            configuration: Arc::default(),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Where the kubelet's word on our registration goes.
    pub(super) fn registered(&self) -> watch::Sender<Registration> {
        self.registration.clone()
    }

    /// Where the device plugin's configuration says what is wrong.
    pub(super) fn configured(&self, warning: watch::Receiver<Option<String>>) {
        *self.configuration.lock().unwrap_or_else(PoisonError::into_inner) = Some(warning);
    }

    /// Notes that claims are served.
    pub(super) fn dra_open(&self) {
        self.open().dra = true;
    }

    /// Notes that extended resources are served; how the kubelet takes them goes to what is returned.
    pub(super) fn plugin_open(&self) -> watch::Sender<plugin::Resources> {
        let states = watch::Sender::default();
        self.open().plugin = Some(watch::Sender::clone(&states));
        states
    }

    /// Notes that they are no longer.
    pub(super) fn plugin_closed(&self) {
        self.open().plugin = None;
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The publisher's progress.
    pub(super) fn published_state(&self) -> watch::Receiver<cluster::publish::Published> {
        self.published.subscribe()
    }

    /// Where the publisher's progress goes.
    pub(super) fn published(
        &self,
        server: watch::Receiver<Option<Server>>,
    ) -> watch::Sender<cluster::publish::Published> {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        self.published.clone()
    }

    /// Takes what somebody should see to now, one line each; returns what of it is new.
    pub(super) fn warn(&self, warnings: Vec<String>) -> Vec<String> {
        let mut known = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let new = warnings.iter().filter(|warning| !known.contains(warning)).cloned().collect();
        *known = warnings;
        new
    }

    /// The driver, once this agent acts.
    pub(super) fn acting(&self) -> Option<Arc<Driver>> {
        match self.phase() {
            Phase::Acting(driver) => Some(driver),
            Phase::Starting | Phase::StandingBy => None,
        }
    }

    fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What stands in the way of readiness, one line each.
    pub(super) fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        match self.phase() {
            Phase::Starting => reasons.push("starting".to_owned()),
            Phase::StandingBy => return reasons,
            Phase::Acting(_) => {
                reasons.extend(self.unregistered());
            }
        }
        if let Library::Missing(reason) = &*self.machine.watch().borrow() {
            reasons.push(format!("no NVIDIA driver: {reason}"));
        }
        let of_node = self.machine.hung().into_iter().filter(|call| call.gpu.is_none());
        reasons.extend(of_node.map(|call| call.to_string()));
        let gpus = self.not_served().into_iter();
        reasons.extend(gpus.map(|gpu| format!("GPU {}: {}", gpu.index, gpu.reason)));
        reasons
    }

    /// What the kubelet does not know of.
    fn unregistered(&self) -> Vec<String> {
        let open = self.open();
        if !open.dra && open.plugin.is_none() {
            return vec!["no door is open yet: the API server has not answered".to_owned()];
        }
        let registration = self.registration.borrow();
        let error = registration.error.as_deref().unwrap_or("not asked yet");
        let dra = (open.dra && !registration.registered)
            .then(|| format!("not registered with the kubelet: {error}"));
        let resources = open.plugin.as_ref().map(|states| states.borrow().clone());
        let resources = resources.into_iter().flatten().filter(|(_, state)| !state.registered);
        let resources = resources.map(|(name, state)| {
            let error = state.error.unwrap_or_else(|| "not asked yet".to_owned());
            format!("`{name}` not registered with the kubelet: {error}")
        });
        dra.into_iter().chain(resources).collect()
    }

    pub(super) fn status(&self) -> Status {
        let agent = AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            started_at: self.started_at.clone(),
            state: self.state(),
        };
        let driver = self.acting();
        let dra = driver.is_some() && self.open().dra;
        let records = driver.as_ref().map(|driver| driver.records()).unwrap_or_default();
        Status {
            agent: Some(agent),
            error: None,
            kubelet: dra.then(|| self.kubelet()),
            published: dra.then(|| self.publishing()),
            not_served: self.not_served(),
            warnings: self.warned(driver.as_deref()),
            gpus: driver.as_deref().map(|driver| self.gpus(driver)).unwrap_or_default(),
            claims: ClaimStatus::of(&records, &self.boot_id),
            resources: driver.as_deref().map(|driver| self.resources(driver)).unwrap_or_default(),
            containers: ContainerStatus::of(&records, &self.boot_id),
        }
    }

    fn warned(&self, driver: Option<&Driver>) -> Vec<String> {
        let known = self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let offered = driver.map(|driver| driver.offer().warnings.clone());
        let configuration = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        let configured = configuration.as_ref().and_then(|warning| warning.borrow().clone());
        let deaf = driver.map(Driver::deaf).into_iter().flatten();
        let deaf = deaf.map(|source| format!("health is seen in part: {source}"));
        let offered = offered.into_iter().flatten();
        let withheld = driver.map(Driver::withheld).into_iter().flatten();
        let withheld = withheld.map(|withheld| withheld.to_string());
        known.into_iter().chain(withheld).chain(configured).chain(offered).chain(deaf).collect()
    }

    fn state(&self) -> AgentState {
        if let Phase::StandingBy = self.phase() {
            return AgentState::StandingBy { reason: "another agent acts on this node".to_owned() };
        }
        match &*self.machine.watch().borrow() {
            Library::Missing(reason) => AgentState::WaitingForDriver { reason: reason.clone() },
            Library::Loaded(_) => AgentState::Serving,
        }
    }

    /// Extended resources, where they are served.
    fn resources(&self, driver: &Driver) -> Vec<ResourceStatus> {
        let states = self.open().plugin.as_ref().map(|states| states.borrow().clone());
        let Some(states) = states else { return Vec::new() };
        let offer = driver.offer();
        let resources = offer.resources.iter().map(|(name, devices)| {
            let state = states.get(name).cloned().unwrap_or_default();
            let count =
                |which: fn(&Offered) -> bool| devices.iter().filter(|one| which(one)).count();
            ResourceStatus {
                name: name.clone(),
                devices: devices.len(),
                healthy: count(|device| device.unhealthy.is_none()),
                taken: count(|device| device.taken),
                registered: state.registered,
                error: state.error,
            }
        });
        resources.collect()
    }

    fn kubelet(&self) -> KubeletStatus {
        let registration = self.registration.borrow();
        KubeletStatus {
            registered: registration.registered,
            since: registration.since.map(rfc3339),
            last_error: registration.error.clone(),
        }
    }

    fn publishing(&self) -> Published {
        let published = self.published.borrow();
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let features = server.as_ref().and_then(|server| Some(server.borrow().as_ref()?.features));
        let named = features.map(|features| {
            let named = [("counters", features.counters), ("taints", features.taints)];
            named.into_iter().filter(|(_, kept)| *kept).map(|(name, _)| name.to_owned()).collect()
        });
        Published {
            slices: u32::try_from(published.slices).unwrap_or(u32::MAX),
            generation: published.generation,
            at: published.at.and_then(|at| Timestamp::try_from(at).ok()).map(rfc3339),
            error: published.error.clone(),
            features: named.unwrap_or_default(),
        }
    }

    fn gpus(&self, driver: &Driver) -> Vec<GpuStatus> {
        let inventory = self.machine.inventory();
        let (findings, samples) = (driver.findings(), driver.samples());
        let gpus = inventory.known().into_iter().map(|gpu| GpuStatus {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            product: gpu.product.clone(),
            served: inventory.gpu(&gpu.uuid).is_some(),
            findings: findings.of_gpu(&gpu.uuid).to_vec(),
            load: samples.0.get(&gpu.uuid).map(|taken| Load::from(&*taken.sample)),
        });
        let mut gpus: Vec<_> = gpus.collect();
        gpus.sort_by_key(|gpu| gpu.index);
        gpus
    }

    fn not_served(&self) -> Vec<NotServed> {
        let inventory = self.machine.inventory();
        let unreadable = inventory.unreadable.iter().map(|gpu| NotServed {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            reason: gpu.reason.clone(),
        });
        let hung = self.machine.hung();
        let hung = hung.iter().filter_map(|call| {
            let gpu = inventory.gpus.iter().find(|gpu| Some(gpu.index) == call.gpu)?;
            let uuid = Some(gpu.uuid.clone());
            Some(NotServed { index: gpu.index, uuid, reason: call.to_string() })
        });
        unreadable.chain(hung).collect()
    }
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
