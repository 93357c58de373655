//! Who runs on a machine, and what that does to its GPUs.

use std::io;

use super::Machine;
use crate::{
    clock,
    code::Code,
    files::procfs,
    load::Load,
    state::{GpuState, Process},
};

impl Machine {
    /// Starts a process on a GPU, or in the first compute instance of the instance that begins at a
    /// memory slice. It keeps that busy, with little memory, until [`Self::set_load`] says otherwise.
    pub fn start_process(
        &self,
        gpu: usize,
        instance_start: Option<u32>,
        pid: u32,
        name: &str,
    ) -> io::Result<()> {
        self.command(gpu, |facts, state| {
            let within = |start| {
                let mut devices = state.devices();
                let found = devices.find(|(gi, _)| gi.start == start).ok_or(Code::NOT_FOUND);
                found.map(|(gi, ci)| (gi.id, ci.id))
            };
            let instance = instance_start.map(within).transpose()?;
            state.add_up(facts.spec, clock::now());
            let (name, load) = (name.to_owned(), Load::default());
            state.processes.push(Process { pid, name, instance, load });
            Ok(())
        })?;
        procfs::add_process(&self.hardware, pid, name)
    }

    /// Changes what a process does from now on, on whichever GPUs it runs.
    ///
    /// # Errors
    /// There is no such process.
    pub fn set_load(&self, pid: u32, load: Load) -> io::Result<()> {
        let mut found = false;
        for gpu in 0..self.hardware.gpus.len() {
            found |= self.change_process(gpu, pid, |state| {
                let its = state.processes.iter_mut().filter(|process| process.pid == pid);
                its.for_each(|process| process.load = load);
            })?;
        }
        if found { Ok(()) } else { Err(Code::NOT_FOUND.into()) }
    }

    /// Ends a process, on whichever GPUs it ran.
    pub fn stop_process(&self, pid: u32) -> io::Result<()> {
        for gpu in 0..self.hardware.gpus.len() {
            self.change_process(gpu, pid, |state| {
                state.processes.retain(|process| process.pid != pid);
            })?;
        }
        procfs::remove_process(&self.hardware, pid)
    }

    /// Whether the process ran there, and was changed.
    fn change_process(
        &self,
        gpu: usize,
        pid: u32,
        change: impl FnOnce(&mut GpuState),
    ) -> io::Result<bool> {
        self.change(gpu, |facts, state| {
            let runs = state.processes.iter().any(|process| process.pid == pid);
            if runs {
                state.add_up(facts.spec, clock::now());
                change(state);
            }
            Ok(runs)
        })
    }
}
