//! One agent acts on a node, the next stands by, and takes over when the first ends, however it does.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kerf::model::claim::ClaimRef;
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

/// A second agent, ready and standing by, and where the kubelet probes it.
async fn newcomer(testbed: &Testbed) -> (Agent, SocketAddr) {
    let options = testbed.agent_options("b").unwrap();
    let address = format!("127.0.0.1:{}", options.healthcheck_port).parse().unwrap();
    let agent = Agent::spawn(&options).unwrap();
    let standing_by = given::until("standing by", || agent.tail().contains("standing by"));
    agent.while_running(standing_by).await.unwrap();
    assert_eq!(probe(address, "liveness").await, Ok(ServingStatus::Serving));
    let registered = testbed.kubelet.wait_for(|state| {
        state.plugins.iter().any(|p| p.connected && p.endpoint.ends_with("dra@b.sock"))
    });
    timeout(PATIENCE, registered).await.unwrap();
    (agent, address)
}

/// Waits until the first agent is none of the kubelet's any more.
async fn alone(testbed: &Testbed) {
    let alone = testbed.kubelet.wait_for(|state| {
        state.plugins.iter().all(|p| p.connected && p.endpoint.ends_with("dra@b.sock"))
    });
    timeout(PATIENCE, alone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_who_stands_by_the_acting_agent_answers() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let unknown = [ClaimRef { uid: "unknown".to_owned(), ..claims[0].clone() }];
    let asked = async |testbed: &Testbed| {
        let prepared = testbed.kubelet.prepare(DRIVER, &claims).await;
        let refused = testbed.kubelet.prepare(DRIVER, &unknown).await;
        (prepared, refused)
    };
    let by_first = asked(&testbed).await;
    assert!(by_first.0[&claims[0].uid].is_ok() && by_first.1["unknown"].is_err());
    let (second, _) = newcomer(&testbed).await;
    assert_eq!(asked(&testbed).await, by_first);
    // Two that stand by do not ask each other in circles.
    let third = Agent::spawn(&testbed.agent_options("c").unwrap()).unwrap();
    let registered =
        testbed.kubelet.wait_for(|state| state.plugins.iter().filter(|p| p.connected).count() == 3);
    timeout(PATIENCE, registered).await.unwrap();
    assert_eq!(asked(&testbed).await, by_first);
    testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop((testbed.agent.take(), second, third));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_while_one_agent_follows_another() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let (second, _) = newcomer(&testbed).await;
    let first = testbed.agent.take().unwrap();
    let ended = AtomicBool::new(false);
    let calls = async {
        let mut calls_after = 0;
        while calls_after < 3 {
            calls_after += i32::from(ended.load(Ordering::Relaxed));
            testbed.kubelet.prepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
            testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
        }
    };
    let end = async {
        assert!(first.terminate().await.unwrap().success());
        ended.store(true, Ordering::Relaxed);
    };
    timeout(PATIENCE, async { tokio::join!(calls, end) }).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_the_first_finishes_what_is_under_way() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let (second, _) = newcomer(&testbed).await;
    let slow = Fault::always(CREATE, Effect::Delay(Duration::from_millis(300)));
    testbed.machine.inject(slow).unwrap();

    let first = testbed.agent.take().unwrap();
    let (answers, end) = tokio::join!(testbed.kubelet.prepare(DRIVER, &claims), async {
        given::until("work is under way", || testbed.machine.calls().unwrap() > 0).await;
        first.terminate().await.unwrap()
    });
    assert!(end.success(), "{end}");
    testbed.machine.clear_faults().unwrap();
    alone(&testbed).await;

    let again = timeout(PATIENCE, testbed.kubelet.prepare(DRIVER, &claims)).await.unwrap();
    let devices = again[&claims[0].uid].as_ref().unwrap();
    assert_eq!(answers[&claims[0].uid].as_ref().unwrap(), devices);
    assert_eq!(given::cut(&testbed), [[(14, 2)]]);
    testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_with_work_under_way_the_first_is_undone_by_the_second() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claims = [given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"])];
    let (second, _) = newcomer(&testbed).await;
    let fault = Fault { times: 1, ..Fault::next(CREATE, Effect::KillAfter) };
    testbed.machine.inject(fault).unwrap();
    // Half-done by the first, undone and then done by the second: the kubelet sees one answer.
    let answers = testbed.kubelet.prepare(DRIVER, &claims).await;
    answers[&claims[0].uid].as_ref().unwrap();
    testbed.machine.clear_faults().unwrap();
    drop(testbed.agent.take());
    alone(&testbed).await;

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
    let (second, address) = newcomer(&testbed).await;
    let first = testbed.agent.take().unwrap();
    first.stop().unwrap();
    // Otherwise the kubelet would end the only one that is there to help.
    assert_eq!(probe(address, "liveness").await, Ok(ServingStatus::Serving));
    // The kubelet takes the silent one for connected, and this call waits until the lock is taken.
    let again = testbed.kubelet.prepare(DRIVER, &claims).await;
    again[&claims[0].uid].as_ref().unwrap();
    first.cont().unwrap();
    let end = timeout(PATIENCE, first.wait()).await.unwrap().unwrap();
    assert!(!end.success(), "an agent that was replaced says that it failed: {}", first.tail());
    assert!(given::status(&testbed).is_some(), "it leaves its successor's socket alone");
    testbed.kubelet.unprepare(DRIVER, &claims).await[&claims[0].uid].as_ref().unwrap();
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
    drop(second);
}
