//! The agent's life: getting ready, waiting for its turn, serving, handing over.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    doors::door_settings,
    kept,
    labels::keep_labels,
    listen,
    metrics::Page,
    node::{AdoptMig, Args},
    orders, plugin_config,
    report::{Phase, Reporter},
    rescan::LOOK_FOR_DRIVER,
    standby,
};
use crate::{
    cluster::{Cluster, PublishSettings, events::Events},
    driver::{
        AgentLock, Driver, Parts, PluginParts,
        machine::{Library, Machine},
    },
    kubelet::{self, Served, probe, rival},
    metrics::Metrics,
    model::{DRIVER, plan::Origin, plugin::config::Config},
    node::{
        hook, lock,
        store::{Numbers, Predecessor, Store},
    },
    telemetry::{self, http, status},
};

/// How long work under way may take once the agent is told to end; the kubelet kills after 30 s.
const LAST_WORK: Duration = Duration::from_secs(25);

/// Runs until SIGTERM or SIGINT, or until a successor has taken over.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let told = told.boxed().shared();
    tokio::select! {
        served = serve(args, told.clone()) => served,
        // Still getting ready or standing by: there is nothing to hand over.
        () = async { told.clone().await; sleep(LAST_WORK + Duration::from_secs(2)).await } => Ok(()),
    }
}

async fn serve(
    args: Args,
    told: impl Future<Output = ()> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let ready = tokio::select! {
        ready = Ready::new(&args) => ready?,
        () = told.clone() => return Ok(()),
    };
    let end = ready.end(told);
    let (lock, doors) = match standby::try_acquire(&ready.state_dir).context(NO_LOCK)? {
        Some(lock) => (lock, None),
        None => {
            tracing::info!("standing by: another agent acts on this node");
            ready.reporter.enter(Phase::StandingBy);
            let mut doors = ready.early_doors(&args, &end).await?;
            let ended = async {
                match &mut doors {
                    Some(doors) => doors.ended().await,
                    None => {
                        end.clone().await;
                        Ok(())
                    }
                }
            };
            tokio::select! {
                lock = standby::acquire(&ready.state_dir) => (lock.context(NO_LOCK)?, doors),
                served = ended => return Ok(served?),
            }
        }
    };
    ready.act(&args, lock, doors, end).await
}

/// Resolves when the agent is to stop serving.
pub(super) type End = Shared<BoxFuture<'static, ()>>;

const NO_LOCK: &str = "cannot take the node's agent lock";

/// All that an agent has before it acts.
pub(super) struct Ready {
    state_dir: PathBuf,
    pub(super) host_root: PathBuf,
    pub(super) boot_id: String,
    pub(super) store: Store,
    pub(super) cluster: Cluster,
    pub(super) machine: Arc<Machine>,
    pub(super) reporter: Reporter,
    pub(super) metrics: Metrics,
    pub(super) probed: watch::Sender<probe::Target>,
    /// What is on disk of the numbers of GPUs, as far as this agent wrote it.
    pub(super) kept_numbers: watch::Sender<Numbers>,
    /// The driver, once this agent acts.
    pub(super) acting: watch::Sender<Option<Arc<Driver>>>,
}

impl Ready {
    async fn new(args: &Args) -> anyhow::Result<Self> {
        let machine = &args.machine;
        let state_dir = machine.state_dir();
        let store = Store::open(&state_dir, &machine.cdi_root)?;
        let host = machine.host();
        let boot_id = host.boot_id()?;
        let cluster = Cluster::connect(args.kubeconfig.as_deref()).await?;
        let metrics = Metrics::default();
        let machine = Machine::new(machine.nvml_library.clone(), host, metrics.clone());
        let machine = Arc::new(machine);
        let reporter = Reporter::new(machine.clone(), boot_id.clone());
        let probed = watch::Sender::new(probe::Target::Closed);
        let host_root = args.host_root.clone();
        let (acting, kept_numbers) = (watch::Sender::new(None), watch::Sender::default());
        let ready = Self {
            state_dir,
            host_root,
            boot_id,
            store,
            cluster,
            machine,
            reporter,
            metrics,
            probed,
            kept_numbers,
            acting,
        };
        ready.answer_probes(args).await?;
        ready.machine.preload().await;
        Ok(ready)
    }

