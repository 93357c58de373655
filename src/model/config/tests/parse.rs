//! What configuration may say, and what is said of the rest.

use serde_json::{Value, json};

use crate::model::config::{API_VERSION, Config, Interval, Sharing};

/// Parameters of a kind, with the fields beside `apiVersion` and `kind`.
fn parameters(kind: &str, fields: Value) -> Value {
    let mut parameters = json!({ "apiVersion": API_VERSION, "kind": kind });
    let Value::Object(fields) = fields else { panic!("{fields} are no fields") };
    parameters.as_object_mut().unwrap().extend(fields);
    parameters
}

fn gpu(sharing: Value) -> Value {
    parameters("GpuConfig", json!({ "sharing": sharing }))
}

fn mig(sharing: Value) -> Value {
    parameters("MigDeviceConfig", json!({ "sharing": sharing }))
}

fn mps(config: Value) -> Value {
    gpu(json!({ "strategy": "MPS", "mpsConfig": config }))
}

fn vfio(iommu: Value) -> Value {
    parameters("VfioDeviceConfig", json!({ "iommu": iommu }))
}

fn slicing(config: Value) -> Value {
    gpu(json!({ "strategy": "TimeSlicing", "timeSlicingConfig": config }))
}

fn refused(parameters: &Value) -> String {
    Config::parse(parameters).unwrap_err().to_string()
}

#[test]
fn what_a_gpu_config_may_say() {
    let sliced = |interval| Config::Gpu(Some(Sharing::TimeSlicing(interval)));
    for (parameters, config) in [
        (parameters("GpuConfig", json!({})), Config::Gpu(None)),
        (gpu(Value::Null), Config::Gpu(None)),
        (gpu(json!({ "strategy": "TimeSlicing" })), sliced(Interval::Default)),
        // NVIDIA's driver crashes on this one.
        (slicing(json!({})), sliced(Interval::Default)),
        (slicing(Value::Null), sliced(Interval::Default)),
        (slicing(json!({ "interval": null })), sliced(Interval::Default)),
        (slicing(json!({ "interval": "Default" })), sliced(Interval::Default)),
        (slicing(json!({ "interval": "Short" })), sliced(Interval::Short)),
        (slicing(json!({ "interval": "Medium" })), sliced(Interval::Medium)),
        (slicing(json!({ "interval": "Long" })), sliced(Interval::Long)),
        (gpu(json!({ "strategy": "MPS" })), Config::Gpu(Some(Sharing::Mps))),
        (
            gpu(json!({ "strategy": "MPS", "timeSlicingConfig": null })),
            Config::Gpu(Some(Sharing::Mps)),
        ),
    ] {
        assert_eq!(Config::parse(&parameters), Ok(config), "{parameters}");
    }
}

#[test]
fn what_a_mig_device_config_may_say() {
    let sliced = Sharing::TimeSlicing(Interval::Default);
    for (parameters, sharing) in [
        (parameters("MigDeviceConfig", json!({})), None),
        (mig(Value::Null), None),
        (mig(json!({ "strategy": "TimeSlicing" })), Some(sliced)),
        (mig(json!({ "strategy": "MPS" })), Some(Sharing::Mps)),
        (mig(json!({ "strategy": "MPS", "mpsConfig": { "multiUser": true } })), Some(Sharing::Mps)),
    ] {
        assert_eq!(Config::parse(&parameters), Ok(Config::Mig(sharing)), "{parameters}");
    }
}

#[test]
fn what_an_mps_config_may_say() {
    for config in [
        Value::Null,
        json!({}),
        json!({ "defaultActiveThreadPercentage": 0 }),
        json!({ "defaultActiveThreadPercentage": 100 }),
        json!({ "defaultPinnedDeviceMemoryLimit": "10Gi" }),
        json!({ "defaultPinnedDeviceMemoryLimit": 1024 }),
        json!({ "defaultPerDevicePinnedMemoryLimit": {} }),
        json!({ "defaultPerDevicePinnedMemoryLimit": { "0": "4Gi", "GPU-5d1c2f0e": "1e3" } }),
        json!({ "multiUser": false }),
    ] {
        let parameters = mps(config);
        assert_eq!(Config::parse(&parameters), Ok(Config::Gpu(Some(Sharing::Mps))), "{parameters}");
    }
}

#[test]
fn what_a_vfio_device_config_may_say() {
    for parameters in [
        parameters("VfioDeviceConfig", json!({})),
        vfio(json!({})),
        vfio(json!({ "backendPolicy": "LegacyOnly" })),
        vfio(json!({ "backendPolicy": "PreferIommuFD", "enableAPIDevice": true })),
    ] {
        assert_eq!(Config::parse(&parameters), Ok(Config::Vfio), "{parameters}");
    }
}

