//! The laptop's front door: the real agent on a simulated node of eight GPUs.
//!
//! Every manifest of `examples/` is applied, scheduled, prepared and shown; work begins, a GPU fails under
//! it and heals; and all is released: through the real NVML interface, real gRPC sockets and a real HTTP
//! API. At the end nothing is left.

mod report;
mod stage;

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use kerf::cli::style::Style;
use report::{Report, Story};
use stage::Stage;

/// Runs the agent on a simulated node of eight GPUs and shows what becomes of the claims in examples/, and of
/// a GPU that fails.
#[derive(Debug, Parser)]
struct Args {
    /// For people, or for programs.
    #[arg(short, long, default_value = "story")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Story,
    Json,
}

fn main() -> ExitCode {
    // The agent and its commands are this same program: cargo builds no other for an example.
    if env::args().nth(1).is_some_and(|first| ["node", "release-gpu"].contains(&&*first)) {
        return kerf::cli::main(env::args_os());
    }
    let Args { output } = Args::parse();
    match run(output) {
        Ok(report) if report.left.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(output: Output) -> anyhow::Result<Report> {
    let style = Style::of_stdout();
    let mut out: Box<dyn Write> = match output {
        Output::Story => Box::new(io::stdout()),
        Output::Json => Box::new(io::sink()),
    };
    let mut story = Story::new(&mut out, style);
    let report = play(&mut story).await?;
    if output == Output::Json {
        serde_json::to_writer_pretty(io::stdout(), &report)?;
        writeln!(io::stdout())?;
    }
    Ok(report)
}

async fn play(story: &mut Story<'_>) -> anyhow::Result<Report> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut stage = Stage::set(&root.join("deploy/kerf.yaml")).await?;
    story.opening(&stage)?;
    let mut report = Report::new(&stage);
    for file in manifests(&root.join("examples"))? {
        let name = Path::new("examples").join(file.file_name().unwrap_or_default());
        let act = stage.act(&file).await.with_context(|| format!("`{}`", name.display()))?;
        story.act(&name, &act, &stage)?;
        report.add(&name, &act);
    }
    story.meanwhile(&stage)?;
    stage.start_work().await?;
    story.under_load(&stage)?;
    let fault = stage.break_gpu().await?;
    story.fault(&fault, &stage)?;
    let healed = stage.reset_gpu(&fault).await?;
    story.healed(&fault, &healed)?;
    report.health(&fault, &healed);
    stage.end_work()?;
    report.released_in_ms = stage.release().await?;
    story.afterwards(&report, &stage)?;
    report.left = stage.strike().await?;
    story.end(&report)?;
    Ok(report)
}

/// The manifests that a user would apply, by name.
fn manifests(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing = dir.read_dir().with_context(|| format!("cannot read `{}`", dir.display()))?;
    let paths = listing.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    Ok(files)
}
