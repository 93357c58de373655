//! What each kind of claim is given.

use kerf::model::plan::Origin;
use kerf_nvml::{Model, NodeDescription};
use kerf_testbed::{apiserver::ApiOptions, kubelet::DraService, node::DRIVER};
use serde_json::json;

use super::{
    NOTHING, admin, allocation, claim_of, device, nodes, prepare, result, seen, spec, unprepare,
};
use crate::given;

#[tokio::test(flavor = "multi_thread")]
async fn several_devices_on_several_gpus() {
    let testbed = given::node(Model::H100_80, 3).start().await.unwrap();
    let names = ["gpu-2", "gpu-0-mig-1g10gb-19-6", "gpu-0-mig-4g40gb-5-0", "gpu-1-mig-7g80gb-0-0"];
    let claim = given::claim(&testbed, "c", &names);
    let expected = [
        device(&claim, &["r0"], names[0]),
        device(&claim, &["r1"], names[1]),
        device(&claim, &["r2"], names[2]),
        device(&claim, &["r3"], names[3]),
    ];
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), expected);
    assert_eq!(given::cut(&testbed), [vec![(5, 0), (19, 6)], vec![(0, 0)], vec![]]);
    let spec = spec(&testbed, &claim);
    assert_eq!(nodes(&spec, names[0]), ["/dev/nvidia2"]);
    // By NVML's ids: 4 slots at 0 are GPU instance 1, the last of 1 slot is 13.
    let numbers = |gi: u32, gpu: u32| {
        let instance = 3 + gpu * 135 + gi * 9;
        [instance, instance + 1].map(|minor| format!("/dev/nvidia-caps/nvidia-cap{minor}"))
    };
    for (name, gpu, gi) in [(names[1], 0, 13), (names[2], 0, 1), (names[3], 1, 0)] {
        let mut expected = vec![format!("/dev/nvidia{gpu}")];
        expected.extend(numbers(gi, gpu));
        assert_eq!(nodes(&spec, name), expected, "{name}");
    }
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_for_several_requests_and_subrequests() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let name = "gpu-0-mig-2g20gb-14-2";
    let results =
        [result("r0", name), result("r1/small", name), result("r2", "gpu-0-mig-1g10gb-19-0")];
    let claim = claim_of(&testbed, "c", &results);
    let expected =
        [device(&claim, &["r0", "r1"], name), device(&claim, &["r2"], "gpu-0-mig-1g10gb-19-0")];
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), expected);
    assert_eq!(given::cut(&testbed), [[(14, 2), (19, 0)]]);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_a_device_is_answered_with_its_id() {
    let testbed = given::node(Model::L4, 1).start().await.unwrap();
    let share = "5d0a4b1e-9a2c-4f0e-8a68-0c5b9b5a3d11";
    let mut shared = result("r0", "gpu-0");
    shared["shareID"] = json!(share);
    let claim = claim_of(&testbed, "c", &[shared]);
    let answered = prepare(&testbed, &claim).await.unwrap();
    assert_eq!(answered.len(), 1);
    assert_eq!(answered[0].share_id.as_deref(), Some(share));
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_other_drivers_are_not_ours() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let other = |request| json!({ "request": request, "driver": "nic.example.com", "pool": "elsewhere", "device": "gpu-0" });
    let mixed = claim_of(&testbed, "mixed", &[other("r0"), result("r1", "gpu-0")]);
    assert_eq!(prepare(&testbed, &mixed).await.unwrap(), [device(&mixed, &["r1"], "gpu-0")]);
    let foreign = claim_of(&testbed, "foreign", &[other("r0")]);
    assert_eq!(prepare(&testbed, &foreign).await.unwrap(), []);
    for claim in [&mixed, &foreign] {
        unprepare(&testbed, claim).await.unwrap();
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_an_administrator_made_is_given_and_stays() {
    for model in [Model::H100_80, Model::A100_80] {
        let machine = NodeDescription::uniform(model, 1).with_mig_enabled();
        let testbed = given::of(machine).start_without_agent().await.unwrap();
        testbed.machine.create_instance(0, 14, 2, true).unwrap();
        let before = testbed.machine.snapshot().unwrap();
        let mut testbed = testbed.starting_here().unwrap();
        testbed.start_agent("a").await.unwrap();

        let found = given::claim(&testbed, "found", &["gpu-0-mig-2g20gb-14-2"]);
        let made = given::claim(&testbed, "made", &["gpu-0-mig-1g10gb-19-0"]);
        let expected = [device(&found, &["r0"], "gpu-0-mig-2g20gb-14-2")];
        assert_eq!(prepare(&testbed, &found).await.unwrap(), expected);
        assert_eq!(testbed.machine.snapshot().unwrap(), before, "nothing was created");
        prepare(&testbed, &made).await.unwrap();
        for (claim, origin) in [(&found, Origin::Found), (&made, Origin::Made)] {
            let records = given::records(&testbed);
            let record =
                records.iter().find(|record| record.plan.holder.claim() == Some(claim)).unwrap();
            assert_eq!(record.plan.devices[0].origin, origin);
        }
        for claim in [&made, &found] {
            unprepare(&testbed, claim).await.unwrap();
        }
        assert_eq!(testbed.machine.snapshot().unwrap().gpus, before.gpus, "the same instance");
        assert_eq!(testbed.leftovers().unwrap(), NOTHING);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_access_sees_what_is_there_and_neither_makes_nor_holds() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let name = "gpu-0-mig-3g40gb-9-4";
    let results = [admin("r0", name), admin("r1", "gpu-1")];
    let early = claim_of(&testbed, "early", &results);
    let expected = [seen(&["r0"], name), device(&early, &["r1"], "gpu-1")];
    assert_eq!(prepare(&testbed, &early).await.unwrap(), expected);
    assert_eq!(given::cut(&testbed), [[], []] as [[(u32, u32); 0]; 2]);

    let user = given::claim(&testbed, "user", &[name]);
    let whole = given::claim(&testbed, "whole", &["gpu-1"]);
    prepare(&testbed, &user).await.unwrap();
    prepare(&testbed, &whole).await.unwrap();
    let late = claim_of(&testbed, "late", &results);
    let expected = [device(&late, &["r0"], name), device(&late, &["r1"], "gpu-1")];
    assert_eq!(prepare(&testbed, &late).await.unwrap(), expected);
    assert_eq!(nodes(&spec(&testbed, &late), name), nodes(&spec(&testbed, &user), name));

    for claim in [&early, &late] {
        unprepare(&testbed, claim).await.unwrap();
        assert_eq!(given::cut(&testbed), [vec![(9, 4)], vec![]]);
    }
    for claim in [&user, &whole] {
        unprepare(&testbed, claim).await.unwrap();
    }
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_only_looks_at_what_is_not_carved_has_no_cdi_file() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let name = "gpu-0-mig-1g10gb-19-3";
    let claim = claim_of(&testbed, "c", &[admin("r0", name)]);
    for _ in 0..2 {
        assert_eq!(prepare(&testbed, &claim).await.unwrap(), [seen(&["r0"], name)]);
        assert_eq!(given::cdi_files(&testbed), NOTHING);
    }
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_that_changes_nothing_is_taken() {
    let testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let config = |kind: &str, sharing: serde_json::Value| {
        json!({ "source": "FromClaim", "requests": [], "opaque": { "driver": DRIVER, "parameters": {
            "apiVersion": "resource.nvidia.com/v1beta1", "kind": kind, "sharing": sharing,
        } } })
    };
    let mut allocation = allocation(&[result("r0", "gpu-0-mig-1g10gb-19-3")]);
    allocation["devices"]["config"] = json!([
        config("GpuConfig", json!({ "strategy": "MPS", "mpsConfig": {} })),
        config("MigDeviceConfig", json!({ "strategy": "TimeSlicing" })),
    ]);
    let claim = given::claim_with(&testbed, "c", 1, allocation);
    prepare(&testbed, &claim).await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_kubelet_calls_the_older_service() {
    let options = kerf_testbed::kubelet::Options { only_v1beta1: true, ..Default::default() };
    let builder = given::node(Model::H100_80, 1).api(ApiOptions::of((1, 34))).kubelet(options);
    let testbed = builder.start().await.unwrap();
    let state = testbed.kubelet.state();
    assert_eq!(state.plugin(DRIVER).unwrap().service, DraService::V1beta1);
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-3"]);
    let expected = [device(&claim, &["r0"], "gpu-0-mig-1g10gb-19-3")];
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), expected);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_hooks_a_container_gets_the_same() {
    let plain = given::node(Model::H100_80, 1).flag("--no-cdi-hooks").start().await.unwrap();
    let hooked = given::node(Model::H100_80, 1).start().await.unwrap();
    let mut specs = Vec::new();
    for testbed in [&plain, &hooked] {
        let claim = given::claim(testbed, "c", &["gpu-0"]);
        prepare(testbed, &claim).await.unwrap();
        specs.push(spec(testbed, &claim));
    }
    let counts = [&specs[0], &specs[1]].map(|spec| {
        let edits = &spec.container_edits;
        (edits.mounts.len(), edits.device_nodes.len(), edits.env.len(), edits.hooks.is_empty())
    });
    let (mounts, nodes, env, _) = counts[0];
    assert!(mounts > 10 && nodes >= 3 && env >= 1, "{counts:?}");
    assert_eq!(counts, [(mounts, nodes, env, true), (mounts, nodes, env, false)]);
    let hook = &specs[1].container_edits.hooks[0];
    assert_eq!(hook.path, hooked.state_dir().join("kerf-cdi-hook").display().to_string());
}
