//! The cases of the Go library's controller test, by its names, and those that are ours.

use super::*;
use crate::cluster::script::{
    consuming, content, device, name, set, stored, with_memory, with_taint,
};

/// What would be written, a line each, and the pool's generation and count.
fn plan(existing: &[ResourceSlice], wanted: &[SliceContent]) -> (Vec<String>, i64, i64) {
    let wanted: Vec<_> = wanted.iter().collect();
    let Sync { pool, writes, waiting } = sync(existing, &wanted, "node-a", &BTreeSet::new());
    assert_eq!((pool.name.as_str(), waiting), ("node-a", Vec::new()));
    (lines(&writes), pool.generation, pool.resource_slice_count)
}

fn lines(writes: &[Write<'_>]) -> Vec<String> {
    let name = |slice: &ResourceSlice| slice.metadata.name.clone().unwrap();
    let line = |write: &Write<'_>| match write {
        Write::Delete(slice) => format!("delete {}", name(slice)),
        Write::Update { index, found, order_only: false } => {
            format!("update {} to {index}", name(found))
        }
        Write::Update { index, found, .. } => format!("reorder {} to {index}", name(found)),
        Write::Create { index } => format!("create {index}"),
    };
    writes.iter().map(line).collect()
}

fn none() -> Vec<String> {
    Vec::new()
}

fn update(index: usize) -> String {
    format!("update {} to {index}", name(index))
}

fn delete(index: usize) -> String {
    format!("delete {}", name(index))
}

fn three() -> Vec<ResourceSlice> {
    let slice = |index, device| stored(&name(index), (1, 3), &content(&[device]));
    vec![slice(0, "a"), slice(1, "b"), slice(2, "c")]
}

#[test]
fn create_slice() {
    assert_eq!(plan(&[], &[content(&["a"])]), (vec!["create 0".to_owned()], 1, 1));
}

#[test]
fn keep_slice_unchanged() {
    let existing = [stored(&name(0), (4, 1), &content(&["a"]))];
    assert_eq!(plan(&existing, &[content(&["a"])]), (none(), 4, 1));
}

#[test]
fn keep_taint_unchanged() {
    let mut held = content(&[]);
    held.devices.push(with_taint(device("a"), "x"));
    let mut existing = stored(&name(0), (1, 1), &held);
    let taint = &mut existing.spec.devices.as_mut().unwrap()[0].taints.as_mut().unwrap()[0];
    taint.time_added = Some(serde_json::from_str("\"2026-11-23T10:00:00Z\"").unwrap());
    assert_eq!(plan(&[existing], &[held]), (none(), 1, 1));
}

#[test]
fn add_taints() {
    let existing = [stored(&name(0), (1, 1), &content(&["a"]))];
    let mut wanted = content(&[]);
    wanted.devices.push(with_taint(device("a"), "x"));
    assert_eq!(plan(&existing, &[wanted]), (vec![update(0)], 1, 1));
}

#[test]
fn drop_taints() {
    let mut held = content(&[]);
    held.devices.push(with_taint(device("a"), "x"));
    let existing = [stored(&name(0), (1, 1), &held)];
    assert_eq!(plan(&existing, &[content(&["a"])]), (vec![update(0)], 1, 1));
}

#[test]
fn one_existing_and_one_desired_slice_should_be_updated_inplace() {
    let existing = [stored(&name(0), (2, 1), &content(&["a"]))];
    assert_eq!(plan(&existing, &[content(&["b"])]), (vec![update(0)], 2, 1));
}

#[test]
fn update_slice_when_more_than_one_existing_slice() {
    let existing =
        [stored(&name(0), (1, 2), &content(&["a"])), stored(&name(1), (1, 2), &content(&["b"]))];
    // One slice is left and changes: its generation can stay.
    assert_eq!(plan(&existing, &[content(&["a"])]), (vec![delete(1), update(0)], 1, 1));
}

#[test]
fn update_slice_when_more_than_one_desired_slice() {
    let existing = [stored(&name(0), (1, 1), &content(&["a"]))];
    let wanted = [content(&["a"]), content(&["b"])];
    assert_eq!(plan(&existing, &wanted), (vec![update(0), "create 1".to_owned()], 2, 2));
}

