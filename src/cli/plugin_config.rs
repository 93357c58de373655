//! The device plugin's configuration: from flags, and from a file that the node's label chooses.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::{sync::watch, time::sleep};

use crate::{
    cluster::{Cluster, node_label},
    model::plugin::{
        choice::{Choice, Label, Remembered, choose},
        config::{Config, IdStrategy, ListStrategy, MigStrategy, Overrides, SharedPolicy, boolean},
    },
    node::{
        store::Store,
        watch::{Change, Changes},
    },
};

/// After a change, for more of them to come: files are replaced in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// Before a directory that cannot be listened to is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How the device plugin is configured. Names and environment are those of NVIDIA's device plugin and of
/// its sidecar; what is given here wins over the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PluginArgs {
    /// Configuration file, or a directory of such files, from which the node's label chooses.
    #[arg(long, env = "CONFIG_FILE", default_value = "")]
    pub config_file: String,
    /// Configuration file in that directory for nodes without the label; `default`, or the only one, if not
    /// given.
    #[arg(long, env = "DEFAULT_CONFIG", default_value = "")]
    pub default_config: String,
    /// Label of the node that names its configuration file.
    #[arg(long, env = "NODE_LABEL", default_value = "nvidia.com/device-plugin.config")]
    pub node_label: String,
    /// Under which names MIG devices are offered.
    #[arg(long, env = "MIG_STRATEGY", value_parser = words(&MigStrategy::WORDS))]
    pub mig_strategy: Option<MigStrategy>,
    /// How containers are told of their devices; several with commas between them.
    #[arg(
        long,
        env = "DEVICE_LIST_STRATEGY",
        value_delimiter = ',',
        value_parser = words(&ListStrategy::WORDS)
    )]
    pub device_list_strategy: Vec<ListStrategy>,
    /// What devices are called in answers.
    #[arg(long, env = "DEVICE_ID_STRATEGY", value_parser = words(&IdStrategy::WORDS))]
    pub device_id_strategy: Option<IdStrategy>,
    /// Whether answers list device nodes, which the CPU manager's updates of a container keep.
    #[arg(
        long,
        env = "PASS_DEVICE_SPECS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = flag
    )]
    pub pass_device_specs: Option<bool>,
    /// Whether containers get GPUDirect RDMA copies.
    #[arg(
        long,
        env = "GDRCOPY_ENABLED",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = flag
    )]
    pub gdrcopy_enabled: Option<bool>,
    /// Whether containers get GPUDirect Storage.
    #[arg(
        long,
        env = "GDS_ENABLED",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = flag
    )]
    pub gds_enabled: Option<bool>,
    /// Whether containers get InfiniBand's devices.
    #[arg(
        long,
        env = "MOFED_ENABLED",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = flag
    )]
    pub mofed_enabled: Option<bool>,
    /// What annotations with CDI names begin with.
    #[arg(long, env = "CDI_ANNOTATION_PREFIX")]
    pub cdi_annotation_prefix: Option<String>,
    /// Which GPU a share is taken from.
    #[arg(long, env = "SHARED_DEVICES_ALLOCATION_POLICY", value_parser = words(&SharedPolicy::WORDS))]
    pub shared_devices_allocation_policy: Option<SharedPolicy>,
    /// IMEX channels that containers get: 0, or none.
    #[arg(
        long,
        env = "IMEX_CHANNEL_IDS",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(..=0)
    )]
    pub imex_channel_ids: Vec<u32>,
}

/// A word that stands for a value.
fn words<T: Copy + Send + Sync + 'static>(
    known: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    let parser = PossibleValuesParser::new(known.iter().map(|(word, _)| *word));
    parser.try_map(|said| {
        let found = known.iter().find(|(word, _)| *word == said);
        found.map(|(_, value)| *value).ok_or("not one of the words")
    })
}

fn flag(text: &str) -> Result<bool, &'static str> {
    boolean(text).ok_or("use true or false")
}

impl PluginArgs {
    fn overrides(&self) -> Overrides {
        let strategies = self.device_list_strategy.iter().copied().collect::<BTreeSet<_>>();
        let mut channels = self.imex_channel_ids.clone();
        channels.dedup();
        Overrides {
            mig_strategy: self.mig_strategy,
            list_strategies: Some(strategies).filter(|strategies| !strategies.is_empty()),
            id_strategy: self.device_id_strategy,
            pass_device_specs: self.pass_device_specs,
            gdrcopy: self.gdrcopy_enabled,
            gds: self.gds_enabled,
            mofed: self.mofed_enabled,
            cdi_annotation_prefix: self
                .cdi_annotation_prefix
                .clone()
                .filter(|text| !text.is_empty()),
            shared_policy: self.shared_devices_allocation_policy,
            imex_channels: Some(channels).filter(|channels| !channels.is_empty()),
        }
    }
}

/// The configuration as it is now.
#[derive(Clone, Debug)]
pub struct PluginConfig {
    /// What counts; none until there is a good one.
    pub config: watch::Receiver<Option<Arc<Config>>>,
    /// Why it is not what the files say, in one line.
    pub warning: watch::Receiver<Option<String>>,
}

/// Follows file and label, until nobody asks for the configuration any more. Without a file, the flags alone
/// count, and the API server is not asked.
pub fn follow(args: &PluginArgs, node: &str, cluster: &Cluster, store: &Store) -> PluginConfig {
    let (cluster, node, key) = (cluster.clone(), node.to_owned(), args.node_label.clone());
    follow_with(args, store, move || node_label(&cluster, &node, &key))
}

