//! The device plugin's side of the ledger: devices that containers hold. Nobody tells of a container's end,
//! so what the kubelet lists is compared with the records.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;

use super::{Driver, Error, error::outcome, now};
use crate::metrics::Door;
use crate::model::{
    cdi,
    claim::{Allocation, AllocationResult},
    device::{Device, Part, Target},
    ended::{Follows, Run, Said},
    holder::{Container, ContainerName, Holder},
    kubelet_checkpoint::Entry,
    plan::{Origin, Plan, PlannedDevice},
    plugin::{
        config::{Config, IdStrategy},
        id::DeviceId,
        response::{self, Given, Response},
    },
    record::{self, PreparedDevice, Record, State},
};

/// How long the kubelet may take to list a container after it was given a device.
const GRACE: Duration = Duration::from_secs(10);

/// Longer than anything that works with one list.
const KEPT: Duration = Duration::from_secs(600);

/// Which containers have which devices, as the kubelet knows it.
pub trait PodResources: Send + Sync {
    /// All containers with devices.
    ///
    /// # Errors
    /// Why the kubelet's word cannot be had, or not be relied on yet.
    fn list(&self) -> BoxFuture<'_, Result<Listed, String>>;

    /// The pods that have devices of extended resources, by their UIDs; ended ones may be among them.
    ///
    /// # Errors
    /// Why that is not known.
    fn owners(&self) -> BoxFuture<'_, Result<Vec<Entry>, String>>;
}

/// What the kubelet lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Containers with devices of extended resources, one entry a device.
    pub devices: Vec<Container>,
    /// The containers that have a claim, by its namespace and name (kubelets since 1.34).
    pub claims: ClaimContainers,
    /// All pods of the node, by namespace and name, those without devices too.
    pub pods: BTreeSet<(String, String)>,
    /// What the kubelet's own file names for pods that are not known to be gone, or why it cannot be read: the
    /// list leaves out init containers.
    pub kept: Result<Vec<Entry>, String>,
    /// Which run of the kubelet says so.
    pub run: Run,
    /// The qualified CDI names that containers have of claims.
    pub cdi: BTreeSet<String>,
}

impl Listed {
    /// Whether the pod of a container may be there: its name is known once the container was listed.
    fn has_pod_of(&self, holder: &Holder) -> bool {
        let name = holder.container().and_then(|container| container.name.as_ref());
        name.is_none_or(|name| self.pods.contains(&(name.namespace.clone(), name.pod.clone())))
    }
}

/// Containers by namespace and name of the claim that they have.
pub type ClaimContainers = BTreeMap<(String, String), Vec<ContainerName>>;

impl Driver {
    /// Gives a container devices of a resource: holds them, carves what is carved on demand, and says
    /// what the container needs.
    ///
    /// # Errors
    /// Nothing that this call began is left then.
    pub async fn allocate(
        self: &Arc<Self>,
        resource: &str,
        ids: &[String],
    ) -> Result<Response, Error> {
        let config = self.plugin_config().ok_or_else(|| Error::Resource {
            resource: resource.to_owned(),
            reason: "the device plugin has no configuration yet".to_owned(),
        })?;
        self.check_request(&config, resource, ids)?;
        let mut new = Vec::new();
        let response = async {
            self.hold_devices(resource, ids, &mut new).await?;
            let given = ids.iter().map(|id| self.given(id)).collect::<Result<Vec<_>, _>>()?;
            Ok(response::response(&config, &given, &self.machine.files()?.nodes))
        };
        let response = response.await;
        if response.is_err() {
            self.give_back(&new).await;
        }
        response
    }

