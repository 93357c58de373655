use std::{os::unix::net::UnixListener, thread};

use clap::Parser;
use insta::assert_snapshot;
use tempfile::TempDir;

use super::*;
use crate::{
    cli::samples::{BOOT, cut, h100, preparing, record},
    model::{
        gpu::{Gpu, GpuUuid},
        health::{Class, Extent, Finding},
        holder::{Container, ContainerName, Holder},
        plan::Plan,
        record::Record,
        status::{KubeletStatus, Load, NotServed, Published},
    },
};

const PLAIN: Style = Style { color: false, unicode: true };

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn rendered(status: &Status) -> String {
    render(status, "2026-03-04T12:00:00Z".parse().unwrap(), PLAIN)
}

fn agent(state: AgentState) -> Option<AgentStatus> {
    let (version, started_at) = ("0.1.0".to_owned(), "2026-03-01T12:00:00Z".to_owned());
    Some(AgentStatus { version, pid: 7, started_at, state })
}

fn records() -> Vec<Record> {
    let gpu = cut(h100(0), &[("2g.20gb", 2)]);
    let shared = record("ml/notebook-3", &gpu, Some(("2g.20gb", 2)), Origin::Made);
    let mut plan = shared.plan.clone();
    plan.pods.extend(["notebook-3-1".to_owned(), "notebook-3-2".to_owned()]);
    let old = record("ml/before", &h100(3), Some(("1g.10gb", 0)), Origin::Made);
    vec![
        record("ml/train-7", &h100(1), None, Origin::Found),
        Record { plan, ..shared },
        Record {
            since: "2026-03-04T11:59:59Z".to_owned(),
            ..preparing("eval/c", &gpu, Some(("1g.10gb", 6)))
        },
        Record { boot_id: "last".to_owned(), since: "2026-02-28T12:00:00Z".to_owned(), ..old },
        record("ops/look", &gpu, Some(("2g.20gb", 2)), Origin::Observed),
    ]
}

/// A GPU with something that somebody should look at.
fn gpu(index: u32) -> GpuStatus {
    let finding = Finding {
        severity: Severity::Warning,
        class: Class::Memory,
        reason: "xid-92".to_owned(),
        extent: Extent::Gpu,
        since: "2026-03-04T11:48:00Z".parse().unwrap(),
        message: "high rate of corrected memory errors (XID 92)".to_owned(),
        action: "watch for remapped rows".to_owned(),
        keeps_running_work: true,
    };
    GpuStatus {
        index,
        uuid: GpuUuid(format!("GPU-{index}d1c2f0e-0000")),
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        served: true,
        findings: vec![finding],
        load: None,
    }
}

fn serving() -> Status {
    Status {
        agent: agent(AgentState::Serving),
        error: None,
        kubelet: Some(KubeletStatus {
            registered: true,
            since: Some("2026-03-04T09:00:00Z".to_owned()),
            last_error: None,
        }),
        published: Some(Published {
            slices: 3,
            generation: 12,
            at: Some("2026-03-04T11:59:20Z".to_owned()),
            ..Published::default()
        }),
        not_served: vec![NotServed { index: 3, uuid: None, reason: "GPU is lost".to_owned() }],
        warnings: Vec::new(),
        gpus: vec![
            GpuStatus {
                findings: Vec::new(),
                load: Some(Load {
                    utilization: Some(87),
                    memory_used_bytes: Some(61 << 30),
                    memory_bytes: Some(80 << 30),
                    temperature: Some(64),
                    power_milliwatts: Some(412_400),
                }),
                ..gpu(1)
            },
            GpuStatus { served: false, ..gpu(3) },
        ],
        claims: ClaimStatus::of(&records(), BOOT),
        resources: Vec::new(),
        containers: Vec::new(),
    }
}

#[test]
fn an_agent_that_serves() {
    assert_snapshot!(rendered(&serving()));
}

#[test]
fn an_agent_in_trouble() {
    let status = Status {
        kubelet: Some(KubeletStatus {
            last_error: Some("plugin socket `/x.sock` is not there".to_owned()),
            ..KubeletStatus::default()
        }),
        published: Some(Published {
            error: Some("create ResourceSlice `gpu-7`: forbidden".to_owned()),
            ..Published::default()
        }),
        not_served: Vec::new(),
        warnings: vec!["default runtime `nvidia` of containerd is NVIDIA's".to_owned()],
        claims: Vec::new(),
        ..serving()
    };
    assert_snapshot!(rendered(&status));
}

