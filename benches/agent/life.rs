//! The agent's life: its size, its start, and its end when another takes over.

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kerf_testbed::{
    agent::Agent,
    kubelet::Plugin,
    node::{DRIVER, Testbed},
};
use rustix::process::{Signal, kill_process};
use tokio::time::sleep;

use crate::{
    node::{Times, claim, node, prepare, unprepare, whole},
    table::{Table, megabytes},
};

/// MB of the program: 12 MiB.
const LARGEST: f64 = 12.58;

/// The agent's program, stripped.
pub(crate) fn binary(table: &mut Table) -> anyhow::Result<()> {
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_kerf"))?.len();
    table.figure("stripped binary", megabytes(size), " MB", "", Some(LARGEST));
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
