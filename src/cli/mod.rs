//! Subcommands, one file each: arguments in, one call, output out.

mod age;
mod agent;
pub mod clear_gpu;
mod cut;
mod devices;
pub mod doors;
pub mod health;
pub mod inventory;
mod kept;
pub mod labels;
mod listen;
mod look;
pub mod machine;
pub mod metrics;
pub mod node;
mod orders;
mod output;
pub mod picture;
pub mod plugin_config;
pub mod release_gpu;
mod report;
mod rescan;
#[cfg(test)]
mod samples;
mod slices;
mod standby;
pub mod status;
pub mod style;
mod table;

use std::{
    ffi::OsString,
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use clap::Parser;

use self::style::Style;

/// A Kubernetes DRA driver for NVIDIA GPUs that carves exactly what was claimed.
#[derive(Debug, Parser)]
#[command(name = "kerf", version)]
struct Kerf {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the agent of a node.
    Node(Box<node::Args>),
    /// Show the node's GPUs and how each is cut; needs neither cluster nor agent.
    Inventory(inventory::Args),
    /// Show what is held by whom, from the agent or, when it is down, from its records.
    Status(status::Args),
    /// Have the agent let go of a GPU, so that it can be reset.
    ReleaseGpu(release_gpu::Args),
    /// Have the agent forget what is wrong with a GPU: of some faults only a person knows that they are over.
    ClearGpu(clear_gpu::Args),
}

/// Runs the command line `args`, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Kerf { command } = Kerf::parse_from(args);
    let out = &mut stdout().lock();
    let outcome = match command {
        Command::Node(args) => node::run(*args),
        Command::Inventory(args) => inventory::run(&args, out, Style::of_stdout()),
        Command::Status(args) => status::run(&args, out, Style::of_stdout()),
        Command::ReleaseGpu(args) => release_gpu::run(&args, out),
        Command::ClearGpu(args) => clear_gpu::run(&args, out),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(stderr(), "kerf: {error:#}");
        ExitCode::FAILURE
    })
}
