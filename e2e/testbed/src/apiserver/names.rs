//! The syntax of names, keys and versions in API objects.

use super::refusal::Faults;

/// A DNS label: at most 63 lower case letters, digits and inner dashes.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(|&b| inner(b))
        && bytes.last().is_some_and(|&b| inner(b))
        && bytes.iter().all(|&b| inner(b) || b == b'-')
}

/// Labels with dots between them, at most 253 bytes.
pub(super) fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|&b| inner(b))
            && bytes.last().is_some_and(|&b| inner(b))
            && bytes.iter().all(|&b| inner(b) || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// A driver: a subdomain of at most 63 bytes, upper case let through.
pub(super) fn is_driver(text: &str) -> bool {
    text.len() <= 63 && is_subdomain(&text.to_ascii_lowercase())
}

/// A pool: subdomains with slashes between them, at most 253 bytes.
pub(super) fn is_pool(text: &str) -> bool {
    text.len() <= 253 && text.split('/').all(is_subdomain)
}

/// The name of an attribute or capacity: a C identifier, perhaps after `<domain>/`.
pub(super) fn is_qualified(text: &str) -> bool {
    let identifier = |id: &str| {
        let bytes = id.as_bytes();
        bytes.len() <= 32
            && bytes.first().is_some_and(|&b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match text.split_once('/') {
        Some((domain, id)) => domain.len() <= 63 && is_subdomain(domain) && identifier(id),
        None => identifier(text),
    }
}

/// The key of a label or taint: `[<subdomain>/]<name>`.
pub(super) fn is_label_key(text: &str) -> bool {
    let name = |text: &str| !text.is_empty() && is_label_value(text);
    match text.split_once('/') {
        Some((domain, rest)) => is_subdomain(domain) && name(rest),
        None => name(text),
    }
}

/// The value of a label or taint; may be empty.
pub(super) fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric();
    bytes.len() <= 63
        && (bytes.is_empty()
            || bytes.first().is_some_and(inner)
                && bytes.last().is_some_and(inner)
                && bytes.iter().all(|b| inner(b) || b"-_.".contains(b)))
}

/// A version as semver 2.0.0 has it: three numbers without leading zeros, no `v`.
pub(super) fn is_semver(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(a, b)| (a, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(a, b)| (a, Some(b)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let numbers: Vec<&str> = core.split('.').collect();
    numbers.len() == 3
        && numbers.into_iter().all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|p| word(p) && (!digits(p) || number(p))))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// Adds a fault where `text` is no DNS label.
pub(super) fn label(field: impl Into<String>, text: &str, faults: &mut Faults) {
    if text.is_empty() {
        faults.required(field, "");
    } else if !is_label(text) {
        let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
                   '-', start and end with an alphanumeric character, and have at most 63 characters";
        faults.invalid(field, text, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_strict() {
        for good in ["0.0.0", "595.58.3", "1.2.3-rc.1", "1.2.3+b-7", "9.0.0-a-b"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["v1.2.3", "1.2", "13.02.0", "1.2.3-", "1.2.3-01", "1.2.3.4", ""] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn names_have_their_syntax() {
        assert!(is_label("gpu-0-mig-1g10gb-19-4"));
        assert!(!is_label("gpu_0") && !is_label("-a") && !is_label(&"a".repeat(64)));
        assert!(is_pool("rack/node-1.example.com") && !is_pool("Node"));
        assert!(is_qualified("resource.kubernetes.io/pciBusID") && is_qualified("uuid"));
        assert!(!is_qualified("memory-slice-0") && !is_qualified(&"a".repeat(33)));
        assert!(is_label_key("gpu.nvidia.com/Xid_79") && !is_label_key("a/") && !is_label_key(""));
    }
}
