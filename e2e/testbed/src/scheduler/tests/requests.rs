//! Counts, alternatives, constraints, admin access and configuration.

use super::*;

fn devices(taken: Result<Vec<(String, String)>, String>) -> Vec<String> {
    taken.unwrap().into_iter().map(|(_, device)| device).collect()
}

fn of_class(name: &str, class: &str, more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": class});
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": exactly})
}

fn mig_of(name: &str, profile: &str) -> Value {
    let expression = format!("device.attributes['gpu.nvidia.com'].profile == '{profile}'");
    of_class(name, "mig.nvidia.com", json!({"selectors": [{"cel": {"expression": expression}}]}))
}

#[test]
fn as_many_devices_as_asked_for() {
    let two =
        || claim(json!({"requests": [of_class("gpus", "gpu.nvidia.com", json!({"count": 2}))]}));
    let mut cluster = Cluster::of(3);
    assert_eq!(devices(cluster.take(two())), ["gpu-0", "gpu-1"]);
    assert_eq!(cluster.take(two()), nothing());
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-2"));
}

#[test]
fn all_devices_or_none() {
    let all = || {
        claim(
            json!({"requests": [of_class("gpus", "gpu.nvidia.com", json!({"allocationMode": "All"}))]}),
        )
    };
    let mut cluster = Cluster::of(3);
    assert_eq!(devices(cluster.take(all())), ["gpu-0", "gpu-1", "gpu-2"]);
    assert_eq!(cluster.take(all()), nothing());

    let mut cluster = Cluster::of(2);
    cluster.slices.pop();
    let why = "pool `node-a` of `gpu.nvidia.com` is being updated";
    assert_eq!(cluster.take(all()), Err(why.to_owned()));
}

#[test]
fn a_request_goes_back_for_the_sake_of_a_later_one() {
    // On one GPU the first 1g takes the place that 3g then needs, unless it gives way.
    let requests = json!([
        mig_of("small", "1g.10gb"),
        mig_of("a", "3g.40gb"),
        mig_of("b", "2g.20gb"),
        mig_of("c", "1g.10gb")
    ]);
    let taken = Cluster::of(1).take(claim(json!({"requests": requests}))).unwrap();
    let names: Vec<_> =
        taken.iter().map(|(request, device)| (request.as_str(), device.as_str())).collect();
    assert_eq!(
        names,
        [
            ("small", "gpu-0-mig-1g10gb-19-0"),
            ("a", "gpu-0-mig-3g40gb-9-4"),
            ("b", "gpu-0-mig-2g20gb-14-2"),
            ("c", "gpu-0-mig-1g10gb-19-1"),
        ]
    );
}

#[test]
fn match_attribute_keeps_devices_on_one_gpu() {
    let requests = json!([mig_of("a", "3g.40gb"), mig_of("b", "3g.40gb")]);
    let constraints =
        json!([{"matchAttribute": "gpu.nvidia.com/parentUUID", "requests": ["a", "b"]}]);
    let both = || claim(json!({"requests": requests, "constraints": constraints}));
    let mut cluster = Cluster::of(2);
    assert_eq!(cluster.take(profile("4g.40gb")), one("mig", "gpu-0-mig-4g40gb-5-0"));
    assert_eq!(devices(cluster.take(both())), ["gpu-1-mig-3g40gb-9-4", "gpu-1-mig-3g40gb-9-0"]);
    assert_eq!(cluster.take(both()), nothing());
}

#[test]
fn distinct_attribute_keeps_devices_apart() {
    let requests = json!([of_class("small", "mig.nvidia.com", json!({"count": 2}))]);
    let constraints = json!([{"distinctAttribute": "gpu.nvidia.com/parentUUID"}]);
    let apart = claim(json!({"requests": requests, "constraints": constraints}));
    assert_eq!(
        devices(Cluster::of(2).take(apart.clone())),
        ["gpu-0-mig-1g10gb-19-6", "gpu-1-mig-1g10gb-19-6"]
    );
    assert_eq!(Cluster::of(1).take(apart), nothing());
}

#[test]
fn a_device_without_the_attribute_breaks_a_constraint() {
    for constraint in ["matchAttribute", "distinctAttribute"] {
        let constrained = |attribute: &str| {
            let requests = json!([of_class("gpu", "gpu.nvidia.com", json!({}))]);
            Cluster::of(1).take(claim(
                json!({"requests": requests, "constraints": [{constraint: attribute}]}),
            ))
        };
        assert_eq!(constrained("gpu.nvidia.com/parentUUID"), nothing());
        assert_eq!(constrained("other.example.com/uuid"), nothing());
        assert_eq!(constrained("gpu.nvidia.com/uuid"), one("gpu", "gpu-0"));
        assert_eq!(constrained("resource.kubernetes.io/pcieRoot"), one("gpu", "gpu-0"));
    }
}

#[test]
fn a_constraint_concerns_the_requests_that_it_names() {
    let requests = json!([of_class("a", "gpu.nvidia.com", json!({})), mig_of("b", "1g.10gb")]);
    let constraints = json!([{"matchAttribute": "gpu.nvidia.com/parentUUID", "requests": ["b"]}]);
    let taken =
        Cluster::of(2).take(claim(json!({"requests": requests, "constraints": constraints})));
    assert_eq!(devices(taken), ["gpu-0", "gpu-1-mig-1g10gb-19-6"]);
}

