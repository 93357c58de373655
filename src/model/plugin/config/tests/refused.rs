//! What the file may not say, and what is said of it.

use super::read;

/// What is said of each of these.
fn check(cases: &[(&str, &str)], text: impl Fn(&str) -> String) {
    for (part, line) in cases {
        assert_eq!(read(&text(part)), Err((*line).to_owned()), "{part}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let cases = [
        ("[]", "the document must be an object, not a list"),
        ("v1", "the document must be an object, not `v1`"),
        ("version: v1beta1", "unknown version `v1beta1` in the document; use `v1`"),
        ("version: 1", "version must be a string, not `1`"),
        ("sharring: {}", "unknown field `sharring` in the document; did you mean `sharing`?"),
        (
            "colour: red",
            "unknown field `colour` in the document; use `version`, `flags`, `resources`, `sharing` or `imex`",
        ),
        (
            "flags: {migstrategy: none}",
            "unknown field `migstrategy` in flags; did you mean `migStrategy`?",
        ),
        (
            "flags: {plugin: {passDeviceSpec: true}}",
            "unknown field `passDeviceSpec` in flags.plugin; did you mean `passDeviceSpecs`?",
        ),
        (
            "flags: {gfd: {oneshoot: true}}",
            "unknown field `oneshoot` in flags.gfd; did you mean `oneshot`?",
        ),
        (
            "flags: {migStrategy: singel}",
            "unknown migStrategy `singel` in flags; use `none`, `single` or `mixed`",
        ),
        ("flags: {gdsEnabled: maybe}", "flags.gdsEnabled must be true or false, not `maybe`"),
        ("flags: {gdsEnabled: 2}", "flags.gdsEnabled must be true or false, not `2`"),
        (
            "flags: {plugin: {deviceListStrategy: [envvar, 3]}}",
            "flags.plugin.deviceListStrategy[1] must be a string, not `3`",
        ),
        (
            "flags: {plugin: {deviceListStrategy: 'envvar,cdi-cry'}}",
            "unknown deviceListStrategy `cdi-cry` in flags.plugin; did you mean `cdi-cri`?",
        ),
        (
            "flags: {plugin: {deviceListStrategy: {}}}",
            "flags.plugin.deviceListStrategy must be a string or a list of strings, not an object",
        ),
    ];
    check(&cases, str::to_owned);
}

#[test]
fn what_is_wrong_with_resources_is_told_with_its_place() {
    let cases = [
        (
            "imex: {channelIDs: [0, 1]}",
            "imex.channelIDs[1] must be 0, the only channel that containers get, not `1`",
        ),
        ("imex: {channelIDs: 0}", "imex.channelIDs must be `[]` or `[0]`, not `0`"),
        (
            "resources: {gpus: [{name: gpu}]}",
            "`pattern` is missing in resources.gpus[0]; add a pattern such as `*A100*`",
        ),
        ("resources: {gpus: {}}", "resources.gpus must be a list, not an object"),
        (
            "resources: {mig: [{pattern: 1g.10gb+me, name: mig+me}]}",
            "resources.mig[0].name must be a name of lower-case letters, digits, `-` and `.`, 63 characters at most with `nvidia.com/`, not `mig+me`",
        ),
        (
            "sharing: {timeslicing: {}}",
            "unknown field `timeslicing` in sharing; did you mean `timeSlicing`?",
        ),
        (
            "sharing: {timeSlicing: {renameDefault: true}}",
            "unknown field `renameDefault` in sharing.timeSlicing; did you mean `renameByDefault`?",
        ),
        (
            "sharing: {timeSlicing: {resources: [3]}}",
            "sharing.timeSlicing.resources[0] must be an object, not `3`",
        ),
        (
            "sharing: {mps: {resources: [{name: gpu, replicas: 1}]}}",
            "sharing.mps.resources[0].replicas must be a whole number from 2 to 512, not `1`",
        ),
    ];
    check(&cases, str::to_owned);
}

#[test]
fn what_is_no_document_is_told_with_its_place() {
    let cases = [
        ("a: [", "neither YAML nor JSON: unclosed bracket '[' at line 1, column 4"),
        (
            "a: 1\na: 2",
            "neither YAML nor JSON: duplicate mapping key `a` is not allowed here at line 2, column 1",
        ),
        (
            "a: 1\n---\nb: 2",
            "neither YAML nor JSON: only single YAML document expected but multiple found at line 3, column 1",
        ),
        (
            "a: *",
            "neither YAML nor JSON: while scanning an anchor or alias, did not find expected alphabetic or numeric character at line 1, column 4",
        ),
    ];
    check(&cases, str::to_owned);
}

/// A document that shares this.
fn sharing(resource: &str) -> String {
    format!("sharing: {{timeSlicing: {{renameByDefault: true, resources: [{{{resource}}}]}}}}")
}

#[test]
fn what_is_shared_is_checked() {
    let cases = [
        (
            "replicas: 2",
            "`name` is missing in sharing.timeSlicing.resources[0]; add a resource name such as `gpu`",
        ),
        (
            "name: gpu",
            "`replicas` is missing in sharing.timeSlicing.resources[0]; add how many shares each device has, 2 to 512",
        ),
        (
            "name: gpu, replica: 2",
            "unknown field `replica` in sharing.timeSlicing.resources[0]; did you mean `replicas`?",
        ),
        (
            "name: gpu, replicas: 1",
            "sharing.timeSlicing.resources[0].replicas must be a whole number from 2 to 512, not `1`",
        ),
        (
            "name: gpu, replicas: -4",
            "sharing.timeSlicing.resources[0].replicas must be a whole number from 2 to 512, not `-4`",
        ),
        (
            "name: gpu, replicas: 2.5",
            "sharing.timeSlicing.resources[0].replicas must be a whole number from 2 to 512, not `2.5`",
        ),
        (
            "name: gpu, replicas: 4294967296",
            "sharing.timeSlicing.resources[0].replicas must be a whole number from 2 to 512, not `4294967296`",
        ),
        (
            "name: GPU, replicas: 2",
            "sharing.timeSlicing.resources[0].name must be a name of lower-case letters, digits, `-` and `.`, 63 characters at most with `nvidia.com/`, not `GPU`",
        ),
        (
            "name: gpu, rename: a b, replicas: 2",
            "sharing.timeSlicing.resources[0].rename must be a name of lower-case letters, digits, `-` and `.`, 63 characters at most with `nvidia.com/`, not `a b`",
        ),
        (
            "name: gpu, replicas: 2, devices: some",
            "sharing.timeSlicing.resources[0].devices must be `all`, a number of devices, or a list of devices, not `some`",
        ),
        (
            "name: gpu, replicas: 2, devices: 0",
            "sharing.timeSlicing.resources[0].devices must be `all`, a number of devices, or a list of devices, not `0`",
        ),
        (
            "name: gpu, replicas: 2, devices: []",
            "sharing.timeSlicing.resources[0].devices must be `all`, a number of devices, or a list of devices, not a list",
        ),
        (
            "name: gpu, replicas: 2, devices: [0, -1]",
            "sharing.timeSlicing.resources[0].devices[1] must be a GPU's index, its index and that of a MIG device such as `0:1`, or a UUID, not `-1`",
        ),
    ];
    check(&cases, sharing);
}

#[test]
fn the_default_name_of_shares_has_to_be_a_name() {
    let name = "a".repeat(50);
    let line = format!(
        "sharing.timeSlicing.resources[0].name must be short enough for 63 characters with `nvidia.com/` and \
         `.shared`, not `nvidia.com/{name}`"
    );
    assert_eq!(read(&sharing(&format!("name: {name}, replicas: 2"))), Err(line));
}

#[test]
fn what_names_no_device_is_refused() {
    const UUID: &str = "4404041a-04cf-1ccf-9e70-f139a9b1e23c";
    let uuids = [
        "#",
        "gpu-#",
        "GPU-#0",
        "GPU-",
        "MIG-GPU-#",
        "MIG-GPU-#/1",
        "MIG-GPU-#/1/x",
        "MIG-GPU-#/1/0/0",
    ];
    for device in ["", "+1", "0:", ":1", "0:1:2", "all"].iter().chain(&uuids) {
        let device = device.replace('#', UUID);
        let line = format!(
            "sharing.timeSlicing.resources[0].devices[0] must be a GPU's index, its index and that of a MIG \
             device such as `0:1`, or a UUID, not `{device}`"
        );
        let text = sharing(&format!("name: gpu, replicas: 2, devices: ['{device}']"));
        assert_eq!(read(&text), Err(line), "{device}");
    }
}
