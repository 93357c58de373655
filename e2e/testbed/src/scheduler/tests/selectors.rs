//! What CEL expressions see, and what stops an allocation.

use super::*;

/// Whether the first MIG device of an H100 is selected, or why not even that is known.
fn selects(expression: &str) -> Result<bool, String> {
    match Cluster::of(1).take(mig(expression)) {
        Ok(_) => Ok(true),
        Err(why) if why == NOTHING_FITS => Ok(false),
        Err(why) => Err(why),
    }
}

#[test]
fn attributes_are_of_their_types() {
    let expressions = [
        "device.driver == 'gpu.nvidia.com'",
        "device.allowMultipleAllocations == false",
        "device.attributes['gpu.nvidia.com'].type == 'mig'",
        "device.attributes['gpu.nvidia.com']['profile'] == '1g.10gb'",
        "device.attributes['gpu.nvidia.com'].productName.lowerAscii().matches('^.*h100.*$')",
        "device.attributes['resource.kubernetes.io'].numaNode == 0",
        "device.attributes['resource.kubernetes.io'].pciBusID.startsWith('0000:')",
        "device.attributes['gpu.nvidia.com'].driverVersion.compareTo(semver('580.95.5')) == 0",
        "device.attributes['gpu.nvidia.com'].driverVersion.isGreaterThan(semver('550.0.0'))",
        "device.attributes['gpu.nvidia.com'].driverVersion.major() == 580",
        "device.attributes['gpu.nvidia.com'].cudaComputeCapability == semver('9.0.0')",
        "device.attributes['gpu.nvidia.com'].profile in ['1g.10gb', '2g.20gb']",
        "device.attributes['gpu.nvidia.com'].profile.includes('1g.10gb')",
        "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('9984Mi')) == 0",
        "device.capacity['gpu.nvidia.com'].memory.isGreaterThan(quantity('8Gi'))",
        "device.capacity['gpu.nvidia.com'].multiprocessors.isLessThan(quantity('17'))",
        "cel.bind(gpu, device.attributes['gpu.nvidia.com'], gpu.type == 'mig' && gpu.profile == '1g.10gb')",
    ];
    for expression in expressions {
        assert_eq!(selects(expression), Ok(true), "{expression}");
    }
}

#[test]
fn an_unknown_domain_is_an_empty_map() {
    assert_eq!(selects("'nowhere' in device.attributes"), Ok(false));
    assert_eq!(selects("'gpu.nvidia.com' in device.attributes"), Ok(true));
    assert_eq!(selects("'id' in device.attributes['nowhere']"), Ok(false));
    assert_eq!(selects("has(device.attributes['nowhere'].id)"), Ok(false));
    assert_eq!(selects("device.attributes['nowhere'].size() == 0"), Ok(true));
    assert_eq!(selects("device.capacity['nowhere'].?memory.hasValue()"), Ok(false));
}

#[test]
fn an_unknown_id_ends_the_whole_allocation() {
    let why = "request `mig`, selector 0: device `gpu-0-mig-1g10gb-19-6`: CEL runtime error: No such key: id";
    assert_eq!(selects("device.attributes['gpu.nvidia.com'].id == 'x'"), Err(why.to_owned()));
    assert_eq!(selects("device.attributes['nowhere'].id == 'x'"), Err(why.to_owned()));
}

#[test]
fn an_unknown_id_can_be_guarded() {
    assert_eq!(selects("has(device.attributes['gpu.nvidia.com'].id)"), Ok(false));
    let guarded = "'id' in device.attributes['gpu.nvidia.com'] && device.attributes['gpu.nvidia.com'].id == 1";
    assert_eq!(selects(guarded), Ok(false));
    assert_eq!(selects("device.attributes['gpu.nvidia.com'].?id.orValue(7) == 7"), Ok(true));
    assert_eq!(
        selects("device.attributes['gpu.nvidia.com'].?profile.orValue('') == '1g.10gb'"),
        Ok(true)
    );
}

#[test]
fn a_dynamic_mig_device_has_no_uuid_and_asking_for_it_ends_the_allocation() {
    let why = selects("device.attributes['gpu.nvidia.com'].uuid != ''").unwrap_err();
    assert!(why.ends_with("CEL runtime error: No such key: uuid"), "{why}");
}

#[test]
fn what_is_no_bool_ends_the_allocation() {
    let why = selects("device.driver").unwrap_err();
    assert!(why.ends_with("CEL expression gives string, not a bool"), "{why}");
    let why = selects("device.driver ==").unwrap_err();
    assert!(why.contains("CEL compile error"), "{why}");
}

#[test]
fn the_class_is_asked_before_the_request() {
    // No whole GPU has a profile, and none is asked: the class leaves only MIG devices.
    assert_eq!(selects("device.attributes['gpu.nvidia.com'].profile == '7g.80gb'"), Ok(true));

    let mut classes = classes();
    classes.retain(|class| class.metadata.name.as_deref() == Some("gpu.nvidia.com"));
    let refused = fit(&slices_of(1), NODE, &[], &mig("true"), &classes);
    let why = "request `mig`: device class `mig.nvidia.com` does not exist";
    assert_eq!(refused, Err(Unschedulable(why.to_owned())));
}
