//! The search for devices: depth first, the first device that fits, with a way back.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use k8s_openapi::api::{
    core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
    resource::v1::{
        AllocationResult, Device, DeviceAllocationConfiguration, DeviceAllocationResult,
        DeviceAttribute, DeviceClaim, DeviceClass, DeviceConstraint, DeviceRequestAllocationResult,
        ResourceClaim, ResourceSlice,
    },
};
use kube_cel::cel::Context;

use crate::scheduler::{
    Allocated, Unschedulable,
    cel::Selectors,
    pools::{self, Pool, State},
    requests::{self, Alternative, Request, qualified},
};

/// Devices that an allocation may have.
const MAX_RESULTS: usize = 32;

/// Devices tried before the search is given up, where the real scheduler gives up after 10 s.
const MAX_TRIES: usize = 100_000;

/// Allocates a claim on a node as the scheduler of Kubernetes 1.37 does: pools by name, slices by name,
/// devices in list order, the first set of devices that satisfies the whole claim.
///
/// `allocated` is what other claims hold. Admin access takes held devices too and consumes no counters,
/// as the API means it; schedulers up to 1.37 check the counters of its devices nonetheless
/// (kubernetes/kubernetes#140729).
pub fn fit(
    slices: &[ResourceSlice],
    node: &str,
    allocated: &[Allocated],
    claim: &ResourceClaim,
    classes: &[DeviceClass],
) -> Result<AllocationResult, Unschedulable> {
    let pools = pools::gather(slices, node, allocated);
    let requests = requests::of(claim, classes)?;
    let alternatives = || requests.iter().flat_map(|request| &request.alternatives);
    let expressions =
        alternatives().flat_map(|alternative| alternative.selectors().map(|(_, text)| text));
    let selectors = Selectors::new(expressions).map_err(Unschedulable)?;

    let none = DeviceClaim::default();
    let spec = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref()).unwrap_or(&none);
    let mut search = Search::new(&pools, &requests, spec, &selectors, allocated);
    if alternatives().any(|alternative| alternative.count.is_none()) {
        usable(&pools)?;
    }
    if search.request(0)? {
        return Ok(search.result(node));
    }
    let unusable = usable(&pools).err().map(|why| format!("; {why}")).unwrap_or_default();
    Err(Unschedulable(format!(
        "cannot allocate all claims: no devices of node `{node}` satisfy it{unusable}"
    )))
}

/// Whether every pool can be allocated from, which who asks for all devices needs.
fn usable(pools: &[Pool]) -> Result<(), Unschedulable> {
    pools.iter().try_for_each(|pool| match &pool.state {
        State::Usable => Ok(()),
        State::Incomplete => Err(Unschedulable(format!(
            "pool `{}` of `{}` is being updated",
            pool.name, pool.driver
        ))),
        State::Invalid(why) => Err(Unschedulable(format!(
            "invalid resource pools were encountered: pool `{}` of `{}`: {why}",
            pool.name, pool.driver
        ))),
    })
}

/// A device that may be chosen.
struct Candidate<'s> {
    device: &'s Device,
    driver: &'s str,
    pool: usize,
    local: bool,
    held: bool,
    scope: OnceCell<Context<'s>>,
}

#[derive(Clone, Copy)]
struct Chosen {
    request: usize,
    alternative: usize,
    device: usize,
}

struct Search<'s> {
    pools: &'s [Pool<'s>],
    requests: &'s [Request<'s>],
    spec: &'s DeviceClaim,
    selectors: &'s Selectors<'s>,
    candidates: Vec<Candidate<'s>>,
    left: Vec<pools::Counters<'s>>,
    blocked: Vec<bool>,
    selectable: BTreeMap<(usize, usize, usize), bool>,
    chosen: Vec<Chosen>,
    tries: usize,
}

