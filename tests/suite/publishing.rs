//! What the API server is given, by release, and that it stays so whatever happens to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use k8s_openapi::api::resource::v1::{Device, ResourceSlice};
use kerf::model::status::AgentState;
use kerf_nvml::Model;
use kerf_testbed::{
    agent::Agent,
    apiserver::{ApiOptions, Gate, Gates, Release},
    node::Testbed,
};

use crate::{
    claims::{NOTHING, prepare, unprepare},
    given,
};

const SLICES: &str = "resourceslices";

/// How many devices and counter sets a slice has.
fn sizes(slices: &[ResourceSlice]) -> Vec<(usize, usize)> {
    let length = |slice: &ResourceSlice| {
        let spec = &slice.spec;
        (
            spec.devices.as_ref().map_or(0, Vec::len),
            spec.shared_counters.as_ref().map_or(0, Vec::len),
        )
    };
    slices.iter().map(length).collect()
}

fn devices(testbed: &Testbed) -> Vec<Device> {
    testbed.slices().into_iter().flat_map(|slice| slice.spec.devices.unwrap_or_default()).collect()
}

fn names(testbed: &Testbed) -> BTreeSet<String> {
    devices(testbed).into_iter().map(|device| device.name).collect()
}

fn server(release: Release, with: &[Gate], without: &[Gate]) -> ApiOptions {
    let gates = with.iter().fold(Gates::of(release), |gates, &gate| gates.with(gate));
    let gates = without.iter().fold(gates, |gates, &gate| gates.without(gate));
    ApiOptions { release, gates }
}

/// A release with these gates on and off, and the slices of two H100 on it: devices and counter sets.
struct Published {
    server: ApiOptions,
    sizes: &'static [(usize, usize)],
}

/// The counter sets, then a profile a slice: 1g, 1g+me, 1g of double memory, 2g, 3g, 4g, 7g, the whole.
const BY_PROFILE: &[(usize, usize)] =
    &[(0, 2), (14, 0), (14, 0), (8, 0), (6, 0), (4, 0), (2, 0), (2, 0), (2, 0)];
const BY_GPU: &[(usize, usize)] = &[(26, 1), (26, 1)];
const WITHOUT_COUNTERS: &[(usize, usize)] = &[(2, 0)];

#[tokio::test(flavor = "multi_thread")]
async fn as_rich_as_the_server_takes_it() {
    let counters = &[Gate::PartitionableDevices][..];
    let cases = [
        Published { server: server((1, 37), &[], &[]), sizes: BY_PROFILE },
        Published { server: server((1, 36), &[], &[Gate::DeviceTaints]), sizes: BY_PROFILE },
        Published { server: server((1, 35), counters, &[]), sizes: BY_PROFILE },
        Published { server: server((1, 37), &[], counters), sizes: WITHOUT_COUNTERS },
        Published { server: server((1, 34), counters, &[]), sizes: BY_GPU },
        Published { server: server((1, 34), &[], &[]), sizes: WITHOUT_COUNTERS },
    ];
    for case in cases {
        let what = format!("{:?}", case.server);
        let builder = given::node(Model::H100_80, 2).api(case.server);
        let testbed = builder.start_without_agent().await.unwrap();
        let mut testbed = testbed;
        testbed.start_agent("a").await.unwrap();
        let slices = testbed.published().await;
        assert_eq!(sizes(&slices), case.sizes, "{what}");
        for (index, slice) in slices.iter().enumerate() {
            assert_is_ours(&testbed, index, slices.len(), slice);
        }
        let written = testbed.api.writes().into_iter().filter(|write| write.path.contains(SLICES));
        assert_eq!(written.count(), slices.len(), "{what}: one write each");
    }
}

