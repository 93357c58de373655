//! Limits of claims, templates and classes, and what a claim's status may become.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClassSpec, DeviceConstraint, DeviceRequest, DeviceSelector,
    OpaqueDeviceConfiguration, ResourceClaim, ResourceClaimSpec,
};
use serde_json::Value;

use super::names;
use super::refusal::Faults;

const LIST: usize = 32;
const SUBREQUESTS: usize = 8;
const ALLOCATED_CONFIG: usize = 64;
const RESERVED_FOR: usize = 256;
const TEXT_BYTES: usize = 10 * 1024;
const ADMIN_LABEL: &str = "resource.kubernetes.io/admin-access";

/// Of a class.
pub(super) fn class(spec: &DeviceClassSpec, faults: &mut Faults) {
    selectors("spec.selectors", spec.selectors.as_deref(), faults);
    let configs = spec.config.as_deref().unwrap_or_default();
    faults.at_most("spec.config", configs.len(), LIST);
    for (i, config) in configs.iter().enumerate() {
        opaque(&format!("spec.config[{i}]"), config.opaque.as_ref(), faults);
    }
}

/// Of a claim; `at` is where its spec is.
pub(super) fn claim(spec: &ResourceClaimSpec, at: &str, faults: &mut Faults) {
    let Some(devices) = &spec.devices else { return };
    let at = format!("{at}.devices");
    let requests = devices.requests.as_deref().unwrap_or_default();
    faults.at_most(format!("{at}.requests"), requests.len(), LIST);
    let mut seen = BTreeSet::new();
    for (i, r) in requests.iter().enumerate() {
        let at = format!("{at}.requests[{i}]");
        names::label(format!("{at}.name"), &r.name, faults);
        if !seen.insert(&r.name) {
            faults.duplicate(format!("{at}.name"), &r.name);
        }
        request(&at, r, faults);
    }
    let known = request_names(devices);
    let constraints = devices.constraints.as_deref().unwrap_or_default();
    faults.at_most(format!("{at}.constraints"), constraints.len(), LIST);
    for (i, c) in constraints.iter().enumerate() {
        constraint(&format!("{at}.constraints[{i}]"), c, &known, faults);
    }
    let configs = devices.config.as_deref().unwrap_or_default();
    faults.at_most(format!("{at}.config"), configs.len(), LIST);
    for (i, config) in configs.iter().enumerate() {
        let at = format!("{at}.config[{i}]");
        references(&at, config.requests.as_deref(), &known, faults);
        opaque(&at, config.opaque.as_ref(), faults);
    }
}

/// The names that constraints and configurations may refer to.
fn request_names(devices: &DeviceClaim) -> BTreeSet<String> {
    let requests = devices.requests.iter().flatten();
    let all = requests.flat_map(|r| {
        let subs = r.first_available.iter().flatten();
        std::iter::once(r.name.clone()).chain(subs.map(|s| format!("{}/{}", r.name, s.name)))
    });
    all.collect()
}

fn request(at: &str, request: &DeviceRequest, faults: &mut Faults) {
    let subs = request.first_available.as_deref().unwrap_or_default();
    match (&request.exactly, subs) {
        (None, []) | (Some(_), [_, ..]) => {
            faults.required(at, "exactly one of `exactly` or `firstAvailable` is required");
        }
        (Some(exact), []) => {
            let at = format!("{at}.exactly");
            class_name(&at, &exact.device_class_name, faults);
            mode(&at, exact.allocation_mode.as_deref(), exact.count, faults);
            selectors(&format!("{at}.selectors"), exact.selectors.as_deref(), faults);
        }
        (None, subs) => {
            faults.at_most(format!("{at}.firstAvailable"), subs.len(), SUBREQUESTS);
            for (i, sub) in subs.iter().enumerate() {
                let at = format!("{at}.firstAvailable[{i}]");
                names::label(format!("{at}.name"), &sub.name, faults);
                class_name(&at, &sub.device_class_name, faults);
                mode(&at, sub.allocation_mode.as_deref(), sub.count, faults);
                selectors(&format!("{at}.selectors"), sub.selectors.as_deref(), faults);
            }
        }
    }
}

fn class_name(at: &str, name: &str, faults: &mut Faults) {
    if !names::is_subdomain(name) {
        faults.invalid(format!("{at}.deviceClassName"), name, "must be a DNS subdomain");
    }
}

fn mode(at: &str, mode: Option<&str>, count: Option<i64>, faults: &mut Faults) {
    match (mode, count) {
        (Some("ExactCount"), Some(count)) if count <= 0 => {
            faults.invalid(format!("{at}.count"), count, "must be greater than zero");
        }
        (Some("All"), Some(count)) if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            faults.invalid(format!("{at}.count"), count, why);
        }
        (Some("ExactCount" | "All"), _) => (),
        (mode, _) => {
            let field = format!("{at}.allocationMode");
            faults.unsupported(field, mode.unwrap_or_default(), &["All", "ExactCount"]);
        }
    }
}

