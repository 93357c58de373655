use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::model::{
    claim::ClaimRef,
    holder::{Container, ContainerName},
    plan::PlannedDevice,
};

fn mig(placement: Placement) -> Target {
    Target::Mig {
        gpu: GpuUuid("GPU-5d1c2f0e".to_owned()),
        profile: 19,
        profile_name: "1g.10gb".to_owned(),
        placement,
    }
}

fn device(name: &str, target: Target, origin: Origin) -> PlannedDevice {
    PlannedDevice {
        requests: vec!["gpu".to_owned()],
        pool: "node-1".to_owned(),
        device: name.to_owned(),
        share_id: None,
        target,
        origin,
    }
}

/// A record with a device of each origin.
fn record(state: State) -> Record {
    let [namespace, name, uid] = ["ml", "train", "7f3e"].map(str::to_owned);
    let gpu = GpuUuid("GPU-90aa41b7".to_owned());
    let looked = PlannedDevice {
        share_id: Some("0c1a7e52".to_owned()),
        ..device("gpu-0-mig-1g10gb-19-5", mig(Placement { start: 5, size: 1 }), Origin::Observed)
    };
    Record {
        version: VERSION,
        boot_id: "b0f1".to_owned(),
        since: "2026-03-04T11:48:00Z".to_owned(),
        plan: Plan {
            holder: ClaimRef { namespace, name, uid }.into(),
            pods: vec!["train-0".to_owned()],
            devices: vec![
                device("gpu-1", Target::Gpu { gpu }, Origin::Found),
                device("gpu-0-mig-1g10gb-19-4", mig(Placement { start: 4, size: 1 }), Origin::Made),
                looked,
            ],
        },
        state,
        carving: None,
        leftover: false,
    }
}

/// What other agents of ours have written and will read: it may only get more fields.
fn on_disk() -> Value {
    json!({
        "version": 1,
        "bootId": "b0f1",
        "since": "2026-03-04T11:48:00Z",
        "plan": {
            "claim": { "namespace": "ml", "name": "train", "uid": "7f3e" },
            "pods": ["train-0"],
            "devices": [
                {
                    "requests": ["gpu"],
                    "pool": "node-1",
                    "device": "gpu-1",
                    "target": { "type": "gpu", "gpu": "GPU-90aa41b7" },
                    "origin": "found",
                },
                {
                    "requests": ["gpu"],
                    "pool": "node-1",
                    "device": "gpu-0-mig-1g10gb-19-4",
                    "target": {
                        "type": "mig",
                        "gpu": "GPU-5d1c2f0e",
                        "profile": 19,
                        "profileName": "1g.10gb",
                        "placement": { "start": 4, "size": 1 },
                    },
                    "origin": "made",
                },
                {
                    "requests": ["gpu"],
                    "pool": "node-1",
                    "device": "gpu-0-mig-1g10gb-19-5",
                    "shareId": "0c1a7e52",
                    "target": {
                        "type": "mig",
                        "gpu": "GPU-5d1c2f0e",
                        "profile": 19,
                        "profileName": "1g.10gb",
                        "placement": { "start": 5, "size": 1 },
                    },
                    "origin": "observed",
                },
            ],
        },
        "state": "prepared",
        "devices": [
            { "uuid": "GPU-90aa41b7", "cdi": ["k8s.gpu.nvidia.com/claim=7f3e-0"] },
            { "uuid": "MIG-77c3d0f1", "cdi": ["k8s.gpu.nvidia.com/claim=7f3e-1"] },
            { "cdi": [] },
        ],
    })
}

fn prepared() -> State {
    let device = |uuid: Option<&str>, cdi: &[&str]| PreparedDevice {
        uuid: uuid.map(str::to_owned),
        cdi: cdi.iter().map(|&name| name.to_owned()).collect(),
    };
    State::Prepared {
        devices: vec![
            device(Some("GPU-90aa41b7"), &["k8s.gpu.nvidia.com/claim=7f3e-0"]),
            device(Some("MIG-77c3d0f1"), &["k8s.gpu.nvidia.com/claim=7f3e-1"]),
            device(None, &[]),
        ],
    }
}

