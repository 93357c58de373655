use std::thread;

use tempfile::TempDir;

use super::*;
use crate::model::{
    cdi::{ClaimDevice, DeviceNode, HostFiles, claim_spec},
    claim::ClaimRef,
    health::{Health, Policy},
    plan::Plan,
    record::{State, VERSION},
};

struct Disk {
    directory: TempDir,
    store: Store,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state"), &directory.path().join("cdi"));
        Self { store: store.unwrap(), directory }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        File::create(self.path(path)).unwrap().write_all(content.as_bytes()).unwrap();
    }

    fn list(&self, path: &str) -> Vec<String> {
        names(&self.path(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.path(path)).unwrap().permissions().mode() & 0o777
    }
}

fn record(uid: &str) -> Record {
    let claim = ClaimRef { namespace: "ml".into(), name: "train".into(), uid: uid.to_owned() };
    Record {
        version: VERSION,
        boot_id: "boot-1".to_owned(),
        since: "2026-11-24T04:00:00Z".to_owned(),
        plan: Plan { holder: claim.into(), pods: vec!["train-0".to_owned()], devices: Vec::new() },
        state: State::Preparing,
        carving: None,
        leftover: false,
    }
}

fn spec(uid: &str, minor: u32) -> Spec {
    let node = DeviceNode {
        path: format!("/dev/nvidia{minor}"),
        major: 195,
        minor,
        ..DeviceNode::default()
    };
    let device = ClaimDevice { name: "gpu-0".to_owned(), nodes: vec![node], env: Vec::new() };
    claim_spec(uid, &[device], &HostFiles::default(), None)
}

#[test]
fn records_are_kept_replaced_and_forgotten() {
    let disk = Disk::new();
    assert_eq!(disk.store.records().unwrap(), (vec![], vec![]));
    disk.store.save(&record("b")).unwrap();
    disk.store.save(&record("a")).unwrap();
    let prepared = Record { state: State::Prepared { devices: vec![] }, ..record("b") };
    disk.store.save(&prepared).unwrap();
    assert_eq!(disk.store.records().unwrap(), (vec![record("a"), prepared.clone()], vec![]));
    assert_eq!(disk.list("state/claims"), ["a.json", "b.json"]);
    assert_eq!(disk.mode("state/claims/a.json"), 0o600);

    disk.store.forget(&record("a").plan.holder).unwrap();
    disk.store.forget(&record("a").plan.holder).unwrap();
    assert_eq!(disk.store.records().unwrap(), (vec![prepared], vec![]));
}

