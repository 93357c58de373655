//! A GPU that hangs in NVML stops itself alone.

use std::time::Duration;

use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::{agent::Agent, node::DRIVER};

use crate::{claims::prepare, given};

#[tokio::test(flavor = "multi_thread")]
async fn seven_gpus_go_on_and_readiness_names_the_eighth_and_its_call() {
    let testbed = given::node(Model::H100_80, 8).start_without_agent().await.unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    testbed.machine.inject(Fault::always(create, Effect::Hang).on_gpu(3)).unwrap();

    let claims: Vec<_> = (0..8)
        .map(|gpu| {
            let device = format!("gpu-{gpu}-mig-1g10gb-19-0");
            given::claim(&testbed, &format!("c{gpu}"), &[&device])
        })
        .collect();
    let call = testbed.kubelet.call(DRIVER).within(Duration::from_secs(15));
    let answers = call.prepare(&claims).await;
    for (gpu, claim) in claims.iter().enumerate() {
        match &answers[&claim.uid] {
            Ok(_) => assert_ne!(gpu, 3),
            Err(error) => {
                assert_eq!(gpu, 3, "{error}");
                assert!(error.contains("not done yet"), "{error}");
            }
        }
    }
    let names = format!("GPU 3: {create} has not answered for");
    let named = || given::readiness(options.http_endpoint).contains(&names);
    given::until("readiness names the GPU and the call", named).await;
    let readiness = given::readiness(options.http_endpoint);
    assert!(readiness.starts_with("HTTP/1.1 503"), "{readiness}");
    let refused = prepare(&testbed, &claims[3]).await.unwrap_err();
    let refused = refused.replace(|c: char| c.is_ascii_digit(), "N");
    let expected = format!(
        "prepare `default/cN`: device `gpu-N-mig-NgNgb-N-N`: GPU N: {create} has not answered for N s; drain the \
         node and reset the GPU"
    );
    assert_eq!(refused.replace("NN", "N"), expected);

    testbed.machine.clear_faults().unwrap();
    let unprepared = testbed.kubelet.unprepare(DRIVER, &claims).await;
    assert!(unprepared.values().all(Result::is_ok), "{unprepared:?}");
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
}
