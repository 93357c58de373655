//! What came before: how often faults were seen, and how often they came back.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Extent, rules::Threshold};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A fault that comes back within this time was not cured.
const RELAPSE: SignedDuration = SignedDuration::from_hours(3);

/// Seconds that no wait exceeds.
const LONGEST_WAIT: i64 = 24 * 3600;

/// How often reports of one code were seen that make a rule count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    code: u32,
    seen: Vec<Timestamp>,
}

/// How often one fault of one part came, and when it was last over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Course {
    reason: String,
    extent: Extent,
    began: Vec<Timestamp>,
    ended: Option<Timestamp>,
    wait: i64,
}

/// Counts a report, and says how many there are within the threshold's time; never more than it asks
/// for.
pub(super) fn count(
    tallies: &mut Vec<Tally>,
    code: u32,
    threshold: Threshold,
    now: Timestamp,
) -> usize {
    let at = tallies.iter().position(|tally| tally.code == code).unwrap_or_else(|| {
        tallies.push(Tally { code, seen: Vec::new() });
        tallies.len() - 1
    });
    let seen = &mut tallies[at].seen;
    seen.retain(|&at| now.duration_since(at) < threshold.within);
    if seen.last().is_none_or(|&last| now.duration_since(last) >= threshold.apart) {
        seen.push(now);
        let surplus = seen.len().saturating_sub(threshold.times);
        seen.drain(..surplus);
    }
    seen.len()
}

/// Notes that a fault begins: how often it did within a day, and how many seconds it has to be clean
/// this time.
pub(super) fn begin(
    courses: &mut Vec<Course>,
    (reason, extent): (String, Extent),
    wait: i64,
    now: Timestamp,
) -> (usize, i64) {
    let course = course(courses, reason, extent, wait);
    course.began.retain(|&began| now.duration_since(began) < DAY);
    course.began.push(now);
    let relapse = course.ended.is_some_and(|ended| now.duration_since(ended) < RELAPSE);
    course.wait = if relapse { course.wait.saturating_mul(2).min(LONGEST_WAIT) } else { wait };
    let begun = (course.began.len(), course.wait);
    courses.retain(|course| {
        course.began.iter().chain(&course.ended).any(|&at| now.duration_since(at) < DAY)
    });
    begun
}

/// Notes that a fault, which had to be clean for so many seconds, is over.
pub(super) fn end(
    courses: &mut Vec<Course>,
    (reason, extent): (String, Extent),
    wait: i64,
    now: Timestamp,
) {
    let course = course(courses, reason, extent, wait);
    course.ended = Some(now);
    course.wait = wait;
}

fn course(courses: &mut Vec<Course>, reason: String, extent: Extent, wait: i64) -> &mut Course {
    let same = |course: &Course| course.reason == reason && course.extent == extent;
    let at = courses.iter().position(same).unwrap_or_else(|| {
        courses.push(Course { reason, extent, began: Vec::new(), ended: None, wait });
        courses.len() - 1
    });
    &mut courses[at]
}