    /// Holds devices; `new` are those that nobody held before.
    async fn hold_devices<'i>(
        self: &Arc<Self>,
        resource: &str,
        ids: &'i [String],
        new: &mut Vec<&'i String>,
    ) -> Result<(), Error> {
        for id in ids {
            let known = self.ledger.get(id).is_some();
            self.hold_device(resource, id).await?;
            if !known {
                new.push(id);
            }
        }
        self.tell_offer().await;
        Ok(())
    }

    /// Sees to it that a container that starts, perhaps anew after a reboot, finds its devices.
    ///
    /// # Errors
    /// The kubelet does not start the container then, and tries again.
    pub async fn before_start(
        self: &Arc<Self>,
        resource: &str,
        ids: &[String],
    ) -> Result<(), Error> {
        // One whose record cannot be read was given out, or nothing of it would start.
        let can_be_read = |id: &&String| self.ledger.unread_of(id).is_none();
        let ids: Vec<String> = ids.iter().filter(can_be_read).cloned().collect();
        let mut new = Vec::new();
        let held = self.hold_devices(resource, &ids, &mut new).await;
        if held.is_err() {
            self.give_back(&new).await;
        }
        held
    }

    /// The containers of claims, as the kubelet last listed them.
    pub fn claim_containers(&self) -> ClaimContainers {
        self.claim_containers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Compares the records with what the kubelet says: takes up what it gave out without us, notes the
    /// names of containers, and lets go of what has ended. Whether another comparison, [`APART`](crate::model::ended::APART) from this
    /// one, may find more ended; `urgent` if somebody waits for that.
    pub async fn release_ended(self: &Arc<Self>, urgent: bool) -> bool {
        let _turn = self.comparing.lock().await;
        let asked = Instant::now();
        let listed = match self.pods.list().await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(error, "containers are not known");
                return false;
            }
        };
        self.claim_containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&listed.claims);
        for container in &listed.devices {
            self.note_listed(&container.id, asked);
            if let Err(error) = self.take_up(container) {
                tracing::warn!(id = container.id, error = %error.line(), "container not taken up");
            }
        }
        self.take_up_kept(&listed);
        let follows = self.compare(&listed, asked, urgent);
        for (holder, _) in follows.iter().filter(|(_, follows)| *follows == Follows::Ended) {
            // Given out while this waited for its turn, it was not to be listed yet.
            let id = holder.key().to_owned();
            let ended = move |driver: &Self| !driver.is_given_since(&id, asked);
            if let Err(error) = self.let_go_if(holder, ended).await {
                tracing::warn!(id = holder.key(), error = %error.line(), "not released yet");
            }
        }
        let any = |what| follows.iter().any(|(_, follows)| *follows == what);
        if any(Follows::AskForFile) {
            self.repeat_offer();
        }
        any(Follows::AskForFile) || any(Follows::LookAgain)
    }

    /// What follows from the kubelet's word for each container's device.
    fn compare(&self, listed: &Listed, asked: Instant, urgent: bool) -> Vec<(Holder, Follows)> {
        let ids: BTreeSet<&str> =
            listed.devices.iter().map(|container| container.id.as_str()).collect();
        let now = self.began.elapsed();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.begin(listed.run, now);
        let mut follows = Vec::new();
        for record in self.ledger.all() {
            let holder = &record.plan.holder;
            if holder.container().is_none() {
                continue;
            }
            let id = holder.key();
            let said = match &listed.kept {
                _ if ids.contains(id) || self.is_given_since(id, asked) => Said::Listed,
                // The file is only written when a device is given out: it may name pods long gone.
                Ok(kept) if kept.iter().any(|entry| entry.id == id) => {
                    if listed.has_pod_of(holder) { Said::Kept } else { Said::Nothing }
                }
                Ok(_) => Said::Nothing,
                // Of before a reboot, nothing is left that an init container could use.
                Err(_) if record.boot_id != self.boot_id => Said::Nothing,
                Err(reason) => {
                    self.tell_unreadable(id, reason);
                    Said::Unknown
                }
            };
            let follow = looks.say(id, said, now, urgent);
            if follow == Follows::Ended {
                looks.forget(id);
            }
            follows.push((holder.clone(), follow));
        }
        follows
    }

    fn tell_unreadable(&self, id: &str, reason: &str) {
        let note = format!(
            "device `{id}` stays held: {reason}; an init container may have it, so it is held until the file can be \
             read or the node starts again"
        );
        tracing::debug!("{note}");
        // Said once.
        self.events.warn_node("KubeletCheckpointUnreadable", &note);
    }

    /// At the start, what only the kubelet's file names is held too: an init container may have it, and the
    /// records be lost. A claim that has it since shows that the file is old.
    fn take_up_kept(&self, listed: &Listed) {
        if self.kept_taken_up.swap(true, Ordering::SeqCst) {
            return;
        }
        let inventory = self.machine.inventory();
        for Entry { resource, id, .. } in listed.kept.iter().flatten() {
            let Some(parsed) = DeviceId::parse(id) else { continue };
            let Some(device) = parsed.resolve(&inventory) else { continue };
            let taken = |record: &Record| {
                record.plan.holder.claim().is_some()
                    && record.held().any(|held| *held.target.gpu() == device.gpu.uuid)
            };
            if self.ledger.get(id).is_some() || self.ledger.all().iter().any(taken) {
                continue;
            }
            let container = Container { id: id.clone(), resource: resource.clone(), name: None };
            if let Err(error) = self.take_up(&container) {
                tracing::warn!(id, error = %error.line(), "container not taken up");
            }
        }
    }

    async fn hold_device(self: &Arc<Self>, resource: &str, id: &str) -> Result<(), Error> {
        let timed = self.metrics.prepare(Door::DevicePlugin);
        let held = self.try_hold_device(resource, id).await;
        timed.end(outcome(&held));
        held
    }

    async fn try_hold_device(self: &Arc<Self>, resource: &str, id: &str) -> Result<(), Error> {
        let work = self.begin()?;
        let allocation = self.allocation(resource, id)?;
        self.note_given(id);
        self.hold(work, allocation).await?;
        // Carving may take its time.
        self.note_given(id);
        Ok(())
    }

    /// Takes back what a call that failed had begun.
    async fn give_back(self: &Arc<Self>, ids: &[&String]) {
        for id in ids {
            let Some(record) = self.ledger.get(id) else { continue };
            if let Err(error) = self.let_go(&record.plan.holder).await {
                tracing::warn!(id, error = %error.line(), "not released yet");
            }
        }
    }

    /// Nothing that is not offered, and not more shares than one container may have.
    fn check_request(&self, config: &Config, resource: &str, ids: &[String]) -> Result<(), Error> {
        let refused = |reason: String| Error::Resource { resource: resource.to_owned(), reason };
        let offer = self.offer();
        let known = |id: &String| offer.device(resource, id).is_some();
        if let Some(id) = ids.iter().find(|id| !known(id)) {
            return Err(refused(format!("unknown device: {id}")));
        }
        let shared = ids.iter().filter_map(|id| DeviceId::parse(id)?.share_number()).count();
        if shared > 1 && config.sharing.fail_requests_greater_than_one {
            return Err(refused(format!(
                "invalid request: maximum request size for shared resources is 1; found {shared}"
            )));
        }
        Ok(())
    }

    /// A device of the plugin in the words of claims. Where the GPU is silent, as it was recorded.
    fn allocation(&self, resource: &str, id: &str) -> Result<Allocation, Error> {
        let refused = |reason: &str| Error::Resource {
            resource: resource.to_owned(),
            reason: reason.to_owned(),
        };
        let parsed =
            DeviceId::parse(id).ok_or_else(|| refused(&format!("unknown device: {id}")))?;
        let record = self.ledger.get(id);
        let recorded = record.as_ref().and_then(|record| record.plan.devices.first());
        let inventory = self.machine.inventory();
        let device = parsed.resolve(&inventory).map(|device| device.name());
        let device = device.or_else(|| recorded.map(|planned| planned.device.clone()));
        let device = device.ok_or_else(|| {
            refused(&format!("device {id} is not there any more; delete the pod"))
        })?;
        let known = record.as_ref().and_then(|record| record.plan.holder.container());
        let container = Container {
            id: id.to_owned(),
            resource: resource.to_owned(),
            name: known.and_then(|container| container.name.clone()),
        };
        let result = AllocationResult {
            request: resource.to_owned(),
            pool: self.node.clone(),
            device,
            admin_access: false,
            share_id: parsed.share_number().map(|share| share.to_string()),
        };
        Ok(Allocation {
            holder: Holder::Container(container),
            pods: Vec::new(),
            results: vec![result],
            configurations: Vec::new(),
        })
    }

    /// What a container is given for one device that it holds.
    fn given(&self, id: &str) -> Result<Given, Error> {
        let lost = || Error::Device {
            device: id.to_owned(),
            reason: "it went away while it was given out; delete the pod".to_owned(),
        };
        let record = self.ledger.get(id).ok_or_else(lost)?;
        let planned = record.plan.devices.first().ok_or_else(lost)?;
        let inventory = self.machine.inventory();
        let gpu = inventory.gpu(planned.target.gpu()).ok_or_else(lost)?;
        let (instance, uuid) = match &planned.target {
            Target::Gpu { gpu } => (None, gpu.0.clone()),
            Target::Mig { profile, placement, .. } => {
                let instance = gpu.instance(*profile, *placement);
                let instance = instance.ok_or_else(lost)?;
                let device = instance.device().ok_or_else(lost)?;
                (Some(instance), device.uuid.clone())
            }
        };
        let parsed = DeviceId::parse(id).ok_or_else(lost)?;
        let index = match (self.id_strategy(), instance) {
            (IdStrategy::Uuid, _) => None,
            (IdStrategy::Index, None) => Some(gpu.index.to_string()),
            (IdStrategy::Index, Some(_)) => {
                let index = self.machine.nvml()?.mig_index(gpu, &uuid)?.ok_or_else(lost)?;
                Some(format!("{}:{index}", gpu.index))
            }
        };
        let nodes = self.nodes(gpu, instance)?;
        Ok(Given { id: parsed.device_name(), carved: parsed.is_placement(), uuid, index, nodes })
    }

    /// A container that the kubelet lists: one without record was given its device by an agent whose
    /// records are lost, or by NVIDIA's plugin, and holds what it has.
    fn take_up(&self, listed: &Container) -> Result<(), Error> {
        if self.ledger.unread_of(&listed.id).is_some() {
            return Ok(());
        }
        if let Some(record) = self.ledger.get(&listed.id) {
            let same =
                record.plan.holder.container().is_some_and(|known| known.name == listed.name);
            let Some(_turn) = (!same).then(|| self.claims.try_lock(&listed.id)).flatten() else {
                return Ok(());
            };
            let mut named = record;
            named.plan.holder = Holder::Container(listed.clone());
            return Ok(self.ledger.save(named)?);
        }
        let Some(id) = DeviceId::parse(&listed.id) else { return Ok(()) };
        let inventory = self.machine.inventory();
        let Some(device) = id.resolve(&inventory) else { return Ok(()) };
        tracing::info!(id = listed.id, resource = listed.resource, "taken up from the kubelet");
        Ok(self.ledger.save(self.found(listed, &id, &device))?)
    }

    fn found(&self, listed: &Container, id: &DeviceId, device: &Device<'_>) -> Record {
        let uuid = match device.part {
            Part::Whole => Some(device.gpu.uuid.0.clone()),
            Part::Mig(profile, placement) => {
                let instance = device.gpu.instance(profile.id, placement);
                instance.and_then(|instance| Some(instance.device()?.uuid.clone()))
            }
        };
        let planned = PlannedDevice {
            requests: vec![listed.resource.clone()],
            pool: self.node.clone(),
            device: device.name(),
            share_id: id.share_number().map(|share| share.to_string()),
            target: device.target(),
            origin: Origin::Found,
        };
        let cdi = vec![cdi::plugin_name(&id.device_name())];
        Record {
            version: record::VERSION,
            boot_id: self.boot_id.clone(),
            since: now(),
            plan: Plan {
                holder: Holder::Container(listed.clone()),
                pods: Vec::new(),
                devices: vec![planned],
            },
            state: State::Prepared { devices: vec![PreparedDevice { uuid, cdi }] },
            carving: None,
            leftover: false,
        }
    }

    fn note_given(&self, id: &str) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).forget(id);
        let mut given = self.given_at.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|_, at| at.elapsed() < KEPT);
        given.insert(id.to_owned(), Instant::now());
    }

    /// Once it is listed, what is not listed any more has ended.
    fn note_listed(&self, id: &str, asked: Instant) {
        let mut given = self.given_at.lock().unwrap_or_else(PoisonError::into_inner);
        if given.get(id).is_some_and(|at| *at < asked) {
            given.remove(id);
        }
    }

    /// Whether a device was given out so lately that the kubelet, asked then, need not list it yet.
    fn is_given_since(&self, id: &str, asked: Instant) -> bool {
        let given = self.given_at.lock().unwrap_or_else(PoisonError::into_inner);
        given.get(id).is_some_and(|at| asked.saturating_duration_since(*at) < GRACE)
    }
}
