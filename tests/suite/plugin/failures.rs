//! An Allocate that fails leaves nothing of what it began.

use kerf_nvml::{Effect, Fault, Model};
use kerf_testbed::node::Testbed;

use super::{node, start};
use crate::given;

const RESOURCE: &str = "nvidia.com/mig-1g.10gb";

async fn on_demand() -> Testbed {
    let flags = ["--mig-on-demand", "--device-id-strategy=index"];
    start(flags.into_iter().fold(node(Model::H100_80, 1), |builder, flag| builder.flag(flag))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn at_any_call_of_nvml_it_leaves_nothing() {
    let mut testbed = on_demand().await;
    let mut failed = 0;
    for at in 1..200 {
        let state = testbed.kubelet.state();
        let ids = state.resources[RESOURCE].devices.keys().take(2).map(String::as_str);
        let fault = Fault { function: None, gpu: None, at, times: 1, what: Effect::Fail(999) };
        testbed.machine.inject(fault).unwrap();
        let allocated = testbed.kubelet.allocate(RESOURCE, &ids.collect::<Vec<_>>()).await;
        testbed.machine.clear_faults().unwrap();
        if allocated.is_err() {
            failed += 1;
            let nothing = || given::records(&testbed).is_empty();
            given::until("what was begun is given back", nothing).await;
            assert_eq!(given::cut(&testbed), [vec![]], "call {at}");
        } else if failed > 20 {
            break;
        } else {
            // A look at the GPUs made the call that failed.
            testbed = on_demand().await;
        }
    }
    assert!(failed > 20, "{failed} calls failed");
}
