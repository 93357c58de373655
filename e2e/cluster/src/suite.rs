//! Running tests one after the other, a line each, and what is worth reading when one fails.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::{cluster::Cluster, install, node::Node, programs::Release, suites, wait};

/// What a test does.
type Run = dyn Fn(&mut Cluster) -> anyhow::Result<()>;

/// A test, which has the cluster for itself, and a namespace.
pub(crate) struct Test {
    pub(crate) suite: &'static str,
    pub(crate) name: String,
    pub(crate) run: Box<Run>,
}

impl Test {
    fn title(&self) -> String {
        format!("{}::{}", self.suite, self.name)
    }

    /// Of no more letters than a label has.
    fn namespace(&self) -> String {
        let name = format!("{}-{}", self.suite, self.name).replace('_', "-");
        name.chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
    }
}

/// The tests that a command line names.
pub(crate) fn choose(names: &[String], release: Release) -> anyhow::Result<Vec<Test>> {
    let mut all = suites::all(release)?;
    for name in names {
        if !all.iter().any(|test| is_named(test, name)) {
            let mut suites: Vec<_> = all.iter().map(|test| test.suite).collect();
            suites.dedup();
            bail!(
                "no suite or test `{name}` on {}; suites: {}",
                release.version(),
                suites.join(", ")
            );
        }
    }
    all.retain(|test| names.is_empty() || names.iter().any(|name| is_named(test, name)));
    Ok(all)
}

fn is_named(test: &Test, name: &str) -> bool {
    test.suite == name || test.title() == name
}

/// Installs Kerf and runs the tests. Whether all passed.
pub(crate) fn run(cluster: &mut Cluster, tests: &[Test]) -> anyhow::Result<bool> {
    let begun = Instant::now();
    timed("install", || install::install(cluster, &[]))?;
    let mut failed = 0;
    for test in tests {
        cluster.enter(&test.namespace())?;
        let passed = timed(&test.title(), || {
            (test.run)(cluster)?;
            cluster.empty()?;
            nothing_is_left(cluster)
        });
        if passed.is_err() {
            failed += 1;
            tell(cluster);
            cluster.empty()?;
        }
        cluster.leave()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{} tests, {failed} failed, {seconds:.0} s", tests.len());
    Ok(failed == 0)
}

fn timed(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let result = run();
    let seconds = Duration::as_secs_f64(&begun.elapsed());
    match &result {
        Ok(()) => println!("ok      {seconds:6.1} s  {name}"),
        Err(error) => println!("FAILED  {seconds:6.1} s  {name}: {error:#}"),
    }
    result
}

/// When all pods are gone there are no records, no CDI files and nothing is cut: after every test.
fn nothing_is_left(cluster: &Cluster) -> anyhow::Result<()> {
    wait::until("what was made for claims to go", || {
        Ok(cluster.nodes().iter().all(|node| remains(node).is_ok_and(|remains| remains.is_empty())))
    })
    .or_else(|error| {
        for node in cluster.nodes() {
            let remains = remains(node)?;
            ensure!(remains.is_empty(), "{} keeps {remains:?}", node.name);
        }
        Err(error)
    })
}

/// The CDI file of what the device plugin gives out.
const PLUGIN_FILE: &str = "k8s.device-plugin.nvidia.com-gpu.json";

/// Records, CDI files and instances of a node.
fn remains(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut remains = Vec::new();
    let records =
        ["claims", "containers"].map(|kind| format!("kubelet/plugins/gpu.nvidia.com/{kind}"));
    for dir in [&records[0], &records[1], "cdi"] {
        let dir = node.file(dir);
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read `{}`", dir.display()))?;
        for entry in entries {
            remains.push(entry?.path().display().to_string());
        }
    }
    // The device plugin's file is there for as long as the agent is.
    remains.retain(|file| !file.ends_with(PLUGIN_FILE));
    for gpu in node.machine.snapshot()?.gpus {
        remains.extend(gpu.instances.iter().map(|instance| format!("{} {instance:?}", gpu.uuid)));
    }
    Ok(remains)
}

/// What helps to understand a failure: pods, their events, the ends of logs.
pub(crate) fn tell(cluster: &Cluster) {
    let agents = format!("--namespace={}", install::NAMESPACE);
    let looks: [&[&str]; 4] = [
        &["get", "pods,resourceclaims", "--output", "wide"],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &["get", "pods", &agents],
        &["logs", &agents, install::SELECTOR, "--tail=30"],
    ];
    for look in looks {
        match cluster.kubectl(look) {
            Ok(text) => println!("--- kubectl {}\n{text}", look.join(" ")),
            Err(error) => println!("--- {error:#}"),
        }
    }
    for node in cluster.nodes() {
        for name in ["kubelet", "containerd"] {
            let log = fs::read_to_string(node.daemons.log(name)).unwrap_or_default();
            let failures =
                log.lines().filter(|line| line.starts_with('E') || line.contains("level=error"));
            let lines: Vec<_> = failures.collect();
            let last = lines.len().saturating_sub(8);
            println!("--- {} {name}\n{}", node.name, lines[last..].join("\n"));
        }
    }
}
