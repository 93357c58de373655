//! Programs that run until the cluster ends: each has a log and a file with its process id, so that the
//! cluster can be ended by another process than the one that began it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::files;

/// How long a program may take to end once it was told.
const PATIENCE: Duration = Duration::from_secs(10);

/// The programs of one directory.
#[derive(Debug)]
pub(crate) struct Daemons {
    dir: PathBuf,
    /// Those that this process started, and has to reap.
    children: Mutex<BTreeMap<String, Child>>,
}

impl Daemons {
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), children: Mutex::default() })
    }

    /// Starts a program under a name.
    pub(crate) fn start(&self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log(name))?;
        let errors = log.try_clone()?;
        // A group of its own: what ends the runner from a terminal does not end it.
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        files::write(&self.pid_file(name), format!("{} {}", child.id(), started(pid)?))?;
        self.children().insert(name.to_owned(), child);
        Ok(())
    }

    /// Its output.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pid"))
    }

    fn children(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process id, if it is still that program's: ids are given again.
    pub(crate) fn pid(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.pid_file(name)).ok()?;
        let (pid, start) = text.split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        (started(pid).ok()? == start).then_some(pid)
    }

    /// Ends a program as its supervisor would: asked first, killed if it does not listen.
    pub(crate) fn stop(&self, name: &str) -> anyhow::Result<()> {
        self.end(name, Signal::TERM)
    }

    /// Ends a program as a crash would.
    pub(crate) fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.end(name, Signal::KILL)
    }

    fn end(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let child = self.children().remove(name);
        if let Some(pid) = self.pid(name) {
            end(pid, signal, child)?;
        }
        match fs::remove_file(self.pid_file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }
}

/// When a process began, in clock ticks since the machine did; an error if it has ended.
fn started(pid: Pid) -> anyhow::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // proc(5): its name may have spaces; after it come field 3, the state, and field 22, the start.
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let mut fields = fields.split_whitespace();
    ensure!(fields.next() != Some("Z"), "has ended, and was not waited for");
    Ok(fields.nth(18).context("a process has a start")?.to_owned())
}

/// Ends a process, and waits until it has.
pub(crate) fn end(pid: Pid, signal: Signal, child: Option<Child>) -> anyhow::Result<()> {
    // One that has ended already is as well.
    let _ended = kill_process(pid, signal);
    let mut child = child;
    let begun = Instant::now();
    let mut killed = false;
    loop {
        let gone = match &mut child {
            Some(child) => child.try_wait()?.is_some(),
            None => started(pid).is_err(),
        };
        if gone {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE && !killed {
            let _ended = kill_process(pid, Signal::KILL);
            killed = true;
        }
        sleep(Duration::from_millis(20));
    }
}
