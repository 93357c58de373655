//! How long ago something was, for people.

use k8s_openapi::jiff::Timestamp;

/// `12m` for a time in RFC 3339, in the largest unit that is not zero; the text itself where it is
/// no time.
pub(super) fn age(since: &str, now: Timestamp) -> String {
    let Ok(then) = since.parse::<Timestamp>() else { return since.to_owned() };
    // A clock that was set back makes nothing younger than now.
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_unit_is_shown() {
        let now = "2026-03-04T12:00:00Z".parse().unwrap();
        let ages = [
            "2026-03-04T12:00:05Z",
            "2026-03-04T12:00:00Z",
            "2026-03-04T11:59:01.5Z",
            "2026-03-04T11:59:00Z",
            "2026-03-04T13:00:01+02:00",
            "2026-03-03T12:00:01Z",
            "2026-03-03T12:00:00Z",
            "2025-03-04T12:00:00Z",
            "yesterday",
        ]
        .map(|since| age(since, now));
        assert_eq!(ages, ["0s", "0s", "58s", "1m", "59m", "23h", "1d", "365d", "yesterday"]);
    }
}
