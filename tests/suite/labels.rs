//! The node's labels, on a simulated machine.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc, time::Duration};

use kerf::{
    cli::labels::{LabelArgs, keep_labels},
    driver::machine::Machine,
    metrics::Metrics,
    model::plugin::config::{
        Config, IdStrategy, ListStrategy, MigStrategy, Names, Replicated, SharedDevices,
        SharedPolicy, Sharing,
    },
    node::host::Host,
};
use kerf_nvml::{Machine as Hardware, Model, NodeDescription};
use tempfile::TempDir;
use tokio::{sync::watch, time};

fn config(mig_strategy: MigStrategy, sharing: Sharing) -> Option<Arc<Config>> {
    Some(Arc::new(Config {
        mig_strategy,
        list_strategies: BTreeSet::from([ListStrategy::Envvar]),
        id_strategy: IdStrategy::Uuid,
        pass_device_specs: false,
        gdrcopy: false,
        gds: false,
        mofed: false,
        cdi_annotation_prefix: "cdi.k8s.io/".to_owned(),
        shared_policy: SharedPolicy::Distributed,
        imex_channels: Vec::new(),
        names: Names::default(),
        sharing,
    }))
}

/// A machine whose labels are kept.
struct Rig {
    hardware: Hardware,
    machine: Arc<Machine>,
    config: watch::Sender<Option<Arc<Config>>>,
    file: PathBuf,
    _dir: TempDir,
}

impl Rig {
    fn new(node: &NodeDescription) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hardware = Hardware::create(&dir.path().join("machine"), node).unwrap();
        let host = Host {
            driver_root: hardware.driver_root(),
            host_driver_root: hardware.driver_root(),
            dev_root: hardware.dev_root(),
            proc_root: hardware.proc_root(),
            sys_root: hardware.sys_root(),
        };
        let machine = Arc::new(Machine::new(Some(hardware.library()), host, Metrics::default()));
        let file = dir.path().join("gfd");
        let config = watch::Sender::new(None);
        let args = LabelArgs {
            node_labels_file: file.clone().into(),
            no_timestamp: true,
            machine_type_file: None,
        };
        tokio::spawn(keep_labels(args, machine.clone(), config.subscribe()));
        Self { hardware, machine, config, file, _dir: dir }
    }

    /// Waits until the file says this.
    async fn says(&self, line: &str) -> String {
        let text = async {
            loop {
                let text = fs::read_to_string(&self.file).unwrap_or_default();
                if text.lines().any(|other| other == line) {
                    return text;
                }
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(Duration::from_secs(20), text).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_follow_the_machine_and_the_configuration() {
    let rig = Rig::new(&NodeDescription::uniform(Model::T4, 2));
    rig.machine.read().await;
    time::sleep(Duration::from_millis(50)).await;
    assert!(!rig.file.exists(), "no configuration is known yet");

    rig.config.send_replace(config(MigStrategy::None, Sharing::default()));
    let text = rig.says("nvidia.com/gpu.count=2").await;
    insta::assert_snapshot!(text);

    let shared = Replicated {
        name: "nvidia.com/gpu".to_owned(),
        rename: "nvidia.com/gpu".to_owned(),
        devices: SharedDevices::All,
        replicas: 3,
    };
    fs::remove_file(&rig.file).unwrap();
    let sharing = Sharing { resources: vec![shared], ..Sharing::default() };
    rig.config.send_replace(config(MigStrategy::None, sharing));
    rig.says("nvidia.com/gpu.product=Tesla-T4-SHARED").await;

    rig.hardware.lose_gpu(1).unwrap();
    rig.machine.read().await;
    rig.says("nvidia.com/gpu.count=1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_follow_what_is_carved_and_outlive_the_driver() {
    let rig = Rig::new(&NodeDescription::uniform(Model::A30, 1).with_mig_enabled());
    rig.config.send_replace(config(MigStrategy::Mixed, Sharing::default()));
    rig.machine.read().await;
    rig.says("nvidia.com/gpu.replicas=0").await;
    rig.hardware.create_instance(0, 14, 2, true).unwrap();
    rig.machine.read().await;
    let text = rig.says("nvidia.com/mig-1g.6gb.count=1").await;

    rig.hardware.unload_driver().unwrap();
    rig.machine.read().await;
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fs::read_to_string(&rig.file).unwrap(), text);
}
