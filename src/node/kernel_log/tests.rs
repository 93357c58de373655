//! Logs as tests write them.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// A record is told at once; a test that waits longer is stuck.
const STUCK: Duration = Duration::from_secs(20);

async fn next(log: &mut KernelLog) -> Entry {
    timeout(STUCK, log.next()).await.unwrap().unwrap()
}

fn entry(text: &str, sequence: u64, microseconds: u64, history: bool) -> Entry {
    let since_boot = Duration::from_micros(microseconds);
    Entry { text: text.to_owned(), sequence, since_boot, history }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A log with two records, of which only one is the kernel's.
fn begun() -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("kmsg");
    append(&path, "4,0,10,-;first\n SUBSYSTEM=pci\n12,1,11,-;by a program\n");
    (dir, path)
}

#[tokio::test]
async fn history_is_read_first_and_then_what_comes() {
    let (dir, path) = begun();
    append(&path, "6,2,12,-;second\n");
    let mut log = KernelLog::open(&path).unwrap();
    assert_eq!(next(&mut log).await, entry("first", 0, 10, true));
    assert_eq!(next(&mut log).await, entry("second", 2, 12, true));
    assert!(timeout(Duration::from_millis(10), log.next()).await.is_err());
    append(&dir.path().join("other"), "4,3,13,-;elsewhere\n");
    append(&path, "4,3,13,-;third\n4,4,14,-;fourth\n4,5,");
    assert_eq!(next(&mut log).await, entry("third", 3, 13, false));
    assert_eq!(next(&mut log).await, entry("fourth", 4, 14, false));
    append(&path, "15,-;fifth\n");
    assert_eq!(next(&mut log).await, entry("fifth", 5, 15, false));
}

#[tokio::test]
async fn a_boot_begins_a_log_anew() {
    let (dir, path) = begun();
    let mut log = KernelLog::open(&path).unwrap();
    assert_eq!(next(&mut log).await, entry("first", 0, 10, true));
    assert!(timeout(Duration::from_millis(10), log.next()).await.is_err());
    let new = dir.path().join("kmsg.new");
    append(&new, "4,0,1,-;replaced, and longer than what was there before it was\n");
    fs::rename(new, &path).unwrap();
    let replaced = "replaced, and longer than what was there before it was";
    assert_eq!(next(&mut log).await, entry(replaced, 0, 1, false));
    File::create(&path).unwrap();
    append(&path, "4,0,2,-;cut\n");
    assert_eq!(next(&mut log).await, entry("cut", 0, 2, false));
}

#[tokio::test]
async fn a_device_is_read_record_by_record() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("kmsg");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    // One that reads too: a pipe that nobody reads does not open for writing.
    let mut kernel = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    kernel.write_all(b"4,0,10,-;first\n").unwrap();
    let mut log = KernelLog::open(&path).unwrap();
    assert_eq!(next(&mut log).await, entry("first", 0, 10, true));
    for number in 1..4 {
        assert!(timeout(Duration::from_millis(10), log.next()).await.is_err());
        kernel.write_all(b"not a record").unwrap();
        assert!(timeout(Duration::from_millis(10), log.next()).await.is_err());
        kernel.write_all(format!("4,{number},{number},-;next\n").as_bytes()).unwrap();
        assert_eq!(next(&mut log).await, entry("next", number, number, false));
    }
    drop(kernel);
    let ended = timeout(STUCK, log.next()).await.unwrap().unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_log_that_is_not_there_is_an_error() {
    let dir = TempDir::new().unwrap();
    let missing = KernelLog::open(&dir.path().join("kmsg")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}
