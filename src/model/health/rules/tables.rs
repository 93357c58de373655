//! The rules as tables in Markdown, for people.

use std::fmt::Write;

use super::{End, Rule, Scope, Severity, Threshold, UNKNOWN, Verdict, When, readings, span, xids};

/// The rules for XIDs, one row a rule, in the order of their codes.
pub fn xid_table() -> String {
    let mut table = "| XID | meaning | verdict | concerns | ends with | what to do |\n".to_owned();
    table += "| --- | --- | --- | --- | --- | --- |\n";
    for rule in xids::RULES.iter().chain([&UNKNOWN]) {
        let star = if rule.outranked { " *" } else { "" };
        let _ = writeln!(
            table,
            "| {}{star} | {} | {} | {} | {} | {} |",
            codes(rule),
            rule.meaning,
            verdict(rule),
            concerns(rule.scope),
            ends(rule),
            rule.action
        );
    }
    table
}

/// The rules for readings, and for events without an XID.
pub fn reading_table() -> String {
    let mut table =
        "| reason | shows as | meaning | verdict | ends with | what to do |\n".to_owned();
    table += "| --- | --- | --- | --- | --- | --- |\n";
    for rule in readings::RULES.iter().chain([&readings::UNKNOWN_ACTION]) {
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} | {} | {} |",
            rule.reason,
            rule.shows,
            rule.message,
            severity(rule.severity, rule.keeps_running_work),
            rule.ends,
            rule.action
        );
    }
    table
}

fn codes(rule: &Rule) -> String {
    let codes = rule.codes.iter().map(|codes| match (codes.start(), codes.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    let codes = codes.collect::<Vec<_>>().join(", ");
    let when = match rule.when {
        When::Any if codes.is_empty() => "every other",
        When::Any => "",
        When::BeforeAmpere => " before Ampere",
        When::Fatal => " fatal",
        When::FatalOrUntold => " fatal or not told",
        When::NonFatal => " not fatal",
        When::NonFatalOrUntold => " not fatal or not told",
    };
    codes + when
}

fn verdict(rule: &Rule) -> String {
    match rule.verdict {
        Verdict::Notice => "none".to_owned(),
        Verdict::Event => "none; unhealthy if enabled".to_owned(),
        Verdict::At(of) => severity(of, rule.keeps_running_work).to_owned(),
        Verdict::Repeated(of) => format!("none; {}: warning", times(of)),
        Verdict::Mounting(of) => format!("warning; {}: unhealthy", times(of)),
    }
}

fn severity(severity: Severity, keeps_running_work: bool) -> &'static str {
    match severity {
        Severity::Unhealthy if keeps_running_work => "unhealthy, running work goes on",
        severity => severity.name(),
    }
}

fn times(threshold: Threshold) -> String {
    format!("{} in {}", threshold.times, span(threshold.within))
}

fn concerns(scope: Scope) -> &'static str {
    match scope {
        Scope::Application => "the program",
        Scope::Instance => "the instance",
        Scope::Gpu => "the GPU",
    }
}

fn ends(rule: &Rule) -> String {
    match rule.verdict {
        Verdict::Event => format!("{}; {} if enabled", End::AtOnce, End::Reset),
        Verdict::Mounting(_) => format!("{}; 1 h without it while a warning", rule.ends),
        _ => rule.ends.to_string(),
    }
}
