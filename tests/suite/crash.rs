//! The agent is killed at every step of preparing and unpreparing, in turn, started again, and the
//! kubelet's call repeated: nothing is ever too many or too few.

use std::{ffi::OsString, process::Command, time::Duration};

use kerf::model::claim::ClaimRef;
use kerf_nvml::{Effect, Fault, node::Model};
use kerf_testbed::{
    apiserver,
    node::{DRIVER, Testbed},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use crate::given;

/// What is asked of the agent while it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Prepare,
    Unprepare,
}

/// Devices, and what they are when carved: profile and place, GPU by GPU.
struct Scenario {
    devices: &'static [&'static str],
    carved: [&'static [(u32, u32)]; 2],
}

const WHOLE: Scenario = Scenario { devices: &["gpu-0"], carved: [&[], FOREIGN] };
const MIG: Scenario =
    Scenario { devices: &["gpu-0-mig-2g20gb-14-2"], carved: [&[(14, 2)], FOREIGN] };
const TWO_SIZES: Scenario = Scenario {
    devices: &["gpu-0-mig-1g10gb-19-6", "gpu-1-mig-3g40gb-9-4"],
    carved: [&[(19, 6)], &[(9, 4), (19, 0)]],
};

/// An administrator's instance on GPU 1.
const FOREIGN: &[(u32, u32)] = &[(19, 0)];

async fn start() -> Testbed {
    let testbed = given::node(Model::H100_80, 2).start_without_agent().await.unwrap();
    testbed.machine.set_mig_mode(1, true).unwrap();
    testbed.machine.create_instance(1, 19, 0, true).unwrap();
    let mut testbed = testbed.starting_here().unwrap();
    testbed.start_agent("a").await.unwrap();
    testbed
}

async fn ask(testbed: &Testbed, call: Call, claim: &ClaimRef) -> Result<(), String> {
    let claims = std::slice::from_ref(claim);
    let outcome = match call {
        Call::Prepare => {
            let answers = testbed.kubelet.prepare(DRIVER, claims).await;
            answers.into_values().map(|answer| answer.map(|_| ())).collect::<Vec<_>>()
        }
        Call::Unprepare => testbed.kubelet.unprepare(DRIVER, claims).await.into_values().collect(),
    };
    outcome.into_iter().collect::<Result<Vec<()>, String>>().map(|_| ())
}

fn assert_prepared(testbed: &Testbed, scenario: &Scenario, claim: &ClaimRef, step: usize) {
    assert_eq!(given::cut(testbed), scenario.carved, "step {step}");
    assert_eq!(given::prepared(testbed), [claim.name.as_str()], "step {step}");
    let file = format!("k8s.gpu.nvidia.com-claim_{}.json", claim.uid);
    assert_eq!(given::cdi_files(testbed), [file], "step {step}");
}

/// Kills at step 1, 2, … of `call`, until it comes to its end unharmed. Says how many there were.
async fn kill_at_every_step(
    scenario: &Scenario,
    call: Call,
    arm: impl AsyncFn(&Testbed, usize) -> Armed,
) -> usize {
    let mut testbed = start().await;
    let claim = given::claim(&testbed, "c", scenario.devices);
    for step in 1.. {
        if call == Call::Unprepare {
            ask(&testbed, Call::Prepare, &claim).await.unwrap();
        }
        let armed = arm(&testbed, step).await;
        let outcome = ask(&testbed, call, &claim).await;
        armed.disarm(&testbed).await;
        let survived = match outcome {
            Ok(()) => true,
            Err(error) => {
                let end = timeout(Duration::from_secs(10), testbed.agent.as_ref().unwrap().wait());
                end.await.unwrap_or_else(|_| panic!("step {step}: {error}")).unwrap();
                testbed.start_agent("a").await.unwrap();
                false
            }
        };
        ask(&testbed, call, &claim).await.unwrap();
        if call == Call::Prepare {
            assert_prepared(&testbed, scenario, &claim, step);
            ask(&testbed, Call::Unprepare, &claim).await.unwrap();
        }
        assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new(), "step {step}");
        if survived {
            return step - 1;
        }
    }
    unreachable!("steps do not end")
}

/// What is to kill the agent.
enum Armed {
    /// Faults of NVML or the API server.
    Fault,
    /// A tracer, which ends with the agent or is ended.
    Tracer(std::process::Child),
}

impl Armed {
    /// Ends what is left of it.
    async fn disarm(self, testbed: &Testbed) {
        testbed.machine.clear_faults().unwrap();
        testbed.api.clear_faults();
        if let Self::Tracer(mut tracer) = self {
            // It may have ended with the agent: then there is nobody to end.
            let _ = kill_process(Pid::from_child(&tracer), Signal::TERM);
            tracer.wait().unwrap();
        }
    }
}

