//! The programs that make a cluster, built from their Go modules into a cache outside the repository,
//! one directory a version. What is there already is not built again.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::command::{Run, output};

/// A release of Kubernetes that suites run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    /// The newest.
    #[value(name = "1.37")]
    V1_37,
    /// The oldest with `resource.k8s.io/v1`.
    #[value(name = "1.34")]
    V1_34,
    /// A cluster without that.
    #[value(name = "1.31")]
    V1_31,
}

impl Release {
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V1_37 => "v1.37.2",
            Self::V1_34 => "v1.34.4",
            Self::V1_31 => "v1.31.0",
        }
    }
}

const CONTAINERD: &str = "v2.4.2";
const ETCD: &str = "v3.7.0";
const CNI: &str = "v1.9.0";
const HELM: &str = "v4.3.1";
const NVIDIA_DEVICE_PLUGIN: &str = "v0.17.4";

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    kubernetes: PathBuf,
    runtime: PathBuf,
    helm: PathBuf,
}

impl Programs {
    /// Builds what is missing.
    pub(crate) fn build(release: Release) -> anyhow::Result<Self> {
        Ok(Self { kubernetes: kubernetes(release)?, runtime: runtime()?, helm: helm()? })
    }

    /// kube-apiserver, kubelet and so on.
    pub(crate) fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes.join(name)
    }

    /// containerd, its shim, ctr and etcd.
    pub(crate) fn runtime(&self, name: &str) -> PathBuf {
        self.runtime.join(name)
    }

    /// The directory of CNI plugins.
    pub(crate) fn cni(&self) -> PathBuf {
        self.runtime.join("cni")
    }

    pub(crate) fn helm(&self) -> PathBuf {
        self.helm.join("helm")
    }
}

/// `$XDG_CACHE_HOME/kerf`, or `~/.cache/kerf`.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Ok(named.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("kerf"))
}

/// A directory of the cache, filled by `fill` if it is not there: whole, or not at all.
fn cached(name: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create `{}`", cache.display()))?;
    // One builder at a time: it takes all processors for minutes.
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let dir = cache.join(name);
    if dir.is_dir() {
        return Ok(dir);
    }
    println!("building {name} into {}", cache.display());
    let begun = cache.join(format!("{name}.begun"));
    if begun.exists() {
        fs::remove_dir_all(&begun)?;
    }
    fs::create_dir(&begun)?;
    fill(&begun).with_context(|| format!("cannot build {name}"))?;
    fs::rename(&begun, &dir)?;
    Ok(dir)
}

