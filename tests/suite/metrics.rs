//! The page of metrics of the real agent: whose each device's values are.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use kerf_nvml::{Effect, Fault, Load, Model, NodeDescription};
use kerf_testbed::{
    agent::Agent,
    kubelet::PodRef,
    node::{DRIVER, Testbed},
};
use serde_json::json;

use crate::{claims::prepare, given};

/// A node with both doors open, and where its agent's page is.
struct Node {
    testbed: Testbed,
    agent: Agent,
    address: SocketAddr,
}

async fn start(machine: NodeDescription) -> Node {
    let testbed = given::of(machine).start_without_agent().await.unwrap();
    let mut options = testbed.agent_options("a").unwrap();
    options.flags.extend(["--interface=both", "--sampling-interval=1"].map(Into::into));
    let address = options.http_endpoint;
    let agent = Agent::spawn(&options).unwrap();
    agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
    agent.while_running(testbed.published()).await.unwrap();
    let offered = testbed.kubelet.wait_for(|state| state.resources.contains_key("nvidia.com/gpu"));
    agent.while_running(offered).await.unwrap();
    Node { testbed, agent, address }
}

/// A series: its labels and its value.
type Series = (BTreeMap<String, String>, String);

impl Node {
    fn page(&self) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The series of a name.
    fn series(&self, name: &str) -> Vec<Series> {
        let page = self.page();
        let of_name = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        let parsed = of_name.map(|line| {
            let (labels, value) = line.rsplit_once("} ").unwrap();
            let labels = labels.split("\",").map(|label| {
                let (key, value) = label.split_once("=\"").unwrap();
                (key.to_owned(), value.trim_end_matches('"').to_owned())
            });
            (labels.collect(), value.to_owned())
        });
        parsed.collect()
    }

    async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        self.agent.while_running(given::until(what, || reached(self))).await.unwrap();
    }
}

/// The values of these labels; `-` for one that is not there.
fn labels<const N: usize>(series: &Series, names: [&str; N]) -> [String; N] {
    names.map(|name| series.0.get(name).map_or("-", String::as_str).to_owned())
}

/// A claim on a whole GPU, on a MIG device, two on shares of one device, and a container of the device plugin.
#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_device_has_the_labels_of_its_holder() {
    let node =
        start(NodeDescription::mixed(&[Model::L4, Model::H100_80, Model::L4, Model::L4])).await;
    let testbed = &node.testbed;
    let whole = given::claim(testbed, "whole", &["gpu-0"]);
    let part = given::claim(testbed, "part", &["gpu-1-mig-3g40gb-9-4"]);
    prepare(testbed, &whole).await.unwrap();
    prepare(testbed, &part).await.unwrap();
    for (claim, share) in [
        ("one", "3f8d5f9c-0d2b-4c39-8ef0-6f3b7ab1f3a1"),
        ("two", "3f8d5f9c-0d2b-4c39-8ef0-6f3b7ab1f3a2"),
    ] {
        let result = json!({
            "request": "r0", "driver": "gpu.nvidia.com", "pool": testbed.name(), "device": "gpu-2", "shareID": share,
        });
        let allocation = json!({ "devices": { "results": [result] } });
        prepare(testbed, &given::claim_with(testbed, claim, 1, allocation)).await.unwrap();
    }
    let pod = PodRef { namespace: "batch".into(), name: "plain".into(), uid: "uid".into() };
    testbed.kubelet.admit(&pod, "main", &[("nvidia.com/gpu", 1)]).await.unwrap();
    node.until("the container's name", |node| {
        node.series("DCGM_FI_DEV_GPU_TEMP").iter().any(|series| series.0.contains_key("container"))
    })
    .await;

    let names =
        ["gpu", "GPU_I_ID", "namespace", "pod", "container", "dra_claim_name", "dra_mig_profile"];
    let memory = node.series("DCGM_FI_DEV_FB_USED");
    let found: BTreeSet<_> = memory.iter().map(|series| labels(series, names)).collect();
    let instance = testbed.machine.snapshot().unwrap().gpus[1].instances[0].id.to_string();
    let expected = [
        ["0", "-", "default", "whole-pod", "-", "whole", "-"],
        ["1", &instance, "default", "part-pod", "-", "part", "3g.40gb"],
        // Of several holders, what they have in common.
        ["2", "-", "default", "-", "-", "-", "-"],
        ["3", "-", "batch", "plain", "main", "-", "-"],
    ];
    assert_eq!(found, expected.map(|row| row.map(str::to_owned)).into());
    let holders = node.series("kerf_device_holder");
    let holders = holders.iter().map(|series| labels(series, ["gpu", "pod", "dra_claim_name"]));
    let expected = [
        ["0", "whole-pod", "whole"],
        ["1", "part-pod", "part"],
        ["2", "one-pod", "one"],
        ["2", "two-pod", "two"],
        ["3", "plain", "-"],
    ];
    assert_eq!(holders.collect::<BTreeSet<_>>(), expected.map(|row| row.map(str::to_owned)).into());

    // What is measured of the GPU alone is there once, however it is cut.
    let power = node.series("DCGM_FI_DEV_POWER_USAGE");
    let gpus: Vec<_> = power.iter().map(|series| labels(series, ["gpu", "GPU_I_ID"])).collect();
    assert_eq!(gpus, ["0", "1", "2", "3"].map(|gpu| [gpu, "-"].map(str::to_owned)));
    let prepares = node.series("kerf_prepare_duration_seconds_count");
    let counted: BTreeSet<_> = prepares
        .iter()
        .map(|series| (labels(series, ["door", "outcome"]), series.1.clone()))
        .collect();
    let expected = [("dra", "ok", "4"), ("device-plugin", "ok", "1")];
    let expected = expected
        .map(|(door, outcome, count)| ([door, outcome].map(str::to_owned), count.to_owned()));
    assert_eq!(counted, expected.into());
    assert_eq!(node.series("kerf_instances_carved_total").len(), 1);
}