#[test]
fn parameters_of_no_kind_are_refused() {
    let version = |version: Value| json!({ "apiVersion": version, "kind": "GpuConfig" });
    let kind = |kind: Value| json!({ "apiVersion": API_VERSION, "kind": kind });
    let use_version = "use `resource.nvidia.com/v1beta1`";
    let use_kind = "use `GpuConfig`, `MigDeviceConfig` or `VfioDeviceConfig`";
    for (parameters, text) in [
        (Value::Null, "parameters must be an object, not null".to_owned()),
        (json!([]), "parameters must be an object, not a list".to_owned()),
        (json!("GpuConfig"), "parameters must be an object, not `GpuConfig`".to_owned()),
        (json!(-1.5), "parameters must be an object, not `-1.5`".to_owned()),
        (json!({}), format!("`apiVersion` is missing in parameters; {use_version}")),
        (version(Value::Null), format!("`apiVersion` is missing in parameters; {use_version}")),
        (version(json!(1)), "parameters.apiVersion must be a string, not `1`".to_owned()),
        (
            version(json!("apps/v1")),
            format!("unknown apiVersion `apps/v1` in parameters; {use_version}"),
        ),
        (
            version(json!("resource.nvidia.com/v1")),
            "unknown apiVersion `resource.nvidia.com/v1` in parameters; did you mean \
             `resource.nvidia.com/v1beta1`?"
                .to_owned(),
        ),
        (kind(Value::Null), format!("`kind` is missing in parameters; {use_kind}")),
        (kind(json!("Sharing")), format!("unknown kind `Sharing` in parameters; {use_kind}")),
        (kind(json!({})), "parameters.kind must be a string, not an object".to_owned()),
        (
            kind(json!("gpuconfig")),
            "unknown kind `gpuconfig` in parameters; did you mean `GpuConfig`?".to_owned(),
        ),
        (kind(json!("MigConfig")), format!("unknown kind `MigConfig` in parameters; {use_kind}")),
    ] {
        assert_eq!(refused(&parameters), text);
    }
}

#[test]
fn a_field_that_is_not_known_is_refused() {
    for (parameters, text) in [
        (
            parameters("GpuConfig", json!({ "shraing": {} })),
            "unknown field `shraing` in GpuConfig; did you mean `sharing`?",
        ),
        (
            parameters("GpuConfig", json!({ "iommu": {} })),
            "unknown field `iommu` in GpuConfig; use `apiVersion`, `kind` or `sharing`",
        ),
        (
            parameters("GpuConfig", json!({ "z": 1, "a": 1 })),
            "unknown field `a` in GpuConfig; use `apiVersion`, `kind` or `sharing`",
        ),
        (
            gpu(json!({ "strateggy": "MPS" })),
            "unknown field `strateggy` in GpuConfig.sharing; did you mean `strategy`?",
        ),
        (
            slicing(json!({ "duration": "1s" })),
            "unknown field `duration` in GpuConfig.sharing.timeSlicingConfig; use `interval`",
        ),
        (
            mps(json!({ "defaultActiveThreadPercent": 5 })),
            "unknown field `defaultActiveThreadPercent` in GpuConfig.sharing.mpsConfig; did you mean \
             `defaultActiveThreadPercentage`?",
        ),
        (
            mig(json!({ "strategy": "TimeSlicing", "timeSlicingConfig": {} })),
            "unknown field `timeSlicingConfig` in MigDeviceConfig.sharing; use `strategy` or `mpsConfig`",
        ),
        (
            vfio(json!({ "enableApiDevices": true })),
            "unknown field `enableApiDevices` in VfioDeviceConfig.iommu; did you mean `enableAPIDevice`?",
        ),
        (
            parameters("VfioDeviceConfig", json!({ "sharing": {} })),
            "unknown field `sharing` in VfioDeviceConfig; use `apiVersion`, `kind` or `iommu`",
        ),
        (
            parameters("GpuConfig", json!({ "a\nb\u{2028}c\t": {} })),
            "unknown field `a\\nb\\u{2028}c\\t` in GpuConfig; use `apiVersion`, `kind` or `sharing`",
        ),
    ] {
        assert_eq!(refused(&parameters), text);
    }
}

