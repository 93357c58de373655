//! A real Kubernetes on one machine, without a container engine, and the suites that run in it.

mod api;
mod cluster;
mod command;
mod control_plane;
mod daemon;
mod files;
mod held;
mod images;
mod inside;
mod install;
mod manifests;
mod node;
mod pki;
mod programs;
mod prometheus;
mod suite;
mod suites;
mod wait;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{
    cluster::Cluster,
    programs::{Release, check_machine},
};

/// Brings up a real Kubernetes on this machine, installs Kerf in it, and runs suites.
#[derive(Debug, Parser)]
#[command(name = "e2e/run", bin_name = "e2e/run")]
struct Args {
    /// Which release.
    #[arg(long, value_enum, default_value = "1.37")]
    kubernetes: Release,
    /// Leave the cluster up, with a kubeconfig to play in.
    #[arg(long)]
    keep: bool,
    /// End the cluster that was left up.
    #[arg(long, exclusive = true)]
    down: bool,
    /// Kerf's image, an OCI archive.
    #[arg(long, default_value = "target/kerf.tar")]
    image: PathBuf,
    /// Where the programs are that pods run.
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// Suites, or `suite::test`; all if none is named.
    suites: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e/run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    check_machine()?;
    if args.down {
        Cluster::down()?;
        return Ok(true);
    }
    let chosen = suite::choose(&args.suites, args.kubernetes)?;
    let mut cluster = Cluster::up(args.kubernetes, &args.binaries, &args.image)?;
    let passed = suite::run(&mut cluster, &chosen);
    if args.keep {
        println!("the cluster is left up: export KUBECONFIG={}", cluster.kubeconfig().display());
        println!("end it with e2e/run --down");
    } else {
        drop(cluster);
        Cluster::down()?;
    }
    passed
}
