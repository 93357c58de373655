//! A node with the real agent, and what happens to it.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::resource::v1::ResourceClaim;
use kerf::{
    model::{
        cdi,
        claim::ClaimRef,
        device::{self, Part},
    },
    node::nvml::{Calls, Nvml},
};
use kerf_nvml::{Effect, Fault, NodeDescription};
use kerf_testbed::{agent::Agent, node::Testbed};

use super::{
    dice::Dice,
    model::{Device, Model, switches},
};
use crate::{
    claims::{NOTHING, prepare, unprepare},
    given,
};

/// How often a call is repeated that fails because the hardware was just found to have changed.
const PATIENCE: usize = 1000;

/// What is said when the hardware is not known well enough for an answer.
const NOT_YET: [&str; 4] = ["does not answer", "GPU that answers", "NVIDIA driver", "GPU is lost"];

/// Answers that leave the GPU as it is: in use, no resources, no permission, timeout, unknown.
const FAILURES: [u32; 5] = [19, 23, 4, 10, 999];

/// What is done to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Prepare,
    Unprepare,
}

pub(super) struct World {
    testbed: Testbed,
    model: Model,
    dice: Dice,
    /// Every device that a claim may name.
    devices: Vec<(String, Device)>,
    /// What claims ask for, and their identity.
    claims: BTreeMap<String, (ClaimRef, Vec<Device>)>,
    /// What happened, for who has to find out why.
    story: Vec<String>,
    agents: usize,
    machine: NodeDescription,
}

impl World {
    pub(super) async fn new(machine: NodeDescription, seed: u64) -> Self {
        let testbed = given::of(machine.clone()).start().await.unwrap();
        Self {
            devices: devices(&testbed),
            model: Model::new(&machine),
            dice: Dice::new(seed),
            claims: BTreeMap::new(),
            story: Vec::new(),
            agents: 0,
            machine,
            testbed,
        }
    }

    /// Does something, and compares everything.
    pub(super) async fn step(&mut self) {
        match self.dice.roll(1000) {
            0..340 => self.call(Call::Prepare, Mishap::None).await,
            340..640 => self.call(Call::Unprepare, Mishap::None).await,
            640..700 => self.cut(),
            700..780 => self.uncut(),
            780..820 => self.cut_into().await,
            820..900 => self.with_failure().await,
            900..960 => self.cancelled().await,
            960..980 => self.killed().await,
            980..990 => self.hand_over().await,
            990..995 => self.reload().await,
            _ => self.reboot().await,
        }
        self.compare();
    }

    /// Everything is given back, and nothing is left.
    pub(super) async fn end(mut self) {
        for name in self.model.claims() {
            self.settled(Call::Unprepare, &name).await.unwrap();
            self.model.unprepare(&name);
        }
        for device in self.model.foreign() {
            self.model.uncut(device);
            self.destroy(device);
        }
        self.compare();
        for (index, gpu) in self.machine.gpus.iter().enumerate() {
            if switches(gpu.model) {
                self.testbed.machine.set_mig_mode(index, false).unwrap();
            }
        }
        assert_eq!(self.testbed.leftovers().unwrap(), NOTHING);
    }

    fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let last = self.story.len().saturating_sub(40);
        panic!(
            "{why}\nafter {} operations, the last:\n{}",
            self.story.len(),
            self.story[last..].join("\n")
        );
    }

    fn compare(&self) {
        let cut = given::cut(&self.testbed);
        if cut != self.model.instances() {
            self.fail(&format!("cut {cut:?}, not {:?}", self.model.instances()));
        }
        let mut records = given::records(&self.testbed).into_iter();
        let mut held: Vec<_> = records
            .by_ref()
            .map(|record| record.plan.holder.claim().unwrap().name.clone())
            .collect();
        held.sort();
        if held != self.model.claims() {
            self.fail(&format!("held {held:?}, not {:?}", self.model.claims()));
        }
        let uid = |name: &String| cdi::file_name(&self.claims[name].0.uid);
        let mut expected: Vec<_> = self.model.prepared().iter().map(uid).collect();
        expected.sort();
        let files = given::cdi_files(&self.testbed);
        if files != expected {
            self.fail(&format!("CDI files {files:?}, not {expected:?}"));
        }
    }

    /// A claim that is there already or a new one for some devices.
    fn some_claim(&mut self, call: Call) -> String {
        let names: Vec<_> = self.model.claims();
        let new = names.is_empty() || (call == Call::Prepare && self.dice.roll(4) > 0);
        if !new {
            return self.dice.pick(&names).unwrap().clone();
        }
        let many = [1, 1, 1, 2, 3][self.dice.roll(5)];
        let mut chosen = Vec::new();
        for _ in 0..many {
            let device = self.dice.pick(&self.devices).unwrap().clone();
            if !chosen.contains(&device) {
                chosen.push(device);
            }
        }
        let name = format!("c{}", self.story.len());
        let names: Vec<&str> = chosen.iter().map(|(name, _)| name.as_str()).collect();
        let claim = given::claim(&self.testbed, &name, &names);
        let devices = chosen.iter().map(|(_, device)| *device).collect();
        self.claims.insert(name.clone(), (claim, devices));
        name
    }

    /// A call, which something befalls, and then the same call without that.
    async fn call(&mut self, call: Call, mishap: Mishap) {
        let name = self.some_claim(call);
        let devices = self.claims[&name].1.clone();
        self.tell(format!("{call:?} {name} of {devices:?}, {mishap:?}"));
        self.befallen(call, &name, mishap).await;
        let done = self.settled(call, &name).await;
        let expected = match call {
            Call::Prepare => self.model.prepare(&name, &devices),
            Call::Unprepare => {
                self.model.unprepare(&name);
                true
            }
        };
        if done.is_ok() != expected {
            self.fail(&format!("{done:?}, expected {expected}"));
        }
        if !self.model.claims().contains(&name) {
            self.claims.remove(&name);
            self.testbed.api.delete::<ResourceClaim>("default", &name).unwrap();
        }
    }

    async fn once(&self, call: Call, name: &str) -> Result<(), String> {
        let claim = &self.claims[name].0;
        match call {
            Call::Prepare => prepare(&self.testbed, claim).await.map(|_| ()),
            Call::Unprepare => unprepare(&self.testbed, claim).await,
        }
    }

    /// The call's answer once the agent knows its hardware.
    async fn settled(&self, call: Call, name: &str) -> Result<(), String> {
        for _ in 0..PATIENCE {
            match self.once(call, name).await {
                Err(error) if NOT_YET.iter().any(|not_yet| error.contains(not_yet)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                answer => return answer,
            }
        }
        self.fail("the agent does not come to know its hardware")
    }
}

