//! The agent's life: its size, its start, its memory, and its end when another takes over.

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kerf::node::store::write_atomic;
use kerf_testbed::{
    agent::Agent,
    kubelet::Plugin,
    node::{Builder, DRIVER, Testbed},
};
use rustix::process::{Signal, kill_process};
use tokio::time::sleep;

use crate::{
    node::{Times, claim, mig, node, prepare, unprepare, whole},
    table::Table,
};

/// Bytes in what is printed as MB.
const MB: f64 = 1e6;

/// How long an agent is left alone before its memory is read: until an order that rested is written, and
/// the next look at the GPUs, after which it gives back what is free.
const IDLE: Duration = Duration::from_secs(22);

/// The agent's program, stripped.
pub(crate) fn binary(table: &mut Table) -> anyhow::Result<()> {
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_kerf"))?.len();
    table.figure("stripped binary", megabytes(size), " MB", "", Some(12.0));
    Ok(())
}

/// From exec to what the cluster sees of it.
pub(crate) async fn start(table: &mut Table) -> anyhow::Result<()> {
    let mut testbed = node().start().await?;
    let (mut registered, mut published) = (Vec::new(), Vec::new());
    for round in 0..10 {
        testbed.agent = None;
        testbed.api.delete_all::<ResourceSlice>("")?;
        let begin = Instant::now();
        testbed.start_agent(&format!("pod-{round}")).await?;
        registered.push(begin.elapsed());
        testbed.published().await;
        published.push(begin.elapsed());
    }
    let (registered, published) = (Times::new(registered), Times::new(published));
    table.time("exec to registered", registered.median(), " median of 10", Some(50.0));
    table.time("exec to all slices on the server", published.median(), " median of 10", None);
    Ok(())
}

/// From the kubelet's wipe at its start to a whole pool.
pub(crate) async fn wiped(table: &mut Table) -> anyhow::Result<()> {
    let testbed = node().start().await?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let before = testbed.kubelet.state().wipes.len();
        testbed.kubelet.restart().await?;
        testbed.kubelet.wait_for(|state| state.wipes.len() > before).await;
        let begin = Instant::now();
        testbed.published().await;
        times.push(begin.elapsed());
    }
    let times = Times::new(times);
    table.time("kubelet's wipe to all slices", times.median(), " median of 5", Some(2000.0));
    Ok(())
}

/// Resident memory of an agent that has nothing to do.
pub(crate) async fn memory(table: &mut Table) -> anyhow::Result<()> {
    let testbed = node().start().await?;
    resident(table, &testbed, "idle agent", Some(16.5)).await?;
    for device in [whole(0), mig(1, 0)] {
        let claims = [claim(&testbed, &device)?];
        for _ in 0..50 {
            prepare(&testbed, &claims).await?;
            unprepare(&testbed, &claims).await?;
        }
    }
    resident(table, &testbed, "idle agent after 100 claims", None).await
}

/// The same with both doors open, every placement offered, a configuration file and node labels.
pub(crate) async fn memory_with_all(table: &mut Table) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let [config, labels] = ["config.yaml", "labels"].map(|name| dir.path().join(name));
    write_atomic(&config, b"flags: {migStrategy: mixed}", 0o644)?;
    let flags = [
        "--interface=both".to_owned(),
        "--mig-on-demand".to_owned(),
        format!("--config-file={}", config.display()),
        format!("--node-labels-file={}", labels.display()),
    ];
    let testbed = flags.into_iter().fold(node(), Builder::flag).start().await?;
    testbed.kubelet.wait_for(|state| state.resources.contains_key("nvidia.com/mig-1g.10gb")).await;
    resident(table, &testbed, "idle agent with all of it on", Some(18.0)).await
}

async fn resident(
    table: &mut Table,
    testbed: &Testbed,
    what: &str,
    most: Option<f64>,
) -> anyhow::Result<()> {
    sleep(IDLE).await;
    let agent = testbed.agent.as_ref().context("no agent")?;
    let status = format!("/proc/{}/status", agent.pid()?.as_raw_nonzero());
    let status = std::fs::read_to_string(status)?;
    let of = |name| kilobytes(&status, name).map(|kilobytes| megabytes(kilobytes * 1024));
    let more = format!(" ({:.1} own, {:.1} of files)", of("RssAnon:")?, of("RssFile:")?);
    table.figure(&format!("resident memory, {what}"), of("VmRSS:")?, " MB", &more, most);
    Ok(())
}

fn kilobytes(status: &str, name: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name} in a process's status"))?.parse()?)
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / MB
}

/// From the old agent's end to the first claim that the one standing by has prepared.
pub(crate) async fn hand_over(table: &mut Table) -> anyhow::Result<()> {
    let mut testbed = node().start().await?;
    for (signal, how) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        let mut gaps = Vec::new();
        for round in 0..5 {
            gaps.push(gap(&mut testbed, signal, &format!("{how}-{round}")).await?);
        }
        let gaps = Times::new(gaps);
        let what = format!("hand-over: {how} to first prepare by the next");
        table.time(&what, gaps.median(), " median of 5", Some(100.0));
    }
    Ok(())
}

async fn gap(testbed: &mut Testbed, signal: Signal, pod_uid: &str) -> anyhow::Result<Duration> {
    let claims = [claim(testbed, &whole(0))?];
    let mut options = testbed.agent_options(pod_uid)?;
    options.log.set_file_name(format!("{pod_uid}.log"));
    let next = Agent::spawn(&options)?;
    // The kubelet calls it from then on, and it passes calls on while it stands by.
    let called = testbed.kubelet.wait_for(|state| {
        let called = |plugin: &Plugin| plugin.connected && is_of(plugin, pod_uid);
        state.plugin(DRIVER).is_some_and(called)
    });
    next.while_running(called).await?;
    let old = testbed.agent.replace(next).context("no agent")?;
    let next = testbed.agent.as_ref().context("no agent")?;
    let begin = Instant::now();
    kill_process(old.pid()?, signal)?;
    next.while_running(acting(next)).await?;
    while prepare(testbed, &claims).await.is_err() {
        sleep(Duration::from_millis(1)).await;
    }
    let gap = begin.elapsed();
    unprepare(testbed, &claims).await?;
    testbed.api.delete::<k8s_openapi::api::resource::v1::ResourceClaim>("default", &whole(0))?;
    old.wait().await?;
    Ok(gap)
}

fn is_of(plugin: &Plugin, pod_uid: &str) -> bool {
    plugin.endpoint.ends_with(format!("dra@{pod_uid}.sock"))
}

/// Its turn has come.
async fn acting(agent: &Agent) {
    while !agent.tail().contains("acting on this node") {
        sleep(Duration::from_millis(1)).await;
    }
}
