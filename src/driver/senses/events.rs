//! NVML's events, heard on a thread of their own through ends and returns of the driver.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::Pause;
use crate::{
    driver::{Driver, machine::Machine},
    model::gpu::Gpu,
    node::nvml::{self, Event, Nvml, Registered, Reported},
};

/// As people know this source.
const SOURCE: &str = "NVML events";

/// How long a thread waits in NVML: for as long it keeps a driver that was unloaded.
const WAIT: Duration = Duration::from_secs(1);

/// What the thread has to say.
enum Heard {
    /// It listens to all GPUs but these, by index, which report nothing.
    Listening { silent: Vec<u32> },
    /// Something was reported.
    Event(Event),
}

impl Driver {
    /// Takes in NVML's events.
    pub(super) async fn hear_events(self: &Arc<Self>) {
        let (tell, mut heard) = mpsc::unbounded_channel();
        let take_in = async {
            while let Some(heard) = heard.recv().await {
                match heard {
                    Heard::Listening { silent } => self.note_silent(&silent),
                    Heard::Event(event) => self.take_in(&event),
                }
            }
        };
        tokio::join!(self.listen(tell), take_in);
    }

    fn note_silent(&self, silent: &[u32]) {
        let gpus: Vec<_> = silent.iter().map(u32::to_string).collect();
        let problem = format!("GPU {} reports none", gpus.join(", "));
        self.health.hears(SOURCE, (!silent.is_empty()).then_some(problem.as_str()));
    }

    fn take_in(&self, event: &Event) {
        match &event.what {
            Reported::Sign(sign) => {
                let inventory = self.machine.inventory();
                if let Some(gpu) = inventory.known().into_iter().find(|gpu| gpu.uuid == event.gpu) {
                    self.sense(gpu, sign);
                }
            }
            Reported::MigChanged => self.machine.suspect(),
        }
    }

    /// Listens to the GPUs that answer, anew whenever those are others.
    async fn listen(&self, tell: mpsc::UnboundedSender<Heard>) {
        let mut machine = self.machine.watch();
        let mut pause = Pause::new();
        loop {
            machine.mark_unchanged();
            let began = Instant::now();
            if let Ok(nvml) = self.machine.nvml() {
                let (machine, tell) = (self.machine.clone(), tell.clone());
                let ended = spawn_blocking(move || listen_once(&machine, &nvml, &tell)).await;
                if let Err(problem) = ended.unwrap_or_else(|panic| Err(panic.to_string())) {
                    self.health.hears(SOURCE, Some(&problem));
                    // A GPU that is lost ends every wait: the others are then listened to without it.
                    self.machine.suspect();
                }
            }
            tokio::select! {
                () = sleep(pause.after(began)) => {}
                Ok(()) = machine.changed() => {}
            }
        }
    }
}

/// Blocks until other GPUs are to be listened to, or the driver is let go.
fn listen_once(
    machine: &Machine,
    nvml: &Arc<Nvml>,
    tell: &mpsc::UnboundedSender<Heard>,
) -> Result<(), String> {
    let line = |error: nvml::Error| error.to_string();
    let gpus = machine.inventory().gpus.clone();
    let set = nvml.event_set().map_err(line)?;
    let mut silent = Vec::new();
    for gpu in &gpus {
        // One that is lost by now is not listened to; all the others are.
        if !matches!(set.register(gpu), Ok(Registered::Types(_))) {
            silent.push(gpu.index);
        }
    }
    let _ = tell.send(Heard::Listening { silent });
    while machine.is_loaded(nvml) && same(&machine.inventory().gpus, &gpus) && !tell.is_closed() {
        if let Some(event) = set.wait(WAIT).map_err(line)? {
            let _ = tell.send(Heard::Event(event));
        }
    }
    Ok(())
}

fn same(a: &[Gpu], b: &[Gpu]) -> bool {
    a.iter().map(|gpu| &gpu.uuid).eq(b.iter().map(|gpu| &gpu.uuid))
}