#[test]
fn a_word_that_is_not_known_is_refused() {
    for (parameters, text) in [
        (gpu(json!({})), "`strategy` is missing in GpuConfig.sharing; use `TimeSlicing` or `MPS`"),
        (
            mig(json!({ "strategy": "" })),
            "unknown strategy `` in MigDeviceConfig.sharing; use `TimeSlicing` or `MPS`",
        ),
        (
            gpu(json!({ "strategy": "mps" })),
            "unknown strategy `mps` in GpuConfig.sharing; did you mean `MPS`?",
        ),
        (
            slicing(json!({ "interval": "Longer" })),
            "unknown interval `Longer` in GpuConfig.sharing.timeSlicingConfig; use `Default`, `Short`, `Medium` or \
             `Long`",
        ),
        (
            slicing(json!({ "interval": "Shorts" })),
            "unknown interval `Shorts` in GpuConfig.sharing.timeSlicingConfig; did you mean `Short`?",
        ),
        (
            vfio(json!({ "backendPolicy": "Legacy" })),
            "unknown backendPolicy `Legacy` in VfioDeviceConfig.iommu; use `LegacyOnly` or `PreferIommuFD`",
        ),
    ] {
        assert_eq!(refused(&parameters), text);
    }
}

#[test]
fn a_value_of_another_type_or_out_of_range_is_refused() {
    let at = "GpuConfig.sharing.mpsConfig";
    let percentage = "defaultActiveThreadPercentage must be an integer from 0 to 100";
    let limit = "must be a quantity such as `4Gi`";
    let percent = |value: Value| mps(json!({ "defaultActiveThreadPercentage": value }));
    let pinned = |value: Value| mps(json!({ "defaultPinnedDeviceMemoryLimit": value }));
    let each = |value: Value| mps(json!({ "defaultPerDevicePinnedMemoryLimit": value }));
    let per_device = format!("{at}.defaultPerDevicePinnedMemoryLimit");
    for (parameters, text) in [
        (gpu(json!("MPS")), "GpuConfig.sharing must be an object, not `MPS`".to_owned()),
        (
            gpu(json!({ "strategy": true })),
            "GpuConfig.sharing.strategy must be a string, not `true`".to_owned(),
        ),
        (
            slicing(json!([])),
            "GpuConfig.sharing.timeSlicingConfig must be an object, not a list".to_owned(),
        ),
        (mps(json!("all")), format!("{at} must be an object, not `all`")),
        (percent(json!(101)), format!("{at}.{percentage}, not `101`")),
        (percent(json!(-1)), format!("{at}.{percentage}, not `-1`")),
        (percent(json!(0.5)), format!("{at}.{percentage}, not `0.5`")),
        (percent(json!("50")), format!("{at}.{percentage}, not `50`")),
        (pinned(json!("4 Gi")), format!("{at}.defaultPinnedDeviceMemoryLimit {limit}, not `4 Gi`")),
        (
            pinned(json!(["4Gi"])),
            format!("{at}.defaultPinnedDeviceMemoryLimit {limit}, not a list"),
        ),
        (each(json!("4Gi")), format!("{per_device} must be an object, not `4Gi`")),
        (each(json!({ "1": "4Gi", "0": "lots" })), format!("{per_device}.0 {limit}, not `lots`")),
        (
            mps(json!({ "multiUser": "yes" })),
            format!("{at}.multiUser must be true or false, not `yes`"),
        ),
        (
            vfio(json!({ "enableAPIDevice": 1 })),
            "VfioDeviceConfig.iommu.enableAPIDevice must be true or false, not `1`".to_owned(),
        ),
        (vfio(json!(false)), "VfioDeviceConfig.iommu must be an object, not `false`".to_owned()),
    ] {
        assert_eq!(refused(&parameters), text);
    }
}

#[test]
fn the_parameters_of_one_strategy_do_not_go_with_another() {
    let sharing = json!({ "strategy": "MPS", "timeSlicingConfig": {}, "mpsConfig": {} });
    assert_eq!(
        refused(&gpu(sharing)),
        "`timeSlicingConfig` does not go with strategy `MPS` in GpuConfig.sharing; remove one of them"
    );
    let sharing = json!({ "strategy": "TimeSlicing", "mpsConfig": {} });
    assert_eq!(
        refused(&mig(sharing)),
        "`mpsConfig` does not go with strategy `TimeSlicing` in MigDeviceConfig.sharing; remove one of them"
    );
}

#[test]
fn a_long_text_is_cut_short() {
    let long = "ä".repeat(121);
    assert_eq!(
        refused(&gpu(json!({ "strategy": long }))),
        format!(
            "unknown strategy `{}…` in GpuConfig.sharing; use `TimeSlicing` or `MPS`",
            "ä".repeat(120)
        )
    );
    let limits = json!({ "defaultPerDevicePinnedMemoryLimit": { long: "x".repeat(121) } });
    assert_eq!(
        refused(&mps(limits)),
        format!(
            "GpuConfig.sharing.mpsConfig.defaultPerDevicePinnedMemoryLimit.{}… must be a quantity such as `4Gi`, not \
             `{}…`",
            "ä".repeat(58),
            "x".repeat(120)
        )
    );
}