async fn at_nvml_call(testbed: &Testbed, step: usize) -> Armed {
    let at = u64::try_from(step).unwrap();
    let fault = Fault { function: None, gpu: None, at, times: 1, what: Effect::Kill };
    testbed.machine.inject(fault).unwrap();
    Armed::Fault
}

fn kill(pid: Pid) -> impl FnMut() + Send + 'static {
    move || kill_process(pid, Signal::KILL).unwrap()
}

async fn before_request(testbed: &Testbed, step: usize) -> Armed {
    let pid = testbed.agent.as_ref().unwrap().pid().unwrap();
    testbed.api.inject(apiserver::Fault::before(kill(pid)).nth(step));
    Armed::Fault
}

async fn after_request(testbed: &Testbed, step: usize) -> Armed {
    let pid = testbed.agent.as_ref().unwrap().pid().unwrap();
    testbed.api.inject(apiserver::Fault::after(kill(pid)).nth(step));
    Armed::Fault
}

macro_rules! crash {
    ($($name:ident: $scenario:expr, $call:expr, $arm:expr $(, at least $least:expr)?;)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let steps = kill_at_every_step(&$scenario, $call, $arm).await;
            println!("{}: killed at {steps} steps", stringify!($name));
            $(assert!(steps >= $least, "only {steps} steps");)?
        }
    )+};
}

crash! {
    whole_gpu_prepare_at_nvml_calls: WHOLE, Call::Prepare, at_nvml_call, at least 2;
    whole_gpu_unprepare_at_nvml_calls: WHOLE, Call::Unprepare, at_nvml_call;
    mig_prepare_at_nvml_calls: MIG, Call::Prepare, at_nvml_call, at least 15;
    mig_unprepare_at_nvml_calls: MIG, Call::Unprepare, at_nvml_call, at least 10;
    two_sizes_prepare_at_nvml_calls: TWO_SIZES, Call::Prepare, at_nvml_call, at least 30;
    two_sizes_unprepare_at_nvml_calls: TWO_SIZES, Call::Unprepare, at_nvml_call, at least 20;
    whole_gpu_prepare_before_requests: WHOLE, Call::Prepare, before_request, at least 1;
    whole_gpu_prepare_after_requests: WHOLE, Call::Prepare, after_request, at least 1;
    whole_gpu_unprepare_before_requests: WHOLE, Call::Unprepare, before_request;
    mig_prepare_before_requests: MIG, Call::Prepare, before_request, at least 1;
    mig_prepare_after_requests: MIG, Call::Prepare, after_request, at least 1;
    mig_unprepare_before_requests: MIG, Call::Unprepare, before_request;
    two_sizes_prepare_before_requests: TWO_SIZES, Call::Prepare, before_request, at least 1;
    two_sizes_prepare_after_requests: TWO_SIZES, Call::Prepare, after_request, at least 1;
    two_sizes_unprepare_before_requests: TWO_SIZES, Call::Unprepare, before_request;
}

/// Calls that change a file or a directory, or make one.
const FILE_CALLS: [&str; 10] = [
    "openat",
    "write",
    "fchmod",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "flock",
    "fsync",
];

/// strace attaches to the running agent and kills it at the n-th such call of one of its threads.
async fn at_file_call(testbed: &Testbed, call: &str, step: usize) -> Armed {
    let pid = testbed.agent.as_ref().unwrap().pid().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-I", "1", "-f", "-q", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:signal=KILL:when={step}")]);
    strace.args(["-o", "/dev/null", "-p"]).arg(OsString::from(pid.as_raw_nonzero().to_string()));
    let tracer = strace.spawn().expect("strace is installed: apt-get install strace");
    let traced = || {
        let status = format!("/proc/{}/status", pid.as_raw_nonzero());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    while !traced() {
        tokio::task::yield_now().await;
    }
    Armed::Tracer(tracer)
}

async fn kill_at_file_calls(scenario: &Scenario, call: Call) {
    for file_call in FILE_CALLS {
        let arm = async |testbed: &Testbed, step| at_file_call(testbed, file_call, step).await;
        let steps = kill_at_every_step(scenario, call, arm).await;
        println!("{file_call}: killed at {steps} steps");
    }
}

macro_rules! file_crash {
    ($($name:ident: $scenario:expr, $call:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs strace: .ci/run installs it and runs this"]
        async fn $name() {
            kill_at_file_calls(&$scenario, $call).await;
        }
    )+};
}

file_crash! {
    whole_gpu_prepare_at_file_calls: WHOLE, Call::Prepare;
    whole_gpu_unprepare_at_file_calls: WHOLE, Call::Unprepare;
    mig_prepare_at_file_calls: MIG, Call::Prepare;
    mig_unprepare_at_file_calls: MIG, Call::Unprepare;
    two_sizes_prepare_at_file_calls: TWO_SIZES, Call::Prepare;
    two_sizes_unprepare_at_file_calls: TWO_SIZES, Call::Unprepare;
}
