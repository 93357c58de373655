//! Flags as people give them, and files that change under a running agent.

use std::os::unix::fs::symlink;

use clap::Parser;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::node::store::write_atomic;

/// A test that waits longer than this is stuck.
const STUCK: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    plugin: PluginArgs,
}

fn parse(flags: &[&str]) -> Result<PluginArgs, String> {
    let command = Command::try_parse_from([&["kerf"], flags].concat());
    command.map(|command| command.plugin).map_err(|error| error.to_string())
}

#[test]
fn flags_are_those_of_nvidias_device_plugin() {
    let args = parse(&[
        "--mig-strategy=mixed",
        "--device-list-strategy=envvar,cdi-cri",
        "--device-list-strategy=volume-mounts",
        "--device-id-strategy=index",
        "--pass-device-specs",
        "--gdrcopy-enabled=T",
        "--gds-enabled=false",
        "--mofed-enabled=1",
        "--cdi-annotation-prefix=example.com/",
        "--shared-devices-allocation-policy=packed",
        "--imex-channel-ids=0",
    ]);
    let expected = Overrides {
        mig_strategy: Some(MigStrategy::Mixed),
        list_strategies: Some(BTreeSet::from([
            ListStrategy::Envvar,
            ListStrategy::VolumeMounts,
            ListStrategy::CdiCri,
        ])),
        id_strategy: Some(IdStrategy::Index),
        pass_device_specs: Some(true),
        gdrcopy: Some(true),
        gds: Some(false),
        mofed: Some(true),
        cdi_annotation_prefix: Some("example.com/".to_owned()),
        shared_policy: Some(SharedPolicy::Packed),
        imex_channels: Some(vec![0]),
    };
    assert_eq!(args.map(|args| args.overrides()), Ok(expected));
    let none = parse(&["--config-file=", "--default-config=", "--cdi-annotation-prefix="]);
    assert_eq!(none.map(|args| args.overrides()), Ok(Overrides::default()));
}

#[test]
fn wrong_flags_are_refused() {
    for (flag, part) in [
        ("--mig-strategy=singel", "[possible values: none, single, mixed]"),
        ("--gds-enabled=maybe", "use true or false"),
        ("--imex-channel-ids=1", "1 is not in"),
    ] {
        let error = parse(&[flag]).err();
        assert!(error.as_ref().is_some_and(|error| error.contains(part)), "{error:?}");
    }
}

/// A mounted ConfigMap, a label and a place to remember.
struct Place {
    dir: TempDir,
    store: Store,
    label: watch::Sender<Label>,
}

fn value(text: &str) -> Label {
    Label::Value(text.to_owned())
}

fn unknown() -> Label {
    Label::Unknown("no answer".to_owned())
}

const MIXED: &str = "flags: {migStrategy: mixed}";
const SINGLE: &str = "flags: {migStrategy: single}";

impl Place {
    fn new(label: Label) -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("state"), &dir.path().join("cdi")).unwrap();
        Self { dir, store, label: watch::Sender::new(label) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write_atomic(&self.path(name), text.as_bytes(), 0o644).unwrap();
    }

    /// Mounts these files, as the kubelet does it: a link is replaced.
    fn mount(&self, version: u32, files: &[(&str, &str)]) {
        let data = format!("config/..{version}");
        fs::create_dir_all(self.path(&data)).unwrap();
        for (name, text) in files {
            self.write(&format!("{data}/{name}"), text);
        }
        symlink(format!("..{version}"), self.path("config/..data_tmp")).unwrap();
        fs::rename(self.path("config/..data_tmp"), self.path("config/..data")).unwrap();
        for (name, _) in files {
            let link = self.path("config").join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(format!("..data/{name}"), link).unwrap();
            }
        }
    }

    fn follow(&self, name: &str) -> PluginConfig {
        let config_file = self.path(name).display().to_string();
        let args = PluginArgs { config_file, ..PluginArgs::default() };
        let label = self.label.clone();
        follow_with(&args, &self.store, move || label.subscribe())
    }
}

async fn until_strategy(config: &mut PluginConfig, strategy: MigStrategy) -> Config {
    let is = |config: &Option<Arc<Config>>| {
        config.as_ref().is_some_and(|config| config.mig_strategy == strategy)
    };
    let config = timeout(STUCK, config.config.wait_for(is)).await.unwrap().unwrap();
    config.as_deref().cloned().unwrap()
}