impl<'s> Search<'s> {
    fn new(
        pools: &'s [Pool<'s>],
        requests: &'s [Request<'s>],
        spec: &'s DeviceClaim,
        selectors: &'s Selectors<'s>,
        allocated: &[Allocated],
    ) -> Self {
        let held: BTreeSet<_> =
            allocated.iter().filter(|held| !held.admin).map(Allocated::key).collect();
        let mut candidates = Vec::new();
        for (index, pool) in
            pools.iter().enumerate().filter(|(_, pool)| pool.state == State::Usable)
        {
            candidates.extend(pool.devices.iter().map(|&(device, local)| Candidate {
                device,
                driver: pool.driver,
                pool: index,
                local,
                held: held.contains(&(pool.driver, pool.name, device.name.as_str())),
                scope: OnceCell::new(),
            }));
        }
        let left: Vec<_> = pools.iter().map(|pool| pool.left.clone()).collect();
        // One counter below zero stops all that consumes counters of the pool, as in the scheduler.
        let blocked = left.iter().map(|left| left.values().any(|&amount| amount < 0)).collect();
        let (selectable, chosen) = (BTreeMap::new(), Vec::new());
        Self {
            pools,
            requests,
            spec,
            selectors,
            candidates,
            left,
            blocked,
            selectable,
            chosen,
            tries: 0,
        }
    }

    /// Chooses devices for the request at `index` and all after it. Leaves nothing chosen on failure.
    fn request(&mut self, index: usize) -> Result<bool, Unschedulable> {
        let requests = self.requests;
        let Some(request) = requests.get(index) else { return Ok(true) };
        for (number, alternative) in request.alternatives.iter().enumerate() {
            let found = match alternative.count {
                Some(count) if self.chosen.len().saturating_add(count) > MAX_RESULTS => false,
                Some(count) => self.exactly(index, number, count, 0)?,
                None => self.all(index, number)?,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Chooses `count` more devices from the candidate at `from` on, then those of the later requests.
    /// The devices of one request are interchangeable, so none before `from` needs to be tried again.
    fn exactly(
        &mut self,
        request: usize,
        alternative: usize,
        count: usize,
        from: usize,
    ) -> Result<bool, Unschedulable> {
        if count == 0 {
            return self.request(request + 1);
        }
        for device in from..self.candidates.len() {
            let choice = Chosen { request, alternative, device };
            if self.is_free(choice) && self.is_selectable(choice)? && self.choose(choice)? {
                if self.exactly(request, alternative, count - 1, device + 1)? {
                    return Ok(true);
                }
                self.put_back();
            }
        }
        Ok(false)
    }

    /// Chooses every device that matches, at least one; one that cannot be had fails the request.
    fn all(&mut self, request: usize, alternative: usize) -> Result<bool, Unschedulable> {
        let before = self.chosen.len();
        for device in 0..self.candidates.len() {
            let choice = Chosen { request, alternative, device };
            if !self.is_selectable(choice)? {
                continue;
            }
            if self.chosen.len() == MAX_RESULTS || !self.is_free(choice) || !self.choose(choice)? {
                return Ok(self.back_to(before));
            }
        }
        if self.chosen.len() > before && self.request(request + 1)? {
            return Ok(true);
        }
        Ok(self.back_to(before))
    }

    fn back_to(&mut self, before: usize) -> bool {
        while self.chosen.len() > before {
            self.put_back();
        }
        false
    }

    fn alternative(&self, choice: Chosen) -> &'s Alternative<'s> {
        let requests = self.requests;
        &requests[choice.request].alternatives[choice.alternative]
    }

    fn is_free(&self, choice: Chosen) -> bool {
        let here = self.chosen.iter().any(|chosen| chosen.device == choice.device);
        let held = self.candidates[choice.device].held;
        !here && (self.alternative(choice).admin || !held)
    }

    fn is_selectable(&mut self, choice: Chosen) -> Result<bool, Unschedulable> {
        let key = (choice.request, choice.alternative, choice.device);
        if let Some(&known) = self.selectable.get(&key) {
            return Ok(known);
        }
        let answer = self.matches_selectors(choice)?;
        self.selectable.insert(key, answer);
        Ok(answer)
    }

    fn matches_selectors(&self, choice: Chosen) -> Result<bool, Unschedulable> {
        let candidate = &self.candidates[choice.device];
        for (place, expression) in self.alternative(choice).selectors() {
            let matches =
                self.scope(candidate).and_then(|scope| self.selectors.matches(expression, scope));
            let because = |error| {
                Unschedulable(format!("{place}: device `{}`: {error}", candidate.device.name))
            };
            if !matches.map_err(because)? {
                return Ok(false);
            }
        }
        Ok(self.alternative(choice).is_large_enough(candidate.device, candidate.driver))
    }

    fn scope<'c>(&self, candidate: &'c Candidate<'s>) -> Result<&'c Context<'s>, String> {
        if let Some(scope) = candidate.scope.get() {
            return Ok(scope);
        }
        let scope = self.selectors.scope(candidate.driver, candidate.device)?;
        Ok(candidate.scope.get_or_init(|| scope))
    }

    /// Takes a selectable device, if counters, taints and constraints allow it.
    fn choose(&mut self, choice: Chosen) -> Result<bool, Unschedulable> {
        self.tries += 1;
        if self.tries > MAX_TRIES {
            return Err(Unschedulable(format!("gave up after {MAX_TRIES} devices were tried")));
        }
        let alternative = self.alternative(choice);
        let candidate = &self.candidates[choice.device];
        let (device, pool) = (candidate.device, candidate.pool);
        let consumes = device.consumes_counters.is_some() && !alternative.admin;
        if consumes && (self.blocked[pool] || !fits(device, &self.left[pool])) {
            return Ok(false);
        }
        let constraints = self.spec.constraints.iter().flatten();
        if !alternative.tolerates(device)
            || !constraints.into_iter().all(|constraint| self.keeps(constraint, choice))
        {
            return Ok(false);
        }
        self.consume(choice, -1);
        self.chosen.push(choice);
        Ok(true)
    }

    fn put_back(&mut self) {
        if let Some(choice) = self.chosen.pop() {
            self.consume(choice, 1);
        }
    }

    fn consume(&mut self, choice: Chosen, sign: i128) {
        if self.alternative(choice).admin {
            return;
        }
        let candidate = &self.candidates[choice.device];
        for (key, amount) in pools::consumption(candidate.device) {
            if let Some(left) = self.left[candidate.pool].get_mut(&key) {
                *left += sign * amount;
            }
        }
    }

    /// Whether a constraint holds with one more device. A device without the attribute breaks it.
    fn keeps(&self, constraint: &DeviceConstraint, choice: Chosen) -> bool {
        if !self.concerns(constraint, choice) {
            return true;
        }
        let others = || self.chosen.iter().filter(|&&chosen| self.concerns(constraint, chosen));
        let matches = constraint.match_attribute.as_ref().is_none_or(|name| {
            let own = self.attribute(name, choice);
            own.is_some() && others().all(|&other| self.attribute(name, other) == own)
        });
        let is_distinct = constraint.distinct_attribute.as_ref().is_none_or(|name| {
            let own = self.attribute(name, choice);
            own.is_some() && others().all(|&other| self.attribute(name, other) != own)
        });
        matches && is_distinct
    }

    fn concerns(&self, constraint: &DeviceConstraint, choice: Chosen) -> bool {
        let alternative = &self.alternative(choice).name;
        applies(constraint.requests.as_deref(), self.requests[choice.request].name, alternative)
    }

    fn attribute(&self, name: &str, choice: Chosen) -> Option<&'s DeviceAttribute> {
        let candidate = &self.candidates[choice.device];
        qualified(candidate.device.attributes.as_ref()?, name, candidate.driver)
    }

    fn result(&self, node: &str) -> AllocationResult {
        let results = self.chosen.iter().map(|&choice| self.device_result(choice)).collect();
        let local = self.chosen.iter().any(|choice| self.candidates[choice.device].local);
        let devices =
            DeviceAllocationResult { results: Some(results), config: some(self.configurations()) };
        AllocationResult {
            devices: Some(devices),
            node_selector: local.then(|| only(node)),
            ..AllocationResult::default()
        }
    }

    fn device_result(&self, choice: Chosen) -> DeviceRequestAllocationResult {
        let alternative = self.alternative(choice);
        let candidate = &self.candidates[choice.device];
        DeviceRequestAllocationResult {
            request: alternative.name.clone(),
            driver: candidate.driver.to_owned(),
            pool: self.pools[candidate.pool].name.to_owned(),
            device: candidate.device.name.clone(),
            admin_access: alternative.admin.then_some(true),
            tolerations: some(alternative.tolerations.to_vec()),
            ..DeviceRequestAllocationResult::default()
        }
    }

    /// Each class's configuration once, for the requests that it was chosen for, then what of the
    /// claim's concerns what was chosen.
    fn configurations(&self) -> Vec<DeviceAllocationConfiguration> {
        let mut chosen: Vec<&Alternative> = Vec::new();
        for &choice in &self.chosen {
            let alternative = self.alternative(choice);
            if !chosen.iter().any(|known| known.name == alternative.name) {
                chosen.push(alternative);
            }
        }
        let mut classes: Vec<(&DeviceClass, Vec<String>)> = Vec::new();
        for alternative in &chosen {
            match classes
                .iter_mut()
                .find(|(class, _)| class.metadata.name == alternative.class.metadata.name)
            {
                Some((_, requests)) => requests.push(alternative.name.clone()),
                None => classes.push((alternative.class, vec![alternative.name.clone()])),
            }
        }
        let of_classes = classes.into_iter().flat_map(|(class, requests)| {
            let config = class.spec.iter().flat_map(|spec| spec.config.iter().flatten());
            config.map(move |config| {
                configuration("FromClass", Some(requests.clone()), &config.opaque)
            })
        });
        let of_claim = self.spec.config.iter().flatten().filter(|config| {
            config.requests.as_ref().is_none_or(Vec::is_empty)
                || chosen.iter().any(|alternative| {
                    applies(config.requests.as_deref(), base(&alternative.name), &alternative.name)
                })
        });
        let of_claim = of_claim
            .map(|config| configuration("FromClaim", config.requests.clone(), &config.opaque));
        of_classes.chain(of_claim).collect()
    }
}

fn configuration(
    source: &str,
    requests: Option<Vec<String>>,
    opaque: &Option<k8s_openapi::api::resource::v1::OpaqueDeviceConfiguration>,
) -> DeviceAllocationConfiguration {
    DeviceAllocationConfiguration { source: source.to_owned(), requests, opaque: opaque.clone() }
}

fn fits(device: &Device, left: &pools::Counters) -> bool {
    pools::consumption(device)
        .all(|(key, amount)| left.get(&key).is_some_and(|&left| left >= amount))
}

/// Whether a list of names, where none means all, has a request or its chosen subrequest.
fn applies(names: Option<&[String]>, request: &str, alternative: &str) -> bool {
    let names = names.unwrap_or_default();
    names.is_empty() || names.iter().any(|name| name == request || name == alternative)
}

fn base(name: &str) -> &str {
    name.split_once('/').map_or(name, |(base, _)| base)
}

fn some<T>(values: Vec<T>) -> Option<Vec<T>> {
    Some(values).filter(|values| !values.is_empty())
}

/// Selects a node by its name.
fn only(node: &str) -> NodeSelector {
    let name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), ..NodeSelectorTerm::default() };
    NodeSelector { node_selector_terms: vec![term] }
}