/// Values follow what runs, and a GPU that hangs keeps nobody from the others' values.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_hangs_is_stale_and_the_page_is_not() {
    let node = start(NodeDescription::uniform(Model::H100_80, 2)).await;
    let machine = &node.testbed.machine;
    machine.start_process(1, None, 4711, "python3").unwrap();
    machine.set_load(4711, Load { utilization: 80, memory: 10 << 30 }).unwrap();
    let used = |node: &Node, gpu: &str| {
        let memory = node.series("DCGM_FI_DEV_FB_USED");
        let of_gpu = memory.into_iter().find(|series| series.0["gpu"] == gpu);
        of_gpu.map(|series| series.1.parse::<f64>().unwrap())
    };
    node.until("the load", |node| used(node, "1").is_some_and(|used| used >= 10_240.0)).await;
    assert!(used(&node, "0").is_some_and(|used| used < 1024.0));
    machine.inject(Fault::always("nvmlDeviceGetPowerUsage", Effect::Hang).on_gpu(0)).unwrap();
    node.until("its values to be stale", |node| used(node, "0").is_none()).await;
    assert!(used(&node, "1").is_some());
    let ages = node.series("kerf_gpu_sample_age_seconds");
    assert_eq!(ages.iter().map(|series| &*series.0["gpu"]).collect::<Vec<_>>(), ["0", "1"]);
    machine.clear_faults().unwrap();
    node.until("its values", |node| used(node, "0").is_some()).await;
}

/// By NVML's events and by the kernel's log, on many channels: it is one fault.
#[tokio::test(flavor = "multi_thread")]
async fn an_xid_that_is_told_often_counts_once() {
    let node = start(NodeDescription::uniform(Model::L4, 2)).await;
    let machine = &node.testbed.machine;
    for _ in 0..20 {
        machine.xid(1, 31, None, None).unwrap();
    }
    machine.logged_xid(1, 43, None, None).unwrap();
    machine.reported_xid(1, 45, None, None).unwrap();
    let counts = |node: &Node| -> BTreeSet<_> {
        let series = node.series("kerf_xids_total");
        series.iter().map(|one| (labels(one, ["gpu", "xid"]), one.1.clone())).collect()
    };
    // The last of each way has come, and so has all before it.
    node.until("all of them", |node| counts(node).len() == 3).await;
    let once = |code: &str| (["1".to_owned(), code.to_owned()], "1".to_owned());
    assert_eq!(counts(&node), BTreeSet::from(["31", "43", "45"].map(once)));
}