#[test]
fn an_agent_that_does_not_serve_says_why() {
    let only = |state| rendered(&Status { agent: agent(state), ..Status::default() });
    assert_eq!(
        only(AgentState::StandingBy { reason: "another agent acts on this node".to_owned() }),
        "agent 0.1.0 · up 3d · standing by: another agent acts on this node\n\nno claims\n"
    );
    assert_eq!(
        only(AgentState::WaitingForDriver { reason: "no `libnvidia-ml.so.1`".to_owned() }),
        "agent 0.1.0 · up 3d · waiting for the driver: no `libnvidia-ml.so.1`\n\nno claims\n"
    );
}

/// A device that a container has.
fn given(id: &str, name: Option<[&str; 3]>, gpu: &Gpu) -> Record {
    let name = name.map(|[namespace, pod, container]| ContainerName {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
    });
    let container = Container { id: id.to_owned(), resource: "nvidia.com/gpu".to_owned(), name };
    let of_claim = record("ml/x", gpu, None, Origin::Found);
    Record { plan: Plan { holder: Holder::Container(container), ..of_claim.plan }, ..of_claim }
}

#[test]
fn extended_resources_and_their_containers_have_tables_of_their_own() {
    let known = given("GPU-1", Some(["web", "infer-0", "main"]), &h100(0));
    let records = [known, given("GPU-2", None, &h100(1))];
    let resource = |name: &str, registered, error: Option<&str>| ResourceStatus {
        name: name.to_owned(),
        devices: 8,
        healthy: 6,
        taken: 2,
        registered,
        error: error.map(str::to_owned),
    };
    let status = Status {
        agent: agent(AgentState::Serving),
        resources: vec![
            resource("nvidia.com/gpu", true, None),
            resource("nvidia.com/mig-1g.10gb", false, Some("the kubelet does not answer")),
        ],
        containers: ContainerStatus::of(&records, BOOT),
        ..Status::default()
    };
    assert_snapshot!(rendered(&status));
}

#[test]
fn without_an_agent_the_records_speak() {
    let error = "no agent answers on `/s/agent.sock`: No such file or directory (os error 2)";
    assert_snapshot!(rendered(&Status::of_records(&records(), BOOT, error.to_owned())));
}

/// A state directory with an agent's socket, where each of `answers` is given to one caller.
fn state_dir(answers: Vec<Vec<u8>>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
    thread::spawn(move || {
        for answer in answers {
            listener.accept().unwrap().0.write_all(&answer).unwrap();
        }
    });
    dir
}

fn run_json(dir: &TempDir) -> (bool, Status) {
    let dir = dir.path().to_str().unwrap();
    let command = ["status", "--state-dir", dir, "--proc-root", dir, "-o", "json"];
    let mut out = Vec::new();
    let code = run(&Command::parse_from(command).args, &mut out, PLAIN).unwrap();
    (code == ExitCode::SUCCESS, serde_json::from_slice(&out).unwrap())
}

#[test]
fn the_agents_word_is_passed_on() {
    let dir = state_dir(vec![serde_json::to_vec(&serving()).unwrap()]);
    assert_eq!(run_json(&dir), (true, serving()));
}

#[test]
fn half_an_answer_is_none() {
    let dir = state_dir(vec![b"{\"agent\":".to_vec()]);
    let (answered, status) = run_json(&dir);
    assert!(!answered);
    let socket = dir.path().join("agent.sock");
    let error = status.error.unwrap();
    assert!(
        error.starts_with(&format!("no agent answers on `{}`: EOF", socket.display())),
        "{error}"
    );
}

#[test]
fn records_are_read_when_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::node::store::Store::open(dir.path(), dir.path()).unwrap();
    let record = record("ml/train-7", &h100(1), None, Origin::Found);
    store.save(&record).unwrap();
    let boot_id = dir.path().join("sys/kernel/random/boot_id");
    std::fs::create_dir_all(boot_id.parent().unwrap()).unwrap();
    crate::node::store::write_atomic(&boot_id, BOOT.as_bytes(), 0o644).unwrap();
    let (answered, status) = run_json(&dir);
    assert!(!answered);
    assert_eq!(status.claims, ClaimStatus::of(&[record], BOOT));
}
