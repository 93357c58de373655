//! The agent is killed at every call that changes a file while it takes over, in turn, and started
//! again: the claims go on all the same.

use std::time::Duration;

use kerf::model::cdi;
use kerf_testbed::agent::Agent;
use tokio::time::timeout;

use super::{Left, MIDDLE, SMALL, TAKEN, node, theirs};
use crate::{
    claims::{NOTHING, device, prepare, unprepare},
    given,
};

const FILE_CALLS: [&str; 5] = ["rename", "unlink", "fchmod", "mkdir", "flock"];

/// Whether the agent came to its doors although it was to be killed.
async fn killed_at(call: &str, step: usize) -> bool {
    let mut testbed = node("dynamic").await;
    let [claim, begun] =
        [("c", SMALL), ("begun", MIDDLE)].map(|(n, d)| given::claim(&testbed, n, &[d]));
    testbed.machine.create_instance(0, 19, 4, true).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    let left = Left::on(&testbed).prepared(&claim, &[SMALL]).begun(&begun).spec(&begun, &[MIDDLE]);
    left.write();

    let mut options = testbed.agent_options("a").unwrap();
    let strace = ["strace", "-f", "-q", "-o", "/dev/null", "-e"];
    options.wrapper = strace.map(Into::into).to_vec();
    options.wrapper.extend([
        format!("trace={call}").into(),
        "-e".into(),
        format!("inject={call}:signal=KILL:when={step}").into(),
    ]);
    let agent = Agent::spawn(&options).expect("strace is installed: apt-get install strace");
    let registered = agent.while_running(testbed.kubelet.registered("gpu.nvidia.com"));
    let survived = timeout(Duration::from_secs(60), registered).await.unwrap().is_ok();
    drop(agent);

    testbed.start_agent("b").await.unwrap();
    let at = format!("{call} {step}");
    assert_eq!(theirs(&testbed), TAKEN, "{at}");
    assert_eq!(given::cdi_files(&testbed), [cdi::file_name(&claim.uid)], "{at}");
    assert_eq!(given::cut(&testbed), [vec![(19, 4), (19, 6)], vec![]], "{at}");
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), [device(&claim, &["r0"], SMALL)], "{at}");
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING, "{at}");
    survived
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs strace: .ci/run installs it and runs this"]
async fn takeover_at_file_calls() {
    for call in FILE_CALLS {
        let mut step = 1;
        while !killed_at(call, step).await {
            step += 1;
        }
        println!("{call}: killed at {} steps", step - 1);
    }
}
