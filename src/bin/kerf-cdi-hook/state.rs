//! Where the container's root is: the runtime writes the container's state to the hook's input.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state>; crun also names the root
//! in it, other runtimes only the bundle, whose `config.json` has it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, de::DeserializeOwned};

/// Both files are the runtime's, and small.
const LARGEST: u64 = 16 << 20;

#[derive(Deserialize)]
struct State {
    bundle: PathBuf,
    root: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Config {
    root: ConfigRoot,
}

#[derive(Deserialize)]
struct ConfigRoot {
    path: PathBuf,
}

/// The directory that will be the container's root, as this process sees it.
///
/// # Errors
/// The input is no container's state, or its bundle has no configuration.
pub(crate) fn root(input: impl Read) -> anyhow::Result<PathBuf> {
    let state: State = json(input).context("no state of a container on standard input")?;
    if let Some(root) = state.root {
        return Ok(root);
    }
    let path = state.bundle.join("config.json");
    let config = File::open(&path).map_err(Into::into).and_then(json::<Config>);
    let config = config.with_context(|| format!("cannot read `{}`", path.display()))?;
    let root = config.root.path;
    ensure!(root != Path::new(""), "`{}` names no root", path.display());
    // An absolute path stays as it is.
    Ok(state.bundle.join(root))
}

fn json<T: DeserializeOwned>(input: impl Read) -> anyhow::Result<T> {
    let mut bytes = Vec::new();
    input.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