    async fn answer_probes(&self, args: &Args) -> anyhow::Result<()> {
        if let Ok(port) = u16::try_from(args.healthcheck_port) {
            let listener = listen::port(port);
            let listener =
                listener.with_context(|| format!("cannot listen on health port {port}"))?;
            tracing::info!(address = %listener.local_addr()?, "gRPC health");
            let target = self.probed.subscribe();
            tokio::spawn(async {
                if let Err(error) = probe::serve(listener, target, std::future::pending()).await {
                    tracing::error!(%error, "gRPC health has ended");
                }
            });
        }
        if !args.http_endpoint.is_empty() {
            let endpoint = &args.http_endpoint;
            let listener = listen::endpoint(endpoint).await;
            let listener = listener.with_context(|| format!("cannot listen on `{endpoint}`"))?;
            tracing::info!(address = %listener.local_addr()?, "HTTP");
            let reporter = self.reporter.clone();
            let metrics = self.metrics.clone();
            let page = Page::new(&args.metrics, &args.node_name, metrics, reporter.clone());
            let page = Arc::new(move |format| page.text(format));
            tokio::spawn(http::serve(listener, Arc::new(move || reporter.unready()), page));
        }
        Ok(())
    }

    /// When this agent was told to end, and has finished what was under way.
    fn end(&self, told: impl Future<Output = ()> + Send + 'static) -> End {
        let acting = self.acting.subscribe();
        let end = async move {
            told.await;
            let driver = acting.borrow().clone();
            let Some(driver) = driver else { return };
            tracing::info!("handing over");
            if !driver.finish(LAST_WORK).await {
                tracing::warn!("some work is still under way; its record says how far it came");
            }
        };
        end.boxed().shared()
    }

    /// Acts as the node's agent: recover, serve at the doors, publish; and at the end hand over.
    async fn act(
        self,
        args: &Args,
        lock: AgentLock,
        doors: Option<Served>,
        end: End,
    ) -> anyhow::Result<()> {
        let socket = self.state_dir.join("agent.sock");
        let (listener, socket_file) = status::bind(&socket)
            .with_context(|| format!("cannot bind the status socket `{}`", socket.display()))?;
        let reporter = self.reporter.clone();
        tokio::spawn(status::serve(listener, Arc::new(move || reporter.status())));

        let settings = PublishSettings { driver: DRIVER.to_owned(), node: args.node_name.clone() };
        let events = Events::start(self.cluster.clone(), settings.clone());
        let lost = self.lost(&lock);
        self.install_hook(args, &events);
        let plugin =
            plugin_config::follow(&args.plugin, &args.node_name, &self.cluster, &self.store);
        self.reporter.configured(plugin.warning);
        let kept = tokio::select! {
            kept = self.kept(&events) => kept,
            () = end.clone() => return Ok(()),
        };
        let driver = Arc::new(self.driver(args, lock, &events, &plugin.config, kept)?);
        tokio::spawn(keep_labels(args.labels.clone(), self.machine.clone(), plugin.config));
        self.look(&driver, &events).await;
        tokio::select! {
            taken = self.take_over(args, &driver, &events) => taken?,
            () = end.clone() => return Ok(()),
        }
        driver.recover().await;
        kubelet::remove_stale(&door_settings(args));
        // What containers have must be known before a door opens.
        driver.release_ended(false).await;
        self.acting.send_replace(Some(driver.clone()));
        let orders_file = self.take_orders(&driver)?;
        tracing::info!("acting on this node");
        self.reporter.enter(Phase::Acting(driver.clone()));
        let publisher = (settings, events.clone());
        tokio::select! {
            served = self.keep_doors(args, doors, end, &driver, publisher) => served?,
            () = self.rescan(&driver, &events) => {}
            () = self.compare(&driver) => {}
            () = driver.release_abandoned() => {}
            () = driver.watch_health() => {}
            () = driver.take_samples(args.metrics.interval()) => {}
            () = driver.evict_pods(), if args.health.evict_plugin_pods => {}
            () = driver.tell_claims_of_devices(), if args.health.claim_status => {}
            () = lost => {
                socket_file.leave();
                orders_file.leave();
                anyhow::bail!("another agent has taken over: this one was thought dead");
            }
        }
        Ok(())
    }

