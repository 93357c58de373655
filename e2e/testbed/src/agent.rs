//! The agent under test, as a child process: started with its flags, killed, stopped, and always
//! reaped.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;

use crate::fd::pollable;

/// Bytes of the log that an error shows.
const TAIL: usize = 4096;

/// What to run, and on which node.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The program, with what stands before `node`.
    pub program: Vec<OsString>,
    /// What runs the program, such as `strace` and its flags; empty for nothing.
    pub wrapper: Vec<OsString>,
    /// Name of the Node object.
    pub node_name: String,
    /// How to reach the API server.
    pub kubeconfig: PathBuf,
    /// The kubelet's `plugins_registry`.
    pub registrar_dir: PathBuf,
    /// The kubelet's `plugins`.
    pub plugins_dir: PathBuf,
    /// The kubelet's `device-plugins`.
    pub device_plugins_dir: PathBuf,
    /// Where the kubelet says which containers have which devices.
    pub pod_resources_socket: PathBuf,
    /// Where CDI files go.
    pub cdi_root: PathBuf,
    /// `libnvidia-ml.so.1`.
    pub nvml_library: PathBuf,
    /// Root of the driver's files, as the agent sees it.
    pub driver_root: PathBuf,
    /// The same, as the container runtime sees it.
    pub nvidia_driver_root: Option<PathBuf>,
    /// Instead of `/proc`.
    pub proc_root: PathBuf,
    /// Instead of `/sys`.
    pub sys_root: PathBuf,
    /// Instead of `/`, for what is in `/dev`.
    pub dev_root: PathBuf,
    /// Instead of `/`, for what configures the container runtime.
    pub host_root: PathBuf,
    /// Instead of `/dev/kmsg`.
    pub kernel_log: PathBuf,
    /// Where records go, if not where the agent puts them by itself.
    pub state_dir: Option<PathBuf>,
    /// UID of the pod that it runs in.
    pub pod_uid: String,
    /// Port of the gRPC health service.
    pub healthcheck_port: u16,
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    pub http_endpoint: SocketAddr,
    /// More flags.
    pub flags: Vec<OsString>,
    /// More environment.
    pub env: Vec<(OsString, OsString)>,
    /// Takes its standard output and error; appended to.
    pub log: PathBuf,
}

/// A running agent. Its drop kills and reaps it.
#[derive(Debug)]
pub struct Agent {
    child: Mutex<Child>,
    group: Pid,
    ended: AsyncFd<OwnedFd>,
    wrapped: bool,
    log: PathBuf,
}

impl AgentOptions {
    fn arguments(&self) -> Vec<OsString> {
        let mut flags: Vec<(&str, OsString)> = vec![
            ("--node-name", self.node_name.clone().into()),
            ("--kubeconfig", self.kubeconfig.clone().into()),
            ("--kubelet-registrar-directory-path", self.registrar_dir.clone().into()),
            ("--kubelet-plugins-directory-path", self.plugins_dir.clone().into()),
            ("--kubelet-device-plugins-directory-path", self.device_plugins_dir.clone().into()),
            ("--kubelet-pod-resources-socket", self.pod_resources_socket.clone().into()),
            ("--cdi-root", self.cdi_root.clone().into()),
            ("--nvml-library", self.nvml_library.clone().into()),
            ("--driver-root", self.driver_root.clone().into()),
            ("--proc-root", self.proc_root.clone().into()),
            ("--sys-root", self.sys_root.clone().into()),
            ("--dev-root", self.dev_root.clone().into()),
            ("--host-root", self.host_root.clone().into()),
            ("--kernel-log", self.kernel_log.clone().into()),
            ("--pod-uid", self.pod_uid.clone().into()),
            ("--healthcheck-port", self.healthcheck_port.to_string().into()),
            ("--http-endpoint", self.http_endpoint.to_string().into()),
        ];
        flags.extend(
            self.nvidia_driver_root.clone().map(|root| ("--nvidia-driver-root", root.into())),
        );
        flags.extend(self.state_dir.clone().map(|dir| ("--state-dir", dir.into())));
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]);
        std::iter::once("node".into()).chain(flags).chain(self.flags.iter().cloned()).collect()
    }

    fn command(&self) -> anyhow::Result<Command> {
        let words: Vec<_> =
            self.wrapper.iter().chain(&self.program).cloned().chain(self.arguments()).collect();
        let [first, rest @ ..] = words.as_slice() else { bail!("no program to run") };
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write `{}`", self.log.display()))?;
        let mut command = Command::new(first);
        // A group of its own, so that nothing that a wrapper started outlives it.
        command.args(rest).envs(self.env.iter().cloned()).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

impl Agent {
    /// Starts it; that it runs says nothing of its readiness.
    ///
    /// # Errors
    /// When the program or its log cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(options: &AgentOptions) -> anyhow::Result<Self> {
        let mut command = options.command()?;
        let child = command
            .spawn()
            .with_context(|| format!("cannot run `{}`", command.get_program().display()))?;
        let group = Pid::from_child(&child);
        let ended = pollable(pidfd_open(group, PidfdFlags::NONBLOCK)?)?;
        let (wrapped, log) = (!options.wrapper.is_empty(), options.log.clone());
        Ok(Self { child: Mutex::new(child), group, ended, wrapped, log })
    }

    /// The agent's own process, which a wrapper may have started.
    ///
    /// # Errors
    /// When it has ended, or the wrapper has not started it yet.
    pub fn pid(&self) -> anyhow::Result<Pid> {
        if self.child().try_wait()?.is_some() {
            bail!("the agent has ended");
        }
        if !self.wrapped {
            return Ok(self.group);
        }
        child_of(self.group)?.ok_or_else(|| anyhow!("the wrapper has not started the agent"))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(&self) -> io::Result<ExitStatus> {
        // A pidfd is readable once the process has ended.
        let _ready = self.ended.readable().await?;
        self.child().wait()
    }

    /// Kills it as a crash would (SIGKILL), and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be signalled; not when it has already ended.
    pub async fn kill(&self) -> anyhow::Result<ExitStatus> {
        self.end(Signal::KILL).await
    }

    /// Asks it to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// When it cannot be signalled; not when it has already ended.
    pub async fn terminate(&self) -> anyhow::Result<ExitStatus> {
        self.end(Signal::TERM).await
    }

    /// Freezes it (SIGSTOP).
    ///
    /// # Errors
    /// When it has ended.
    pub fn stop(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, Signal::STOP)?)
    }

    /// Lets it go on after [`Agent::stop`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn cont(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_memory(&self) -> anyhow::Result<u64> {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid()?.as_raw_nonzero()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.context("no VmRSS in its status")?.parse::<u64>()? * 1024)
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its output, for messages.
    pub fn tail(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(log) => String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL)..]).into_owned(),
            Err(error) => format!("cannot read `{}`: {error}", self.log.display()),
        }
    }

    /// Fails, with the end of its output, when it ends before `work` does.
    ///
    /// # Errors
    /// As said.
    pub async fn while_running<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            status = self.wait() => Err(anyhow!("the agent ended with {}:\n{}", status?, self.tail())),
        }
    }

    async fn end(&self, signal: Signal) -> anyhow::Result<ExitStatus> {
        if let Ok(pid) = self.pid() {
            kill_process(pid, signal).or_else(|error| {
                if error == rustix::io::Errno::SRCH { Ok(()) } else { Err(error) }
            })?;
        }
        Ok(self.wait().await?)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child().try_wait(), Ok(None)) {
            // Cannot fail for a child that is not reaped.
            let _killed = kill_process_group(self.group, Signal::KILL);
            let _reaped = self.child().wait();
        }
    }
}

