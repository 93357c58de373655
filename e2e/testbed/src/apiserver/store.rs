//! The objects, their revisions and their history: what etcd and the generic registry do.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use k8s_openapi::jiff;
use serde_json::{Value, json};

use super::kinds::Kind;
use super::refusal::Refusal;
use super::rules::Rules;
use super::selector::Selector;

/// How many changes a watch can catch up with.
const HISTORY: usize = 4096;

/// The part of an object that a PUT or PATCH is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All but the status, where the kind has one apart.
    Main,
    /// `/status`.
    Status,
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    group: &'static str,
    plural: &'static str,
    namespace: String,
    name: String,
}

impl Key {
    pub(super) fn new(kind: &Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced { namespace } else { "" };
        Self {
            group: kind.group,
            plural: kind.plural,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn is_of(&self, kind: &Kind, namespace: Option<&str>) -> bool {
        (self.group, self.plural) == (kind.group, kind.plural)
            && namespace.is_none_or(|namespace| self.namespace == namespace)
    }
}

/// What a DELETE demands of the object.
#[derive(Default)]
pub(super) struct Preconditions {
    pub(super) uid: Option<String>,
    pub(super) revision: Option<String>,
}

/// One step of the history.
pub(super) struct Change {
    pub(super) revision: u64,
    key: Key,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

impl Change {
    /// The event that a watch with this scope sees, if any.
    pub(super) fn event(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        selector: &Selector,
    ) -> Option<(&'static str, Value)> {
        if !self.key.is_of(kind, namespace) {
            return None;
        }
        let seen = |o: &Option<Arc<Value>>| o.clone().filter(|object| selector.matches(object));
        match (seen(&self.before), seen(&self.after)) {
            (None, Some(after)) => Some(("ADDED", (*after).clone())),
            (Some(_), Some(after)) => Some(("MODIFIED", (*after).clone())),
            (Some(before), None) => Some(("DELETED", at_revision(&before, self.revision))),
            (None, None) => None,
        }
    }
}

fn at_revision(object: &Value, revision: u64) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    object
}

pub(super) struct Store {
    rules: Rules,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
    revision: u64,
    random: Random,
}

impl Store {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            revision: 1,
            random: Random::new(),
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, kind: &Kind, ns: &str, name: &str) -> Result<Arc<Value>, Refusal> {
        let found = self.objects.get(&Key::new(kind, ns, name));
        found.cloned().ok_or_else(|| Refusal::not_found(&kind.resource(), name))
    }

    /// All objects of a kind, in name order, in one namespace or in all.
    pub(super) fn list(&self, kind: &Kind, ns: Option<&str>, by: &Selector) -> Vec<Arc<Value>> {
        let scope = self.objects.iter().filter(|(key, _)| key.is_of(kind, ns));
        scope.map(|(_, object)| object).filter(|object| by.matches(object)).cloned().collect()
    }

    /// The changes after a revision; refused where the history does not reach back so far.
    pub(super) fn changes(&self, after: u64) -> Result<impl Iterator<Item = &Change>, Refusal> {
        let oldest = self.history.front().map_or(self.revision + 1, |change| change.revision);
        if after + 1 < oldest {
            return Err(Refusal::expired(after, oldest));
        }
        Ok(self.history.iter().filter(move |change| change.revision > after))
    }

    /// Forgets the history, as etcd does every few minutes.
    pub(super) fn compact(&mut self) {
        self.history.clear();
    }

    pub(super) fn create(
        &mut self,
        kind: &Kind,
        ns: &str,
        object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, Refusal> {
        let mut object = typed(kind, object)?;
        let name = self.name_of_new(kind, ns, &mut object)?;
        let key = Key::new(kind, ns, &name);
        if self.objects.contains_key(&key) {
            return Err(Refusal::already_exists(&kind.resource(), &name));
        }
        let namespace = self.namespace(kind, ns)?;
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(self.random.uid());
        metadata["creationTimestamp"] = json!(now());
        if kind.generation {
            metadata["generation"] = json!(1);
        }
        self.rules.create(kind, namespace.as_deref(), &mut object)?;
        if dry_run {
            return Ok(Arc::new(object));
        }
        Ok(self.commit(key, None, Some(object)))
    }

    pub(super) fn update(
        &mut self,
        kind: &Kind,
        (ns, name): (&str, &str),
        part: Part,
        object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.get(kind, ns, name)?;
        let mut object = typed(kind, object)?;
        check_identity(kind, name, &old, &object)?;
        keep_what_is_not_written(kind, part, &old, &mut object);
        self.rules.update(kind, part, &old, &mut object)?;
        if kind.generation && object["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        if dry_run || object == *old {
            return Ok(Arc::new(object));
        }
        let key = Key::new(kind, ns, name);
        let metadata = &object["metadata"];
        if !metadata["deletionTimestamp"].is_null() && !has_finalizers(&object) {
            self.commit(key, Some(old), None);
            return Ok(Arc::new(object));
        }
        Ok(self.commit(key, Some(old), Some(object)))
    }

    /// Removes an object, or marks it where finalizers hold it.
    pub(super) fn delete(
        &mut self,
        kind: &Kind,
        (ns, name): (&str, &str),
        demands: &Preconditions,
        dry_run: bool,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.get(kind, ns, name)?;
        for (what, wanted, field) in [
            ("UID", &demands.uid, "uid"),
            ("ResourceVersion", &demands.revision, "resourceVersion"),
        ] {
            let found = old["metadata"][field].as_str().unwrap_or_default();
            if let Some(wanted) = wanted.as_deref().filter(|&wanted| wanted != found) {
                let why = precondition_failed(what, wanted, found);
                return Err(Refusal::conflict(&kind.resource(), name, &why));
            }
        }
        let key = Key::new(kind, ns, name);
        if dry_run || (has_finalizers(&old) && is_deleted(&old)) {
            return Ok(old);
        }
        if has_finalizers(&old) {
            let mut marked = (*old).clone();
            marked["metadata"]["deletionTimestamp"] = json!(now());
            return Ok(self.commit(key, Some(old), Some(marked)));
        }
        self.commit(key, Some(old.clone()), None);
        Ok(old)
    }

    fn commit(&mut self, key: Key, before: Option<Arc<Value>>, after: Option<Value>) -> Arc<Value> {
        self.revision += 1;
        let revision = self.revision;
        let after = after.map(|object| Arc::new(at_revision(&object, revision)));
        match &after {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        let result = after.clone().or_else(|| before.clone()).unwrap_or_default();
        self.history.push_back(Change { revision, key, before, after });
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        result
    }

    /// The namespace that the object is to be in, if its kind has one.
    fn namespace(&self, kind: &Kind, ns: &str) -> Result<Option<Arc<Value>>, Refusal> {
        if !kind.namespaced {
            return Ok(None);
        }
        let key =
            Key { group: "", plural: "namespaces", namespace: String::new(), name: ns.into() };
        let found = self.objects.get(&key).cloned();
        found.map(Some).ok_or_else(|| Refusal::not_found("namespaces", ns))
    }

    fn name_of_new(
        &mut self,
        kind: &Kind,
        ns: &str,
        object: &mut Value,
    ) -> Result<String, Refusal> {
        let metadata = &mut object["metadata"];
        if metadata["resourceVersion"].as_str().is_some_and(|rv| !rv.is_empty()) {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::bad_request(why));
        }
        if kind.namespaced {
            match metadata["namespace"].as_str() {
                Some(own) if own != ns => return Err(wrong_namespace(own, ns)),
                _ => metadata["namespace"] = json!(ns),
            }
        }
        if let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) {
            return Ok(name.to_owned());
        }
        let Some(base) = metadata["generateName"].as_str().filter(|base| !base.is_empty()) else {
            return Ok(String::new());
        };
        let end = base.char_indices().nth(58).map_or(base.len(), |(at, _)| at);
        let name = format!("{}{}", &base[..end], self.random.suffix());
        metadata["name"] = json!(name);
        Ok(name)
    }
}

fn wrong_namespace(own: &str, ns: &str) -> Refusal {
    let why =
        "the namespace of the provided object does not match the namespace sent on the request";
    Refusal::bad_request(format!("{why}: {own:?}, {ns:?}"))
}

/// Reads the object as its kind, which drops what the kind does not know.
fn typed(kind: &Kind, mut object: Value) -> Result<Value, Refusal> {
    if !object.is_object() {
        return Err(Refusal::bad_request("the object provided is not a JSON object"));
    }
    for (field, own) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(own),
            Some(given) if given != own => {
                let why = format!("the {field} in the data ({given}) does not match ({own})");
                return Err(Refusal::bad_request(why));
            }
            Some(_) => (),
        }
    }
    (kind.typed)(object).map_err(|e| {
        let (version, kind) = (kind.version, kind.kind);
        let why = format!("{kind} in version {version:?} cannot be handled as a {kind}: {e}");
        Refusal::bad_request(why)
    })
}

