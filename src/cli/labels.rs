//! The labels of the node, kept current in a feature file.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    driver::machine::{Library, Machine},
    model::{
        gpu::Inventory,
        labels::{Facts, Vgpu, labels},
        plugin::config::Config,
    },
    node::{features, host::Host},
};

/// What the node's labels say, and where. Environment variables are those of NVIDIA's GPU feature
/// discovery where they mean the same.
#[derive(Clone, Debug, clap::Args)]
pub struct LabelArgs {
    /// Feature file for the node's labels; none if empty. NFD reads those in
    /// `/etc/kubernetes/node-feature-discovery/features.d`.
    #[arg(long, env = "NODE_LABELS_FILE", default_value = "")]
    pub node_labels_file: OsString,
    /// Label the node without the time at which the agent was started.
    #[arg(long, env = "GFD_NO_TIMESTAMP")]
    pub no_timestamp: bool,
    /// File that names the kind of machine; firmware's product name in sysfs if not given.
    #[arg(long, env = "GFD_MACHINE_TYPE_FILE")]
    pub machine_type_file: Option<OsString>,
}

/// Keeps the node's labels current: looks when the machine or the configuration has changed, and writes
/// where the file says something else or is gone. While no driver is loaded or no configuration is known
/// the file stays as it is: a driver that is loaded again would take the node's labels away for a moment.
/// Ends at once where there is no file to write.
pub async fn keep_labels(
    args: LabelArgs,
    machine: Arc<Machine>,
    mut config: watch::Receiver<Option<Arc<Config>>>,
) {
    if args.node_labels_file.is_empty() {
        return;
    }
    let file = Arc::new(Features::new(&args, machine.host().clone()));
    let mut library = machine.watch();
    loop {
        let found = library.borrow_and_update().clone();
        let configured = config.borrow_and_update().clone();
        if let (Library::Loaded(inventory), Some(config)) = (found, configured) {
            let file = file.clone();
            // A panic of it is in the log, and the next change is another try.
            _ = spawn_blocking(move || file.update(&inventory, &config)).await;
        }
        tokio::select! {
            Ok(()) = library.changed() => {}
            // A configuration that nobody changes any more is still one.
            Ok(()) = config.changed() => {}
            else => return,
        }
    }
}

/// The feature file, and what it says that does not change.
struct Features {
    path: PathBuf,
    host: Host,
    machine_type: Option<String>,
    started: Option<i64>,
}

impl Features {
    fn new(args: &LabelArgs, host: Host) -> Self {
        let machine = args.machine_type_file.as_ref().map(PathBuf::from);
        let machine = machine.unwrap_or_else(|| host.sys_root.join("class/dmi/id/product_name"));
        Self {
            path: PathBuf::from(&args.node_labels_file),
            machine_type: machine_type(&machine),
            started: if args.no_timestamp { None } else { now() },
            host,
        }
    }

    fn update(&self, inventory: &Inventory, config: &Config) {
        let facts = Facts {
            machine_type: self.machine_type.clone(),
            timestamp: self.started,
            vgpu: self.vgpu(inventory),
        };
        let path = self.path.display();
        match features::write(&self.path, &labels(&facts, inventory, config)) {
            Ok(true) => tracing::info!(%path, "node labels written"),
            Ok(false) => {}
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(%path, "node labels not written: {error:#}");
            }
        }
    }

    /// The first virtual GPU speaks for all; without one, all must be known to be none.
    fn vgpu(&self, inventory: &Inventory) -> Option<Vgpu> {
        let gpus = inventory.gpus.iter();
        let told: Vec<_> = gpus.map(|gpu| self.host.vgpu(&gpu.pci)).collect();
        let present = told.iter().flatten().find(|vgpu| **vgpu != Vgpu::Absent);
        match present {
            None if !told.contains(&None) && !told.is_empty() => Some(Vgpu::Absent),
            present => present.cloned(),
        }
    }
}

/// Absent where no file tells, as on many virtual machines.
fn machine_type(file: &Path) -> Option<String> {
    let bytes = fs::read(file);
    let bytes = bytes.inspect_err(|error| {
        tracing::warn!(file = %file.display(), %error, "the kind of machine is not known");
    });
    Some(String::from_utf8_lossy(&bytes.ok()?).into_owned())
}

/// Seconds since 1970.
fn now() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}
