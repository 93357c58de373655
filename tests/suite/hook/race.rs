//! Somebody moves directories of the image while the hook works: a volume that another container has too
//! is enough for that.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Container, LIBRARIES, fingerprint, mounted};

/// Runs of the hook, each with many links to make.
const RUNS: usize = 150;
const LINKS: usize = 50;

/// Exchanges two files again and again until told to stop.
fn exchange(one: &Path, other: &Path, stop: &AtomicBool) -> usize {
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
        times += 1;
    }
    times
}

/// Has the hook work on an image in which `place` is now a directory and now a link to the host's.
fn race(place: &str, target: impl Fn(&Container) -> std::path::PathBuf) {
    let image = Container::new();
    mounted(&image);
    fs::create_dir_all(image.root().join(place)).unwrap();
    let decoy = image.root().join("decoy");
    symlink(target(&image), &decoy).unwrap();
    let before = fingerprint(&image.host());
    let links: Vec<_> = (0..LINKS)
        .flat_map(|n| ["--link".to_owned(), format!("a::{LIBRARIES}/gbm/d{}/link{n}", n % 7)])
        .collect();
    let links: Vec<_> =
        std::iter::once("create-symlinks").chain(links.iter().map(|x| &**x)).collect();
    let stop = AtomicBool::new(false);
    let place = image.root().join(place);
    thread::scope(|scope| {
        let attacker = scope.spawn(|| exchange(&place, &decoy, &stop));
        let runs = (0..RUNS).flat_map(|_| {
            let commands = [&links[..], &["update-ldcache", "--folder", LIBRARIES]];
            commands.map(|arguments| image.hook(arguments))
        });
        let crashed: Vec<_> = runs.filter(|ran| ![Some(0), Some(1)].contains(&ran.code)).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(attacker.join().unwrap() > RUNS, "it was no race");
        assert_eq!(crashed, []);
    });
    assert_eq!(fingerprint(&image.host()), before);
}

#[test]
fn directories_against_links_to_the_host() {
    for place in ["usr/lib/x86_64-linux-gnu/gbm", "usr/lib/x86_64-linux-gnu", "usr/lib", "etc"] {
        race(place, Container::host);
    }
}

#[test]
fn directories_against_links_up_and_out() {
    let up = |image: &Container| {
        Path::new(&"../".repeat(20)).join(image.host().strip_prefix("/").unwrap())
    };
    for place in ["usr/lib/x86_64-linux-gnu/gbm", "usr", "etc"] {
        race(place, up);
    }
}
