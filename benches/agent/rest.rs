//! An agent that has nothing to do: its memory, and its share of a core.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use kerf::node::store::write_atomic;
use kerf_testbed::{
    agent::Agent,
    node::{Builder, Testbed},
};
use tokio::time::{Instant, sleep};

use crate::{
    node::{GPUS, claim, mig, node, prepare, unprepare, whole},
    table::{Table, megabytes},
};

/// How long an agent is left alone before its memory is read: until an order that rested is written, and
/// the next look at the GPUs, after which it gives back what is free.
const IDLE: Duration = Duration::from_secs(22);

/// How long its share of a core is measured.
const WINDOW: Duration = Duration::from_secs(60);

/// How often the page of metrics is asked for.
const SCRAPES: Duration = Duration::from_secs(10);

/// The call in which a thread waits for events, and does nothing.
const WAIT: &str = "\"nvmlEventSetWait";

/// Units a second in which the kernel tells a process's time (`USER_HZ`).
const TICKS: f64 = 100.0;

/// MIG devices that an administrator made on each GPU: their profile, and how many.
const CUT: (u32, u32) = (19, 7);

/// Resident memory of an agent that has nothing to do.
pub(crate) async fn memory(table: &mut Table) -> anyhow::Result<()> {
    let testbed = node().start().await?;
    sleep(IDLE).await;
    resident(table, &testbed, "idle agent", Some(18.0))?;
    for device in [whole(0), mig(1, 0)] {
        let claims = [claim(&testbed, &device)?];
        for _ in 0..50 {
            prepare(&testbed, &claims).await?;
            unprepare(&testbed, &claims).await?;
        }
    }
    sleep(IDLE).await;
    resident(table, &testbed, "idle agent after 100 claims", None)
}

/// The same, and the share of a core, with all of it on: both doors, every placement offered, a configuration
/// file, node labels, and GPUs that are cut, watched and looked at, with somebody who asks for the metrics.
///
/// The simulated library works in the agent's process, so its part is said too: it is what the agent counts
/// of NVML's calls, waits for the processor included.
pub(crate) async fn all_on(table: &mut Table) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut testbed = all(dir.path())?.start_without_agent().await?;
    for gpu in 0..GPUS {
        testbed.machine.set_mig_mode(gpu, true)?;
        for place in 0..CUT.1 {
            testbed.machine.create_instance(gpu, CUT.0, place, true)?;
        }
    }
    let options = testbed.agent_options("a")?;
    let agent = Agent::spawn(&options)?;
    let offered = |resource: &str| testbed.kubelet.state().resources.contains_key(resource);
    while !offered("nvidia.com/mig-1g.10gb") {
        agent.while_running(sleep(Duration::from_millis(10))).await?;
    }
    testbed.agent = Some(agent);
    testbed.published().await;
    scrape_for(options.http_endpoint, IDLE).await?;
    let before = Work::of(&testbed, options.http_endpoint)?;
    scrape_for(options.http_endpoint, WINDOW).await?;
    let work = Work::of(&testbed, options.http_endpoint)?.since(&before);
    resident(table, &testbed, "idle agent with all of it on", Some(20.0))?;
    let percent = |seconds: f64| seconds / WINDOW.as_secs_f64() * 100.0;
    let more = format!(" ({:.2} in NVML, {} calls)", percent(work.in_nvml), work.calls);
    table.share("core, idle agent with all of it on", percent(work.seconds), &more, Some(0.5));
    Ok(())
}

fn all(dir: &Path) -> anyhow::Result<Builder> {
    let [config, labels] = ["config.yaml", "labels"].map(|name| dir.join(name));
    write_atomic(&config, b"flags: {migStrategy: mixed}", 0o644)?;
    let flags = [
        "--interface=both".to_owned(),
        "--mig-on-demand".to_owned(),
        format!("--config-file={}", config.display()),
        format!("--node-labels-file={}", labels.display()),
    ];
    Ok(flags.into_iter().fold(node(), Builder::flag))
}

fn resident(
    table: &mut Table,
    testbed: &Testbed,
    what: &str,
    most: Option<f64>,
) -> anyhow::Result<()> {
    let status = of_process(testbed, "status")?;
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

/// A file that the kernel has of the agent's process.
fn of_process(testbed: &Testbed, file: &str) -> anyhow::Result<String> {
    let agent = testbed.agent.as_ref().context("no agent")?;
    let path = format!("/proc/{}/{file}", agent.pid()?.as_raw_nonzero());
    std::fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))
}

/// What an agent has done since its start.
struct Work {
    /// Of a processor.
    seconds: f64,
    /// How long its calls of NVML took, but for waits for events, in seconds.
    in_nvml: f64,
    /// How many they were.
    calls: u64,
}

impl Work {
    fn of(testbed: &Testbed, metrics: SocketAddr) -> anyhow::Result<Self> {
        let page = page(metrics)?;
        let series = |name: &str| {
            let name = format!("kerf_nvml_call_duration_seconds_{name}{{");
            let lines = page.lines().filter(move |line| line.starts_with(&name));
            let lines = lines.filter(|line| !line.contains(WAIT));
            lines.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        Ok(Self {
            seconds: ticks(&of_process(testbed, "stat")?)? as f64 / TICKS,
            in_nvml: series("sum").filter_map(|sum| sum.parse::<f64>().ok()).sum(),
            calls: series("count").filter_map(|count| count.parse::<u64>().ok()).sum(),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            seconds: self.seconds - before.seconds,
            in_nvml: self.in_nvml - before.in_nvml,
            calls: self.calls - before.calls,
        }
    }
}

/// `utime` and `stime`, the 14th and 15th field of a process's `stat` (proc(5)).
fn ticks(stat: &str) -> anyhow::Result<u64> {
    // The second field is a name in parentheses, which may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("no name in a process's stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let time = fields.get(11..13).context("no times in a process's stat")?;
    time.iter().map(|ticks| Ok(ticks.parse::<u64>()?)).sum()
}

/// Asks for the page of metrics again and again.
async fn scrape_for(metrics: SocketAddr, time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        page(metrics)?;
        sleep(SCRAPES.min(end - Instant::now())).await;
    }
    Ok(())
}

fn page(metrics: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(metrics)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