#[test]
fn the_first_alternative_that_can_be_had() {
    let select = |profile: &str| json!([{"cel": {"expression": format!("device.attributes['gpu.nvidia.com'].profile == '{profile}'")}}]);
    let sub = |name: &str, profile: &str| json!({"name": name, "deviceClassName": "mig.nvidia.com", "selectors": select(profile)});
    let request = json!({"name": "part", "firstAvailable": [sub("large", "7g.80gb"), sub("small", "1g.10gb")]});
    let either = || claim(json!({"requests": [request]}));
    let mut cluster = Cluster::of(2);
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-0"));
    assert_eq!(cluster.take(either()), one("part/large", "gpu-1-mig-7g80gb-0-0"));
    assert_eq!(cluster.take(either()), nothing());

    let mut cluster = Cluster::of(1);
    assert_eq!(cluster.take(profile("2g.20gb")), one("mig", "gpu-0-mig-2g20gb-14-4"));
    assert_eq!(cluster.take(either()), one("part/small", "gpu-0-mig-1g10gb-19-6"));
}

#[test]
fn admin_access_takes_what_is_held_and_holds_nothing() {
    let monitor = || {
        let request = of_class(
            "watch",
            "gpu.nvidia.com",
            json!({"adminAccess": true, "allocationMode": "All"}),
        );
        claim(json!({"requests": [request]}))
    };
    let mut cluster = Cluster::of(2);
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-0"));
    let allocation = cluster.allocate(monitor()).unwrap();
    let results = allocation.devices.unwrap().results.unwrap();
    let seen: Vec<_> =
        results.iter().map(|result| (result.device.as_str(), result.admin_access)).collect();
    assert_eq!(seen, [("gpu-0", Some(true)), ("gpu-1", Some(true))]);
    assert_eq!(cluster.take(gpu()), one("gpu", "gpu-1"));
    assert_eq!(devices(cluster.take(monitor())), ["gpu-0", "gpu-1"]);
}

#[test]
fn a_device_must_have_the_capacity_that_is_asked_for() {
    let capacity = json!({"capacity": {"requests": {"memory": "30Gi"}}});
    let large = claim(json!({"requests": [of_class("large", "mig.nvidia.com", capacity)]}));
    assert_eq!(Cluster::of(1).take(large), one("large", "gpu-0-mig-3g40gb-9-4"));
}

#[test]
fn more_devices_than_a_claim_may_have() {
    let many = json!([of_class("many", "mig.nvidia.com", json!({"count": 33}))]);
    assert_eq!(Cluster::of(8).take(claim(json!({"requests": many}))), nothing());
}

#[test]
fn a_hopeless_search_ends() {
    let many = json!([of_class("many", "mig.nvidia.com", json!({"count": 8}))]);
    let constraints = json!([{"matchAttribute": "gpu.nvidia.com/parentUUID"}]);
    let hopeless = claim(json!({"requests": many, "constraints": constraints}));
    assert_eq!(
        Cluster::of(8).take(hopeless),
        Err("gave up after 100000 devices were tried".to_owned())
    );
}

#[test]
fn configuration_of_classes_goes_before_that_of_the_claim() {
    let opaque = |kind: &str| json!({"driver": "gpu.nvidia.com", "parameters": {"kind": kind}});
    let mut classes = classes();
    let class = classes
        .iter_mut()
        .find(|class| class.metadata.name.as_deref() == Some("gpu.nvidia.com"))
        .unwrap();
    class.spec.as_mut().unwrap().config =
        Some(vec![serde_json::from_value(json!({"opaque": opaque("Class")})).unwrap()]);
    let sub = |name: &str, class: &str| json!({"name": name, "deviceClassName": class});
    let spec = json!({
        "requests": [
            of_class("a", "gpu.nvidia.com", json!({})),
            {"name": "b", "firstAvailable": [sub("gpu", "gpu.nvidia.com"), sub("mig", "mig.nvidia.com")]},
        ],
        "config": [
            {"opaque": opaque("All")},
            {"opaque": opaque("Mig"), "requests": ["b/mig"]},
            {"opaque": opaque("Gpu"), "requests": ["b/gpu"]},
        ],
    });
    let allocation = fit(&slices_of(2), NODE, &[], &claim(spec), &classes).unwrap();
    assert_eq!(
        serde_json::to_value(allocation).unwrap(),
        json!({
            "devices": {
                "results": [
                    {"request": "a", "driver": "gpu.nvidia.com", "pool": "node-a", "device": "gpu-0"},
                    {"request": "b/gpu", "driver": "gpu.nvidia.com", "pool": "node-a", "device": "gpu-1"},
                ],
                "config": [
                    {"source": "FromClass", "requests": ["a", "b/gpu"], "opaque": opaque("Class")},
                    {"source": "FromClaim", "opaque": opaque("All")},
                    {"source": "FromClaim", "requests": ["b/gpu"], "opaque": opaque("Gpu")},
                ],
            },
            "nodeSelector": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]},
            ]},
        })
    );
}
