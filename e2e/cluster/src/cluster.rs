//! A cluster: its control plane and its nodes, from nothing to Ready and back to nothing.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use anyhow::{Context, anyhow};
use kerf_nvml::{Model, NodeDescription};

use crate::{
    control_plane,
    daemon::Daemons,
    images,
    node::Node,
    pki::Pki,
    programs::{Programs, Release},
    prometheus, wait,
};

/// Where the one cluster of a machine lives.
pub(crate) const DIR: &str = "/var/tmp/kerf-e2e";

/// At most so many nodes are looked for when a cluster is ended.
const NODES: u16 = 4;

/// What nodes are given.
#[derive(Clone, Debug)]
struct Supplies {
    /// Images, as archives.
    archives: Vec<PathBuf>,
    /// The driver's client for containers.
    client: PathBuf,
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) release: Release,
    pub(crate) programs: Programs,
    pub(crate) daemons: Daemons,
    dir: PathBuf,
    pki: Pki,
    supplies: Supplies,
    nodes: Vec<Node>,
    /// In which a test works.
    pub(crate) namespace: String,
    /// Held for as long as the cluster is this process's to end.
    _lock: File,
}

impl Cluster {
    /// From nothing to one Ready node. Pods find these programs and this image of Kerf there.
    pub(crate) fn up(release: Release, binaries: &Path, kerf: &Path) -> anyhow::Result<Self> {
        let programs = Programs::build(release)?;
        let lock = Self::lock()?;
        // Where another runner may write, too.
        let supplies = supplies(binaries, kerf)?;
        let dir = PathBuf::from(DIR);
        Self::end(&dir)?;
        let begun = Instant::now();
        control_plane::check_address()?;
        fs::create_dir_all(&dir)?;
        let pki = Pki::new(&dir.join("pki"))?;
        pki.kubeconfig("admin", "default", &dir.join("admin.kubeconfig"))?;
        let daemons = Daemons::new(&dir)?;
        let (nodes, namespace) = (Vec::new(), "default".to_owned());
        let mut cluster =
            Self { release, programs, daemons, dir, pki, supplies, nodes, namespace, _lock: lock };
        let gpus = NodeDescription::uniform(Model::H100_80, 8).for_containers();
        // A node asks for the API server until it is there.
        let node = thread::scope(|scope| {
            let node = scope.spawn(|| cluster.start_node(0, &gpus));
            let Self { dir, programs, pki, daemons, .. } = &cluster;
            control_plane::start(dir, release, programs, pki, daemons)?;
            node.join().map_err(|_| anyhow!("the thread that starts a node panicked"))?
        })?;
        cluster.join(node)?;
        wait::until("the service account of pods", || {
            Ok(cluster.kubectl(&["get", "serviceaccount", "default"]).is_ok())
        })?;
        println!(
            "cluster {} is up after {:.1} s",
            release.version(),
            begun.elapsed().as_secs_f64()
        );
        Ok(cluster)
    }

