//! A whole simulated node: hardware, API server, kubelet and the agent under test, in short-lived
//! directories.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, NodeStatus, NodeSystemInfo};
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kerf_nvml::machine::{Machine, MachineSnapshot};
use kerf_nvml::node::NodeDescription;
use tempfile::TempDir;

use crate::agent::{Agent, AgentOptions};
use crate::apiserver::{ApiOptions, ApiServer};
use crate::kubelet::{self, Kubelet, Plugin, Wipe, Wiper};

/// Name of the driver under test.
pub const DRIVER: &str = "gpu.nvidia.com";

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    machine: NodeDescription,
    api: ApiOptions,
    kubelet: kubelet::Options,
    program: Vec<OsString>,
    flags: Vec<OsString>,
}

/// A running node. With its drop the agent is killed and all files are removed.
pub struct Testbed {
    /// The agent that was started last, if it was not taken.
    pub agent: Option<Agent>,
    /// The kubelet.
    pub kubelet: Kubelet,
    /// The API server.
    pub api: ApiServer,
    /// The hardware.
    pub machine: Machine,
    builder: Builder,
    before: MachineSnapshot,
    dir: TempDir,
    /// In memory where it can be, as `/run` is.
    run: TempDir,
}

impl Testbed {
    /// A node with this machine and an agent that is run as `<program> node <flags>`.
    pub fn builder(
        machine: NodeDescription,
        program: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Builder {
        Builder {
            name: "node-a".into(),
            machine,
            api: ApiOptions::default(),
            kubelet: kubelet::Options::default(),
            program: program.into_iter().map(Into::into).collect(),
            flags: vec![],
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.builder.name
    }

    /// Where the agent writes CDI files.
    pub fn cdi_root(&self) -> PathBuf {
        self.run.path().join("cdi")
    }

    /// What stands in for the host's `/`, where nothing is unless a test puts it there.
    pub fn host_root(&self) -> PathBuf {
        self.dir.path().join("h")
    }

    /// The kubelet's directory.
    pub fn kubelet_root(&self) -> PathBuf {
        self.dir.path().join("k")
    }

    /// The kubelet's directory for sockets of device plugins.
    pub fn device_plugins_dir(&self) -> PathBuf {
        self.kubelet.device_plugins_dir().to_path_buf()
    }

    /// The kubelet's podresources socket.
    pub fn pod_resources_socket(&self) -> PathBuf {
        self.kubelet.pod_resources_socket().to_path_buf()
    }

    /// The agent's directory of records, locks and sockets.
    pub fn state_dir(&self) -> PathBuf {
        self.kubelet_root().join("plugins").join(DRIVER)
    }

    /// The same node, with the hardware as it is now as its start.
    ///
    /// # Errors
    /// When the hardware cannot be read.
    pub fn starting_here(self) -> anyhow::Result<Self> {
        Ok(Self { before: self.machine.snapshot()?, ..self })
    }

    /// How an agent is started here, as a pod with this UID: change it for a wrapper or other flags.
    ///
    /// # Errors
    /// When no port is free.
    pub fn agent_options(&self, pod_uid: &str) -> anyhow::Result<AgentOptions> {
        let root = self.kubelet_root();
        let [health, http_endpoint] = free_addresses()?;
        Ok(AgentOptions {
            program: self.builder.program.clone(),
            wrapper: vec![],
            node_name: self.builder.name.clone(),
            kubeconfig: self.dir.path().join("kubeconfig"),
            registrar_dir: root.join("plugins_registry"),
            plugins_dir: root.join("plugins"),
            device_plugins_dir: self.device_plugins_dir(),
            pod_resources_socket: self.pod_resources_socket(),
            cdi_root: self.cdi_root(),
            nvml_library: self.machine.library(),
            driver_root: self.machine.driver_root(),
            nvidia_driver_root: Some(self.machine.driver_root()),
            proc_root: self.machine.proc_root(),
            sys_root: self.machine.sys_root(),
            dev_root: self.machine.dev_root(),
            host_root: self.host_root(),
            kernel_log: self.machine.kernel_log(),
            state_dir: None,
            pod_uid: pod_uid.to_owned(),
            healthcheck_port: health.port(),
            http_endpoint,
            flags: self.builder.flags.clone(),
            env: vec![],
            log: self.dir.path().join("agent.log"),
        })
    }

    /// Starts an agent in the place of the one before, which is killed first; returns when it is
    /// registered.
    ///
    /// # Errors
    /// When it cannot be started, or ends before it is registered.
    pub async fn start_agent(&mut self, pod_uid: &str) -> anyhow::Result<Plugin> {
        self.agent = None;
        let before = self.kubelet.state().registrations;
        let agent = Agent::spawn(&self.unprobed_options(pod_uid)?)?;
        agent.while_running(self.kubelet.wait_for(|state| state.registrations > before)).await?;
        let plugin = agent.while_running(self.kubelet.registered(DRIVER)).await?;
        self.agent = Some(agent);
        Ok(plugin)
    }

    /// As [`Self::start_agent`], for an agent that offers extended resources; returns when the kubelet knows the
    /// devices of this one.
    ///
    /// # Errors
    /// When it cannot be started, or ends before that.
    pub async fn start_plugin_agent(&mut self, pod_uid: &str, name: &str) -> anyhow::Result<()> {
        self.agent = None;
        let agent = Agent::spawn(&self.unprobed_options(pod_uid)?)?;
        let known = self.kubelet.wait_for(|state| {
            state.resources.get(name).is_some_and(|resource| resource.allocatable() > 0)
        });
        agent.while_running(known).await?;
        self.agent = Some(agent);
        Ok(())
    }

    /// As [`Self::agent_options`], for an agent that nobody probes: on any port, so that two never want the same
    /// one.
    fn unprobed_options(&self, pod_uid: &str) -> anyhow::Result<AgentOptions> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(AgentOptions {
            healthcheck_port: 0,
            http_endpoint: anywhere,
            ..self.agent_options(pod_uid)?
        })
    }

    /// Waits until a whole pool of this node is published, and returns its slices.
    pub async fn published(&self) -> Vec<ResourceSlice> {
        self.api.wait_until(|_| whole(&self.slices())).await;
        self.slices()
    }

    /// The slices of this node, in the order of their names.
    pub fn slices(&self) -> Vec<ResourceSlice> {
        let mut slices = self.api.list::<ResourceSlice>();
        slices.retain(|slice| slice.spec.node_name.as_deref() == Some(self.name()));
        slices
    }

    /// What is there that was not there at the start: instances, MIG modes, records, CDI files and
    /// sockets that nobody listens on. One line each, none when all is clean.
    ///
    /// # Errors
    /// When the node cannot be read.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut left = self.cut()?;
        let files = |dir: PathBuf, what: &str| -> anyhow::Result<Vec<String>> {
            Ok(entries(&dir)?.iter().map(|path| format!("{what} `{}`", path.display())).collect())
        };
        for records in ["claims", "containers"] {
            left.extend(files(self.state_dir().join(records), "record")?);
        }
        left.extend(files(self.cdi_root(), "CDI file")?);
        // The device plugin's file is there for as long as the agent is.
        left.retain(|file| !file.contains(kerf::model::cdi::PLUGIN_FILE));
        for dir in [self.kubelet_root().join("plugins_registry"), self.state_dir()] {
            let dead = entries(&dir)?.into_iter().filter(|path| dead_socket(path));
            left.extend(dead.map(|path| format!("dead socket `{}`", path.display())));
        }
        Ok(left)
    }

