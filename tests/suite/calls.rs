//! Calls that are cancelled, repeated, or made at the same time: what belongs to a call ends with it,
//! and what was begun is done once.

use std::time::Duration;

use kerf::model::claim::ClaimRef;
use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::{
    agent::Agent,
    apiserver,
    kubelet::{ServingStatus, probe},
    node::{DRIVER, Testbed},
};

use crate::{
    claims::{NOTHING, answer, device, prepare, unprepare},
    given,
};

const CREATE: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";

/// Prepares, and gives the call up as soon as `reached`; its answer if it came first.
async fn cancelled(testbed: &Testbed, claim: &ClaimRef, reached: impl Fn() -> bool) -> bool {
    tokio::select! {
        biased;
        () = given::until("the moment to give up", reached) => true,
        answer = prepare(testbed, claim) => {
            answer.unwrap();
            false
        }
    }
}

/// The n-th call of any process hangs until the faults are cleared.
fn hang_at(testbed: &Testbed, call: u64) {
    let fault = Fault { function: None, gpu: None, at: call, times: 1, what: Effect::Hang };
    testbed.machine.inject(fault).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_at_any_nvml_call_a_claim_is_prepared_whole_or_not_at_all() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let names = ["gpu-0-mig-2g20gb-14-2", "gpu-1-mig-1g10gb-19-0"];
    let claim = given::claim(&testbed, "c", &names);
    let (mut not_begun, mut done) = (0, 0);
    for call in 1.. {
        hang_at(&testbed, call);
        let hangs = cancelled(&testbed, &claim, || testbed.machine.calls().unwrap() >= call).await;
        let begun = !given::records(&testbed).is_empty();
        testbed.machine.clear_faults().unwrap();
        if !hangs {
            break;
        }
        // The work has its turn until its end, and a second call waits for that.
        let again = prepare(&testbed, &claim).await.unwrap();
        let expected = [device(&claim, &["r0"], names[0]), device(&claim, &["r1"], names[1])];
        assert_eq!(again, expected, "call {call}");
        assert_eq!(given::cut(&testbed), [[(14, 2)], [(19, 0)]], "call {call}");
        let count = if begun { &mut done } else { &mut not_begun };
        *count += 1;
        unprepare(&testbed, &claim).await.unwrap();
        assert_eq!(testbed.leftovers().unwrap(), NOTHING, "call {call}");
    }
    assert!(not_begun >= 4 && done >= 20, "{not_begun} before the record, {done} after it");
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Cancelled before the record there is nothing to undo, and nothing is done later.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_begun_is_dropped_with_its_call() {
    let node = given::node(Model::H100_80, 1).flag("--log").flag("kerf=debug");
    let testbed = node.start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"]);
    let other = given::claim(&testbed, "other", &["gpu-0-mig-1g10gb-19-6"]);
    hang_at(&testbed, 1);
    assert!(cancelled(&testbed, &claim, || testbed.machine.calls().unwrap() >= 1).await);
    let agent = testbed.agent.as_ref().unwrap();
    given::until("the call is given up", || {
        agent.tail().contains("nobody waits for the call any more")
    })
    .await;
    testbed.machine.clear_faults().unwrap();
    // The next turn on this GPU: the cancelled work has ended by then.
    prepare(&testbed, &other).await.unwrap();
    assert_eq!(given::prepared(&testbed), ["other"]);
    assert_eq!(given::cut(&testbed), [[(19, 6)]]);
    unprepare(&testbed, &other).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_while_the_api_server_is_asked_nothing_is_begun_and_nobody_waits() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let slow = given::claim(&testbed, "slow", &["gpu-0-mig-2g20gb-14-2"]);
    let quick = given::claim(&testbed, "quick", &["gpu-0-mig-1g10gb-19-6"]);
    let path = "resourceclaims/slow";
    testbed.api.inject(apiserver::Fault::hang().on("GET", path).always());
    let asked = || testbed.api.requests().iter().any(|request| request.path.contains(path));
    let waiting = async {
        given::until("the claim is asked for", asked).await;
        // No lock is held meanwhile: another claim for the same GPU has its turn.
        prepare(&testbed, &quick).await.unwrap();
    };
    tokio::select! {
        () = waiting => {}
        answer = prepare(&testbed, &slow) => panic!("{answer:?}"),
    }
    testbed.api.clear_faults();
    assert_eq!(given::prepared(&testbed), ["quick"]);
    prepare(&testbed, &slow).await.unwrap();
    for claim in [&slow, &quick] {
        unprepare(&testbed, claim).await.unwrap();
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Waiting for a turn, be it the claim's or the GPU's, a call can be cancelled too.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_while_waiting_for_a_turn_a_call_leaves_it_to_the_next() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let first = given::claim(&testbed, "first", &["gpu-0-mig-2g20gb-14-2"]);
    let second = given::claim(&testbed, "second", &["gpu-0-mig-1g10gb-19-6"]);
    testbed.machine.inject(Fault::next(CREATE, Effect::Hang)).unwrap();
    let under_way = prepare(&testbed, &first);
    tokio::pin!(under_way);
    tokio::select! {
        () = given::until("work is begun", || !given::records(&testbed).is_empty()) => {}
        answer = &mut under_way => panic!("{answer:?}"),
    }
    for waits in [&first, &second] {
        let asked = testbed.api.requests().len();
        assert!(cancelled(&testbed, waits, || testbed.api.requests().len() > asked).await);
    }
    testbed.machine.clear_faults().unwrap();
    let answer = under_way.await.unwrap();
    assert_eq!(answer, [device(&first, &["r0"], "gpu-0-mig-2g20gb-14-2")]);
    assert_eq!(given::prepared(&testbed), ["first"]);
    prepare(&testbed, &second).await.unwrap();
    for claim in [&first, &second] {
        unprepare(&testbed, claim).await.unwrap();
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_call_for_a_claim_joins_the_first() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-2g20gb-14-2"]);
    testbed.machine.inject(Fault::next(CREATE, Effect::Delay(Duration::from_millis(200)))).unwrap();
    let both = tokio::join!(prepare(&testbed, &claim), prepare(&testbed, &claim));
    let expected = vec![device(&claim, &["r0"], "gpu-0-mig-2g20gb-14-2")];
    assert_eq!(both, (Ok(expected.clone()), Ok(expected)));
    assert_eq!(given::cut(&testbed), [[(14, 2)]]);
    // Named twice in a call, a claim has one answer.
    let twice = testbed.kubelet.prepare(DRIVER, &[claim.clone(), claim.clone()]).await;
    assert_eq!(twice.len(), 1);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Claims of different GPUs are under way at once: each is in its own creation when the call ends.
#[tokio::test(flavor = "multi_thread")]
async fn eight_gpus_are_cut_side_by_side_and_probes_are_answered_meanwhile() {
    let testbed = given::node(Model::H100_80, 8).start_without_agent().await.unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    let claims: Vec<_> = (0..8)
        .map(|gpu| {
            let device = format!("gpu-{gpu}-mig-1g10gb-19-0");
            given::claim(&testbed, &format!("c{gpu}"), &[&device])
        })
        .collect();
    testbed.machine.inject(Fault::always(CREATE, Effect::Hang)).unwrap();
    let call = testbed.kubelet.call(DRIVER).within(Duration::from_secs(8));
    let health = format!("127.0.0.1:{}", options.healthcheck_port).parse().unwrap();
    let (mut answers, healthy) = tokio::join!(call.prepare(&claims), async {
        given::until("all are begun", || given::records(&testbed).len() == 8).await;
        probe(health, "").await
    });
    assert_eq!(healthy, Ok(ServingStatus::Serving));
    for (gpu, claim) in claims.iter().enumerate() {
        let error = answer(&mut answers, claim).unwrap_err();
        let waits_for = format!("not done yet: GPU {gpu}: {CREATE} has not answered for ");
        assert!(error.contains(&waits_for), "{error}");
    }
    testbed.machine.clear_faults().unwrap();
    let unprepared = testbed.kubelet.unprepare(DRIVER, &claims).await;
    assert!(unprepared.values().all(Result::is_ok), "{unprepared:?}");
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}