    fn lock() -> anyhow::Result<File> {
        let path = format!("{DIR}.lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path)?;
        if lock.try_lock().is_err() {
            println!("waiting for another runner to end (`{path}` is locked)");
            lock.lock()?;
        }
        Ok(lock)
    }

    /// Ends whatever cluster there is, and leaves nothing of it.
    pub(crate) fn down() -> anyhow::Result<()> {
        let _lock = Self::lock()?;
        Self::end(Path::new(DIR))
    }

    fn end(dir: &Path) -> anyhow::Result<()> {
        if !dir.exists() {
            return Ok(());
        }
        for number in 0..NODES {
            if dir.join(format!("node-{number}")).exists() {
                Node::stop(dir, number)?;
            }
        }
        let daemons = Daemons::new(dir)?;
        // Left by a runner that was killed.
        daemons.stop(prometheus::NAME)?;
        control_plane::stop(&daemons)?;
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove `{}`", dir.display()))
    }

    /// One more node; returns when it is Ready and knows the images.
    pub(crate) fn add_node(&mut self, gpus: &NodeDescription) -> anyhow::Result<()> {
        let node = self.start_node(u16::try_from(self.nodes.len())?, gpus)?;
        self.join(node)
    }

    fn start_node(&self, number: u16, gpus: &NodeDescription) -> anyhow::Result<Node> {
        let (programs, client) = (&self.programs, &self.supplies.client);
        let node = Node::start(&self.dir, number, gpus, client, self.release, programs, &self.pki)?;
        self.supplies.archives.iter().try_for_each(|archive| node.import(programs, archive))?;
        Ok(node)
    }

    /// Waits until a node is Ready.
    fn join(&mut self, node: Node) -> anyhow::Result<()> {
        let name = node.name.clone();
        self.nodes.push(node);
        wait::until("the node to be Ready", || {
            let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            let ready = self.kubectl(&["get", "node", &name, "--output", ready]);
            Ok(ready.is_ok_and(|ready| ready == "True"))
        })
    }

    /// Takes the last node away, as if its machine were gone for good.
    pub(crate) fn remove_node(&mut self) -> anyhow::Result<()> {
        let node = self.nodes.pop().context("there is no node")?;
        let number = u16::try_from(self.nodes.len())?;
        let name = node.name.clone();
        drop(node);
        Node::stop(&self.dir, number)?;
        self.kubectl(&["delete", "node", &name])?;
        // What ran there ends when somebody says so, or after 40 s.
        let selector = format!("--field-selector=spec.nodeName={name}");
        let end = ["delete", "pods", "--all-namespaces", &selector, "--force", "--grace-period=0"];
        self.kubectl(&end)?;
        let dir = self.dir.join(&name);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove `{}`", dir.display()))
    }

    /// The first node.
    pub(crate) fn node(&self) -> &Node {
        &self.nodes[0]
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// Makes the namespace that a test works in.
    pub(crate) fn enter(&mut self, namespace: &str) -> anyhow::Result<()> {
        self.kubectl(&["create", "namespace", namespace])?;
        self.work_in(namespace)?;
        wait::until("the namespace's service account", || {
            Ok(self.kubectl(&["get", "serviceaccount", "default"]).is_ok())
        })
    }

    /// What follows is in this namespace.
    pub(crate) fn work_in(&mut self, namespace: &str) -> anyhow::Result<()> {
        namespace.clone_into(&mut self.namespace);
        self.pki.kubeconfig("admin", namespace, &self.kubeconfig())
    }

    /// Takes everything away that a test made in its namespace, and waits until it is gone.
    pub(crate) fn empty(&self) -> anyhow::Result<()> {
        // Claims last: where a claim of an extended resource goes before its pod, the controllers of 1.34
        // do not notice that the pod has ended, and keep it.
        let mut kinds =
            vec!["pods,daemonsets,deployments", "resourceclaims,resourceclaimtemplates"];
        if self.release == Release::V1_31 {
            kinds.pop();
        }
        for kinds in kinds {
            let delete = ["delete", kinds, "--all", "--grace-period=1", "--timeout=60s"];
            self.kubectl(&delete)?;
        }
        Ok(())
    }

    /// Takes the namespace away; that takes the API server a while, for which nobody waits.
    pub(crate) fn leave(&mut self) -> anyhow::Result<()> {
        let namespace = self.namespace.clone();
        self.work_in("default")?;
        self.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).map(drop)
    }
}

/// With the images that every node has: what holds pods, what pods run in, and Kerf's own.
fn supplies(binaries: &Path, kerf: &Path) -> anyhow::Result<Supplies> {
    let dir = PathBuf::from(format!("{DIR}-images"));
    fs::create_dir_all(&dir)?;
    let client = binaries.join("nvidia-smi");
    let all = [
        ("pause", images::SANDBOX, images::sandbox()),
        ("ubuntu", images::UBUNTU, images::ubuntu(&client)?),
    ];
    // Nodes are mount namespaces, in which this process's directory is not the current one.
    let kerf = kerf.canonicalize().with_context(|| format!("no image `{}`", kerf.display()))?;
    let mut archives = vec![kerf];
    for (file, name, image) in all {
        let path = dir.join(format!("{file}.tar"));
        let size = image.write(name, &path)?;
        println!("image {name}: {:.1} MB", f64::from(u32::try_from(size)?) / 1e6);
        archives.push(path);
    }
    Ok(Supplies { archives, client })
}