    /// Instances and MIG modes that are not as at the start.
    fn cut(&self) -> anyhow::Result<Vec<String>> {
        let now = self.machine.snapshot()?;
        let mut left = vec![];
        for (before, now) in self.before.gpus.iter().zip(&now.gpus) {
            let places = |gpu: &kerf_nvml::machine::GpuSnapshot| -> BTreeSet<_> {
                gpu.instances.iter().map(|gi| (gi.start, gi.size, gi.profile)).collect()
            };
            for (start, size, profile) in places(now).symmetric_difference(&places(before)) {
                left.push(format!(
                    "instance of profile {profile} at {start}+{size} of {}",
                    now.uuid
                ));
            }
            if before.mig != now.mig {
                left.push(format!("MIG mode {:?} of {}, was {:?}", now.mig, now.uuid, before.mig));
            }
        }
        Ok(left)
    }
}

impl Builder {
    /// Another API server, and a kubelet of the same release.
    #[must_use]
    pub fn api(mut self, api: ApiOptions) -> Self {
        self.kubelet.release = api.release.1;
        self.api = api;
        self
    }

    /// Another kubelet; what wipes slices is always set.
    #[must_use]
    pub fn kubelet(self, kubelet: kubelet::Options) -> Self {
        Self { kubelet, ..self }
    }

