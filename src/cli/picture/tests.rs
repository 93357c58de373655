use super::*;
use crate::{
    cli::samples::{cut, h100, record},
    model::record::Record,
};

const PLAIN: Style = Style { color: false, unicode: true };

fn of(gpu: &Gpu, records: &[Record]) -> String {
    let held: Vec<_> = records.iter().flat_map(Record::held).collect();
    picture(gpu, Some(&held), PLAIN)
}

#[test]
fn what_is_held_without_a_place_is_told_in_words() {
    let gpu = cut(h100(0), &[("7g.80gb", 0)]);
    let records = [
        record("old/claim", &gpu, Some(("1g.10gb", 5)), Origin::Made),
        record("ml/whole", &gpu, None, Origin::Found),
    ];
    insta::assert_snapshot!(of(&gpu, &records));
}

#[test]
fn names_too_long_for_their_cells_are_numbered() {
    let starts = [0, 1, 2, 3, 4, 5, 6];
    let gpu = cut(h100(0), &starts.map(|start| ("1g.10gb", start)));
    let records = starts.map(|start| {
        record(&format!("team-{start}/evaluation"), &gpu, Some(("1g.10gb", start)), Origin::Made)
    });
    insta::assert_snapshot!(of(&gpu, &records));
}

#[test]
fn a_label_gives_up_its_mark_before_its_name() {
    assert_eq!(labels("1g.10gb+me", ""), ["1g.10gb+me", "1g+me"]);
    assert_eq!(labels("2g.20gb", "admin"), ["2g.20gb (admin)", "2g (admin)", "2g.20gb", "2g"]);
    assert_eq!(labels("?", ""), ["?", "?"]);
}

#[test]
fn a_uuid_is_shortened_to_what_tells_it_apart() {
    assert_eq!(short("MIG-77c3d0f1-1b2c-4d5e-9f00-aabbccddeeff"), "MIG-77c3d0f1");
    assert_eq!(short("GPU-5d1c2f0e"), "GPU-5d1c2f0e");
}

#[test]
fn an_instance_that_no_record_names_is_marked_however_narrow() {
    let gpu = cut(h100(0), &[("1g.10gb", 0), ("3g.40gb", 4)]);
    let below = of(&gpu, &[]).lines().nth(4).unwrap().to_owned();
    assert_eq!(below, "   foreign                         not ours");
}
