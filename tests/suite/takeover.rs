//! A node on which NVIDIA's DRA driver was: what it left is taken over, or stops the start.

mod crash;
mod refused;
mod runtime;

use k8s_openapi::api::resource::v1::ResourceClaim;
use kerf::{
    model::{cdi, claim::ClaimRef, record::Record},
    node::store::write_atomic,
};
use kerf_nvml::Model;
use kerf_testbed::{agent::Agent, node::Testbed};
use serde_json::{Map, Value, json};

use crate::{
    claims::{NOTHING, cdi_name, device, nodes, prepare, spec, unprepare},
    given,
};

const SMALL: &str = "gpu-0-mig-1g10gb-19-4";
const MIDDLE: &str = "gpu-0-mig-2g20gb-14-2";

/// What NVIDIA's driver says of its node in its files, while it is put together.
struct Left<'t> {
    testbed: &'t Testbed,
    claims: Map<String, Value>,
}

impl<'t> Left<'t> {
    fn on(testbed: &'t Testbed) -> Self {
        Self { testbed, claims: Map::new() }
    }

    /// A claim that it prepared, with the CDI file that goes with it.
    fn prepared(mut self, claim: &ClaimRef, devices: &[&str]) -> Self {
        let prepared: Vec<_> = devices.iter().map(|name| self.device(claim, name)).collect();
        let entry = json!({
            "checkpointState": "PrepareCompleted",
            "status": self.status(claim),
            "preparedDevices": [{
                "devices": prepared,
                "configState": { "mpsControlDaemonID": "" },
            }],
        });
        self.claims.insert(claim.uid.clone(), entry);
        self.spec(claim, devices)
    }

    /// A claim that it was at when it ended.
    fn begun(mut self, claim: &ClaimRef) -> Self {
        let entry = json!({
            "checkpointState": "PrepareStarted",
            "status": self.status(claim),
            "name": claim.name,
            "namespace": claim.namespace,
        });
        self.claims.insert(claim.uid.clone(), entry);
        self
    }

    fn status(&self, claim: &ClaimRef) -> Value {
        let claims = self.testbed.api.list::<ResourceClaim>().into_iter();
        let mut found = claims.filter(|found| found.metadata.uid.as_ref() == Some(&claim.uid));
        serde_json::to_value(found.next().unwrap().status).unwrap()
    }

    fn device(&self, claim: &ClaimRef, name: &str) -> Value {
        let told = json!({
            "Requests": ["r0"], "PoolName": "node-a", "DeviceName": name,
            "CDIDeviceIDs": [cdi_name(claim, name)],
        });
        let fields: Vec<_> = name.split('-').collect();
        let minor: usize = fields[1].parse().unwrap();
        let gpu = &self.testbed.machine.snapshot().unwrap().gpus[minor];
        let [.., profile, start] = fields[..] else { unreachable!() };
        let place = (profile.parse::<u32>().ok(), start.parse::<u32>().ok());
        if !name.contains("-mig-") {
            return json!({ "gpu": { "info": { "uuid": gpu.uuid }, "device": told }, "mig": null });
        }
        let found = gpu.instances.iter().find(|gi| (Some(gi.profile), Some(gi.start)) == place);
        // What was carved before the machine was started again is not there any more.
        let (gi, uuid) = match found {
            Some(found) => (found.id, found.compute[0].uuid.clone()),
            None => (7, "MIG-0".to_owned()),
        };
        let concrete = json!({
            "parentMinor": minor, "giId": gi, "ciId": 0, "migUUID": uuid, "parentUUID": gpu.uuid,
        });
        json!({ "gpu": null, "mig": { "concrete": concrete, "device": told } })
    }

    /// The claim's CDI file.
    fn spec(self, claim: &ClaimRef, devices: &[&str]) -> Self {
        let mut text =
            "cdiVersion: 0.7.0\ncontainerEdits:\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n\
                        kind: k8s.gpu.nvidia.com/claim\ndevices:\n"
                .to_owned();
        for device in devices {
            text += &format!(
                "- containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n  name: {}-{device}\n",
                claim.uid
            );
        }
        std::fs::create_dir_all(self.testbed.cdi_root()).unwrap();
        let path = self.testbed.cdi_root().join(cdi::predecessors_file_name(&claim.uid));
        write_atomic(&path, text.as_bytes(), 0o600).unwrap();
        self
    }

    /// The whole file, of the boot that is now.
    fn checkpoint(&self) -> Value {
        let boot = self.testbed.machine.snapshot().unwrap().boot_id;
        json!({
            "checksum": 1_234_567,
            "v1": { "preparedClaims": {} },
            "v2": { "checksum": 7_654_321, "preparedClaims": self.claims, "nodeBootID": boot },
        })
    }

    fn write(&self) {
        write(self.testbed, &self.checkpoint());
    }
}

fn write(testbed: &Testbed, checkpoint: &Value) {
    std::fs::create_dir_all(testbed.state_dir()).unwrap();
    let path = testbed.state_dir().join("checkpoint.json");
    write_atomic(&path, checkpoint.to_string().as_bytes(), 0o600).unwrap();
}

