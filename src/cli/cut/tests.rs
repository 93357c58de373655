use proptest::prelude::*;

use super::*;
use crate::{
    cli::samples::{a30, cut, h100, l4, preparing, record, rtx},
    model::{plan::Origin, record::Record},
};

fn held(records: &[Record]) -> Vec<Held<'_>> {
    records.iter().flat_map(Record::held).collect()
}

fn free(gpu: &Gpu, records: &[Record]) -> Vec<(u32, String)> {
    let held = held(records);
    let free = Cut::new(gpu, &held).free();
    free.into_iter().map(|(count, profile)| (count, profile.name.clone())).collect()
}

fn names(free: &[(u32, &str)]) -> Vec<(u32, String)> {
    free.iter().map(|&(count, name)| (count, name.to_owned())).collect()
}

#[test]
fn what_is_free_is_counted_by_profile() {
    let gpu = cut(h100(0), &[("1g.10gb+me", 0), ("3g.40gb", 4)]);
    let expected = names(&[(3, "1g.10gb"), (1, "1g.20gb"), (1, "2g.20gb")]);
    assert_eq!(free(&gpu, &[]), expected);

    let begun = [preparing("a/b", &gpu, Some(("2g.20gb", 2)))];
    assert_eq!(free(&gpu, &begun), names(&[(1, "1g.10gb")]));

    let whole = [record("a/b", &h100(0), None, Origin::Found)];
    assert_eq!(free(&h100(0), &whole), []);
    assert_eq!(free(&l4(0), &[]), []);
}

#[test]
fn what_lies_under_something_else_is_told_apart() {
    let gpu = cut(h100(0), &[("3g.40gb", 4)]);
    let records = [
        record("old/claim", &gpu, Some(("1g.10gb", 5)), Origin::Made),
        record("ml/whole", &gpu, None, Origin::Found),
        record("ml/mine", &gpu, Some(("3g.40gb", 4)), Origin::Made),
    ];
    let held = held(&records);
    let displaced = Cut::new(&gpu, &held).displaced();
    let displaced: Vec<_> = displaced.iter().map(|held| held.by.label()).collect();
    assert_eq!(displaced, ["old/claim", "ml/whole"]);
}

#[test]
fn a_device_fits_where_nothing_is() {
    let gpu = cut(h100(0), &[("3g.40gb", 4)]);
    let records = [record("a/b", &gpu, Some(("1g.10gb", 0)), Origin::Made)];
    let held = held(&records);
    let cut = Cut::new(&gpu, &held);
    let fitting = Device::all(&gpu).filter(|device| cut.fits(device));
    assert_eq!(
        fitting.map(|device| device.name()).collect::<Vec<_>>(),
        [
            "gpu-0-mig-1g10gb-19-1",
            "gpu-0-mig-1g10gb-19-2",
            "gpu-0-mig-1g10gb-19-3",
            "gpu-0-mig-1g10gb-me-20-1",
            "gpu-0-mig-1g10gb-me-20-2",
            "gpu-0-mig-1g10gb-me-20-3",
            "gpu-0-mig-1g20gb-15-2",
            "gpu-0-mig-2g20gb-14-2",
        ]
    );
}

/// A GPU of some model with some of its devices carved, and claims on any devices, overlapping as
/// they like.
fn any_state() -> impl Strategy<Value = (Gpu, Vec<Record>)> {
    let gpu = prop_oneof![Just(h100(0)), Just(a30(0)), Just(rtx(0))];
    let picks = prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..8);
    (gpu, picks).prop_map(|(gpu, picks)| {
        let devices: Vec<_> = Device::all(&gpu).map(|device| device.part).collect();
        let (mut carved, mut records): (Vec<(&str, u32)>, _) = (Vec::new(), Vec::new());
        let mut taken: Vec<Placement> = Vec::new();
        for (pick, is_carved) in &picks {
            let part = match pick.get(&devices) {
                Part::Whole => None,
                Part::Mig(profile, placement) => {
                    if *is_carved && !taken.iter().any(|other| other.overlaps(*placement)) {
                        taken.push(*placement);
                        carved.push((&profile.name, placement.start));
                        continue;
                    }
                    Some((profile.name.as_str(), placement.start))
                }
            };
            records.push(preparing("a/b", &gpu, part));
        }
        (cut(gpu.clone(), &carved), records)
    })
}

proptest! {
    #[test]
    fn cells_fill_the_gpu_side_by_side((gpu, records) in any_state()) {
        let held = held(&records);
        let cells = Cut::new(&gpu, &held).cells();
        let mut next = 0;
        for cell in &cells {
            prop_assert_eq!(cell.placement.start, next);
            prop_assert!(cell.placement.size > 0);
            next = cell.placement.end();
        }
        prop_assert_eq!(next, gpu.mig.as_ref().unwrap().memory_slices());
    }

    #[test]
    fn every_claim_is_shown_once((gpu, records) in any_state()) {
        let held = held(&records);
        let cut = Cut::new(&gpu, &held);
        let shown = cut.cells().iter().filter(|cell| match cell.content {
            Content::Instance(_, holder) => holder.is_some(),
            Content::Reserved(_) => true,
            Content::Free(_) => false,
        }).count();
        let mig = |held: &&Held<'_>| matches!(held.target, Target::Mig { .. });
        let distinct: std::collections::BTreeSet<_> =
            held.iter().filter(mig).map(|held| held.target).collect();
        let displaced: std::collections::BTreeSet<_> =
            cut.displaced().into_iter().filter(mig).map(|held| held.target).collect();
        prop_assert_eq!(shown + displaced.len(), distinct.len());
    }
}
