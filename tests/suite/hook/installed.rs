//! The agent gives the host the hook that lies beside it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use k8s_openapi::api::events::v1::Event;
use kerf_nvml::{Model, NodeDescription};
use kerf_testbed::node::Testbed;

use crate::given;

fn source() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kerf-cdi-hook"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_installs_the_hook_unless_it_is_there() {
    let mut testbed = given::node(Model::L4, 1).start().await.unwrap();
    let hook = testbed.state_dir().join("kerf-cdi-hook");
    let data = || fs::metadata(&hook).unwrap();
    let is_it = || fs::read(&hook).unwrap() == fs::read(source()).unwrap();
    assert!(is_it());
    assert_eq!(data().permissions().mode() & 0o7777, 0o755);
    let first = data().ino();
    testbed.start_agent("b").await.unwrap();
    assert_eq!(data().ino(), first);
    // A runtime may be running that of another version: it is replaced, never written to.
    super::put(&hook, b"of another version");
    let running = fs::File::open(&hook).unwrap();
    testbed.start_agent("c").await.unwrap();
    assert!(is_it());
    assert_eq!(running.metadata().unwrap().len(), 18);
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o600)).unwrap();
    testbed.start_agent("d").await.unwrap();
    assert_eq!(data().permissions().mode() & 0o7777, 0o755);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_hook_beside_it_says_so() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = dir.path().join("kerf");
    fs::hard_link(env!("CARGO_BIN_EXE_kerf"), &program).unwrap();
    let builder = || Testbed::builder(NodeDescription::uniform(Model::L4, 1), [&program]);
    let testbed = builder().start().await.unwrap();
    let events = || testbed.api.list::<Event>();
    given::until("an event", || !events().is_empty()).await;
    let told: Vec<_> = events().into_iter().map(|event| (event.reason, event.note)).collect();
    let note = format!(
        "hook not installed: cannot read `{}/kerf-cdi-hook`: No such file or directory (os error 2): containers \
         with GPUs start only with a hook: put `kerf-cdi-hook` beside the agent's program, or give \
         `--nvidia-cdi-hook-path` or `--no-cdi-hooks`",
        dir.path().display()
    );
    assert_eq!(told, [(Some("HookNotInstalled".to_owned()), Some(note))]);
    // Nor does one miss it whose CDI files do not name it.
    for flag in ["--no-cdi-hooks", "--nvidia-cdi-hook-path=/usr/bin/nvidia-cdi-hook"] {
        let testbed = builder().flag(flag).start().await.unwrap();
        assert_eq!(testbed.api.list::<Event>(), [], "{flag}");
        assert!(!testbed.state_dir().join("kerf-cdi-hook").exists());
    }
}
