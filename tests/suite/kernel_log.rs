//! What users have the kernel write makes no GPU sick, and of what the driver writes nothing is missed.

use std::{fs::OpenOptions, io::Write};

use kerf_nvml::Model;
use kerf_testbed::node::Testbed;

use crate::given;

/// Reasons of what is wrong with each GPU.
fn reasons(testbed: &Testbed) -> Vec<Vec<String>> {
    let gpus = given::status(testbed).unwrap().gpus;
    let reasons = gpus
        .into_iter()
        .map(|gpu| gpu.findings.into_iter().map(|finding| finding.reason).collect::<Vec<_>>());
    reasons.collect()
}

/// Appends a record with this number and time.
fn append(testbed: &Testbed, sequence: u64, microseconds: u64, text: &str) {
    let mut log = OpenOptions::new().append(true).open(testbed.machine.kernel_log()).unwrap();
    writeln!(log, "4,{sequence},{microseconds},-;{text}").unwrap();
}

/// PCI address of a GPU, `0000:07:00.0`.
fn pci(testbed: &Testbed, gpu: usize) -> String {
    let dir = testbed.machine.proc_root().join("driver/nvidia/gpus");
    let mut names: Vec<_> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.swap_remove(gpu)
}

fn xid(testbed: &Testbed, gpu: usize, code: u32) -> String {
    let pci = pci(testbed, gpu);
    let device = pci.strip_suffix(".0").unwrap();
    format!("NVRM: Xid (PCI:{device}): {code}, pid='<unknown>', name=<unknown>, Error")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_named_like_a_sentence_of_the_driver_makes_no_gpu_sick() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let name = format!("NVRM: {} GPU has fallen off the bus", pci(&testbed, 0));
    let fault = "segfault at 0 ip 0 sp 0 error 6 in";
    let thread = &name[..15];
    testbed.machine.log(&format!("{thread}[4711]: {fault} {name}[401000+1000]")).unwrap();
    testbed.machine.log(&format!(r"x[4711]: {fault} a\x0a{}[0+1]", xid(&testbed, 0, 79))).unwrap();
    testbed.machine.log(&format!("  {}", xid(&testbed, 0, 79))).unwrap();
    // By then those before have been read.
    testbed.machine.log(&xid(&testbed, 1, 79)).unwrap();
    let expected = [vec![], vec!["xid-79".to_owned()]];
    given::until("the other GPU is sick", || reasons(&testbed)[1] == expected[1]).await;
    assert_eq!(reasons(&testbed), expected);
}

/// Processors write to one log: their times can be the same, and out of order.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_same_time_and_of_an_earlier_one_all_count() {
    let mut testbed = given::node(Model::H100_80, 4).start().await.unwrap();
    for (gpu, time) in [(0, 7_000_000), (1, 7_000_000), (2, 6_999_999)] {
        append(&testbed, 1000 + gpu as u64, time, &xid(&testbed, gpu, 62));
    }
    let sick = |gpu: usize| vec!["xid-62".to_owned(); usize::from(gpu < 3)];
    let three = || (0..4).all(|gpu| reasons(&testbed)[gpu] == sick(gpu));
    given::until("three are sick", three).await;

    // What was logged while no agent ran is new, what is known is not.
    let before = given::status(&testbed).unwrap().gpus;
    drop(testbed.agent.take());
    append(&testbed, 1003, 6_999_999, &xid(&testbed, 3, 62));
    testbed.start_agent("b").await.unwrap();
    given::until("the fourth is sick", || !reasons(&testbed)[3].is_empty()).await;
    let now = given::status(&testbed).unwrap().gpus;
    for gpu in 0..3 {
        assert_eq!(now[gpu].findings, before[gpu].findings, "GPU {gpu}");
    }
}