/// The only child of a process, if it has started one.
fn child_of(parent: Pid) -> io::Result<Option<Pid>> {
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        if parent_of(pid) == Some(parent) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// `PPid` of a process; none when it is gone.
fn parent_of(pid: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn options(dir: &Path, program: &[&str]) -> AgentOptions {
        AgentOptions {
            program: program.iter().map(OsString::from).collect(),
            wrapper: vec![],
            node_name: "node-a".into(),
            kubeconfig: "/k".into(),
            registrar_dir: "/r".into(),
            plugins_dir: "/p".into(),
            device_plugins_dir: "/e".into(),
            pod_resources_socket: "/s".into(),
            cdi_root: "/c".into(),
            nvml_library: "/n".into(),
            driver_root: "/d".into(),
            nvidia_driver_root: Some("/h".into()),
            proc_root: "/proc".into(),
            sys_root: "/sys".into(),
            dev_root: "/v".into(),
            kernel_log: "/m".into(),
            host_root: "/o".into(),
            state_dir: None,
            pod_uid: "uid".into(),
            healthcheck_port: 1,
            http_endpoint: "127.0.0.1:2".parse().unwrap(),
            flags: vec!["--more".into()],
            env: vec![("COLOUR".into(), "none".into())],
            log: dir.join("agent.log"),
        }
    }

    /// Runs a script until it has written `ready`.
    async fn script(dir: &Path, script: &str, wrapper: &[&str]) -> Agent {
        let mut options = options(dir, &["sh", "-c", script]);
        options.wrapper = wrapper.iter().map(OsString::from).collect();
        let agent = Agent::spawn(&options).unwrap();
        while !agent.tail().contains("ready") {
            tokio::task::yield_now().await;
        }
        agent
    }

    #[tokio::test]
    async fn every_flag_and_the_output_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::spawn(&options(
            dir.path(),
            &["sh", "-c", r#"echo "$COLOUR $0 $*"; echo bad >&2; exit 3"#],
        ))
        .unwrap();
        let ended = agent.while_running(std::future::pending::<()>()).await.unwrap_err();
        let expected = "the agent ended with exit status: 3:\nnone node --node-name node-a --kubeconfig /k \
            --kubelet-registrar-directory-path /r --kubelet-plugins-directory-path /p \
            --kubelet-device-plugins-directory-path /e --kubelet-pod-resources-socket /s --cdi-root /c --nvml-library /n \
            --driver-root /d --proc-root /proc --sys-root /sys --dev-root /v --host-root /o \
            --kernel-log /m --pod-uid uid \
            --healthcheck-port 1 --http-endpoint 127.0.0.1:2 --nvidia-driver-root /h --more\nbad\n";
        assert_eq!(ended.to_string(), expected);
        assert!(agent.pid().is_err());
        assert!(agent.terminate().await.unwrap().code() == Some(3));
    }

    #[tokio::test]
    async fn signals_reach_the_agent_with_and_without_a_wrapper() {
        let dir = tempfile::tempdir().unwrap();
        let polite = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done";
        for wrapper in [&[][..], &["sh", "-c", r#""$0" "$@"; exit $?"#]] {
            let agent = script(dir.path(), polite, wrapper).await;
            assert!(agent.resident_memory().unwrap() > 100_000);
            agent.stop().unwrap();
            agent.cont().unwrap();
            assert_eq!(agent.terminate().await.unwrap().code(), Some(7));
            std::fs::remove_file(agent.log()).unwrap();
        }
        let agent = script(dir.path(), polite, &[]).await;
        assert_eq!(agent.kill().await.unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn a_drop_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let agent = script(dir.path(), "echo ready; exec sleep 1000", &[]).await;
        let pid = agent.pid().unwrap();
        drop(agent);
        assert_eq!(parent_of(pid), None);
    }
}
