use super::*;

fn policy(ignored: &[u32], enabled: &[u32], xids: bool, readings: bool) -> Policy {
    let set = |codes: &[u32]| codes.iter().copied().collect();
    Policy { ignored: set(ignored), enabled: set(enabled), xids, readings }
}

#[test]
fn nvidias_lists_are_read() {
    for (disable, enable, expected) in [
        (None, None, Policy::default()),
        (Some(""), Some(" "), Policy::default()),
        (Some("48, 79,"), None, policy(&[48, 79], &[], true, true)),
        (Some("xids"), None, policy(&[], &[], false, true)),
        (Some("all"), None, policy(&[], &[], false, false)),
        (None, Some("13,31"), policy(&[], &[13, 31], true, true)),
        (Some("all"), Some("48"), policy(&[], &[48], false, false)),
        (Some("48"), Some("48"), policy(&[48], &[48], true, true)),
    ] {
        assert_eq!(Policy::from_nvidia(disable, enable), Ok(expected), "{disable:?} {enable:?}");
    }
}

#[test]
fn what_is_enabled_wins() {
    let watched = |disable, enable, code| {
        Policy::from_nvidia(Some(disable), Some(enable)).unwrap().counts(code)
    };
    assert_eq!([48, 79].map(|code| watched("all", "48", code)), [true, false]);
    assert_eq!([48, 79].map(|code| watched("48,79", "48", code)), [true, false]);
    assert_eq!([48, 79, 4711].map(|code| watched("48,all", "all", code)), [true; 3]);
    let all = Policy::from_nvidia(None, Some("all")).unwrap();
    assert_eq!(
        [13, 31, 45, 48].map(|code| all.enabled.contains(&code)),
        [true, true, false, false]
    );
}

#[test]
fn other_words_are_errors_that_name_them() {
    let error = |disable, enable| Policy::from_nvidia(disable, enable).unwrap_err().to_string();
    assert_eq!(
        [error(Some("48,ALL"), None), error(None, Some("xids")), error(None, Some("-1"))],
        [
            "`DP_DISABLE_HEALTHCHECKS` has `ALL`: it takes `all`, `xids`, or XIDs with commas between them",
            "`DP_ENABLE_HEALTHCHECKS` has `xids`: it takes `all`, or XIDs with commas between them",
            "`DP_ENABLE_HEALTHCHECKS` has `-1`: it takes `all`, or XIDs with commas between them",
        ]
    );
}
