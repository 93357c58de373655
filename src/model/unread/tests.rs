use proptest::prelude::*;

use super::*;
use crate::model::{
    claim::ClaimRef,
    fixtures::gpus::{H100, gpu},
    holder::Container,
};

const UID: &str = "7f3e";

fn node(gpus: u32) -> Inventory {
    Inventory { gpus: (0..gpus).map(|n| gpu(&H100, n)).collect(), ..Inventory::default() }
}

fn claim(told: Option<Told>) -> Unread {
    let claim = ClaimRef { namespace: String::new(), name: String::new(), uid: UID.to_owned() };
    let (file, reason) = ("claims/7f3e.json".to_owned(), "EOF".to_owned());
    Unread { holder: claim.into(), file, reason, told }
}

fn names(names: &[&str]) -> Option<Told> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(Told { names, ..Told::default() })
}

/// By index, the GPUs on which nothing new is begun.
fn concerned(withheld: &Withheld, node: &Inventory) -> Vec<u32> {
    let gpus = node.gpus.iter().filter(|gpu| withheld.concerns(&gpu.uuid));
    gpus.map(|gpu| gpu.index).collect()
}

#[test]
fn what_a_cdi_file_names_is_withheld_and_nothing_else() {
    let node = node(3);
    let told = names(&["gpu-1-mig-1g10gb-19-4", "gpu-2"]);
    let withheld = claim(told).withheld(&node, &BTreeMap::new());
    assert_eq!(concerned(&withheld, &node), [1, 2]);
    let held: Vec<_> = withheld.held().map(|held| (held.device.to_owned(), held.origin)).collect();
    let mig = ("gpu-1-mig-1g10gb-19-4".to_owned(), Origin::Made);
    assert_eq!(held, [mig, ("gpu-2".to_owned(), Origin::Found)]);
}

#[test]
fn where_nothing_tells_all_gpus_are_withheld() {
    let node = node(3);
    for told in [None, names(&["gpu-7"]), names(&["gpu-1", "gpu-7"]), names(&["something"])] {
        let withheld = claim(told).withheld(&node, &BTreeMap::new());
        assert_eq!(concerned(&withheld, &node), [0, 1, 2]);
    }
}

#[test]
fn the_device_nodes_of_a_file_count_too() {
    let node = node(3);
    let told = Told { minors: BTreeSet::from([2]), ..names(&["gpu-0"]).unwrap() };
    let withheld = claim(Some(told)).withheld(&node, &BTreeMap::new());
    assert_eq!(concerned(&withheld, &node), [0, 2]);
}

#[test]
fn a_container_is_known_by_its_device() {
    let node = node(3);
    let uuid = &node.gpus[1].uuid.0;
    for (id, expected) in
        [(uuid.as_str(), vec![1]), ("MIG-gone", vec![0, 1, 2]), ("?", vec![0, 1, 2])]
    {
        let container = Container { id: id.to_owned(), resource: String::new(), name: None };
        let unread = Unread { holder: Holder::Container(container), ..claim(None) };
        let withheld = unread.withheld(&node, &BTreeMap::new());
        assert_eq!(concerned(&withheld, &node), expected, "{id}");
    }
}

#[test]
fn it_says_which_file_and_what_to_do() {
    let node = node(1);
    let said = |told| claim(told).withheld(&node, &BTreeMap::new()).to_string();
    insta::assert_snapshot!(format!("{}\n{}", said(names(&["gpu-0"])), said(None)));
}

proptest! {
    /// Whatever a source tells, the GPU of each device that is on this node is withheld.
    #[test]
    fn nothing_that_is_named_is_given_to_others(chosen in prop::collection::btree_set(0..400_usize, 1..4)) {
        let node = node(2);
        let all: Vec<_> = node.gpus.iter().flat_map(Device::all).collect();
        let chosen: Vec<_> = chosen.into_iter().filter_map(|at| all.get(at)).collect();
        prop_assume!(!chosen.is_empty());
        let of = chosen.iter().map(|device| device.name()).collect();
        let told = Told { names: of, ..Told::default() };
        let withheld = claim(Some(told)).withheld(&node, &BTreeMap::new());
        for device in chosen {
            prop_assert!(withheld.concerns(&device.gpu.uuid));
            prop_assert!(withheld.held().any(|held| *held.target == device.target()));
        }
    }
}
