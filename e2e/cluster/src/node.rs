//! A node: simulated GPUs, containerd and a kubelet, in a mount namespace of their own, in which all is
//! where a real node has it. The mounts go with the namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use kerf_nvml::{Machine, NodeDescription};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    command::{Run, output},
    control_plane,
    daemon::{self, Daemons},
    files,
    pki::Pki,
    programs::{Programs, Release},
};

/// Below the driver's root, where the agent finds the machine that the driver is simulated by.
pub(crate) const SIMULATED: &str = "simulated";

/// A node of a cluster.
pub(crate) struct Node {
    pub(crate) name: String,
    number: u16,
    dir: PathBuf,
    pub(crate) machine: Machine,
    pub(crate) daemons: Daemons,
}

impl Node {
    /// Makes a node in a directory and starts it. It becomes Ready by itself.
    pub(crate) fn start(
        dir: &Path,
        number: u16,
        gpus: &NodeDescription,
        client: &Path,
        release: Release,
        programs: &Programs,
        pki: &Pki,
    ) -> anyhow::Result<Self> {
        let name = format!("node-{number}");
        let dir = dir.join(&name);
        for part in ["kubelet", "cdi", "containerd", "cni", "log"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let machine = Machine::create(&dir.join("machine"), gpus)
            .with_context(|| format!("cannot make the machine of {name}"))?;
        fs::create_dir_all(machine.driver_root().join(SIMULATED))?;
        fs::copy(client, machine.driver_root().join("usr/bin/nvidia-smi"))?;
        let daemons = Daemons::new(&dir)?;
        let node = Self { name, number, dir, machine, daemons };
        node.make_namespace()?;
        node.configure_containerd(programs)?;
        node.start_containerd(programs)?;
        node.configure_kubelet(release, pki)?;
        node.start_kubelet(programs)?;
        Ok(node)
    }

    /// Where its files are, as this process sees them.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// How many instances its GPUs have.
    pub(crate) fn cut(&self) -> anyhow::Result<usize> {
        let snapshot = self.machine.snapshot()?;
        Ok(snapshot.gpus.iter().map(|gpu| gpu.instances.len()).sum())
    }

    fn make_namespace(&self) -> anyhow::Result<()> {
        let [dir, machine] = [&self.dir, self.machine.dir()].map(|path| path.display().to_string());
        let script = format!(
            "set -e
            mount -t tmpfs tmpfs /run
            mount -t tmpfs tmpfs /var/lib
            mkdir -p /run/cdi /run/nvidia/driver /var/lib/kubelet
            mount --bind {dir}/kubelet /var/lib/kubelet
            mount --bind {dir}/cdi /run/cdi
            mount --bind {dir}/log /var/log
            mount --bind {machine}/driver /run/nvidia/driver
            mount --bind {machine} /run/nvidia/driver/{SIMULATED}
            mount --make-rshared /
            touch {dir}/namespace
            exec sleep infinity"
        );
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        self.daemons.start("namespace", &mut holder)?;
        crate::wait::until("the node's namespace", || Ok(self.dir.join("namespace").exists()))
    }

    fn namespace(&self) -> anyhow::Result<Pid> {
        self.daemons.pid("namespace").with_context(|| format!("{} is not there", self.name))
    }

    /// A command that runs in the node.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.namespace()?.as_raw_nonzero());
        command.arg(namespace).arg("--").arg(program);
        Ok(command)
    }

    fn socket(&self) -> String {
        self.dir.join("containerd.sock").display().to_string()
    }

    fn bridge(&self) -> String {
        format!("kerf{}", self.number)
    }

