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
    env,
    ffi::{OsStr, OsString},
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use clap::{Arg, CommandFactory, FromArgMatches, Parser, builder::Resettable};

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

/// How help says that an empty value means something.
const EMPTY: &str = "none if empty";

/// A variable of the environment that is empty counts as one that is not there, unless help gives it a meaning:
/// manifests have such where a value was left out.
fn without_empty(command: clap::Command) -> clap::Command {
    command.mut_args(set_or_not).mut_subcommands(without_empty)
}

fn set_or_not(arg: Arg) -> Arg {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    match arg.get_env().is_some_and(is_empty) && !help.contains(EMPTY) {
        true => arg.env(Resettable::Reset),
        false => arg,
    }
}

/// Runs the command line `args`, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = without_empty(Kerf::command()).get_matches_from(args);
    let Kerf { command } = Kerf::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
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