#[test]
fn delete_redundant_slice() {
    let first = stored(&name(0), (1, 1), &content(&["a"]));
    let mut second = first.clone();
    second.metadata.name = Some("00000-gpu.nvidia.com-node-a-zzzzz".to_owned());
    let expected = vec!["delete 00000-gpu.nvidia.com-node-a-zzzzz".to_owned()];
    assert_eq!(plan(&[second, first], &[content(&["a"])]), (expected, 1, 1));
}

#[test]
fn update_slice_many_devices() {
    let names: Vec<_> = (0..128).map(|number| format!("gpu-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let existing = [stored(&name(0), (1, 1), &content(&names))];
    let mut changed = content(&names);
    changed.devices[77] = with_memory(device("gpu-77"), "1Gi");
    assert_eq!(plan(&existing, &[changed]), (vec![update(0)], 1, 1));
}

#[test]
fn multiple_existing_no_changes() {
    let wanted = [content(&["a"]), content(&["b"]), content(&["c"])];
    assert_eq!(plan(&three(), &wanted), (none(), 1, 3));
}

#[test]
fn multiple_existing_with_different_resource_pool_generation() {
    let mut existing = three();
    existing[2].spec.pool.generation = 2;
    let wanted = [content(&["a"]), content(&["b"]), content(&["c"])];
    assert_eq!(plan(&existing, &wanted), (vec![update(0), update(1), update(2)], 3, 3));
}

#[test]
fn a_change_that_was_interrupted_before_its_last_slice_is_completed() {
    let mut existing = three();
    existing[0].spec.pool.generation = 2;
    existing[1].spec.pool.generation = 2;
    let wanted = [content(&["a"]), content(&["b"]), content(&["c"])];
    assert_eq!(plan(&existing, &wanted), (vec![update(2)], 2, 3));
}

#[test]
fn multiple_existing_one_changed() {
    let wanted = [content(&["a"]), content(&["B"]), content(&["c"])];
    assert_eq!(plan(&three(), &wanted), (vec![update(1)], 1, 3));
}

#[test]
fn multiple_existing_two_changed() {
    let wanted = [content(&["a"]), content(&["B"]), content(&["C"])];
    assert_eq!(plan(&three(), &wanted), (vec![update(0), update(1), update(2)], 2, 3));
}

#[test]
fn multiple_existing_one_removed() {
    let wanted = [content(&["a"]), content(&["b"])];
    assert_eq!(plan(&three(), &wanted), (vec![delete(2), update(0), update(1)], 2, 2));
}

#[test]
fn multiple_existing_one_added() {
    let wanted = [content(&["a"]), content(&["b"]), content(&["c"]), content(&["d"])];
    let expected = vec![update(0), update(1), update(2), "create 3".to_owned()];
    assert_eq!(plan(&three(), &wanted), (expected, 2, 4));
}

#[test]
fn a_slice_that_somebody_deleted_is_made_again() {
    let mut existing = three();
    existing.remove(1);
    let wanted = [content(&["a"]), content(&["b"]), content(&["c"])];
    let expected = vec![update(0), update(2), "create 1".to_owned()];
    assert_eq!(plan(&existing, &wanted), (expected, 2, 3));
}

#[test]
fn create_partitionable_devices() {
    let existing = [stored(&name(0), (1, 1), &content(&["a"]))];
    let mut wanted = content(&[]);
    wanted.devices.push(consuming(device("a"), "s", "m"));
    wanted.shared_counters.push(set("s", "m", "1"));
    assert_eq!(plan(&existing, &[wanted]), (vec![update(0)], 1, 1));
}

#[test]
fn drop_partitionable_devices() {
    let mut held = content(&[]);
    held.devices.push(consuming(device("a"), "s", "m"));
    held.shared_counters.push(set("s", "m", "1"));
    let existing = [stored(&name(0), (1, 1), &held)];
    assert_eq!(plan(&existing, &[content(&["a"])]), (vec![update(0)], 1, 1));
}

#[test]
fn migration_from_random_naming_to_index_based_naming() {
    let existing = [
        stored("node-a-gpu.nvidia.com-x7q2v", (3, 2), &content(&["a"])),
        stored("node-a-gpu.nvidia.com-b52kd", (3, 2), &content(&["b"])),
    ];
    let expected = [
        "delete node-a-gpu.nvidia.com-b52kd",
        "delete node-a-gpu.nvidia.com-x7q2v",
        "create 0",
        "create 1",
    ];
    let expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
    assert_eq!(plan(&existing, &[content(&["a"]), content(&["b"])]), (expected, 4, 2));
}

#[test]
fn migration_from_mixed_naming() {
    let existing = [
        stored(&name(0), (3, 2), &content(&["a"])),
        stored("node-a-gpu.nvidia.com-b52kd", (3, 2), &content(&["b"])),
    ];
    let random = "delete node-a-gpu.nvidia.com-b52kd".to_owned();
    let expected = vec![random, update(0), "create 1".to_owned()];
    assert_eq!(plan(&existing, &[content(&["a"]), content(&["b"])]), (expected, 4, 2));
}

#[test]
fn names_that_only_look_like_ours_are_obsolete() {
    for other in ["0000-x-y-z", "000000-x-y-z", "0000A-x", "+0000-x", "00001-x", "00000"] {
        let existing = [stored(other, (1, 1), &content(&["a"]))];
        let expected = vec![format!("delete {other}"), "create 0".to_owned()];
        assert_eq!(plan(&existing, &[content(&["a"])]), (expected, 2, 1), "{other}");
    }
}

#[test]
fn slices_of_another_pool_are_deleted() {
    let mut existing = [stored(&name(0), (9, 1), &content(&["a"]))];
    existing[0].spec.pool.name = "other".to_owned();
    let expected = vec![delete(0), "create 0".to_owned()];
    assert_eq!(plan(&existing, &[content(&["a"])]), (expected, 1, 1));
}

#[test]
fn order_alone_keeps_the_generation_however_many_slices_change() {
    let existing = [
        stored(&name(0), (1, 3), &content(&["a", "b"])),
        stored(&name(1), (1, 3), &content(&["c", "d"])),
        stored(&name(2), (1, 3), &content(&["e", "f"])),
    ];
    let wanted = [content(&["b", "a"]), content(&["d", "c"]), content(&["E"])];
    let wanted: Vec<_> = wanted.iter().collect();
    let found = sync(&existing, &wanted, "node-a", &BTreeSet::from([1]));
    let reorder = format!("reorder {} to 0", name(0));
    assert_eq!(lines(&found.writes), [reorder, update(2)]);
    assert_eq!((found.pool.generation, found.waiting), (1, vec![1]));
}

#[test]
fn a_slice_that_rests_is_written_when_the_generation_rises() {
    let existing = [
        stored(&name(0), (1, 2), &content(&["a", "b"])),
        stored(&name(1), (1, 2), &content(&["c"])),
    ];
    let wanted = [content(&["b", "a"]), content(&["c"]), content(&["d"])];
    let wanted: Vec<_> = wanted.iter().collect();
    let found = sync(&existing, &wanted, "node-a", &BTreeSet::from([0, 1]));
    assert_eq!(lines(&found.writes), [update(0), update(1), "create 2".to_owned()]);
    assert_eq!((found.pool.generation, found.waiting), (2, Vec::new()));
}

#[test]
fn names_sort_as_their_indexes() {
    assert_eq!(base_name(26, "gpu.nvidia.com", "node-a"), "0001a-gpu.nvidia.com-node-a-");
    for number in [0, 9, 10, 255, 0xf_ffff] {
        assert_eq!(index(&base_name(number, "d", "n")), Some(number));
    }
}

mod at_any_point {
    //! Whatever is wished for, whoever deletes slices and wherever a pass is cut off: the scheduler
    //! sees a whole old pool, a whole new one, or one that it waits for.

    use proptest::prelude::*;

    use super::*;

    /// One wish, how many of its writes are made before the agent is killed, and which slice somebody
    /// deletes then.
    #[derive(Clone, Debug)]
    struct Step {
        wish: Vec<SliceContent>,
        writes: usize,
        deleted: Option<prop::sample::Index>,
    }

    fn slice() -> impl Strategy<Value = SliceContent> {
        let devices = prop::sample::subsequence(vec!["a", "b", "c"], 1..=3).prop_shuffle();
        devices.prop_map(|devices| content(&devices))
    }

    fn step() -> impl Strategy<Value = Step> {
        let wish = prop::collection::vec(slice(), 1..5);
        let deleted = prop::option::weighted(0.2, any::<prop::sample::Index>());
        (wish, 0..9_usize, deleted).prop_map(|(wish, writes, deleted)| Step {
            wish,
            writes,
            deleted,
        })
    }

    /// A server's slices, by name.
    #[derive(Default)]
    struct Server {
        slices: Vec<ResourceSlice>,
        made: usize,
        /// What the scheduler last allocated from.
        seen: Option<Vec<BTreeSet<String>>>,
    }

    impl Server {
        /// What the scheduler allocates from: the newest generation, if it is complete.
        fn whole(&self) -> Option<Vec<BTreeSet<String>>> {
            let newest = self.slices.iter().map(|slice| slice.spec.pool.generation).max()?;
            let newest = self.slices.iter().filter(|slice| slice.spec.pool.generation == newest);
            let newest: Vec<_> = newest.collect();
            let complete = |slice: &&ResourceSlice| {
                usize::try_from(slice.spec.pool.resource_slice_count) == Ok(newest.len())
            };
            newest
                .iter()
                .all(complete)
                .then(|| newest.iter().map(|slice| names(&slice.spec.devices)).collect())
        }

        fn write(&mut self, write: Write<'_>, pool: (i64, i64), wish: &[SliceContent]) {
            match write {
                Write::Delete(slice) => self.slices.retain(|other| other != slice),
                Write::Update { index, found, .. } => {
                    let slice = self.slices.iter_mut().find(|slice| *slice == found).unwrap();
                    *slice = stored(found.metadata.name.as_deref().unwrap(), pool, &wish[index]);
                }
                Write::Create { index } => {
                    self.made += 1;
                    let name = format!("{}{}", base_name(index, "d", "n"), self.made);
                    self.slices.push(stored(&name, pool, &wish[index]));
                }
            }
            self.slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        }

        fn look(&mut self, wish: &[SliceContent]) {
            let Some(whole) = self.whole() else { return };
            let wished: Vec<_> =
                wish.iter().map(|slice| names(&Some(slice.devices.clone()))).collect();
            assert!(
                Some(&whole) == self.seen.as_ref() || whole == wished,
                "{whole:?} for {wished:?}"
            );
            self.seen = Some(whole);
        }

        /// Makes the first `count` writes for a wish; tells how many there are in all.
        fn advance(&mut self, wish: &[SliceContent], count: usize) -> usize {
            let before = self.slices.clone();
            let wanted: Vec<_> = wish.iter().collect();
            let Sync { pool, writes, .. } = sync(&before, &wanted, "node-a", &BTreeSet::new());
            let counts = (pool.generation, pool.resource_slice_count);
            for write in writes.iter().take(count) {
                self.write(*write, counts, wish);
                self.look(wish);
            }
            writes.len()
        }
    }

    fn names(devices: &Option<Vec<k8s_openapi::api::resource::v1::Device>>) -> BTreeSet<String> {
        devices.iter().flatten().map(|device| device.name.clone()).collect()
    }

    proptest! {
        #[test]
        fn the_pool_is_whole_or_waited_for(steps in prop::collection::vec(step(), 1..8)) {
            let mut server = Server::default();
            for Step { wish, writes, deleted } in &steps {
                server.advance(wish, *writes);
                if let Some(deleted) = deleted && !server.slices.is_empty() {
                    let index = deleted.index(server.slices.len());
                    server.slices.remove(index);
                    server.look(wish);
                }
            }
            let last = &steps[steps.len() - 1].wish;
            server.advance(last, usize::MAX);
            prop_assert_eq!(server.advance(last, usize::MAX), 0, "a second pass finds nothing to do");
            let wished: Vec<_> = last.iter().map(|slice| names(&Some(slice.devices.clone()))).collect();
            prop_assert_eq!(server.whole(), Some(wished));
        }
    }
}