fn follow_with(
    args: &PluginArgs,
    store: &Store,
    label_of: impl Fn() -> watch::Receiver<Label> + Send + Sync + 'static,
) -> PluginConfig {
    let overrides = args.overrides();
    if args.config_file.is_empty() {
        let config = Arc::new(Config::default().with(&overrides));
        let (config, warning) = (watch::channel(Some(config)).1, watch::channel(None).1);
        return PluginConfig { config, warning };
    }
    let ((tell_config, config), (tell_warning, warning)) =
        (watch::channel(None), watch::channel(None));
    let follower = Follower {
        path: PathBuf::from(&args.config_file),
        default: Some(args.default_config.clone()).filter(|name| !name.is_empty()),
        overrides,
        store: store.clone(),
        remembered: remembered(store),
        config: tell_config,
        warning: tell_warning,
    };
    tokio::spawn(follower.run(label_of));
    PluginConfig { config, warning }
}

/// What was chosen before this start.
fn remembered(store: &Store) -> Option<Remembered> {
    match store.choice() {
        Ok((choice, None)) => choice,
        Ok((choice, Some(aside))) => {
            tracing::warn!("set aside `{}`: {}", aside.path.display(), aside.reason);
            choice
        }
        Err(error) => {
            tracing::warn!("{:#}", anyhow::Error::from(error));
            None
        }
    }
}

struct Follower {
    path: PathBuf,
    default: Option<String>,
    overrides: Overrides,
    store: Store,
    remembered: Option<Remembered>,
    config: watch::Sender<Option<Arc<Config>>>,
    warning: watch::Sender<Option<String>>,
}

impl Follower {
    async fn run(mut self, label_of: impl Fn() -> watch::Receiver<Label>) {
        let unheard = self.config.clone();
        let follow = async {
            let mut label = None;
            loop {
                // First listen, then look: what changes in between is not missed.
                let changes = Changes::of(directory(&self.path));
                if self.path.is_dir() {
                    label.get_or_insert_with(&label_of).borrow_and_update();
                }
                let looked = self.look(label.as_ref().map(|label| label.borrow().clone()));
                self.tell(looked);
                tokio::select! {
                    () = changed(changes) => sleep(SETTLE).await,
                    () = told(&mut label) => {}
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = unheard.closed() => {}
        }
    }

    /// The configuration as the files say, or why there is none.
    fn look(&mut self, label: Option<Label>) -> Result<Config, String> {
        let Some(label) = label.filter(|_| self.path.is_dir()) else {
            return self.read(&self.path);
        };
        let files = files(&self.path).map_err(|error| unreadable(&self.path, &error))?;
        let default = self.default.as_deref();
        let choice = choose(&files, &label, default, self.remembered.as_ref());
        let (config, file) = match choice {
            Choice::Stay(why) => return Err(why),
            Choice::Plain => (Config::default().with(&self.overrides), None),
            Choice::File(name) => (self.read(&self.path.join(&name))?, Some(name)),
        };
        self.remember(Remembered { file });
        Ok(config)
    }

    fn read(&self, path: &Path) -> Result<Config, String> {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        let read = Config::read(&text, &self.overrides);
        read.map_err(|error| format!("configuration `{}`: {error}", path.display()))
    }

    /// Keeps a choice that turned out well, for a start without an API server.
    fn remember(&mut self, choice: Remembered) {
        if self.remembered.as_ref() == Some(&choice) {
            return;
        }
        if let Err(error) = self.store.save_choice(&choice) {
            tracing::warn!("choice of a configuration not kept: {:#}", anyhow::Error::from(error));
        }
        self.remembered = Some(choice);
    }

    fn tell(&self, looked: Result<Config, String>) {
        let warning = match looked {
            Ok(config) => {
                self.config.send_if_modified(|known| {
                    let news = known.as_deref() != Some(&config);
                    if news {
                        tracing::info!(?config, "device plugin configured");
                        *known = Some(Arc::new(config));
                    }
                    news
                });
                None
            }
            Err(why) if self.config.borrow().is_some() => {
                Some(format!("{why}; the last good configuration stays"))
            }
            Err(why) => Some(format!("{why}; no resources are offered")),
        };
        self.warning.send_if_modified(|known| {
            let news = *known != warning;
            if let Some(warning) = warning.as_ref().filter(|_| news) {
                tracing::warn!("{warning}");
            }
            *known = warning;
            news
        });
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read `{}`: {error}", path.display())
}

/// Where changes of a path are seen: in the directory that it is, or that it is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        _ if path.is_dir() => path,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Names of the files in a directory; a mounted ConfigMap has its own links beside them, behind a dot.
fn files(dir: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'));
        names.extend(name.filter(|_| entry.path().is_file()));
    }
    Ok(names)
}

/// Returns when something changed; after a while where the kernel does not tell.
async fn changed(changes: io::Result<Changes>) {
    let told: io::Result<Change> = match changes {
        Ok(mut changes) => changes.next().await,
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "configuration file not listened to; looking again in {RETRY:?}");
        sleep(RETRY).await;
    }
}

/// Returns when the label changed.
async fn told(label: &mut Option<watch::Receiver<Label>>) {
    let ended = match label {
        Some(label) => label.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