/// What befalls a call at the n-th call of NVML from its beginning on.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    None,
    Fails(u64, u32),
    IsCancelled(u64),
    IsKilled(u64),
    /// At its beginning.
    IsHandedOver,
    /// An administrator cuts one of the GPUs.
    IsCutInto(u64),
}

impl World {
    fn some_moment(&mut self) -> u64 {
        u64::try_from(self.dice.roll(60)).unwrap() + 1
    }

    fn some_call(&mut self) -> Call {
        [Call::Prepare, Call::Unprepare][self.dice.roll(2)]
    }

    async fn with_failure(&mut self) {
        let code = *self.dice.pick(&FAILURES).unwrap();
        let (call, at) = (self.some_call(), self.some_moment());
        self.call(call, Mishap::Fails(at, code)).await;
    }

    async fn cancelled(&mut self) {
        let (call, at) = (self.some_call(), self.some_moment());
        self.call(call, Mishap::IsCancelled(at)).await;
    }

    async fn cut_into(&mut self) {
        let (call, at) = (self.some_call(), self.some_moment());
        self.call(call, Mishap::IsCutInto(at)).await;
    }

    async fn killed(&mut self) {
        let (call, at) = (self.some_call(), self.some_moment());
        self.call(call, Mishap::IsKilled(at)).await;
    }

    async fn hand_over(&mut self) {
        let call = self.some_call();
        self.call(call, Mishap::IsHandedOver).await;
    }

    async fn befallen(&mut self, call: Call, name: &str, mishap: Mishap) {
        let fault = |at, what| Fault { function: None, gpu: None, at, times: 1, what };
        match mishap {
            Mishap::None => return,
            Mishap::Fails(at, code) => {
                self.testbed.machine.inject(fault(at, Effect::Fail(code))).unwrap();
                let _whatever = self.once(call, name).await;
            }
            Mishap::IsCancelled(at) => {
                self.testbed.machine.inject(fault(at, Effect::Hang)).unwrap();
                let machine = &self.testbed.machine;
                let hangs = given::until("it hangs", || machine.calls().unwrap() >= at);
                tokio::select! {
                    () = hangs => {}
                    _whatever = self.once(call, name) => {}
                }
            }
            Mishap::IsKilled(at) => {
                self.testbed.machine.inject(fault(at, Effect::Kill)).unwrap();
                let _whatever = self.once(call, name).await;
                self.testbed.machine.clear_faults().unwrap();
                self.new_agent().await;
            }
            Mishap::IsHandedOver => self.next_agent(call, name).await,
            Mishap::IsCutInto(at) => self.administrator_at(call, name, at).await,
        }
        self.testbed.machine.clear_faults().unwrap();
    }