fn assert_is_ours(testbed: &Testbed, index: usize, count: usize, slice: &ResourceSlice) {
    let name = slice.metadata.name.clone().unwrap();
    assert!(name.starts_with(&format!("{index:05x}-gpu.nvidia.com-node-a-")), "{name}");
    let node: k8s_openapi::api::core::v1::Node = testbed.api.get("", testbed.name()).unwrap();
    let owners = slice.metadata.owner_references.clone().unwrap();
    let owners = owners.iter().map(|owner| {
        let kind = (owner.api_version.as_str(), owner.kind.as_str(), owner.name.as_str());
        (kind, Some(owner.uid.clone()), owner.controller, owner.block_owner_deletion)
    });
    let expected = (("v1", "Node", "node-a"), node.metadata.uid.clone(), Some(true), None);
    assert_eq!(owners.collect::<Vec<_>>(), [expected]);
    let pool = &slice.spec.pool;
    let count = i64::try_from(count).unwrap();
    assert_eq!(
        (pool.name.as_str(), pool.generation, pool.resource_slice_count),
        ("node-a", 1, count)
    );
    assert_eq!(slice.spec.driver, "gpu.nvidia.com");
}

/// A pod that the scheduler sends here earlier fails, and is tried again after a minute.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_before_the_kubelet_has_registered_the_agent() {
    let testbed = given::node(Model::L4, 1).start_without_agent().await.unwrap();
    testbed.kubelet.stop().await;
    let options = testbed.agent_options("a").unwrap();
    let _agent = Agent::spawn(&options).unwrap();
    let acts = || {
        let agent = given::status(&testbed).and_then(|status| status.agent);
        agent.is_some_and(|agent| agent.state == AgentState::Serving)
    };
    given::until("the agent to act", acts).await;
    let begun = Instant::now();
    testbed.kubelet.restart().await.unwrap();
    testbed.published().await;
    let requests = testbed.api.requests();
    let early = requests.iter().filter(|it| it.path.contains(SLICES) && it.at < begun);
    assert_eq!(early.map(|it| &it.path).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_again_writes_nothing() {
    let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-6"]);
    prepare(&testbed, &claim).await.unwrap();
    // This one may still have an order to write that the first did not come to.
    start_over(&mut testbed, "b").await;
    let before = testbed.slices();
    for pod in ["c", "d"] {
        testbed.api.clear_requests();
        start_over(&mut testbed, pod).await;
        let written = testbed.api.writes();
        let written: Vec<_> = written.iter().filter(|write| write.path.contains(SLICES)).collect();
        assert!(written.is_empty(), "{written:?}");
        assert_eq!(testbed.slices(), before);
    }
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Another agent, which has made its slices what they should be.
async fn start_over(testbed: &mut Testbed, pod: &str) {
    testbed.start_agent(pod).await.unwrap();
    let looked = || given::status(testbed).and_then(|status| status.published?.at).is_some();
    given::until("the slices are as they should be", looked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_delete_or_change_is_repaired() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let before = contents(&testbed);
    let slices = testbed.slices();
    let victim = slices[3].metadata.name.clone().unwrap();
    testbed.api.delete::<ResourceSlice>("", &victim).unwrap();
    repaired(&testbed, &before).await;

    let mut edited = testbed.slices().remove(4);
    edited.spec.devices.as_mut().unwrap().pop();
    testbed.api.update(&edited).unwrap();
    repaired(&testbed, &before).await;

    testbed.kubelet.restart().await.unwrap();
    testbed.kubelet.wait_for(|state| state.wipes.len() == 2).await;
    repaired(&testbed, &before).await;
}

/// Devices by slice index.
fn contents(testbed: &Testbed) -> BTreeMap<String, BTreeSet<String>> {
    let slices = testbed.slices().into_iter();
    let content = slices.map(|slice| {
        let name = slice.metadata.name.unwrap_or_default();
        let devices = slice.spec.devices.unwrap_or_default().into_iter();
        (name[..5].to_owned(), devices.map(|device| device.name).collect())
    });
    content.collect()
}

async fn repaired(testbed: &Testbed, wanted: &BTreeMap<String, BTreeSet<String>>) {
    let agent = testbed.agent.as_ref().unwrap();
    let repaired = testbed.api.wait_until(|_| contents(testbed) == *wanted);
    agent.while_running(repaired).await.unwrap();
    // Of one generation, so that the scheduler takes it.
    agent.while_running(testbed.published()).await.unwrap();
}

/// A counter of a GPU, and what its devices take of it, by device.
fn counter(testbed: &Testbed, set: &str, counter: &str) -> (u64, BTreeMap<String, u64>) {
    let slices = testbed.slices();
    let sets = slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten());
    let value = sets
        .filter(|found| found.name == set)
        .map(|found| number(&found.counters[counter].value.0));
    let consumed = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let consumed = consumed.flat_map(|device| {
        let consumptions = device.consumes_counters.iter().flatten();
        let ours = consumptions.filter(|consumption| consumption.counter_set == set);
        ours.filter_map(|consumption| {
            let amount = number(&consumption.counters.get(counter)?.value.0);
            Some((device.name.clone(), amount))
        })
    });
    (value.sum(), consumed.collect())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

/// An administrator's instance is taken off the counters, and its own device takes nothing of them:
/// what overlaps stays published, and never fits.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_carves_comes_off_the_counters_and_back() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let agent = testbed.agent.as_ref().unwrap();
    let all = names(&testbed);
    let (free, consumed) = counter(&testbed, "gpu-0-counter-set", "memory-slice-4");
    assert_eq!((free, consumed["gpu-0-mig-3g40gb-9-4"]), (1, 1));

    testbed.machine.set_mig_mode(0, true).unwrap();
    testbed.machine.create_instance(0, 9, 4, true).unwrap();
    let uuid = testbed.machine.snapshot().unwrap().gpus[0].instances[0].compute[0].uuid.clone();
    let off =
        testbed.api.wait_until(|_| counter(&testbed, "gpu-0-counter-set", "memory-slice-4").0 == 0);
    agent.while_running(off).await.unwrap();
    agent.while_running(testbed.published()).await.unwrap();
    assert_eq!(names(&testbed), all, "nothing is withdrawn");
    let carved = devices(&testbed).into_iter().find(|device| device.name == "gpu-0-mig-3g40gb-9-4");
    let carved = carved.unwrap();
    assert_eq!(carved.consumes_counters, None);
    assert_eq!(carved.attributes.unwrap()["uuid"].string, Some(uuid));
    let (_, consumed) = counter(&testbed, "gpu-0-counter-set", "memory-slice-4");
    let takers: Vec<_> = consumed.keys().map(String::as_str).collect();
    let expected = [
        "gpu-0",
        "gpu-0-mig-1g10gb-19-4",
        "gpu-0-mig-1g10gb-me-20-4",
        "gpu-0-mig-1g20gb-15-4",
        "gpu-0-mig-2g20gb-14-4",
        "gpu-0-mig-7g80gb-0-0",
    ];
    assert_eq!(takers, expected);

    testbed.machine.destroy_instance(0, 4).unwrap();
    testbed.machine.set_mig_mode(0, false).unwrap();
    let back =
        testbed.api.wait_until(|_| counter(&testbed, "gpu-0-counter-set", "memory-slice-4").0 == 1);
    agent.while_running(back).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Refused because something stands in its way, a claim keeps its counters: below zero they would stop
/// every claim of the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_is_never_below_what_a_claim_was_given() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-3g40gb-9-4"]);
    prepare(&testbed, &claim).await.unwrap();
    testbed.machine.destroy_instance(0, 4).unwrap();
    testbed.machine.create_instance(0, 19, 5, true).unwrap();
    testbed.machine.create_instance(0, 19, 0, true).unwrap();
    let agent = testbed.agent.as_ref().unwrap();
    let seen =
        testbed.api.wait_until(|_| counter(&testbed, "gpu-0-counter-set", "memory-slice-0").0 == 0);
    agent.while_running(seen).await.unwrap();
    let error = prepare(&testbed, &claim).await.unwrap_err();
    assert_eq!(
        error,
        "prepare `default/c`: device `gpu-0-mig-3g40gb-9-4`: memory slice 5 of GPU 0 is used by a MIG instance that \
         Kerf did not make (1g.10gb at 5); delete it with `nvidia-smi mig -i 0 -gi 12 -dci && nvidia-smi mig -i 0 \
         -gi 12 -dgi`, or delete the pod so that it is scheduled again"
    );
    for slice in 4..8 {
        let name = format!("memory-slice-{slice}");
        let (has, consumed) = counter(&testbed, "gpu-0-counter-set", &name);
        assert_eq!((has, consumed["gpu-0-mig-3g40gb-9-4"]), (1, 1), "{name}");
    }
    unprepare(&testbed, &claim).await.unwrap();
}