/// Two GPUs. On the first, in MIG mode, is an instance of an administrator's at the end.
async fn node(mig: &str) -> Testbed {
    let builder = given::node(Model::H100_80, 2).flag(format!("--adopt-mig={mig}"));
    let testbed = builder.start_without_agent().await.unwrap();
    testbed.machine.set_mig_mode(0, true).unwrap();
    testbed.machine.create_instance(0, 19, 6, true).unwrap();
    testbed.starting_here().unwrap()
}

/// Names of the files of NVIDIA's driver that are there.
fn theirs(testbed: &Testbed) -> Vec<String> {
    let dirs = [testbed.state_dir(), testbed.cdi_root()];
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| name.ends_with(".yaml") || name.starts_with("checkpoint")).collect();
    names.sort();
    names
}

const TAKEN: [&str; 1] = ["checkpoint.json.adopted-by-kerf"];

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_goes_on_and_ends_as_if_kerf_had_prepared_it() {
    let mut testbed = node("dynamic").await;
    let claim = given::claim(&testbed, "c", &[SMALL, "gpu-1"]);
    testbed.machine.create_instance(0, 19, 4, true).unwrap();
    Left::on(&testbed).prepared(&claim, &["gpu-1", SMALL]).write();
    let before = testbed.machine.snapshot().unwrap();

    testbed.start_agent("a").await.unwrap();
    assert_eq!(testbed.machine.snapshot().unwrap(), before);
    assert_eq!(theirs(&testbed), TAKEN);
    // The one file there is names both devices.
    assert_eq!(given::cdi_files(&testbed), [cdi::file_name(&claim.uid)]);
    let spec = spec(&testbed, &claim);
    assert_eq!(spec.devices.len(), 2);
    let caps = nodes(&spec, SMALL);
    assert!(caps.iter().any(|path| path.starts_with("/dev/nvidia-caps/")), "{caps:?}");
    let [record] = given::records(&testbed).try_into().unwrap();
    assert_eq!(record.plan.holder.label(), format!("unknown/{}", claim.uid));
    assert_eq!(record.plan.pods, ["c-pod"]);

    let expected = [device(&claim, &["r0"], SMALL), device(&claim, &["r1"], "gpu-1")];
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), expected);
    assert_eq!(given::prepared(&testbed), ["c"], "the kubelet knows the name");
    assert_eq!(testbed.machine.snapshot().unwrap(), before);
    let thief = given::claim(&testbed, "thief", &["gpu-1"]);
    let error = prepare(&testbed, &thief).await.unwrap_err();
    assert!(error.contains("held by claim `default/c`"), "{error}");

    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(given::cut(&testbed), [vec![(19, 6)], vec![]]);
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
    testbed.start_agent("b").await.unwrap();
    assert_eq!(theirs(&testbed), TAKEN);
}