    /// Cuts where that is allowed, often just where the call would, at the call's n-th call of NVML.
    async fn administrator_at(&mut self, call: Call, name: &str, at: u64) {
        let wanted = self.claims[name].1.clone();
        let anywhere = self.dice.pick(&self.devices).unwrap().1;
        let there = *self.dice.pick(&wanted).unwrap();
        let device = if self.dice.roll(2) == 0 { there } else { anywhere };
        let Device::Part(gpu, profile, start) = device else { return };
        if wanted.contains(&Device::Whole(gpu)) || !self.model.cut(device) {
            return;
        }
        let hang = Fault { function: None, gpu: None, at, times: 1, what: Effect::Hang };
        self.testbed.machine.inject(hang).unwrap();
        let machine = &self.testbed.machine;
        let cut = || {
            if switches(self.machine.gpus[gpu].model) {
                machine.set_mig_mode(gpu, true).unwrap();
            }
            machine.create_instance(gpu, profile, start, true).is_ok()
        };
        let administrator = async {
            given::until("it hangs", || machine.calls().unwrap() >= at).await;
            let cut = cut();
            machine.clear_faults().unwrap();
            cut
        };
        let was_cut = {
            let mut asked = std::pin::pin!(self.once(call, name));
            tokio::select! {
                was_cut = administrator => {
                    let _whatever = asked.await;
                    was_cut
                }
                _whatever = &mut asked => cut(),
            }
        };
        self.tell(format!("an administrator cuts {device:?} meanwhile: {was_cut}"));
        if !was_cut {
            self.model.uncut(device);
        }
    }

    /// Another agent in the place of one that was killed, or is now.
    async fn new_agent(&mut self) {
        self.agents += 1;
        let pod = format!("p{}", self.agents);
        self.testbed.start_agent(&pod).await.unwrap();
    }

    /// Another agent after one that is told to end while it has something to do.
    async fn next_agent(&mut self, call: Call, name: &str) {
        self.agents += 1;
        let pod = format!("p{}", self.agents);
        let mut options = self.testbed.agent_options(&pod).unwrap();
        options.log.set_file_name(format!("{pod}.log"));
        let next = Agent::spawn(&options).unwrap();
        let standing_by = given::until("standing by", || next.tail().contains("standing by"));
        next.while_running(standing_by).await.unwrap();
        let old = self.testbed.agent.replace(next).unwrap();
        let (_whatever, ended) = tokio::join!(self.once(call, name), old.terminate());
        assert!(ended.unwrap().success());
        let endpoint = self.testbed.state_dir().join(format!("dra@{pod}.sock"));
        let there = |state: &kerf_testbed::kubelet::State| {
            state.plugins.iter().any(|plugin| plugin.endpoint == endpoint && plugin.connected)
                && state.plugins.len() == 1
        };
        self.testbed.kubelet.wait_for(there).await;
    }

    fn cut(&mut self) {
        let (name, device) = self.dice.pick(&self.devices).unwrap().clone();
        let Device::Part(gpu, profile, start) = device else { return };
        if self.model.cut(device) {
            self.tell(format!("an administrator cuts {name}"));
            if switches(self.machine.gpus[gpu].model) {
                self.testbed.machine.set_mig_mode(gpu, true).unwrap();
            }
            self.testbed.machine.create_instance(gpu, profile, start, true).unwrap();
        }
    }

    fn uncut(&mut self) {
        if let Some(&device) = self.dice.pick(&self.model.foreign()) {
            self.tell(format!("an administrator takes {device:?} away"));
            self.model.uncut(device);
            self.destroy(device);
        }
    }

    fn destroy(&self, device: Device) {
        if let Device::Part(gpu, _, start) = device {
            self.testbed.machine.destroy_instance(gpu, start).unwrap();
        }
    }

    async fn reload(&mut self) {
        self.tell("the driver is loaded anew".to_owned());
        self.testbed.machine.unload_driver().unwrap();
        if self.dice.roll(2) == 0 {
            // Somebody asks meanwhile, of whom nothing is expected.
            if let Some(name) = self.dice.pick(&self.model.claims()) {
                let _whatever = self.once(Call::Prepare, name).await;
            }
        }
        self.testbed.machine.load_driver().unwrap();
        self.model.reload();
        let serving = || {
            let status = given::status(&self.testbed).and_then(|status| status.agent);
            status.is_some_and(|agent| agent.state == kerf::model::status::AgentState::Serving)
        };
        given::until("the driver is noticed", serving).await;
    }

    async fn reboot(&mut self) {
        self.tell("the machine starts anew".to_owned());
        drop(self.testbed.agent.take());
        self.testbed.machine.reboot().unwrap();
        for file in given::cdi_files(&self.testbed) {
            std::fs::remove_file(self.testbed.cdi_root().join(file)).unwrap();
        }
        self.model.reboot();
        self.new_agent().await;
    }
}

/// All devices of a node by name.
fn devices(testbed: &Testbed) -> Vec<(String, Device)> {
    let nvml = Nvml::load(Some(&testbed.machine.library()), Calls::default()).unwrap();
    let gpus = (0..nvml.count().unwrap()).map(|index| nvml.gpu(index).unwrap());
    let gpus: Vec<_> = gpus.collect();
    let devices = gpus.iter().flat_map(device::Device::all).map(|device| {
        let gpu = usize::try_from(device.gpu.index).unwrap();
        let what = match device.part {
            Part::Whole => Device::Whole(gpu),
            Part::Mig(profile, placement) => Device::Part(gpu, profile.id, placement.start),
        };
        (device.name(), what)
    });
    devices.collect()
}