fn selectors(at: &str, selectors: Option<&[DeviceSelector]>, faults: &mut Faults) {
    let selectors = selectors.unwrap_or_default();
    faults.at_most(at, selectors.len(), LIST);
    for (i, selector) in selectors.iter().enumerate() {
        let at = format!("{at}[{i}].cel");
        let Some(cel) = &selector.cel else {
            faults.required(at, "");
            continue;
        };
        if cel.expression.is_empty() {
            faults.required(format!("{at}.expression"), "");
        } else if cel.expression.len() > TEXT_BYTES {
            faults.too_long(format!("{at}.expression"), TEXT_BYTES);
        } else if let Err(e) = kube_cel::cel::Program::compile(&cel.expression) {
            let why = format!("compilation failed: {e}");
            faults.invalid(format!("{at}.expression"), &cel.expression, &why);
        }
    }
}

fn constraint(
    at: &str,
    constraint: &DeviceConstraint,
    known: &BTreeSet<String>,
    faults: &mut Faults,
) {
    references(at, constraint.requests.as_deref(), known, faults);
    let given = [
        ("matchAttribute", &constraint.match_attribute),
        ("distinctAttribute", &constraint.distinct_attribute),
    ];
    if given.iter().filter(|(_, attribute)| attribute.is_some()).count() != 1 {
        let why = "exactly one of `matchAttribute` or `distinctAttribute` is required";
        faults.required(at, why);
    }
    for (field, attribute) in given {
        if let Some(name) = attribute
            && !(names::is_qualified(name) && name.contains('/'))
        {
            let why = "must be a fully qualified attribute name";
            faults.invalid(format!("{at}.{field}"), name, why);
        }
    }
}

fn references(
    at: &str,
    requests: Option<&[String]>,
    known: &BTreeSet<String>,
    faults: &mut Faults,
) {
    let requests = requests.unwrap_or_default();
    faults.at_most(format!("{at}.requests"), requests.len(), LIST);
    for (i, name) in requests.iter().enumerate().filter(|(_, name)| !known.contains(*name)) {
        let why = "must be the name of a request in the claim or the name of a request and a \
                   subrequest separated by '/'";
        faults.invalid(format!("{at}.requests[{i}]"), name, why);
    }
}

fn opaque(at: &str, opaque: Option<&OpaqueDeviceConfiguration>, faults: &mut Faults) {
    let Some(opaque) = opaque else {
        faults.required(format!("{at}.opaque"), "");
        return;
    };
    if !names::is_driver(&opaque.driver) {
        let field = format!("{at}.opaque.driver");
        faults.invalid(field, &opaque.driver, "must be a DNS subdomain of at most 63 bytes");
    }
    let field = format!("{at}.opaque.parameters");
    if !opaque.parameters.0.is_object() {
        faults.invalid(&field, "<value omitted>", "must be a valid JSON object");
    }
    if opaque.parameters.0.to_string().len() > TEXT_BYTES {
        faults.too_long(field, TEXT_BYTES);
    }
}

/// A request with admin access needs a label on its namespace.
pub(super) fn admin_access(
    spec: &ResourceClaimSpec,
    at: &str,
    namespace: Option<&Value>,
    faults: &mut Faults,
) {
    let Some(namespace) = namespace else { return };
    if namespace["metadata"]["labels"][ADMIN_LABEL] == "true" {
        return;
    }
    let requests = spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
    for (i, request) in requests.enumerate() {
        if request.exactly.as_ref().is_some_and(|exact| exact.admin_access == Some(true)) {
            let why = "admin access to devices requires the \
                       `resource.kubernetes.io/admin-access: true` label on the containing namespace";
            faults.forbidden(format!("{at}.devices.requests[{i}].exactly.adminAccess"), why);
        }
    }
}

/// What a claim's status may become.
pub(super) fn status(old: &ResourceClaim, new: &ResourceClaim, faults: &mut Faults) {
    let old_allocation = old.status.as_ref().and_then(|status| status.allocation.as_ref());
    let Some(status) = &new.status else { return };
    let reserved = status.reserved_for.as_deref().unwrap_or_default();
    faults.at_most("status.reservedFor", reserved.len(), RESERVED_FOR);
    let mut seen = BTreeSet::new();
    for (i, _) in reserved.iter().enumerate().filter(|(_, r)| !seen.insert(&r.uid)) {
        faults.duplicate(format!("status.reservedFor[{i}].uid"), &reserved[i].uid);
    }
    match (old_allocation, &status.allocation) {
        (Some(old), Some(new)) if old != new => {
            faults.invalid("status.allocation", "", "field is immutable");
        }
        (_, None) if !reserved.is_empty() => {
            faults.forbidden(
                "status.reservedFor",
                "may not be specified when `allocated` is not set",
            );
        }
        _ => (),
    }
    let devices = status.allocation.as_ref().and_then(|allocation| allocation.devices.as_ref());
    let results = devices.and_then(|d| d.results.as_deref()).unwrap_or_default();
    faults.at_most("status.allocation.devices.results", results.len(), LIST);
    let configs = devices.map_or(0, |d| d.config.iter().flatten().count());
    faults.at_most("status.allocation.devices.config", configs, ALLOCATED_CONFIG);
    for (i, device) in status.devices.iter().flatten().enumerate() {
        let id = |driver, pool, device| (driver, pool, device);
        let wanted = id(&device.driver, &device.pool, &device.device);
        if !results.iter().any(|r| id(&r.driver, &r.pool, &r.device) == wanted) {
            let why = "must be an allocated device in the claim";
            faults.invalid(format!("status.devices[{i}]"), &device.device, why);
        }
    }
}