async fn until_warning(config: &mut PluginConfig) -> String {
    let warning = timeout(STUCK, config.warning.wait_for(Option::is_some)).await.unwrap().unwrap();
    warning.clone().unwrap()
}

async fn until_well(config: &mut PluginConfig) {
    timeout(STUCK, config.warning.wait_for(Option::is_none)).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_file_the_flags_count() {
    let place = Place::new(unknown());
    let args = PluginArgs { gds_enabled: Some(true), ..PluginArgs::default() };
    let config = follow_with(&args, &place.store, || panic!("the label is not needed"));
    let expected = Config { gds: true, ..Config::default() };
    assert_eq!(config.config.borrow().as_deref(), Some(&expected));
    assert_eq!(*config.warning.borrow(), None);
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_a_bad_one_changes_nothing() {
    let place = Place::new(unknown());
    let mut config = place.follow("config.yaml");
    let path = place.path("config.yaml").display().to_string();
    let missing = format!(
        "cannot read `{path}`: No such file or directory (os error 2); no resources are offered"
    );
    assert_eq!(until_warning(&mut config).await, missing);
    place.write("config.yaml", MIXED);
    until_strategy(&mut config, MigStrategy::Mixed).await;
    until_well(&mut config).await;
    place.write("config.yaml", "flags: {migStrategy: mixd}");
    let bad = format!(
        "configuration `{path}`: unknown migStrategy `mixd` in flags; did you mean `mixed`?; the last good \
         configuration stays"
    );
    assert_eq!(until_warning(&mut config).await, bad);
    let expected = Config { mig_strategy: MigStrategy::Mixed, ..Config::default() };
    assert_eq!(config.config.borrow().as_deref(), Some(&expected));
    place.write("config.yaml", SINGLE);
    until_strategy(&mut config, MigStrategy::Single).await;
    until_well(&mut config).await;
}

#[tokio::test]
async fn the_label_chooses_a_file_of_a_mounted_config_map() {
    let place = Place::new(unknown());
    place.mount(1, &[("default", ""), ("a", MIXED)]);
    let mut config = place.follow("config");
    let why = "the node's label is not known: no answer; no resources are offered";
    assert_eq!(until_warning(&mut config).await, why);
    assert_eq!(*config.config.borrow(), None);

    place.label.send_replace(Label::Absent);
    assert_eq!(until_strategy(&mut config, MigStrategy::None).await, Config::default());
    place.label.send_replace(value("a"));
    until_strategy(&mut config, MigStrategy::Mixed).await;
    place.mount(2, &[("default", ""), ("a", SINGLE)]);
    until_strategy(&mut config, MigStrategy::Single).await;

    place.label.send_replace(value("b"));
    let why = "the node's label names configuration `b`, which is not there; there is `a`, `default`; the \
               last good configuration stays";
    assert_eq!(until_warning(&mut config).await, why);
    place.mount(3, &[("default", ""), ("a", SINGLE), ("b", MIXED)]);
    until_strategy(&mut config, MigStrategy::Mixed).await;
    until_well(&mut config).await;
}

#[tokio::test]
async fn the_last_choice_is_remembered_while_the_server_is_away() {
    let place = Place::new(value("a"));
    place.mount(1, &[("default", ""), ("a", MIXED)]);
    until_strategy(&mut place.follow("config"), MigStrategy::Mixed).await;
    let remembered = Remembered { file: Some("a".to_owned()) };
    assert_eq!(place.store.choice().unwrap(), (Some(remembered), None));

    place.label.send_replace(unknown());
    let mut config = place.follow("config");
    until_strategy(&mut config, MigStrategy::Mixed).await;
    place.label.send_replace(Label::Absent);
    until_strategy(&mut config, MigStrategy::None).await;
    let remembered = Remembered { file: Some("default".to_owned()) };
    assert_eq!(place.store.choice().unwrap(), (Some(remembered), None));
}

#[tokio::test]
async fn it_ends_when_nobody_asks() {
    let place = Place::new(Label::Absent);
    place.mount(1, &[("default", "")]);
    let mut config = place.follow("config");
    until_strategy(&mut config, MigStrategy::None).await;
    assert!(place.label.receiver_count() > 0);
    drop(config);
    timeout(STUCK, place.label.closed()).await.unwrap();
}
