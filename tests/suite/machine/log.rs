//! The kernel's log of a machine.

use std::time::Duration;

use kerf::node::kernel_log::KernelLog;
use kerf_nvml::{Model, NodeDescription};
use tokio::time::timeout;

use super::Rig;

/// A record is told at once; a test that waits longer is stuck.
const STUCK: Duration = Duration::from_secs(20);

async fn next(log: &mut KernelLog) -> (String, bool) {
    let entry = timeout(STUCK, log.next()).await.unwrap().unwrap();
    (entry.text, entry.history)
}

#[tokio::test]
async fn a_machine_tells_its_history_what_comes_and_its_next_boot() {
    let rig = Rig::new(&NodeDescription::uniform(Model::H100_80, 1));
    rig.machine.logged_xid(0, 79, None, None).unwrap();
    let mut log = KernelLog::open(&rig.machine.kernel_log()).unwrap();
    let lost = "NVRM: Xid (PCI:0000:07:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off \
                the bus.";
    assert_eq!(next(&mut log).await, (lost.to_owned(), true));
    assert!(timeout(Duration::from_millis(10), log.next()).await.is_err());
    rig.machine.log("usb 1-1: new device").unwrap();
    assert_eq!(next(&mut log).await, ("usb 1-1: new device".to_owned(), false));
    rig.machine.reboot().unwrap();
    rig.machine.log("again").unwrap();
    assert_eq!(next(&mut log).await, ("again".to_owned(), false));
}
