//! `kerf-cdi-hook`: what a container runtime runs for a container that gets a GPU.
//!
//! CDI files name it as a `createContainer` hook: it runs as the host's root in the container's
//! namespaces, when the mounts are made and before the container's root is entered. The image is taken
//! for hostile: nothing in it is executed, and no link in it leads out of it ([`root`]). Sub-commands
//! and their flags are those of `nvidia-cdi-hook`.

mod arguments;
mod compat;
mod kernel;
mod ldcache;
mod links;
mod musl;
mod params;
mod root;
mod state;

use std::process::ExitCode;

use anyhow::Context;
use rustix::{fs::Mode, process::umask};

use self::{arguments::Arguments, root::Root};

fn main() -> ExitCode {
    umask(Mode::from_raw_mode(0o022));
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kerf-cdi-hook: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    let command: fn(&Root, &Arguments) -> anyhow::Result<()> = match arguments.command() {
        "--version" => {
            println!("kerf-cdi-hook {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        "create-symlinks" => links::create,
        "enable-cuda-compat" => compat::enable,
        "update-ldcache" => ldcache::update,
        "disable-device-node-modification" => params::disable_modification,
        // A CDI file of a later version may ask for more; containers are not to fail for that.
        other => {
            warn(format_args!("`{other}` is not a command of this version; nothing is done"));
            return Ok(());
        }
    };
    let work = || command(&Root::open(&state::root(std::io::stdin())?)?, &arguments);
    work().with_context(|| arguments.command().to_owned())
}

/// Says what did not stop the work; runtimes show it only if that fails later.
fn warn(what: impl std::fmt::Display) {
    eprintln!("kerf-cdi-hook: warning: {what}");
}