#[test]
fn what_cannot_be_read_stays_where_it_is_and_stops_nothing() {
    let disk = Disk::new();
    disk.store.save(&record("good")).unwrap();
    disk.write("state/claims/empty.json", "");
    disk.write("state/claims/half.json", r#"{"version":1,"boot"#);
    disk.write("state/claims/other.json", &serde_json::to_string(&record("good")).unwrap());
    disk.write("state/claims/notes.txt", "not looked at");
    fs::create_dir(disk.path("state/claims/folder.json")).unwrap();
    disk.store.write_spec("half", &spec("half", 3)).unwrap();

    let before = disk.list("state/claims");
    let (records, unread) = disk.store.records().unwrap();
    assert_eq!(records, [record("good")]);
    let found: Vec<_> = unread.iter().map(|found| (found.holder.key(), &*found.reason)).collect();
    assert_eq!(
        found,
        [
            ("empty", "EOF while parsing a value at line 1 column 0"),
            ("folder", "Is a directory (os error 21)"),
            ("half", "EOF while parsing a string at line 1 column 18"),
            ("other", "it is of `good`"),
        ]
    );
    // A CDI file tells what the record of its claim cannot.
    let told = unread.iter().map(|unread| unread.told.as_ref().map(|told| told.minors.clone()));
    let half = Some(std::collections::BTreeSet::from([3]));
    assert_eq!(told.collect::<Vec<_>>(), [None, None, half, None]);
    assert_eq!(disk.store.records().unwrap(), (records, unread));
    assert_eq!(disk.list("state/claims"), before);
}

/// With their directory, records are lost; what their CDI files name is not free for that.
#[test]
fn a_directory_that_was_removed_is_not_an_empty_one() {
    let disk = Disk::new();
    disk.store.save(&record("a")).unwrap();
    disk.store.write_spec("a", &spec("a", 3)).unwrap();
    fs::remove_dir_all(disk.path("state/claims")).unwrap();
    let store = Store::open(&disk.path("state"), &disk.path("cdi")).unwrap();
    for _ in 0..2 {
        let (records, unread) = store.records().unwrap();
        assert_eq!((records.len(), unread.len()), (0, 1));
        assert!(unread[0].told.is_some());
    }
}

#[test]
fn what_was_asked_of_an_unreadable_record_is_kept_with_it() {
    let disk = Disk::new();
    disk.write("state/claims/a.json", "{");
    let (_, unread) = disk.store.records().unwrap();
    let holder = &unread[0].holder;
    assert!(!disk.store.is_let_go(holder).unwrap());
    disk.store.note_let_go(holder).unwrap();
    disk.store.records().unwrap();
    assert!(disk.store.is_let_go(holder).unwrap());
    // Without the record it means nothing, least of all a later one.
    fs::remove_file(disk.path("state/claims/a.json")).unwrap();
    disk.store.records().unwrap();
    assert!(!disk.store.is_let_go(holder).unwrap());
}

#[test]
fn a_later_versions_record_is_read() {
    let disk = Disk::new();
    let mut value = serde_json::to_value(record("a")).unwrap();
    value["version"] = 7.into();
    value["shares"] = "of a later version".into();
    disk.write("state/claims/a.json", &value.to_string());
    let expected = Record { version: 7, ..record("a") };
    assert_eq!(disk.store.records().unwrap(), (vec![expected], vec![]));
}

#[test]
fn looking_changes_nothing() {
    let disk = Disk::new();
    assert_eq!(look(&disk.path("nowhere")).unwrap(), (vec![], vec![]));
    disk.store.save(&record("good")).unwrap();
    disk.write("state/claims/bad.json", "{");
    disk.write("state/claims/.good.json.1-0.tmp", "");
    let before = disk.list("state/claims");
    let (records, unreadable) = look(&disk.path("state")).unwrap();
    assert_eq!(records, [record("good")]);
    assert_eq!(unreadable[0].file, disk.path("state/claims/bad.json").display().to_string());
    assert_eq!(disk.list("state/claims"), before);
}

#[test]
fn what_a_killed_agent_was_writing_is_removed() {
    let disk = Disk::new();
    for stale in [
        "state/claims/.a.json.1-0.tmp",
        "cdi/.k8s.gpu.nvidia.com-claim_a.json.1-0.tmp",
        "cdi/.k8s.gpu.nvidia.com-claim_a.yaml.1-0.tmp",
        "cdi/.someone-else.json.1-0.tmp",
        "cdi/spec.123.tmp",
    ] {
        disk.write(stale, "{");
    }
    assert_eq!(disk.store.records().unwrap(), (vec![], vec![]));
    assert_eq!(disk.list("state/claims"), [""; 0]);
    assert_eq!(disk.list("cdi"), [".someone-else.json.1-0.tmp", "spec.123.tmp"]);
}

#[test]
fn cdi_files_are_written_listed_and_removed() {
    let disk = Disk::new();
    assert!(!disk.store.has_spec("a").unwrap());
    disk.store.write_spec("a", &spec("a", 0)).unwrap();
    assert!(disk.store.has_spec("a").unwrap());
    assert_eq!(disk.mode("cdi/k8s.gpu.nvidia.com-claim_a.json"), 0o644);
    let written = fs::read(disk.path("cdi/k8s.gpu.nvidia.com-claim_a.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Spec>(&written).unwrap(), spec("a", 0));

    disk.write("cdi/nvidia.com-gpu.json", "{}");
    disk.write("cdi/k8s.gpu.nvidia.com-claim_b.yaml", "");
    assert_eq!(disk.store.spec_uids().unwrap(), ["a"]);
    disk.store.remove_spec("a").unwrap();
    disk.store.remove_spec("a").unwrap();
    assert_eq!(disk.list("cdi"), ["k8s.gpu.nvidia.com-claim_b.yaml", "nvidia.com-gpu.json"]);
}

#[test]
fn the_files_of_nvidias_driver_become_ours() {
    let disk = Disk::new();
    let predecessor = Predecessor::new(&disk.path("state"), disk.store.clone());
    assert_eq!(predecessor.read_checkpoint().unwrap(), None);
    disk.write("state/checkpoint.json", "{}");
    for name in ["claim_a.yaml", "claim_b.yaml", "claim_c.json", "claim_..yaml", "other.yaml"] {
        disk.write(&format!("cdi/k8s.gpu.nvidia.com-{name}"), "theirs");
    }
    assert_eq!(predecessor.spec_uids().unwrap(), ["a", "b"]);
    predecessor.replace_spec("a", &spec("a", 0)).unwrap();
    predecessor.remove_spec("b").unwrap();
    predecessor.remove_spec("b").unwrap();
    assert_eq!(predecessor.spec_uids().unwrap(), [""; 0]);
    assert_eq!(disk.store.spec_uids().unwrap(), ["a", "c"]);
    assert_eq!(disk.mode("cdi/k8s.gpu.nvidia.com-claim_a.json"), 0o644);
    let written = fs::read(disk.path("cdi/k8s.gpu.nvidia.com-claim_a.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Spec>(&written).unwrap(), spec("a", 0));

    assert_eq!(predecessor.read_checkpoint().unwrap(), Some(b"{}".to_vec()));
    let held = predecessor.lock().unwrap().unwrap();
    assert!(predecessor.lock().unwrap().is_none());
    drop(held);
    predecessor.set_aside().unwrap();
    assert_eq!(predecessor.read_checkpoint().unwrap(), None);
    let state = ["checkpoint.json.adopted-by-kerf", "claims", "containers", "locks", "pu.lock"];
    assert_eq!(disk.list("state"), state);
}

#[test]
fn a_document_that_runtimes_would_not_read_is_not_written() {
    let disk = Disk::new();
    let mut broken = spec("a", 0);
    broken.devices.clear();
    let error = disk.store.write_spec("a", &broken).unwrap_err();
    let path = disk.path("cdi/k8s.gpu.nvidia.com-claim_a.json");
    let expected = format!("cannot write `{}`: the document is not valid CDI", path.display());
    assert_eq!(error.to_string(), expected);
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "`devices`: is empty");
    assert_eq!(disk.list("cdi"), [""; 0]);
}

#[test]
fn directories_that_were_taken_away_are_made_again() {
    let disk = Disk::new();
    fs::remove_dir_all(disk.path("cdi")).unwrap();
    fs::remove_dir_all(disk.path("state")).unwrap();
    disk.store.write_spec("a", &spec("a", 0)).unwrap();
    disk.store.save(&record("a")).unwrap();
    assert!(disk.store.has_spec("a").unwrap());
    assert_eq!(disk.store.records().unwrap(), (vec![record("a")], vec![]));
}

#[test]
fn a_uid_does_not_lead_out_of_the_directory() {
    let disk = Disk::new();
    disk.write("state/precious.json", "{}");
    let too_long = "x".repeat(129);
    for uid in ["", ".", "..", "../precious", "/etc/passwd", "a/b", ".hidden", "a\0", &too_long] {
        let refusals = [
            disk.store.save(&record(uid)),
            disk.store.forget(&record(uid).plan.holder),
            disk.store.write_spec(uid, &spec("a", 0)),
            disk.store.has_spec(uid).map(drop),
            disk.store.remove_spec(uid),
        ];
        for refusal in refusals {
            let error = refusal.unwrap_err().to_string();
            assert_eq!(error, format!("`{uid}` is neither UID of a claim nor ID of a device"));
        }
    }
    assert_eq!(disk.list("state"), ["claims", "containers", "locks", "precious.json"]);
    assert_eq!(disk.list("state/claims"), [""; 0]);
    assert_eq!(disk.list("cdi"), [""; 0]);
}

#[test]
fn an_error_says_what_could_not_be_done_with_which_file() {
    let disk = Disk::new();
    let path = disk.path("state/claims/a.json");
    fs::create_dir(&path).unwrap();
    let error = disk.store.save(&record("a")).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot replace `{}`", path.display()));
    // Nothing is left of the attempt.
    assert_eq!(disk.list("state/claims"), ["a.json"]);
}

#[test]
fn a_temporary_file_of_the_same_name_is_stepped_over() {
    let disk = Disk::new();
    // A process's id and count are likely to be those of the process before, in a container.
    let next =
        write_atomic(&disk.path("probe"), b"", 0o600).map(|()| open_temporary(&disk.path("x")));
    let (taken, _file) = next.unwrap().unwrap();
    let name = taken.file_name().unwrap().to_str().unwrap();
    let count: u64 = name.trim_end_matches(".tmp").rsplit_once('-').unwrap().1.parse().unwrap();
    for ahead in count..count + 50 {
        let name = format!("state/claims/.a.json.{}-{ahead}.tmp", process::id());
        disk.write(&name, "of the process before");
    }
    disk.store.save(&record("a")).unwrap();
    assert_eq!(look(&disk.path("state")).unwrap().0, [record("a")]);
}

#[test]
fn many_claims_at_once_do_not_mix() {
    let disk = Disk::new();
    let uids: Vec<_> = (0..8).map(|n| format!("claim-{n}")).collect();
    thread::scope(|scope| {
        for uid in &uids {
            for minor in 0..2 {
                let store = &disk.store;
                scope.spawn(move || {
                    for _ in 0..20 {
                        store.save(&record(uid)).unwrap();
                        store.write_spec(uid, &spec(uid, minor)).unwrap();
                    }
                });
            }
        }
    });
    let expected: Vec<_> = uids.iter().map(|uid| record(uid)).collect();
    assert_eq!(disk.store.records().unwrap(), (expected, vec![]));
    assert_eq!(disk.store.spec_uids().unwrap(), uids);
    for uid in &uids {
        let written = fs::read(disk.path("cdi").join(cdi::file_name(uid))).unwrap();
        let written = serde_json::from_slice::<Spec>(&written).unwrap();
        assert!([spec(uid, 0), spec(uid, 1)].contains(&written), "{uid}");
    }
    assert_eq!(disk.list("cdi").len(), uids.len());
}

#[test]
fn the_choice_of_a_configuration_is_kept() {
    let disk = Disk::new();
    assert_eq!(disk.store.choice().unwrap(), (None, None));
    for file in [Some("a100".to_owned()), None] {
        let choice = Remembered { file };
        disk.store.save_choice(&choice).unwrap();
        assert_eq!(disk.store.choice().unwrap(), (Some(choice), None));
    }
    disk.write("state/plugin-config.json", "a100");
    let (choice, set_aside) = disk.store.choice().unwrap();
    let path = disk.path("state/plugin-config.json.unreadable-1");
    assert_eq!((choice, set_aside.unwrap().path), (None, path));
    assert_eq!(disk.store.choice().unwrap(), (None, None));
}

#[test]
fn numbers_of_gpus_are_kept() {
    let disk = Disk::new();
    assert_eq!(disk.store.numbers().unwrap(), (Numbers::default(), None));
    let gpus = BTreeMap::from([(GpuUuid("GPU-5d1c2f0e".to_owned()), 3)]);
    let numbers = Numbers { boot_id: "boot-1".to_owned(), gpus, described: Vec::new() };
    disk.store.save_numbers(&numbers).unwrap();
    assert_eq!(disk.store.numbers().unwrap(), (numbers, None));

    disk.write("state/names.json", "[]");
    let (numbers, set_aside) = disk.store.numbers().unwrap();
    assert_eq!(numbers, Numbers::default());
    assert_eq!(set_aside.unwrap().path, disk.path("state/names.json.unreadable-1"));
    assert_eq!(disk.store.numbers().unwrap(), (Numbers::default(), None));
}

/// The number of a record tells whether it was read; its time only where the number was not kept.
#[test]
fn a_record_of_the_log_is_known_by_its_number() {
    let entry = |sequence, micros, history| Entry {
        text: String::new(),
        sequence,
        since_boot: Duration::from_micros(micros),
        history,
    };
    let mut kept = Kept {
        health: Health::new(Policy::default()).save("boot-1"),
        log_read: Duration::from_micros(50),
        log_sequence: None,
    };
    assert_eq!([50, 51].map(|micros| kept.has_read(&entry(9, micros, true))), [true, false]);
    kept.note_read(&entry(7, 40, true));
    assert_eq!((kept.log_sequence, kept.log_read), (Some(7), Duration::from_micros(50)));
    for (sequence, micros, read) in [(6, 99, true), (7, 40, true), (8, 40, false), (8, 1, false)] {
        assert_eq!(kept.has_read(&entry(sequence, micros, true)), read);
        assert!(!kept.has_read(&entry(sequence, micros, false)), "what comes is new");
    }
    // Written by an earlier version, and read by one.
    let mut written = serde_json::to_value(&kept).unwrap();
    assert!(written.get("logRead").is_some());
    written.as_object_mut().unwrap().remove("logSequence");
    let earlier: Kept = serde_json::from_value(written).unwrap();
    assert_eq!(earlier.log_sequence, None);
}
