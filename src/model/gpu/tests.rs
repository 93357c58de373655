use super::*;
use crate::model::fixtures::gpus::{A30, H100, L4, Shape, carve, gpu};

#[test]
fn what_is_written_of_a_gpu_is_read_again() {
    let mut cut = gpu(&H100, 0);
    carve(&mut cut, 9, Placement { start: 4, size: 4 }, Shape::Filled);
    for gpu in [cut, gpu(&A30, 1), gpu(&L4, 2)] {
        let text = serde_json::to_string(&gpu).unwrap();
        assert_eq!(serde_json::from_str::<Gpu>(&text).unwrap(), gpu);
    }
    let other = serde_json::to_string(&gpu(&L4, 2)).unwrap().replace("8.9", "eight");
    let error = serde_json::from_str::<Gpu>(&other).unwrap_err().to_string();
    assert!(error.starts_with("`eight` is not as in `13.0`"), "{error}");
}

#[test]
fn carving_leaves_the_uncut_gpu_as_it_was() {
    let before = gpu(&H100, 0);
    let mut cut = before.clone();
    carve(&mut cut, 9, Placement { start: 4, size: 4 }, Shape::Filled);
    assert_eq!(cut.uncut(), before.uncut());
}
