//! `kerf status`: what the agent on this node says about itself and what claims hold.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;

use crate::{
    cli::{
        age::age,
        look::{self, Kept},
        machine::MachineArgs,
        output,
        picture::short,
        style::{Paint, Style},
        table::table,
    },
    model::{
        health::Severity,
        plan::Origin,
        status::{
            AgentState, AgentStatus, ClaimState, ClaimStatus, ContainerStatus, GpuStatus,
            ResourceStatus, Status,
        },
    },
};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// More than any agent has to say.
const LONGEST_ANSWER: u64 = 64 << 20;

/// Arguments of `kerf status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// For people, or for programs.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// Shows what the agent says, or, when none answers, what the records say; the exit status is then 1.
///
/// # Errors
/// A writer that fails, unless its reader has gone away.
pub fn run(args: &Args, out: &mut dyn Write, style: Style) -> anyhow::Result<ExitCode> {
    output::quiet_pipe(show(args, out, style))
}

fn show(args: &Args, out: &mut dyn Write, style: Style) -> anyhow::Result<ExitCode> {
    let status = status(&args.machine);
    match args.output {
        Format::Table => out.write_all(render(&status, Timestamp::now(), style).as_bytes())?,
        Format::Json => output::json(out, &status)?,
        Format::Yaml => output::yaml(out, &status)?,
    }
    Ok(if status.agent.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status(machine: &MachineArgs) -> Status {
    let socket = machine.state_dir().join("agent.sock");
    match ask(&socket) {
        Ok(status) => status,
        Err(error) => of_records(look::kept(machine), format!("{error:#}")),
    }
}

fn of_records(kept: Kept, error: String) -> Status {
    let lines: Vec<_> = std::iter::once(error).chain(kept.notes).collect();
    let records = kept.records.as_deref().unwrap_or_default();
    Status::of_records(records, &kept.boot_id, lines.join("; "))
}

/// Reads what the agent at `socket` writes, one JSON document until it closes.
fn ask(socket: &Path) -> anyhow::Result<Status> {
    let (answer, answered) = mpsc::sync_channel(1);
    let path = socket.to_owned();
    // Connecting to a process that is stopped blocks, and has no time limit of its own.
    std::thread::spawn(move || answer.send(read(&path)));
    let text = match answered.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    let failed = || format!("no agent answers on `{}`", socket.display());
    let status: Status =
        serde_json::from_slice(&text.with_context(failed)?).with_context(failed)?;
    Ok(status)
}

fn read(socket: &PathBuf) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    UnixStream::connect(socket)?.take(LONGEST_ANSWER).read_to_end(&mut text)?;
    Ok(text)
}

fn render(status: &Status, now: Timestamp, style: Style) -> String {
    let mut text = String::new();
    match (&status.agent, &status.error) {
        (Some(agent), _) => text.push_str(&agent_line(status, agent, now, style)),
        (None, Some(error)) => {
            text.push_str(&style.paint(Paint::Red, error));
            text.push_str("; this is what the records say\n");
        }
        (None, None) => {}
    }
    text.push_str(&troubles(status, now, style));
    text.push('\n');
    if !status.gpus.is_empty() {
        text.push_str(&gpus(&status.gpus));
        text.push('\n');
    }
    if !status.claims.is_empty() || status.resources.is_empty() && status.containers.is_empty() {
        text.push_str(&claims(&status.claims, now));
    }
    let separator = if text.ends_with("\n\n") { "" } else { "\n" };
    let tables = [resources(&status.resources), containers(&status.containers, now)];
    let tables: Vec<_> = tables.into_iter().flatten().collect();
    if !tables.is_empty() {
        text.push_str(separator);
        text.push_str(&tables.join("\n"));
    }
    text
}

fn agent_line(status: &Status, agent: &AgentStatus, now: Timestamp, style: Style) -> String {
    let mut parts = vec![
        style.paint(Paint::Bold, &format!("agent {}", agent.version)),
        format!("up {}", age(&agent.started_at, now)),
    ];
    match &agent.state {
        AgentState::Serving => {}
        AgentState::StandingBy { reason } => parts.push(format!("standing by: {reason}")),
        AgentState::WaitingForDriver { reason } => {
            parts.push(format!("waiting for the driver: {reason}"));
        }
    }
    if let Some(kubelet) = &status.kubelet {
        let since = kubelet.since.as_deref().map(|since| age(since, now));
        let since = since.map(|age| format!(" for {age}")).unwrap_or_default();
        let registered = if kubelet.registered { "registered" } else { "not registered" };
        parts.push(format!("{registered} with the kubelet{since}"));
    }
    if let Some(published) = &status.published {
        let noun = if published.slices == 1 { "slice" } else { "slices" };
        let at = published.at.as_deref().map(|at| format!("published {} ago", age(at, now)));
        let at = at.unwrap_or_else(|| "not published yet".to_owned());
        let generation = published.generation;
        parts.push(format!("{} {noun}, generation {generation}, {at}", published.slices));
    }
    format!("{}\n", parts.join(style.separator()))
}

fn troubles(status: &Status, now: Timestamp, style: Style) -> String {
    let mut text = String::new();
    let mut line = |what: &str, why: &str| {
        _ = writeln!(text, "{} {why}", style.paint(Paint::Red, what));
    };
    if let Some(error) = status.kubelet.as_ref().and_then(|kubelet| kubelet.last_error.as_ref()) {
        line("kubelet:", error);
    }
    if let Some(error) = status.published.as_ref().and_then(|published| published.error.as_ref()) {
        line("publishing:", error);
    }
    let explained = |index: u32| {
        let findings =
            status.gpus.iter().filter(|gpu| gpu.index == index).flat_map(|gpu| &gpu.findings);
        findings.into_iter().any(|finding| finding.severity == Severity::Unhealthy)
    };
    for gpu in status.not_served.iter().filter(|gpu| !explained(gpu.index)) {
        line(&format!("GPU {} not served:", gpu.index), &gpu.reason);
    }
    for gpu in &status.gpus {
        for finding in &gpu.findings {
            let since = age(&finding.since.to_string(), now);
            let what = format!("GPU {} {} for {since}:", gpu.index, finding.severity.name());
            line(&what, &finding.line());
        }
    }
    for warning in &status.warnings {
        line("warning:", warning);
    }
    text
}

fn gpus(gpus: &[GpuStatus]) -> String {
    let head = ["GPU", "UUID", "PRODUCT", "HEALTH", "UTIL", "MEMORY", "TEMP", "POWER"];
    let rows = gpus.iter().map(|gpu| {
        let load = gpu.load.unwrap_or_default();
        let health = match gpu.findings.first() {
            Some(worst) => worst.severity.name(),
            None if gpu.served => "healthy",
            None => "not served",
        };
        let memory = load.memory_used_bytes.zip(load.memory_bytes);
        let gib = |bytes: u64| (bytes + (1 << 29)) >> 30;
        [
            gpu.index.to_string(),
            short(&gpu.uuid.0).to_owned(),
            gpu.product.clone(),
            health.to_owned(),
            or_dash(load.utilization.map(|percent| format!("{percent}%"))),
            or_dash(memory.map(|(used, all)| format!("{}/{} GiB", gib(used), gib(all)))),
            or_dash(load.temperature.map(|degrees| format!("{degrees} °C"))),
            or_dash(load.power_milliwatts.map(|power| format!("{} W", (power + 500) / 1000))),
        ]
    });
    table(&std::iter::once(head.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

fn claims(claims: &[ClaimStatus], now: Timestamp) -> String {
    if claims.is_empty() {
        return "no claims\n".to_owned();
    }
    let head = ["CLAIM", "POD", "DEVICE", "UUID", "STATE", "SINCE"].map(str::to_owned);
    let rows = claims.iter().map(|claim| row(claim, now));
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Extended resources; nothing where there are none.
fn resources(resources: &[ResourceStatus]) -> Option<String> {
    let head = ["RESOURCE", "DEVICES", "HEALTHY", "TAKEN", "KUBELET"].map(str::to_owned);
    let rows = resources.iter().map(|resource| {
        let kubelet = match (resource.registered, &resource.error) {
            (true, _) => "registered".to_owned(),
            (false, Some(error)) => error.clone(),
            (false, None) => "not registered".to_owned(),
        };
        let [devices, healthy, taken] =
            [resource.devices, resource.healthy, resource.taken].map(|count| count.to_string());
        [resource.name.clone(), devices, healthy, taken, kubelet]
    });
    (!resources.is_empty()).then(|| table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}

/// What containers have; nothing where they have nothing.
fn containers(containers: &[ContainerStatus], now: Timestamp) -> Option<String> {
    let head = ["POD", "CONTAINER", "RESOURCE", "DEVICE", "UUID", "STATE", "SINCE"];
    let rows = containers.iter().map(|container| {
        let (pod, name) = match &container.container {
            Some(name) => (format!("{}/{}", name.namespace, name.pod), name.container.clone()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        [
            pod,
            name,
            container.resource.clone(),
            container.device.clone(),
            container.uuid.as_deref().map_or("-", short).to_owned(),
            progress(container.state).to_owned(),
            age(&container.since, now),
        ]
    });
    let head = head.map(str::to_owned);
    (!containers.is_empty()).then(|| table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}

fn row(claim: &ClaimStatus, now: Timestamp) -> [String; 6] {
    let uuid = claim.uuid.as_deref().map_or("-", short);
    [
        format!("{}/{}", claim.namespace, claim.name),
        pods(&claim.pods),
        claim.device.clone(),
        uuid.to_owned(),
        state(claim),
        age(&claim.since, now),
    ]
}

fn pods(pods: &[String]) -> String {
    match pods {
        [] => "-".to_owned(),
        [pod] => pod.clone(),
        [pod, others @ ..] => format!("{pod} +{}", others.len()),
    }
}

fn state(claim: &ClaimStatus) -> String {
    let state = progress(claim.state);
    let access = if claim.origin == Origin::Observed { ", admin access" } else { "" };
    format!("{state}{access}")
}

fn progress(state: ClaimState) -> &'static str {
    match state {
        ClaimState::Preparing => "preparing",
        ClaimState::Prepared => "prepared",
        ClaimState::EarlierBoot => "earlier boot",
        ClaimState::Leftover => "ended, needs a GPU reset",
    }
}

#[cfg(test)]
mod tests;
