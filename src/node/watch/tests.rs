//! Changes as they come from a directory that a test changes.

use std::{
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, fs::symlink, net::UnixListener},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// A change is told at once; a test that waits longer is stuck.
const STUCK: Duration = Duration::from_secs(20);

async fn next(changes: &mut Changes) -> Change {
    timeout(STUCK, changes.next()).await.unwrap().unwrap()
}

async fn take(changes: &mut Changes, count: usize) -> Vec<Change> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(next(changes).await);
    }
    taken
}

fn appeared(name: &str) -> Change {
    Change::Appeared(name.into())
}

fn vanished(name: &str) -> Change {
    Change::Vanished(name.into())
}

#[tokio::test]
async fn entries_are_told_by_name_and_in_order() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let at = |name: &str| dir.path().join(name);
    File::create(at("before")).unwrap();
    let mut changes = Changes::of(dir.path()).unwrap();
    File::create(at("a")).unwrap();
    fs::rename(at("a"), at("b")).unwrap();
    fs::set_permissions(at("b"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(at("b"), other.path().join("b")).unwrap();
    fs::rename(other.path().join("b"), at("c")).unwrap();
    let socket = UnixListener::bind(at("kubelet.sock")).unwrap();
    fs::remove_file(at("before")).unwrap();
    let expected = [
        appeared("a"),
        Change::Written("a".into()),
        vanished("a"),
        appeared("b"),
        Change::Touched("b".into()),
        vanished("b"),
        appeared("c"),
        appeared("kubelet.sock"),
        vanished("before"),
    ];
    assert_eq!(take(&mut changes, expected.len()).await, expected);
    drop(socket);
}

#[tokio::test]
async fn a_mounted_config_map_changes_by_its_link() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("..1")).unwrap();
    symlink("..1", at("..data")).unwrap();
    let mut changes = Changes::of(dir.path()).unwrap();
    fs::create_dir(at("..2")).unwrap();
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir(at("..1")).unwrap();
    let expected = [
        appeared("..2"),
        appeared("..data_tmp"),
        vanished("..data_tmp"),
        appeared("..data"),
        vanished("..1"),
    ];
    assert_eq!(take(&mut changes, expected.len()).await, expected);
}

#[tokio::test]
async fn what_does_not_wait_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let mut changes = Changes::of(dir.path()).unwrap();
    assert!(timeout(Duration::from_millis(10), changes.next()).await.is_err());
    fs::create_dir(dir.path().join("a")).unwrap();
    assert_eq!(next(&mut changes).await, appeared("a"));
    assert!(timeout(Duration::from_millis(10), changes.next()).await.is_err());
}

#[tokio::test]
async fn the_directory_may_go_itself() {
    let dir = TempDir::new().unwrap();
    let (deleted, moved) = (dir.path().join("deleted"), dir.path().join("moved"));
    for path in [&deleted, &moved] {
        fs::create_dir(path).unwrap();
    }
    let mut of_deleted = Changes::of(&deleted).unwrap();
    let mut of_moved = Changes::of(&moved).unwrap();
    fs::remove_dir(&deleted).unwrap();
    fs::rename(&moved, dir.path().join("elsewhere")).unwrap();
    assert_eq!(next(&mut of_deleted).await, Change::Gone);
    assert_eq!(next(&mut of_moved).await, Change::Gone);
}

#[tokio::test]
async fn too_many_changes_are_told_as_missed() {
    let dir = TempDir::new().unwrap();
    let mut changes = Changes::of(dir.path()).unwrap();
    // An event that equals the one before is left out by the kernel.
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 100_000 {
        return;
    }
    for i in 0..=limit / 2 {
        let path = dir.path().join(format!("{}", i % 2));
        fs::create_dir(&path).unwrap();
        fs::remove_dir(&path).unwrap();
    }
    let told = take(&mut changes, limit + 1).await;
    assert_eq!((&told[0], told.last()), (&appeared("0"), Some(&Change::Missed)));
}

#[tokio::test]
async fn only_a_directory_has_changes() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    File::create(&file).unwrap();
    assert_eq!(Changes::of(&file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    let missing = Changes::of(&dir.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}
