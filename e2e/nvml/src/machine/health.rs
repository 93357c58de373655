//! What goes wrong with a GPU itself, by each of the two roads on which programs hear of it: NVML, and
//! the kernel's log.

use std::{io, path::PathBuf};

use super::Machine;
use crate::{
    event::{Events, RECOVERY_ACTION},
    log,
    reading::Readings,
};

/// The first driver branch that has recovery actions.
const RECOVERY_ACTIONS_SINCE: u32 = 565;

impl Machine {
    /// Reports an XID by both roads, with the ids of GPU and compute instance as far as they are known.
    pub fn xid(&self, gpu: usize, xid: u64, gi: Option<u32>, ci: Option<u32>) -> io::Result<()> {
        self.logged_xid(gpu, xid, gi, ci)?;
        self.reported_xid(gpu, xid, gi, ci)
    }

    /// Reports an XID in the kernel's log only, as drivers do with those that no channel had.
    pub fn logged_xid(
        &self,
        gpu: usize,
        xid: u64,
        gi: Option<u32>,
        ci: Option<u32>,
    ) -> io::Result<()> {
        let gpu = self.hardware.gpu(gpu)?;
        self.log(&log::xid(&gpu.facts, &*gpu.state.read()?, xid, (gi, ci)))
    }

    /// Reports an XID through NVML only.
    pub fn reported_xid(
        &self,
        gpu: usize,
        xid: u64,
        gi: Option<u32>,
        ci: Option<u32>,
    ) -> io::Result<()> {
        self.report(gpu, |events, index| events.report_xid(index, xid, (gi, ci)))
    }

    /// Reports an event of another kind through NVML: one bit of `nvmlEventType…`.
    pub fn notice(&self, gpu: usize, kind: u64) -> io::Result<()> {
        self.report(gpu, |events, index| events.report(index, kind))
    }

    /// What the driver asks to be done with a GPU from now on (field 230). `announce` says so by both
    /// roads, as XID 154 and as event 0x8000; without, only who asks hears of it, as after the driver was
    /// loaded. Drivers before R565 know nothing of it.
    pub fn set_recovery_action(&self, gpu: usize, action: u32, announce: bool) -> io::Result<()> {
        let old = self.change(gpu, |_, state| {
            Ok(std::mem::replace(&mut state.readings.recovery_action, action))
        })?;
        if !announce || old == action || self.node().driver_branch() < RECOVERY_ACTIONS_SINCE {
            return Ok(());
        }
        self.log(&log::recovery_action(&self.hardware.gpu(gpu)?.facts, old, action))?;
        self.notice(gpu, RECOVERY_ACTION)
    }

    /// Changes what a GPU says of its health; nothing is announced.
    pub fn set_readings(&self, gpu: usize, change: impl FnOnce(&mut Readings)) -> io::Result<()> {
        self.change(gpu, |_, state| {
            change(&mut state.readings);
            Ok(())
        })
    }

    /// What stands in for `/dev/kmsg`: a file that grows by one record a line,
    /// `priority,sequence,microseconds since the boot,-;text`. A reboot puts a new one in its place.
    pub fn kernel_log(&self) -> PathBuf {
        log::path(self.dir())
    }

    /// Appends a record to the kernel's log.
    pub fn log(&self, text: &str) -> io::Result<()> {
        self.hardware.log(text)
    }

    fn report(&self, gpu: usize, report: impl FnOnce(&mut Events, u32)) -> io::Result<()> {
        let index = self.hardware.gpu(gpu)?.facts.index;
        let report = |events: &mut Events| {
            report(events, index);
            Ok(())
        };
        self.hardware.events.update(report, |_, _| Ok(()))
    }
}
