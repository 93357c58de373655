//! Whose an instance is, for everything that can have happened at a place.

use super::*;
use crate::model::{
    claim::ClaimRef,
    device::Target,
    gpu::{ComputeInstance, Placement},
    record::{PreparedDevice, VERSION},
};

const PROFILE: u32 = 19;
const PLACE: Placement = Placement { start: 4, size: 1 };
/// NVML gives an instance at this place this id, whoever makes it.
const ID: u32 = 11;

fn gpu() -> GpuUuid {
    GpuUuid("GPU-1".to_owned())
}

fn instance(uuids: &[&str]) -> GpuInstance {
    let compute =
        uuids.iter().map(|uuid| ComputeInstance { id: 0, uuid: (*uuid).to_owned(), fills: true });
    GpuInstance { id: ID, profile: PROFILE, placement: PLACE, compute: compute.collect() }
}

fn record(carving: Option<Carving>) -> Record {
    let claim = ClaimRef { namespace: "ml".into(), name: "train".into(), uid: "7f3e".into() };
    let device = PlannedDevice {
        requests: vec!["gpu".to_owned()],
        pool: "node".to_owned(),
        device: "gpu-0-mig-1g10gb-19-4".to_owned(),
        share_id: None,
        target: Target::Mig {
            gpu: gpu(),
            profile: PROFILE,
            profile_name: "1g.10gb".to_owned(),
            placement: PLACE,
        },
        origin: Origin::Made,
    };
    Record {
        version: VERSION,
        boot_id: "boot".to_owned(),
        since: "2026-11-30T00:00:00Z".to_owned(),
        plan: Plan { holder: claim.into(), pods: Vec::new(), devices: vec![device] },
        state: State::Preparing,
        carving,
        leftover: false,
    }
}

/// The record after so many steps of carving, as it is kept.
fn after(steps: usize) -> Record {
    let mut record = record(Some(Carving::default()));
    if steps > 0 {
        record.note_made(0, Some(ID), None);
    }
    if steps > 1 {
        record.note_made(0, Some(ID), Some("MIG-ours".to_owned()));
    }
    if steps > 2 {
        let device = PreparedDevice { uuid: Some("MIG-ours".to_owned()), cdi: Vec::new() };
        record.state = State::Prepared { devices: vec![device] };
        record.carving = None;
    }
    record
}

/// An agent that was killed finds what it had made: at most one step further than the record says.
#[test]
fn ours_is_ours_wherever_the_agent_was_killed() {
    let found: [&[GpuInstance]; 4] = [
        &[instance(&[])],
        &[instance(&[]), instance(&["MIG-ours"])],
        &[instance(&["MIG-ours"])],
        // Half destroyed, too.
        &[instance(&["MIG-ours"]), instance(&[])],
    ];
    for (steps, found) in found.into_iter().enumerate() {
        for instance in found {
            assert!(after(steps).is_made(0, instance), "{steps}: {instance:?}");
        }
    }
}

/// Somebody else has cut at the same place: same profile, same id.
#[test]
fn an_administrators_is_not_ours_wherever_the_agent_was_killed() {
    let foreign = instance(&["MIG-theirs"]);
    for steps in [0, 2, 3] {
        assert!(!after(steps).is_made(0, &foreign), "{steps}");
    }
}

/// Within the call it is known what creates returned: without them nothing is ours, filled or empty.
#[test]
fn once_carving_has_ended_only_what_creates_returned_is_ours() {
    let mut failed = after(0);
    failed.end_carving();
    assert!(!failed.is_made(0, &instance(&[])));
    assert!(!failed.is_made(0, &instance(&["MIG-theirs"])));

    let mut untold = after(0);
    untold.note_made(0, None, None);
    untold.end_carving();
    assert!(untold.is_made(0, &instance(&[])), "a create has returned it, though not its id");

    let mut destroyed = after(2);
    destroyed.note_destroyed(0);
    destroyed.end_carving();
    assert!(!destroyed.is_made(0, &instance(&[])));
}

#[test]
fn what_was_there_before_is_not_ours() {
    let present = |uuids: &[&str]| Present {
        gpu: gpu(),
        id: ID,
        uuids: uuids.iter().map(|uuid| (*uuid).to_owned()).collect(),
    };
    let before = Carving { before: vec![present(&[])], ..Carving::default() };
    assert!(!record(Some(before)).is_made(0, &instance(&[])));
    let other = Carving { before: vec![present(&["MIG-gone"])], ..Carving::default() };
    assert!(record(Some(other)).is_made(0, &instance(&[])));
}

/// A record of a version that noted nothing goes by the place, as that version did.
#[test]
fn without_notes_the_place_decides() {
    assert!(record(None).is_made(0, &instance(&["MIG-any"])));
    let mut found = record(None);
    found.plan.devices[0].origin = Origin::Found;
    assert!(!found.is_made(0, &instance(&["MIG-any"])));
    assert!(!record(None).is_made(1, &instance(&["MIG-any"])));
}

#[test]
fn what_is_left_over_names_only_what_is_left() {
    let mut two = after(2);
    let other = PlannedDevice { device: "other".to_owned(), ..two.plan.devices[0].clone() };
    two.plan.devices.insert(0, other.clone());
    two.plan.pods = vec!["train-0".to_owned()];
    two.carving = Some(Carving::default());
    two.note_made(0, Some(3), None);
    two.note_made(1, Some(ID), Some("MIG-ours".to_owned()));
    let left = two.left_over(&BTreeSet::from([1]));
    assert_eq!(left, Record { leftover: true, ..after(2) });

    let mut prepared = after(3);
    prepared.plan.devices.push(other);
    let State::Prepared { devices } = &mut prepared.state else { unreachable!() };
    devices.push(PreparedDevice { uuid: Some("MIG-other".to_owned()), cdi: Vec::new() });
    let left = prepared.left_over(&BTreeSet::from([0]));
    assert_eq!(left, Record { leftover: true, ..after(3) });
}

/// An agent of before, which knows neither field, reads the rest.
#[test]
fn notes_are_read_as_they_were_written_and_ignored_by_others() {
    for record in [after(0), after(1), after(2), after(3), after(2).left_over(&BTreeSet::from([0]))]
    {
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(Record::parse(written.to_string().as_bytes()).unwrap(), record);
    }
    let plain = serde_json::to_value(after(3)).unwrap();
    assert_eq!([plain.get("carving"), plain.get("leftover")], [None, None]);
}
