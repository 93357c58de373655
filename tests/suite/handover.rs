//! One agent acts on a node, the next stands by, and takes over when the first ends, however it does.

use std::time::Duration;

use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::{
    agent::Agent,
    kubelet::{ServingStatus, probe},
    node::{DRIVER, Testbed},
};
use tokio::time::timeout;

use crate::given;

/// Longer than the 30 s after which a silent holder of the lock is a corpse.
const PATIENCE: Duration = Duration::from_secs(60);

const CREATE: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";

/// A second agent, ready and standing by.
async fn newcomer(testbed: &Testbed) -> Agent {
    let options = testbed.agent_options("b").unwrap();
    let address = format!("127.0.0.1:{}", options.healthcheck_port).parse().unwrap();
    let agent = Agent::spawn(&options).unwrap();
    let standing_by = given::until("standing by", || agent.tail().contains("standing by"));
    agent.while_running(standing_by).await.unwrap();
    assert_eq!(probe(address, "liveness").await, Ok(ServingStatus::Serving));
    assert_eq!(testbed.kubelet.state().registrations, 1, "who stands by does not register");
    agent
}

async fn registered(testbed: &Testbed, times: u64) {
    let again = testbed.kubelet.wait_for(|state| {
        state.registrations >= times
            && state.plugins.iter().any(|p| p.connected && p.endpoint.ends_with("dra@b.sock"))
    });
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_the_first_finishes_what_is_under_way() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let second = newcomer(&testbed).await;
    let slow = Fault::always(CREATE, Effect::Delay(Duration::from_millis(300)));
    testbed.machine.inject(slow).unwrap();

    let first = testbed.agent.take().unwrap();
    let (answers, end) = tokio::join!(testbed.kubelet.prepare(DRIVER, &claims), async {
        given::until("work is under way", || testbed.machine.calls().unwrap() > 0).await;
        first.terminate().await.unwrap()
    });
    assert!(end.success(), "{end}");
    testbed.machine.clear_faults().unwrap();
    registered(&testbed, 2).await;

    let again = timeout(PATIENCE, testbed.kubelet.prepare(DRIVER, &claims)).await.unwrap();
    let devices = again[&claims[0].uid].as_ref().unwrap();
    if let Ok(before) = &answers[&claims[0].uid] {
        assert_eq!(before, devices);
    }
    assert_eq!(given::cut(&testbed), [[(14, 2)]]);
    testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_with_work_under_way_the_first_is_undone_by_the_second() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let second = newcomer(&testbed).await;
    let fault = Fault { times: 1, ..Fault::next(CREATE, Effect::KillAfter) };
    testbed.machine.inject(fault).unwrap();
    let answers = testbed.kubelet.prepare(DRIVER, &claims).await;
    assert!(answers[&claims[0].uid].is_err());
    testbed.machine.clear_faults().unwrap();
    drop(testbed.agent.take());
    registered(&testbed, 2).await;

    let again = testbed.kubelet.prepare(DRIVER, &claims).await;
    again[&claims[0].uid].as_ref().unwrap();
    assert_eq!(given::cut(&testbed), [[(14, 2)]]);
    testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corpse_that_keeps_the_lock_is_replaced_and_ends_when_it_comes_back() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0"])];
    testbed.kubelet.prepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    let second = newcomer(&testbed).await;
    let first = testbed.agent.take().unwrap();
    first.stop().unwrap();
    registered(&testbed, 2).await;

    let again = testbed.kubelet.prepare(DRIVER, &claims).await;
    again[&claims[0].uid].as_ref().unwrap();
    first.cont().unwrap();
    let end = timeout(PATIENCE, first.wait()).await.unwrap().unwrap();
    assert!(!end.success(), "an agent that was replaced says that it failed");
    assert!(given::status(&testbed).is_some(), "it leaves its successor's socket alone");
    testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop(second);
}
