//! etcd, the API server, the controller manager and the scheduler of one cluster.

use std::{
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    command::{Run, output},
    daemon::Daemons,
    pki::Pki,
    programs::{Programs, Release},
};

/// The first address of the range of services, under which pods look for the API server. It is given to
/// the loopback interface, so that no proxy of services is needed.
pub(crate) const ADDRESS: &str = "10.96.0.1";
pub(crate) const URL: &str = "https://10.96.0.1:443";

const ETCD: &str = "http://127.0.0.1:12379";
const ETCD_PEERS: &str = "http://127.0.0.1:12380";

/// Feature gates that suites need and a release has off.
fn gates(release: Release) -> &'static str {
    match release {
        Release::V1_37 | Release::V1_31 => "",
        Release::V1_34 => {
            "DRAPartitionableDevices=true,DRADeviceTaints=true,DRAExtendedResource=true"
        }
    }
}

/// APIs that suites need and a release does not serve by default: those of taint rules and, for manifests
/// of older clusters, those before `v1`.
fn apis(release: Release) -> &'static str {
    match release {
        Release::V1_31 => "",
        Release::V1_37 => "resource.k8s.io/v1beta1=true,resource.k8s.io/v1beta2=true",
        Release::V1_34 => {
            "resource.k8s.io/v1beta1=true,resource.k8s.io/v1beta2=true,resource.k8s.io/v1alpha3=true"
        }
    }
}

/// Starts all of it and returns when the API server is ready.
pub(crate) fn start(
    dir: &Path,
    release: Release,
    programs: &Programs,
    pki: &Pki,
    daemons: &Daemons,
) -> anyhow::Result<()> {
    give_address()?;
    daemons.start("etcd", &mut etcd(dir, programs))?;
    daemons.start("kube-apiserver", &mut api_server(release, programs, pki))?;
    wait_until_ready(dir, programs)?;
    daemons
        .start("kube-controller-manager", &mut controller_manager(dir, release, programs, pki))?;
    daemons.start("kube-scheduler", &mut scheduler(dir, release, programs))
}

/// Ends what [`start`] started.
pub(crate) fn stop(daemons: &Daemons) -> anyhow::Result<()> {
    for name in ["kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"] {
        daemons.stop(name)?;
    }
    // Taken away already by who ended the cluster before.
    let _gone = Command::new("ip").args(["addr", "del", &cidr(), "dev", "lo"]).run();
    Ok(())
}

fn cidr() -> String {
    format!("{ADDRESS}/32")
}

fn give_address() -> anyhow::Result<()> {
    Command::new("ip").args(["addr", "add", &cidr(), "dev", "lo"]).run()
}

fn etcd(dir: &Path, programs: &Programs) -> Command {
    let mut etcd = Command::new(programs.runtime("etcd"));
    etcd.arg("--data-dir").arg(dir.join("etcd")).arg("--unsafe-no-fsync");
    etcd.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
    etcd.args(["--listen-peer-urls", ETCD_PEERS, "--initial-advertise-peer-urls", ETCD_PEERS]);
    etcd.args(["--initial-cluster", &format!("default={ETCD_PEERS}")]);
    etcd
}

/// The server, so that a suite can take it away for a while and bring it back.
pub(crate) fn api_server(release: Release, programs: &Programs, pki: &Pki) -> Command {
    let mut server = Command::new(programs.kubernetes("kube-apiserver"));
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.file(name).display());
    server.args([
        format!("--etcd-servers={ETCD}"),
        format!("--bind-address={ADDRESS}"),
        "--secure-port=443".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // The names of nodes are known to nobody else.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("service-account-key-file", "sa.pub"),
        file("service-account-signing-key-file", "sa.key"),
        file("kubelet-client-certificate", "admin.crt"),
        file("kubelet-client-key", "admin.key"),
    ]);
    if !gates(release).is_empty() {
        server.arg(format!("--feature-gates={}", gates(release)));
    }
    if !apis(release).is_empty() {
        server.arg(format!("--runtime-config={}", apis(release)));
    }
    server
}

/// Waits until the API server answers that it is ready.
pub(crate) fn wait_until_ready(dir: &Path, programs: &Programs) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let mut ask = Command::new(programs.kubernetes("kubectl"));
        ask.arg("--kubeconfig").arg(dir.join("admin.kubeconfig"));
        match ask.args(["get", "--raw", "/readyz"]).run() {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > Duration::from_secs(60) => {
                return Err(error).context("the API server does not become ready");
            }
            Err(_) => sleep(Duration::from_millis(100)),
        }
    }
}

fn controller_manager(dir: &Path, release: Release, programs: &Programs, pki: &Pki) -> Command {
    let mut manager = Command::new(programs.kubernetes("kube-controller-manager"));
    manager.arg("--kubeconfig").arg(dir.join("admin.kubeconfig"));
    manager.arg("--service-account-private-key-file").arg(pki.file("sa.key"));
    manager.arg("--root-ca-file").arg(pki.file("ca.crt"));
    manager.args(["--use-service-account-credentials", "--leader-elect=false"]);
    // Each controller asks for credentials of its own when it starts: by default that takes seconds.
    manager.args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
    with_gates(&mut manager, release);
    manager
}

fn scheduler(dir: &Path, release: Release, programs: &Programs) -> Command {
    let mut scheduler = Command::new(programs.kubernetes("kube-scheduler"));
    scheduler.arg("--kubeconfig").arg(dir.join("admin.kubeconfig")).arg("--leader-elect=false");
    with_gates(&mut scheduler, release);
    scheduler
}

fn with_gates(command: &mut Command, release: Release) {
    if !gates(release).is_empty() {
        command.arg(format!("--feature-gates={}", gates(release)));
    }
}

/// The gates of a kubelet, by name.
pub(crate) fn kubelet_gates(release: Release) -> serde_json::Map<String, serde_json::Value> {
    // Those that concern the scheduler alone are not known to every kubelet.
    let ours = gates(release).split(',').filter_map(|gate| gate.split_once('='));
    ours.map(|(name, on)| (name.to_owned(), (on == "true").into())).collect()
}

/// Fails where this machine has the address already: another cluster's processes would be asked.
pub(crate) fn check_address() -> anyhow::Result<()> {
    let addresses = output(Command::new("ip").args(["-oneline", "addr", "show", "to", ADDRESS]))?;
    if !addresses.is_empty() {
        bail!("this machine has the address {ADDRESS} already: does another cluster run on it?");
    }
    Ok(())
}
