//! What the server does with an object before it stores it: drop, default, compare, validate.

use k8s_openapi::api::resource::v1::{
    DeviceClass, ResourceClaim, ResourceClaimSpec, ResourceClaimTemplate, ResourceSlice,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::canonical;
use super::claim_limits;
use super::dropped;
use super::gates::{Gates, Release};
use super::kinds::Kind;
use super::names;
use super::refusal::{Faults, Refusal};
use super::slice_limits;
use super::store::Part;

/// A release and its gates.
pub(super) struct Rules {
    pub(super) release: Release,
    pub(super) gates: Gates,
}

/// What is to be stored, beside what is stored.
struct Change<'a> {
    old: Option<&'a Value>,
    new: &'a mut Value,
    faults: Faults,
}

impl Rules {
    /// Prepares and checks a new object. `namespace` is that which it will be in, if any.
    pub(super) fn create(
        &self,
        kind: &Kind,
        namespace: Option<&Value>,
        new: &mut Value,
    ) -> Result<(), Refusal> {
        let mut change = Change { old: None, new, faults: Faults::default() };
        check_name(&mut change);
        match kind.kind {
            "ResourceClaim" => {
                if let Some(map) = change.new.as_object_mut() {
                    map.remove("status");
                }
            }
            "Pod" => change.new["status"] = json!({"phase": "Pending"}),
            _ => (),
        }
        self.check(kind, namespace, &mut change)?;
        let name = text(change.new, "name");
        change.faults.refuse(kind.kind, &name)
    }

    /// Prepares and checks what an object is to become.
    pub(super) fn update(
        &self,
        kind: &Kind,
        part: Part,
        old: &Value,
        new: &mut Value,
    ) -> Result<(), Refusal> {
        let mut change = Change { old: Some(old), new, faults: Faults::default() };
        self.check(kind, None, &mut change)?;
        immutable(kind, &mut change);
        if part == Part::Status && kind.kind == "ResourceClaim" {
            let (old, new) = (parse(old)?, parse(change.new)?);
            claim_limits::status(&old, &new, &mut change.faults);
        }
        let name = text(change.new, "name");
        change.faults.refuse(kind.kind, &name)
    }

    fn check(
        &self,
        kind: &Kind,
        namespace: Option<&Value>,
        change: &mut Change<'_>,
    ) -> Result<(), Refusal> {
        match kind.kind {
            "ResourceSlice" => change.through(|old, slice: &mut ResourceSlice, faults| {
                self.slice(old, slice, faults);
            }),
            "DeviceClass" => change.through(|old, class: &mut DeviceClass, faults| {
                self.class(old, class, faults);
            }),
            "ResourceClaim" => change.through(|old: Option<&ResourceClaim>, new, faults| {
                let new: &mut ResourceClaim = new;
                let old = old.and_then(|claim| claim.spec.as_ref());
                self.claim("spec", old, new.spec.as_mut(), namespace, faults);
            }),
            "ResourceClaimTemplate" => {
                change.through(|old: Option<&ResourceClaimTemplate>, new, faults| {
                    let new: &mut ResourceClaimTemplate = new;
                    let old = old.and_then(|template| template.spec.as_ref()?.spec.as_ref());
                    let new = new.spec.as_mut().and_then(|spec| spec.spec.as_mut());
                    self.claim("spec.spec", old, new, namespace, faults);
                })
            }
            _ => Ok(()),
        }?;
        if kind.group == "resource.k8s.io" {
            canonical::omit_empty_lists(&mut change.new["spec"]);
        }
        Ok(())
    }

    fn slice(&self, old: Option<&ResourceSlice>, new: &mut ResourceSlice, faults: &mut Faults) {
        let spec = &mut new.spec;
        dropped::from_slice(&self.gates, old.map(|old| &old.spec), spec, faults);
        canonical::slice(spec);
        slice_limits::check(self.release, spec, faults);
    }

    fn class(&self, old: Option<&DeviceClass>, new: &mut DeviceClass, faults: &mut Faults) {
        let Some(spec) = &mut new.spec else { return faults.required("spec", "") };
        dropped::from_class(&self.gates, old.and_then(|old| old.spec.as_ref()), spec);
        claim_limits::class(spec, faults);
    }

    fn claim(
        &self,
        at: &str,
        old: Option<&ResourceClaimSpec>,
        new: Option<&mut ResourceClaimSpec>,
        namespace: Option<&Value>,
        faults: &mut Faults,
    ) {
        let Some(spec) = new else { return };
        dropped::from_claim(&self.gates, old, spec);
        canonical::claim(spec);
        claim_limits::claim(spec, at, faults);
        claim_limits::admin_access(spec, at, namespace, faults);
    }
}

impl Change<'_> {
    /// Works on the object as its type.
    fn through<T: Serialize + DeserializeOwned>(
        &mut self,
        work: impl FnOnce(Option<&T>, &mut T, &mut Faults),
    ) -> Result<(), Refusal> {
        let old = self.old.map(parse::<T>).transpose()?;
        let mut new: T = parse(self.new)?;
        work(old.as_ref(), &mut new, &mut self.faults);
        *self.new = serde_json::to_value(new).map_err(|e| Refusal::bad_request(e.to_string()))?;
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
    T::deserialize(value).map_err(|e| Refusal::bad_request(e.to_string()))
}

fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}

fn check_name(change: &mut Change<'_>) {
    let name = text(change.new, "name");
    if name.is_empty() {
        change.faults.required("metadata.name", "name or generateName is required");
    } else if !names::is_subdomain(&name) {
        let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
                   '-' or '.', and must start and end with an alphanumeric character";
        change.faults.invalid("metadata.name", &name, why);
    }
}

/// Fields that no update may change.
fn immutable(kind: &Kind, change: &mut Change<'_>) {
    let fields: &[&str] = match kind.kind {
        "ResourceSlice" => &["/spec/driver", "/spec/nodeName", "/spec/pool/name"],
        "ResourceClaim" | "ResourceClaimTemplate" => &["/spec"],
        _ => &[],
    };
    for field in fields {
        let old = change.old.and_then(|old| old.pointer(field));
        let new = change.new.pointer(field);
        if old != new {
            let path = field.trim_start_matches('/').replace('/', ".");
            let value = new.cloned().unwrap_or_default().to_string();
            change.faults.invalid(path, value, "field is immutable");
        }
    }
}