    fn configure_containerd(&self, programs: &Programs) -> anyhow::Result<()> {
        let network = json!({
            "cniVersion": "1.0.0", "name": self.name, "plugins": [{
                "type": "bridge", "bridge": self.bridge(), "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": self.dir.join("addresses"),
                    "ranges": [[{ "subnet": format!("10.88.{}.0/24", self.number) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        files::write(&self.dir.join("cni/10-bridge.conflist"), network.to_string())?;
        let dir = self.dir.display();
        let configuration = format!(
            "version = 3
root = '{dir}/containerd'
state = '/run/containerd-state'
[grpc]
  address = '{}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{}'
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = '{dir}/cni'
  bin_dirs = ['{}']
",
            self.socket(),
            crate::images::SANDBOX,
            programs.cni().display(),
        );
        files::write(&self.dir.join("containerd.toml"), configuration)
    }

    pub(crate) fn start_containerd(&self, programs: &Programs) -> anyhow::Result<()> {
        let mut containerd = self.command(programs.runtime("containerd"))?;
        containerd.arg("--config").arg(self.dir.join("containerd.toml"));
        let path = std::env::var("PATH").unwrap_or_default();
        let shims = programs.runtime("containerd-shim-runc-v2");
        let shims = shims.parent().unwrap_or(Path::new("/")).display().to_string();
        containerd.env("PATH", format!("{shims}:{path}"));
        self.daemons.start("containerd", &mut containerd)?;
        crate::wait::until("containerd", || Ok(self.ctr(programs)?.args(["version"]).run().is_ok()))
    }

    /// All that containerd goes by: what it was given, and its defaults.
    pub(crate) fn containerd_configuration(&self, programs: &Programs) -> anyhow::Result<String> {
        let mut containerd = self.command(programs.runtime("containerd"))?;
        let arguments = ["config", "dump"];
        output(containerd.arg("--config").arg(self.dir.join("containerd.toml")).args(arguments))
    }

    fn ctr(&self, programs: &Programs) -> anyhow::Result<Command> {
        let mut ctr = self.command(programs.runtime("ctr"))?;
        ctr.args(["--address", &self.socket(), "--namespace", "k8s.io"]);
        Ok(ctr)
    }

    /// Makes an image known to the node.
    pub(crate) fn import(&self, programs: &Programs, archive: &Path) -> anyhow::Result<()> {
        self.ctr(programs)?.args(["images", "import", "--no-unpack"]).arg(archive).run()
    }

    fn configure_kubelet(&self, release: Release, pki: &Pki) -> anyhow::Result<()> {
        let name = &self.name;
        pki.sign(name, &format!("/O=system:nodes/CN=system:node:{name}"), &format!("DNS:{name}"))?;
        pki.kubeconfig(name, "default", &self.dir.join("kubelet.kubeconfig"))?;
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": pki.file("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/kerf-{name}"),
            "cgroupsPerQOS": true, "enforceNodeAllocatable": ["pods"],
            "failCgroupV1": false, "failSwapOn": false, "makeIPTablesUtilChains": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.socket()),
            "tlsCertFile": pki.file(&format!("{name}.crt")),
            "tlsPrivateKeyFile": pki.file(&format!("{name}.key")),
            "port": 20250 + self.number, "healthzPort": 20260 + self.number,
            // Nothing serves it: pods of these suites ask for no names.
            "clusterDNS": ["10.96.0.10"],
            "maxPods": 200, "serializeImagePulls": false, "registryPullQPS": 0,
            "kubeAPIQPS": 100, "kubeAPIBurst": 200,
            // A claim that was refused is prepared again when its pod is next looked at; every minute else.
            "syncFrequency": "1s",
            "featureGates": control_plane::kubelet_gates(release),
            // Images cannot be pulled again, however full the machine's disk is.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%",
                "nodefs.inodesFree": "0%",
            },
        });
        files::write(&self.dir.join("kubelet.json"), configuration.to_string())?;
        for cgroup in self.cgroups() {
            fs::create_dir_all(cgroup)?;
        }
        Ok(())
    }

    pub(crate) fn start_kubelet(&self, programs: &Programs) -> anyhow::Result<()> {
        let mut kubelet = self.command(programs.kubernetes("kubelet"))?;
        kubelet.arg("--config").arg(self.dir.join("kubelet.json"));
        kubelet.arg("--kubeconfig").arg(self.dir.join("kubelet.kubeconfig"));
        kubelet.args(["--hostname-override", &self.name, "--root-dir", "/var/lib/kubelet", "-v=2"]);
        // Each call to a DRA driver and its answer: the buckets of its metrics begin at 100 ms.
        kubelet.arg("--vmodule=dra_plugin=4");
        self.daemons.start("kubelet", &mut kubelet)
    }

    /// Kills the processes of a container, by the id that a pod's status has.
    pub(crate) fn kill_container(&self, id: &str) -> anyhow::Result<()> {
        self.container(id)?.iter().try_for_each(|cgroup| kill_all_in(cgroup))
    }

    /// Does something while the processes of a container stand still.
    pub(crate) fn while_container_waits<T>(
        &self,
        id: &str,
        meanwhile: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let cgroups = self.container(id)?;
        let pids: Vec<_> = cgroups.iter().flat_map(|cgroup| pids_in(cgroup)).collect();
        let signal = |signal| pids.iter().try_for_each(|pid| kill_process(*pid, signal));
        signal(Signal::STOP)?;
        let done = meanwhile();
        signal(Signal::CONT)?;
        done
    }

    /// The cgroups of a container.
    fn container(&self, id: &str) -> anyhow::Result<Vec<PathBuf>> {
        let id = id.rsplit('/').next().unwrap_or(id);
        let cgroups = self.cgroups().into_iter().flat_map(|cgroup| tree(&cgroup));
        let of_container: Vec<_> = cgroups.filter(|cgroup| cgroup.ends_with(id)).collect();
        ensure!(!of_container.is_empty(), "no container {id} on {}", self.name);
        Ok(of_container)
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        cgroups(&self.name)
    }

    /// Ends all that runs and starts as a machine does that was switched off and on.
    pub(crate) fn reboot(&self, programs: &Programs) -> anyhow::Result<()> {
        end_all(&self.daemons, &self.name)?;
        self.machine.reboot()?;
        // What a real node has in memory only.
        for entry in fs::read_dir(self.dir.join("cdi"))? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_file(self.dir.join("namespace"))?;
        self.make_namespace()?;
        self.start_containerd(programs)?;
        self.start_kubelet(programs)
    }

    /// Does something while the kubelet stands still: between the scheduler's choice and what the node makes
    /// of it.
    pub(crate) fn while_kubelet_waits<T>(
        &self,
        meanwhile: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let kubelet = self.daemons.pid("kubelet").context("there is no kubelet")?;
        kill_process(kubelet, Signal::STOP)?;
        let done = meanwhile();
        kill_process(kubelet, Signal::CONT)?;
        done
    }

    /// Ends the node, with everything that runs on it.
    pub(crate) fn stop(dir: &Path, number: u16) -> anyhow::Result<()> {
        let name = format!("node-{number}");
        end_all(&Daemons::new(&dir.join(&name))?, &name)?;
        for cgroup in cgroups(&name) {
            remove_cgroup(&cgroup)?;
        }
        // Not there if no pod ever had an address.
        let bridge = format!("kerf{number}");
        let _gone = output(Command::new("ip").args(["link", "del", &bridge]));
        Ok(())
    }
}

/// Ends every process of a node, and so its mount namespace.
fn end_all(daemons: &Daemons, name: &str) -> anyhow::Result<()> {
    daemons.stop("kubelet")?;
    cgroups(name).iter().try_for_each(|cgroup| kill_all_in(cgroup))?;
    daemons.stop("containerd")?;
    if let Some(namespace) = daemons.pid("namespace") {
        for pid in sharing_namespace(namespace)? {
            daemon::end(pid, Signal::KILL, None)?;
        }
    }
    daemons.kill("namespace")
}

/// Those that hold a node's pods.
fn cgroups(name: &str) -> Vec<PathBuf> {
    cgroup_roots().into_iter().map(|root| root.join(format!("kerf-{name}"))).collect()
}

/// The cgroup hierarchies: one each controller (version 1), or one in all.
fn cgroup_roots() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// A cgroup and all below it, innermost first.
fn tree(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = below.flat_map(|entry| tree(&entry.path())).collect();
    if cgroup.is_dir() {
        all.push(cgroup.to_owned());
    }
    all
}

fn kill_all_in(cgroup: &Path) -> anyhow::Result<()> {
    for cgroup in tree(cgroup) {
        for pid in pids_in(&cgroup) {
            daemon::end(pid, Signal::KILL, None)?;
        }
    }
    Ok(())
}

/// The processes of a cgroup itself.
fn pids_in(cgroup: &Path) -> Vec<Pid> {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

fn remove_cgroup(cgroup: &Path) -> anyhow::Result<()> {
    for cgroup in tree(cgroup) {
        crate::wait::until("processes of a cgroup to end", || Ok(fs::remove_dir(&cgroup).is_ok()))?;
    }
    Ok(())
}

/// The processes in a mount namespace, but for the one that holds it.
fn sharing_namespace(holder: Pid) -> anyhow::Result<Vec<Pid>> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let holder = holder.as_raw_nonzero().get();
    let Some(held) = namespace(holder) else { return Ok(Vec::new()) };
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let sharing = pids.filter(|&pid| pid != holder && namespace(pid).as_ref() == Some(&held));
    Ok(sharing.filter_map(Pid::from_raw).collect())
}
