//! Records that cannot be read are held, not forgotten.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kerf::{
    model::{cdi, claim::ClaimRef},
    node::store::write_atomic,
};
use kerf_nvml::Model;
use kerf_testbed::node::Testbed;

use super::{NOTHING, prepare, unprepare};
use crate::given;

const DEVICE: &str = "gpu-0-mig-2g20gb-14-2";

fn record(testbed: &Testbed, claim: &ClaimRef) -> PathBuf {
    testbed.state_dir().join("claims").join(format!("{}.json", claim.uid))
}

fn spec(testbed: &Testbed, claim: &ClaimRef) -> PathBuf {
    testbed.cdi_root().join(cdi::file_name(&claim.uid))
}

fn write(path: &Path, bytes: &[u8]) {
    write_atomic(path, bytes, 0o600).unwrap();
}

/// How a record comes not to be readable; the way back is to write it again.
fn spoil(path: &Path, how: usize) {
    let bytes = fs::read(path).unwrap();
    match how {
        0 => write(path, &bytes[..bytes.len() / 2]),
        1 => write(path, b"\0garbage"),
        2 => {
            write(path, String::from_utf8(bytes).unwrap().replace("prepared", "shared").as_bytes())
        }
        _ => {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }
    }
}

fn mend(path: &Path, bytes: &[u8]) {
    if path.is_dir() {
        fs::remove_dir(path).unwrap();
    }
    write(path, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_cdi_file_names_is_given_to_nobody_until_it_can_be_read() {
    for how in 0..4 {
        let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
        let claim = given::claim(&testbed, "c", &[DEVICE]);
        let answer = prepare(&testbed, &claim).await.unwrap();
        let (record, spec) = (record(&testbed, &claim), spec(&testbed, &claim));
        let (written, described) = (fs::read(&record).unwrap(), fs::read(&spec).unwrap());
        let cut = given::cut(&testbed);
        drop(testbed.agent.take());
        spoil(&record, how);
        testbed.start_agent("b").await.unwrap();

        for device in [DEVICE, "gpu-0-mig-1g10gb-19-0", "gpu-0"] {
            let other = given::claim(&testbed, device, &[device]);
            let refused = prepare(&testbed, &other).await.unwrap_err();
            assert!(refused.contains(&format!("{}.json` cannot be read", claim.uid)), "{refused}");
        }
        // The other GPU is none of its business.
        let other = given::claim(&testbed, "other", &["gpu-1-mig-1g10gb-19-0"]);
        prepare(&testbed, &other).await.unwrap();
        unprepare(&testbed, &other).await.unwrap();
        assert_eq!((given::cut(&testbed), fs::read(&spec).unwrap()), (cut.clone(), described));
        let status = given::status(&testbed).unwrap();
        let said = serde_json::to_string(&status).unwrap();
        assert!(said.contains("cannot be read"), "{said}");

        // Read again, it is what it was.
        mend(&record, &written);
        given::until("it can be read", || given::prepared_if_readable(&testbed) == ["c"]).await;
        given::until("it is served", || {
            !serde_json::to_string(&given::status(&testbed).unwrap())
                .unwrap()
                .contains("cannot be read")
        })
        .await;
        assert_eq!(prepare(&testbed, &claim).await.unwrap(), answer);
        assert_eq!(given::cut(&testbed), cut);
        unprepare(&testbed, &claim).await.unwrap();
        assert_eq!(testbed.leftovers().unwrap(), NOTHING);
    }
}

/// The kubelet's word that a claim has ended is kept for when it is known what that means.
#[tokio::test(flavor = "multi_thread")]
async fn an_unprepare_meanwhile_is_done_once_it_can_be_read() {
    let mut testbed = given::node(Model::H100_80, 1).start().await.unwrap();
    let claim = given::claim(&testbed, "c", &[DEVICE]);
    prepare(&testbed, &claim).await.unwrap();
    let record = record(&testbed, &claim);
    let (written, cut) = (fs::read(&record).unwrap(), given::cut(&testbed));
    drop(testbed.agent.take());
    spoil(&record, 1);
    testbed.start_agent("b").await.unwrap();
    unprepare(&testbed, &claim).await.unwrap();
    assert_eq!(given::cut(&testbed), cut);
    testbed.start_agent("c").await.unwrap();
    assert_eq!(given::cut(&testbed), cut);
    mend(&record, &written);
    given::until("it is gone", || !record.exists()).await;
    assert_eq!(testbed.leftovers().unwrap(), NOTHING);
}

/// Where nothing says which GPUs a record is about, it may be about any.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_cdi_file_nothing_new_is_begun() {
    let mut testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let [lost, kept] = [("lost", DEVICE), ("kept", "gpu-1-mig-1g10gb-19-0")]
        .map(|(name, device)| given::claim(&testbed, name, &[device]));
    prepare(&testbed, &lost).await.unwrap();
    prepare(&testbed, &kept).await.unwrap();
    drop(testbed.agent.take());
    spoil(&record(&testbed, &lost), 0);
    fs::remove_file(spec(&testbed, &lost)).unwrap();
    testbed.start_agent("b").await.unwrap();
    let other = given::claim(&testbed, "other", &["gpu-1-mig-1g10gb-19-3"]);
    let refused = prepare(&testbed, &other).await.unwrap_err();
    assert!(refused.contains("nothing new is given out of any GPU"), "{refused}");
    // What is there is served on.
    prepare(&testbed, &kept).await.unwrap();
    unprepare(&testbed, &kept).await.unwrap();
    // A person who knows that it is over takes the file away.
    fs::remove_file(record(&testbed, &lost)).unwrap();
    given::until("others are served", || {
        !serde_json::to_string(&given::status(&testbed).unwrap())
            .unwrap()
            .contains("cannot be read")
    })
    .await;
    prepare(&testbed, &other).await.unwrap();
}