    /// Answers `kerf release-gpu` and `kerf clear-gpu`.
    fn take_orders(&self, driver: &Arc<Driver>) -> anyhow::Result<status::SocketFile> {
        let socket = self.state_dir.join(orders::SOCKET);
        let (listener, file) = status::bind(&socket)
            .with_context(|| format!("cannot bind the socket for orders `{}`", socket.display()))?;
        tokio::spawn(telemetry::orders::serve(listener, Arc::new(orders::Orders(driver.clone()))));
        Ok(file)
    }

    /// Where the host has Kerf's own hook.
    fn hook(&self) -> PathBuf {
        self.state_dir.join(hook::NAME)
    }

    /// Gives the host the hook, unless CDI files name another or none.
    fn install_hook(&self, args: &Args, events: &Events) {
        if args.no_cdi_hooks || args.nvidia_cdi_hook_path.is_some() {
            return;
        }
        let path = self.hook();
        match hook::install(&path) {
            Ok(true) => tracing::info!(path = %path.display(), "hook installed"),
            Ok(false) => {}
            Err(error) => {
                let note = format!(
                    "hook not installed: {:#}: containers with GPUs start only with a hook: put `{}` beside \
                     the agent's program, or give `--nvidia-cdi-hook-path` or `--no-cdi-hooks`",
                    anyhow::Error::from(error),
                    hook::NAME,
                );
                tracing::error!("{note}");
                events.warn_node("HookNotInstalled", &note);
            }
        }
    }

    /// What NVIDIA's driver left becomes ours, once it is gone and before the kubelet can ask for it.
    async fn take_over(
        &self,
        args: &Args,
        driver: &Arc<Driver>,
        events: &Events,
    ) -> anyhow::Result<()> {
        let directory = args.machine.plugin_dir();
        rival::check(&args.kubelet_registrar_directory_path, &directory).await?;
        let from = Predecessor::new(&directory, self.store.clone());
        if !from.checkpoint().try_exists().unwrap_or(true) {
            return Ok(());
        }
        // Only the GPUs tell what the names in it mean.
        while matches!(&*self.machine.watch().borrow(), Library::Missing(_)) {
            sleep(LOOK_FOR_DRIVER).await;
            self.look(driver, events).await;
        }
        let mig = args.adopt_mig.map(|made| match made {
            AdoptMig::Dynamic => Origin::Made,
            AdoptMig::Static => Origin::Found,
        });
        let claims = driver.take_over(from, mig).await?;
        tracing::info!(claims, "taken over from NVIDIA's DRA driver");
        Ok(())
    }

    fn driver(
        &self,
        args: &Args,
        lock: AgentLock,
        events: &Events,
        config: &watch::Receiver<Option<Arc<Config>>>,
        kept: kept::Kept,
    ) -> anyhow::Result<Driver> {
        let kept::Kept { records, unread, health, numbers } = kept;
        self.machine.use_numbers(numbers.gpus, numbers.described);
        let hook = args.nvidia_cdi_hook_path.clone().unwrap_or_else(|| self.hook());
        Ok(Driver::new(Parts {
            node: args.node_name.clone(),
            boot_id: self.boot_id.clone(),
            hook: (!args.no_cdi_hooks).then_some(hook),
            machine: self.machine.clone(),
            store: self.store.clone(),
            records,
            unread,
            cluster: self.cluster.clone(),
            events: events.clone(),
            lock,
            pods: Arc::new(args.doors.pod_resources(&args.host_root, args.pod_uid.as_deref())),
            plugin: PluginParts {
                config: config.clone(),
                on_demand: args.doors.mig_on_demand,
                split: args.doors.split(),
            },
            health: args.health.parts(health, &self.boot_id)?,
            metrics: self.metrics.clone(),
        }))
    }

    /// Returns when a successor has put its own lock file in the place of ours.
    fn lost(&self, lock: &AgentLock) -> impl Future<Output = ()> + use<> {
        let file = lock.file.try_clone();
        let path = lock.path.clone();
        async move {
            let Ok(file) = file else { return std::future::pending().await };
            let mut look = interval(Duration::from_secs(1));
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while lock::is_current(&file, &path) {
                look.tick().await;
            }
        }
    }
}