fn check_identity(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), Refusal> {
    let given = |field: &str| new["metadata"][field].as_str().filter(|text| !text.is_empty());
    let kept = |field: &str| old["metadata"][field].as_str().unwrap_or_default();
    if given("name") != Some(name) {
        let why = "the name of the object does not match the name on the URL";
        return Err(Refusal::bad_request(why));
    }
    if let Some(namespace) = given("namespace").filter(|&ns| ns != kept("namespace")) {
        return Err(wrong_namespace(namespace, kept("namespace")));
    }
    if let Some(uid) = given("uid").filter(|&uid| uid != kept("uid")) {
        let why = precondition_failed("UID", uid, kept("uid"));
        return Err(Refusal::conflict(&kind.resource(), name, &why));
    }
    if given("resourceVersion").is_some_and(|rv| rv != kept("resourceVersion")) {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        return Err(Refusal::conflict(&kind.resource(), name, why));
    }
    Ok(())
}

fn precondition_failed(what: &str, wanted: &str, found: &str) -> String {
    format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}")
}

/// Takes from the old object what this request cannot write.
fn keep_what_is_not_written(kind: &Kind, part: Part, old: &Value, new: &mut Value) {
    let set = |new: &mut Value, path: [&str; 2], value: &Value| {
        if value.is_null() {
            if let Some(map) = new[path[0]].as_object_mut() {
                map.remove(path[1]);
            }
        } else {
            new[path[0]][path[1]] = value.clone();
        }
    };
    if part == Part::Status {
        let status = new["status"].take();
        *new = old.clone();
        new["status"] = status;
    } else if kind.status {
        new["status"] = old["status"].clone();
    }
    if new["status"].is_null()
        && let Some(map) = new.as_object_mut()
    {
        map.remove("status");
    }
    let kept = ["uid", "creationTimestamp", "deletionTimestamp", "generation", "namespace"];
    for field in kept.into_iter().chain(["generateName", "resourceVersion"]) {
        set(new, ["metadata", field], &old["metadata"][field]);
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

fn is_deleted(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The time as API objects have it: whole seconds, UTC.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Names and UIDs that do not repeat, within a process or across.
struct Random {
    seed: RandomState,
    count: u64,
}

impl Random {
    fn new() -> Self {
        Self { seed: RandomState::new(), count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        let mut hasher = self.seed.build_hasher();
        hasher.write_u64(self.count);
        hasher.finish()
    }

    fn uid(&mut self) -> String {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        let hex = format!("{bits:032x}");
        let (a, b, c, d) = (&hex[..8], &hex[8..12], &hex[13..16], &hex[17..20]);
        format!("{a}-{b}-4{c}-a{d}-{}", &hex[20..])
    }

    /// Five characters, of those that Kubernetes uses.
    fn suffix(&mut self) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut bits = self.next();
        let mut text = String::new();
        for _ in 0..5 {
            text.push(char::from(ALPHABET[(bits % 27) as usize]));
            bits /= 27;
        }
        text
    }
}
