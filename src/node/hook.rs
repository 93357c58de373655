//! The hook that container runtimes run, as CDI files name it: a copy on the host of the program that
//! lies beside the agent.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::store::{Error, write_atomic};

/// The program's name, in both places.
pub const NAME: &str = "kerf-cdi-hook";
const MODE: u32 = 0o755;

/// Copies the program that lies beside the running one to `target`, unless that is the same already.
/// Runtimes may be running the old one meanwhile, which stays as it is: it is replaced by rename. Says
/// whether it was.
///
/// # Errors
/// There is no such program, or it cannot be copied.
pub fn install(target: &Path) -> Result<bool, Error> {
    let fail = |path: PathBuf| move |source| Error::File { operation: "read", path, source };
    let agent = std::env::current_exe().map_err(fail("/proc/self/exe".into()))?;
    let source = agent.with_file_name(NAME);
    let wanted = fs::read(&source).map_err(fail(source))?;
    if is_there(target, &wanted).map_err(fail(target.to_owned()))? {
        return Ok(false);
    }
    write_atomic(target, &wanted, MODE)?;
    Ok(true)
}

fn is_there(target: &Path, wanted: &[u8]) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata?,
    };
    let is_like_it = metadata.is_file()
        && metadata.len() == wanted.len() as u64
        && metadata.permissions().mode() & 0o7777 == MODE;
    Ok(is_like_it && fs::read(target)? == wanted)
}