fn kubernetes(release: Release) -> anyhow::Result<PathBuf> {
    let version = release.version();
    cached(&format!("kubernetes-{version}"), |out| {
        let programs =
            ["kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];
        of_kubernetes(release, out, &programs.map(|program| format!("cmd/{program}")))
    })
}

/// Builds packages of Kubernetes.
fn of_kubernetes(release: Release, out: &Path, packages: &[String]) -> anyhow::Result<()> {
    const FROM: &str = "k8s.io/kubernetes";
    let version = release.version();
    let packages: Vec<_> = packages.iter().map(|package| format!("{FROM}/{package}")).collect();
    let mut module = module(FROM, version, &packages);
    // Its staging modules are folders of its own repository, which is not how others see them.
    let staging = format!("v0.{}", version.trim_start_matches("v1."));
    for name in staging_modules(version)? {
        writeln!(module, "replace {name} => {name} {staging}")?;
    }
    // Otherwise they take themselves for a release of no number.
    let flags = format!("-X k8s.io/component-base/version.gitVersion={version}");
    go_build(out, &module, &[], &flags, &packages)
}

/// The modules that the module's own `go.mod` replaces by folders.
fn staging_modules(version: &str) -> anyhow::Result<Vec<String>> {
    let mut download = go();
    download.args(["mod", "download", "-json", &format!("k8s.io/kubernetes@{version}")]);
    let described: Value = serde_json::from_str(&output(&mut download)?)?;
    let path = described["GoMod"].as_str().context("no go.mod")?;
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
    let lines = text.lines().filter(|line| line.contains("=> ./staging"));
    Ok(lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

fn runtime() -> anyhow::Result<PathBuf> {
    cached(&format!("runtime-{CONTAINERD}-etcd-{ETCD}-cni-{CNI}"), |out| {
        let containerd = ["containerd", "containerd-shim-runc-v2", "ctr"]
            .map(|program| format!("github.com/containerd/containerd/v2/cmd/{program}"));
        let cni = ["main/loopback", "main/bridge", "ipam/host-local"]
            .map(|plugin| format!("github.com/containernetworking/plugins/plugins/{plugin}"));
        let etcd = ["go.etcd.io/etcd/server/v3".to_owned()];
        let all = [&containerd[..], &cni, &etcd].concat();
        let module = module("github.com/containerd/containerd/v2", CONTAINERD, &all);
        let others = [
            format!("github.com/containernetworking/plugins@{CNI}"),
            format!("go.etcd.io/etcd/server/v3@{ETCD}"),
        ];
        go_build(out, &module, &others, "", &containerd)?;
        fs::create_dir(out.join("cni"))?;
        build(out, &out.join("cni/"), "", &cni)?;
        build(out, &out.join("etcd"), "", &etcd)
    })
}

fn helm() -> anyhow::Result<PathBuf> {
    cached(&format!("helm-{HELM}"), |out| {
        let packages = ["helm.sh/helm/v4/cmd/helm".to_owned()];
        go_build(out, &module("helm.sh/helm/v4", HELM, &packages), &[], "", &packages)
    })
}

/// The driver that Kubernetes tests claims with, for devices of nothing; built when a test wants it.
pub(crate) fn test_driver(release: Release) -> anyhow::Result<PathBuf> {
    const NAME: &str = "test-driver";
    let built = cached(&format!("{NAME}-{}", release.version()), |out| {
        of_kubernetes(release, out, &[format!("test/e2e/dra/{NAME}")])
    })?;
    Ok(built.join(NAME))
}

/// NVIDIA's own device plugin, which nodes have before Kerf; built when a test wants it.
pub(crate) fn nvidia_device_plugin() -> anyhow::Result<PathBuf> {
    const NAME: &str = "nvidia-device-plugin";
    let built = cached(&format!("{NAME}-{NVIDIA_DEVICE_PLUGIN}"), |out| {
        let from = "github.com/NVIDIA/k8s-device-plugin";
        let package = format!("{from}/cmd/{NAME}");
        let module = module(from, NVIDIA_DEVICE_PLUGIN, std::slice::from_ref(&package));
        let sources = out.join("module");
        fs::create_dir(&sources)?;
        crate::files::write(&sources.join("go.mod"), module)?;
        go().current_dir(&sources).args(["mod", "tidy"]).run()?;
        // It loads NVML through C.
        let mut build = go();
        build.current_dir(&sources).env("CGO_ENABLED", "1");
        build.args(["build", "-o"]).arg(out.join(NAME)).arg(package).run()
    })?;
    Ok(built.join(NAME))
}

/// A module of our own whose tools these packages are.
fn module(required: &str, version: &str, tools: &[String]) -> String {
    let tools: String = tools.iter().map(|tool| format!("\t{tool}\n")).collect();
    format!(
        "module kerf.example/e2e\n\ngo 1.26\n\ntool (\n{tools})\n\nrequire {required} {version}\n\n"
    )
}

/// Writes the module, adds what else it requires, and builds packages of it into `out`.
fn go_build(
    out: &Path,
    module: &str,
    others: &[String],
    flags: &str,
    packages: &[String],
) -> anyhow::Result<()> {
    let sources = out.join("module");
    fs::create_dir(&sources)?;
    crate::files::write(&sources.join("go.mod"), module)?;
    if !others.is_empty() {
        go().current_dir(&sources).arg("get").args(others).run()?;
    }
    go().current_dir(&sources).args(["mod", "tidy"]).run()?;
    build(out, &out.join(""), flags, packages)
}

fn build(out: &Path, to: &Path, flags: &str, packages: &[String]) -> anyhow::Result<()> {
    let mut build = go();
    build.current_dir(out.join("module")).env("CGO_ENABLED", "0").args(["build", "-o"]).arg(to);
    build.arg("-ldflags").arg(format!("-s -w {flags}")).args(packages).run()
}

fn go() -> Command {
    Command::new("go")
}

/// Says in one line what the machine lacks.
pub(crate) fn check_machine() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a cluster needs root: namespaces, mounts and device nodes are made");
    }
    let needed = [
        ("go", "version", "Go 1.26 or later, https://go.dev/dl"),
        ("runc", "--version", "Debian: apt-get install runc"),
        ("openssl", "version", "Debian: apt-get install openssl"),
        ("ip", "-V", "Debian: apt-get install iproute2"),
        ("busybox", "true", "Debian: apt-get install busybox-static"),
        ("prometheus", "--version", "Debian: apt-get install prometheus"),
        ("promtool", "--version", "Debian: apt-get install prometheus"),
    ];
    let missing = needed
        .iter()
        .filter(|(program, argument, _)| output(Command::new(program).arg(argument)).is_err());
    let missing: Vec<_> = missing.map(|(program, _, how)| format!("`{program}` ({how})")).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        bail!("missing on this machine: {}", missing.join(", "))
    }
}
