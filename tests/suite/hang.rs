//! A GPU that hangs in NVML stops itself alone.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::{agent::Agent, node::DRIVER};
use tokio::time::timeout;

use crate::given;

fn readiness(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

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
    let named = async {
        loop {
            let answer = readiness(options.http_endpoint);
            if answer.contains(&format!("GPU 3: {create} has not answered for")) {
                assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), named).await.unwrap();
    let refused = testbed.kubelet.prepare(DRIVER, &claims[3..4]).await;
    let error = refused[&claims[3].uid].as_ref().unwrap_err();
    assert!(error.contains("GPU 3") || error.contains("not done yet"), "{error}");

    testbed.machine.clear_faults().unwrap();
    let unprepared = testbed.kubelet.unprepare(DRIVER, &claims).await;
    assert!(unprepared.values().all(Result::is_ok), "{unprepared:?}");
    assert_eq!(testbed.leftovers().unwrap(), Vec::<String>::new());
}