/// Half a MIG device and a CDI file of a call that never came to its end, and one that its driver
/// forgot.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_begun_is_undone() {
    let mut testbed = node("dynamic").await;
    let [claim, gone] = ["c", "gone"].map(|name| given::claim(&testbed, name, &[MIDDLE, "gpu-1"]));
    testbed.machine.create_instance(0, 14, 2, false).unwrap();
    let left = Left::on(&testbed).begun(&claim).spec(&claim, &[MIDDLE]).spec(&gone, &["gpu-1"]);
    left.write();
    testbed.start_agent("a").await.unwrap();
    assert_eq!(theirs(&testbed), TAKEN);
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
    prepare(&testbed, &claim).await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn mig_devices_of_an_administrator_stay_after_their_claims() {
    let testbed = node("static").await;
    testbed.machine.create_instance(0, 19, 4, true).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    let mut testbed = testbed.starting_here().unwrap();
    let claim = given::claim(&testbed, "c", &[SMALL]);
    let begun = given::claim(&testbed, "begun", &[MIDDLE]);
    Left::on(&testbed).prepared(&claim, &[SMALL]).begun(&begun).write();
    testbed.start_agent("a").await.unwrap();
    let expected = [device(&claim, &["r0"], SMALL)];
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), expected);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Its file says what was carved; somebody may have destroyed that since, and made something else.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_any_more_is_made_again_and_what_is_not_its_stays() {
    let mut testbed = node("dynamic").await;
    let [claim, other] =
        [("c", SMALL), ("other", MIDDLE)].map(|(n, device)| given::claim(&testbed, n, &[device]));
    testbed.machine.create_instance(0, 19, 4, true).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    Left::on(&testbed).prepared(&claim, &[SMALL]).prepared(&other, &[MIDDLE]).write();
    testbed.machine.destroy_instance(0, 4).unwrap();
    testbed.machine.destroy_instance(0, 2).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    testbed.start_agent("a").await.unwrap();
    assert_eq!(given::cdi_files(&testbed), NOTHING, "no container starts with what is not there");
    prepare(&testbed, &claim).await.unwrap();
    let error = prepare(&testbed, &other).await.unwrap_err();
    assert!(error.contains("used by a MIG instance that Kerf did not make"), "{error}");
    for claim in [&claim, &other] {
        unprepare(&testbed, claim).await.unwrap();
    }
    assert_eq!(given::cut(&testbed), [vec![(14, 2), (19, 6)], vec![]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_an_earlier_boot_are_held_until_the_kubelet_asks() {
    let mut testbed = given::node(Model::H100_80, 2).start_without_agent().await.unwrap();
    let [kept, released] =
        [("kept", SMALL), ("released", "gpu-1")].map(|(n, d)| given::claim(&testbed, n, &[d]));
    Left::on(&testbed).prepared(&kept, &[SMALL]).prepared(&released, &["gpu-1"]).write();
    testbed.machine.reboot().unwrap();
    testbed.start_agent("a").await.unwrap();
    assert_eq!(theirs(&testbed), TAKEN);
    assert_eq!(given::cdi_files(&testbed), NOTHING);
    assert_eq!(given::cut(&testbed), [[], []] as [[(u32, u32); 0]; 2]);
    let thief = given::claim(&testbed, "thief", &[SMALL]);
    let error = prepare(&testbed, &thief).await.unwrap_err();
    assert!(error.contains("held by claim `unknown/"), "{error}");
    unprepare(&testbed, &released).await.unwrap();
    assert_eq!(prepare(&testbed, &kept).await.unwrap(), [device(&kept, &["r0"], SMALL)]);
    assert_eq!(given::cut(&testbed), [vec![(19, 4)], vec![]]);
    unprepare(&testbed, &kept).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_comes_late_is_waited_for_with_closed_doors() {
    let mut testbed = given::node(Model::H100_80, 2).start_without_agent().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-1"]);
    Left::on(&testbed).prepared(&claim, &["gpu-1"]).write();
    testbed.machine.unload_driver().unwrap();
    let options = testbed.agent_options("a").unwrap();
    let agent = Agent::spawn(&options).unwrap();
    let waiting = || given::status(&testbed).is_some();
    agent.while_running(given::until("it acts", waiting)).await.unwrap();
    assert_eq!(given::readiness(options.http_endpoint).matches("starting").count(), 1);
    assert_eq!(testbed.kubelet.state().registrations, 0);
    testbed.machine.load_driver().unwrap();
    agent.while_running(testbed.kubelet.registered("gpu.nvidia.com")).await.unwrap();
    assert_eq!(theirs(&testbed), TAKEN);
    testbed.agent = Some(agent);
    assert_eq!(prepare(&testbed, &claim).await.unwrap(), [device(&claim, &["r0"], "gpu-1")]);
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// What a kill leaves between two steps: some records, our content under its name, all but the new
/// name of the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_was_begun_is_ended() {
    let mut testbed = node("dynamic").await;
    let [first, second] =
        [("first", SMALL), ("second", MIDDLE)].map(|(n, d)| given::claim(&testbed, n, &[d]));
    testbed.machine.create_instance(0, 19, 4, true).unwrap();
    testbed.machine.create_instance(0, 14, 2, true).unwrap();
    let left = Left::on(&testbed).prepared(&first, &[SMALL]).prepared(&second, &[MIDDLE]);
    let checkpoint = left.checkpoint();
    left.write();
    testbed.start_agent("a").await.unwrap();
    let (records, machine) = (given::records(&testbed), testbed.machine.snapshot().unwrap());
    let mut files = [&first, &second].map(|claim| cdi::file_name(&claim.uid));
    files.sort();
    let record = |claim: &ClaimRef| testbed.state_dir().join(format!("claims/{}.json", claim.uid));
    let ours = |claim: &ClaimRef| testbed.cdi_root().join(cdi::file_name(&claim.uid));
    let yaml = |claim: &ClaimRef| testbed.cdi_root().join(cdi::predecessors_file_name(&claim.uid));
    let left: [&dyn Fn(); 4] = [
        &|| {},
        &|| std::fs::rename(ours(&second), yaml(&second)).unwrap(),
        &|| [&first, &second].iter().for_each(|c| std::fs::rename(ours(c), yaml(c)).unwrap()),
        &|| {
            std::fs::rename(ours(&second), yaml(&second)).unwrap();
            std::fs::remove_file(record(&second)).unwrap();
        },
    ];
    let agents = ["b", "c", "d", "e"];
    for (step, (left, pod)) in left.iter().zip(agents).enumerate() {
        // The agent before is dead by the time that the next one looks.
        left();
        write(&testbed, &checkpoint);
        let options = testbed.agent_options(pod).unwrap();
        testbed.agent.as_ref().unwrap().kill().await.unwrap();
        let agent = Agent::spawn(&options).unwrap();
        let taken = || theirs(&testbed) == TAKEN;
        agent.while_running(given::until("taken over", taken)).await.unwrap();
        assert_eq!(given::cdi_files(&testbed), files, "step {step}");
        let states = |records: &[Record]| {
            records.iter().map(|record| record.state.clone()).collect::<Vec<_>>()
        };
        assert_eq!(states(&given::records(&testbed)), states(&records), "step {step}");
        assert_eq!(testbed.machine.snapshot().unwrap(), machine, "step {step}");
    }
}
