//! Names of extended resources.

/// Whose resources they are.
const PREFIX: &str = "nvidia.com/";
/// Longest name, prefix and all: it is also a label's key and a socket's name.
const LONGEST: usize = 63;

/// The full name of a resource, `nvidia.com/` put before it where it is not there yet; `None` where that
/// is no name: what follows the prefix has to be a DNS subdomain, and all of it 63 characters at most.
pub fn full_name(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    let full = format!("{PREFIX}{rest}");
    (full.len() <= LONGEST && rest.split('.').all(is_dns_label)).then_some(full)
}

fn is_dns_label(label: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !label.is_empty()
        && label.chars().all(inside)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_added_once() {
        for (name, full) in [
            ("gpu", "nvidia.com/gpu"),
            ("nvidia.com/gpu", "nvidia.com/gpu"),
            ("mig-1g.10gb.me", "nvidia.com/mig-1g.10gb.me"),
            ("mig-1g.10gb-me", "nvidia.com/mig-1g.10gb-me"),
        ] {
            assert_eq!(full_name(name), Some(full.to_owned()), "{name}");
        }
        assert_eq!(full_name(&"a".repeat(52)).map(|full| full.len()), Some(63));
        assert_eq!(full_name(&"a".repeat(53)), None);
    }

    #[test]
    fn what_is_no_dns_subdomain_is_no_name() {
        for name in [
            "",
            "nvidia.com/",
            "Gpu",
            "gpu_a",
            "-gpu",
            "gpu-",
            "a..b",
            ".a",
            "a b",
            "ü",
            "amd.com/gpu",
        ] {
            assert_eq!(full_name(name), None, "{name}");
        }
    }
}