fn parse(record: &Value) -> Result<Record, String> {
    Record::parse(record.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn the_format_on_disk_stays() {
    assert_eq!(serde_json::to_value(record(prepared())).unwrap(), on_disk());
    assert_eq!(parse(&on_disk()), Ok(record(prepared())));
    let mut begun = on_disk();
    begun["state"] = json!("preparing");
    begun.as_object_mut().unwrap().remove("devices");
    assert_eq!(serde_json::to_value(record(State::Preparing)).unwrap(), begun);
    assert_eq!(parse(&begun), Ok(record(State::Preparing)));
}

#[test]
fn a_newer_record_is_read_for_what_is_known() {
    let mut newer = on_disk();
    newer["version"] = json!(2);
    add_to_all_objects(&mut newer, "reason", &json!({ "deep": [null] }));
    assert_eq!(parse(&newer), Ok(Record { version: 2, ..record(prepared()) }));
}

#[test]
fn what_decides_is_not_guessed() {
    for (pointer, value, known) in [
        ("/state", "halfway", "`preparing` or `prepared`"),
        ("/plan/devices/1/target/type", "vgpu", "`gpu` or `mig`"),
        ("/plan/devices/1/origin", "borrowed", "one of `made`, `found`, `observed`"),
    ] {
        let mut record = on_disk();
        *record.pointer_mut(pointer).unwrap() = json!(value);
        let told = parse(&record).unwrap_err();
        let (what, _column) = told.split_once(" at line 1 ").unwrap();
        let expected = format!("not a claim record: unknown variant `{value}`, expected {known}");
        assert_eq!(what, expected);
    }
}

#[test]
fn what_is_no_record_is_unreadable() {
    let told = |bytes: &[u8]| Record::parse(bytes).unwrap_err().to_string();
    assert_eq!(
        told(b""),
        "not a claim record: EOF while parsing a value at line 1 column 0",
        "an empty file"
    );
    let whole = on_disk().to_string();
    for end in 1..whole.len() {
        let text = told(&whole.as_bytes()[..end]);
        assert!(text.starts_with("not a claim record: EOF while parsing"), "{end}: {text}");
    }
}

#[test]
fn what_is_looked_at_is_not_held_and_what_is_found_is_not_made() {
    let record = record(State::Preparing);
    let held: Vec<_> = record.held().map(|held| (held.device, held.origin)).collect();
    assert_eq!(held, [("gpu-1", Origin::Found), ("gpu-0-mig-1g10gb-19-4", Origin::Made)]);
    assert!(record.held().all(|held| *held.by == record.plan.holder));
    let gpu = GpuUuid("GPU-5d1c2f0e".to_owned());
    let made: Vec<_> = record.made().collect();
    assert_eq!(made, [(&gpu, 19, Placement { start: 4, size: 1 })]);
}

fn add_to_all_objects(value: &mut Value, name: &str, field: &Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| add_to_all_objects(value, name, field));
            fields.insert(name.to_owned(), field.clone());
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|value| add_to_all_objects(value, name, field));
        }
        _ => {}
    }
}

fn targets() -> impl Strategy<Value = Target> {
    let gpu = any::<String>().prop_map(GpuUuid);
    let placement = any::<(u32, u32)>().prop_map(|(start, size)| Placement { start, size });
    let mig = (gpu.clone(), any::<u32>(), any::<String>(), placement).prop_map(
        |(gpu, profile, profile_name, placement)| Target::Mig {
            gpu,
            profile,
            profile_name,
            placement,
        },
    );
    prop_oneof![gpu.prop_map(|gpu| Target::Gpu { gpu }), mig]
}

fn devices() -> impl Strategy<Value = PlannedDevice> {
    let origin = select(&[Origin::Made, Origin::Found, Origin::Observed][..]);
    let texts = (vec(any::<String>(), 0..3), any::<String>(), any::<String>());
    (texts, option::of(any::<String>()), targets(), origin).prop_map(
        |((requests, pool, device), share_id, target, origin)| PlannedDevice {
            requests,
            pool,
            device,
            share_id,
            target,
            origin,
        },
    )
}

fn states() -> impl Strategy<Value = State> {
    let device = (option::of(any::<String>()), vec(any::<String>(), 0..3))
        .prop_map(|(uuid, cdi)| PreparedDevice { uuid, cdi });
    let prepared = vec(device, 0..3).prop_map(|devices| State::Prepared { devices });
    prop_oneof![Just(State::Preparing), prepared]
}

fn holders() -> impl Strategy<Value = Holder> {
    let claims = any::<[String; 3]>()
        .prop_map(|[namespace, name, uid]| ClaimRef { namespace, name, uid }.into());
    let names = any::<[String; 3]>().prop_map(|[namespace, pod, container]| ContainerName {
        namespace,
        pod,
        container,
    });
    let containers = (any::<[String; 2]>(), option::of(names))
        .prop_map(|([id, resource], name)| Holder::Container(Container { id, resource, name }));
    prop_oneof![claims, containers]
}

fn records() -> impl Strategy<Value = Record> {
    let plan = (holders(), vec(any::<String>(), 0..3), vec(devices(), 0..5))
        .prop_map(|(holder, pods, devices)| Plan { holder, pods, devices });
    (any::<u32>(), any::<[String; 2]>(), plan, states()).prop_map(
        |(version, [boot_id, since], plan, state)| Record {
            version,
            boot_id,
            since,
            plan,
            state,
            carving: None,
            leftover: false,
        },
    )
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(record in records(), field in "[a-z]{8,12}x") {
        let mut written = serde_json::to_value(&record).unwrap();
        prop_assert_eq!(parse(&written), Ok(record.clone()));
        add_to_all_objects(&mut written, &field, &json!(0));
        prop_assert_eq!(parse(&written), Ok(record));
    }

    #[test]
    fn what_kerf_made_is_what_is_to_be_destroyed(record in records()) {
        let is_made = |device: &&PlannedDevice| device.origin == Origin::Made;
        let made = record.plan.devices.iter().filter(is_made);
        let expected: Vec<_> = made.filter_map(|device| match &device.target {
            Target::Mig { gpu, profile, placement, .. } => Some((gpu, *profile, *placement)),
            Target::Gpu { .. } => None,
        }).collect();
        prop_assert_eq!(record.made().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(Record::parse(&bytes).is_err());
    }
}
