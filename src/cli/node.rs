//! `kerf node`: the agent of a node.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use tokio::runtime;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use super::{
    agent, doors::DoorArgs, health::HealthArgs, labels::LabelArgs, machine::MachineArgs,
    metrics::MetricsArgs, plugin_config::PluginArgs, style::Style,
};
use crate::node::memory;

/// Arguments of `kerf node`. Names and environment are those of NVIDIA's driver where they mean the
/// same.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where the machine's parts are.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Name of the node, and so of its pool.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Address and credentials of the API server; the pod's service account if not given.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Where the kubelet looks for registration sockets.
    #[arg(
        long,
        env = "KUBELET_REGISTRAR_DIRECTORY_PATH",
        default_value = "/var/lib/kubelet/plugins_registry"
    )]
    pub kubelet_registrar_directory_path: PathBuf,
    /// UID of the agent's pod, which names the sockets.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// Port of gRPC health for the kubelet's probes; 0 is any, -1 none.
    #[arg(long, env = "HEALTHCHECK_PORT", default_value_t = -1, allow_negative_numbers = true)]
    pub healthcheck_port: i32,
    /// Address of /healthz and /readyz over HTTP, such as `:8080`; none if empty.
    #[arg(long, env = "HTTP_ENDPOINT", default_value = "")]
    pub http_endpoint: String,
    /// The host's `/`, as this process sees it: the container runtime's configuration is read there.
    #[arg(long, env = "HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,
    /// Who made the MIG devices of claims that are taken over from NVIDIA's driver, which does not
    /// write that down.
    #[arg(long, env = "ADOPT_MIG")]
    pub adopt_mig: Option<AdoptMig>,
    /// The hook that CDI files name, as the host sees it; `kerf-cdi-hook` in the state directory if not
    /// given.
    #[arg(long, env = "NVIDIA_CDI_HOOK_PATH")]
    pub nvidia_cdi_hook_path: Option<PathBuf>,
    /// Write CDI files without hooks.
    #[arg(long, env = "NO_CDI_HOOKS")]
    pub no_cdi_hooks: bool,
    /// Which doors are open, and what is offered there.
    #[command(flatten)]
    pub doors: DoorArgs,
    /// Labels of the node.
    #[command(flatten)]
    pub labels: LabelArgs,
    /// Health of the GPUs, and what follows from it.
    #[command(flatten)]
    pub health: HealthArgs,
    /// What is measured, and how it is said.
    #[command(flatten)]
    pub metrics: MetricsArgs,
    /// How the device plugin is configured.
    #[command(flatten)]
    pub plugin: PluginArgs,
    /// Form of the log.
    #[arg(long, env = "LOGGING_FORMAT", default_value = "text")]
    pub logging_format: LoggingFormat,
    /// What to log: a level, or `target=level` pairs separated by commas.
    #[arg(long, env = "LOG", default_value = "info")]
    pub log: String,
}

/// Who made MIG devices that NVIDIA's driver prepared.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum AdoptMig {
    /// NVIDIA's driver (feature gate DynamicMIG): they are destroyed with their claims.
    Dynamic,
    /// An administrator: they stay.
    Static,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LoggingFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting, or from going on.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    memory::share_heap();
    log(&args)?;
    // Calls that block have threads of their own.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(agent::run(args));
    // A thread may hang in the driver: the end does not wait for it.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn log(args: &Args) -> anyhow::Result<()> {
    let targets: Targets = args.log.parse().context("`--log` is not a list of levels")?;
    // `kubectl logs` and files show escapes as they are.
    let ansi = Style::of_stderr().color;
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let registry = tracing_subscriber::registry().with(targets);
    match args.logging_format {
        LoggingFormat::Text => registry.with(log).init(),
        LoggingFormat::Json => registry.with(log.json()).init(),
    }
    Ok(())
}