    /// One more flag for every agent.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Makes the node and starts all but the agent.
    ///
    /// # Errors
    /// When a part cannot be made.
    pub async fn start_without_agent(mut self) -> anyhow::Result<Testbed> {
        // Sockets have room for 107 bytes, so this path is short.
        let dir = directory("/tmp")?;
        let run = directory("/dev/shm").or_else(|_| directory("/tmp"))?;
        let machine = Machine::create(&dir.path().join("m"), &self.machine)
            .context("cannot make the machine")?;
        let api = ApiServer::start(self.api.clone()).await?;
        api.write_kubeconfig(&dir.path().join("kubeconfig"))?;
        api.create(&node(&self.name, self.api.release))?;
        self.kubelet.wipe = Some(wiper(&api, &self.name));
        let kubelet = Kubelet::start(&dir.path().join("k"), self.kubelet.clone())?;
        // The kubelet wipes at its start: what is published after this stays.
        kubelet.wait_for(|state| state.wipes.contains(&Wipe::Node)).await;
        let before = machine.snapshot()?;
        Ok(Testbed { agent: None, kubelet, api, machine, builder: self, before, dir, run })
    }

    /// Makes the node, and returns when the agent is registered and its pool published.
    ///
    /// # Errors
    /// When a part cannot be made, or the agent ends.
    pub async fn start(self) -> anyhow::Result<Testbed> {
        let mut testbed = self.start_without_agent().await?;
        testbed.start_agent("a").await?;
        if let Some(agent) = &testbed.agent {
            agent.while_running(testbed.published()).await?;
        }
        Ok(testbed)
    }
}

fn directory(within: &str) -> anyhow::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("kerf").tempdir_in(within);
    dir.with_context(|| format!("no directory in `{within}`"))
}

fn node(name: &str, (major, minor): (u32, u32)) -> Node {
    let info =
        NodeSystemInfo { kubelet_version: format!("v{major}.{minor}.0"), ..Default::default() };
    Node {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        status: Some(NodeStatus { node_info: Some(info), ..Default::default() }),
        ..Default::default()
    }
}

fn wiper(api: &ApiServer, node: &str) -> Wiper {
    let (api, node) = (api.clone(), node.to_owned());
    Arc::new(move |wipe| {
        let selector = match wipe {
            Wipe::Node => format!("spec.nodeName={node}"),
            Wipe::Driver(driver) => format!("spec.driver={driver},spec.nodeName={node}"),
        };
        let wiped = api.delete_all::<ResourceSlice>(&selector);
        Box::pin(async move {
            // The selector is ours: only a mistake here makes this fail.
            assert!(wiped.is_ok(), "cannot wipe `{selector}`: {wiped:?}");
        })
    })
}

/// Whether slices are one generation of a pool, none missing.
fn whole(slices: &[ResourceSlice]) -> bool {
    let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
    let mut current = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
    let count = i64::try_from(current.clone().count()).unwrap_or(i64::MAX);
    count > 0 && current.all(|slice| slice.spec.pool.resource_slice_count == count)
}

/// Sorted paths in a directory; none where there is no directory.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing = match dir.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        listing => listing.with_context(|| format!("cannot read `{}`", dir.display()))?,
    };
    let mut paths = listing.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn dead_socket(path: &Path) -> bool {
    let socket = path.metadata().is_ok_and(|file| file.file_type().is_socket());
    socket && UnixStream::connect(path).is_err()
}

/// Two addresses on which nobody listens now.
fn free_addresses() -> anyhow::Result<[SocketAddr; 2]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let both = [listen()?, listen()?];
    Ok([both[0].local_addr()?, both[1].local_addr()?])
}
