use super::*;

const TOLD: [Option<bool>; 3] = [None, Some(false), Some(true)];

/// The rows that a report falls under.
fn rows(code: u32, fatal: Option<bool>, before_ampere: bool) -> usize {
    let holds = |rule: &&Rule| {
        rule.codes.iter().any(|codes| codes.contains(&code))
            && rule.when.holds(fatal, before_ampere)
    };
    xids::RULES.iter().filter(holds).count()
}

#[test]
fn no_code_has_two_rules() {
    for (fatal, old) in TOLD.into_iter().flat_map(|fatal| [(fatal, false), (fatal, true)]) {
        for code in 1..=200 {
            let unknown = of(code, fatal, old).class == Class::Unknown;
            assert_eq!(rows(code, fatal, old), usize::from(!unknown), "{code} {fatal:?} {old}");
        }
    }
}

#[test]
fn codes_without_a_rule_are_those_that_nobody_has_met() {
    let unknown: Vec<u32> =
        (1..=200).filter(|&code| of(code, None, false).class == Class::Unknown).collect();
    let expected = [1..=7, 9..=10, 12..=12, 15..=24, 26..=30, 33..=36, 42..=42, 47..=47, 49..=53]
        .into_iter()
        .chain([55..=59, 61..=61, 65..=65, 73..=73, 81..=81, 87..=87, 90..=91, 111..=118])
        .chain([138..=138, 177..=200]);
    assert_eq!(unknown, expected.flatten().collect::<Vec<u32>>());
}

#[test]
fn the_table_is_in_the_order_of_codes() {
    let first = xids::RULES.iter().map(|rule| *rule.codes[0].start());
    assert!(first.clone().is_sorted_by_key(|code| if code == 147 { 144 } else { code }));
    assert!(xids::RULES.iter().all(|rule| rule.codes.is_sorted_by_key(|codes| *codes.start())));
}

#[test]
fn texts_are_lines_as_people_write_them() {
    let texts = xids::RULES.iter().flat_map(|rule| [rule.meaning, rule.action]);
    let readings = readings::RULES.iter().flat_map(|rule| [rule.message, rule.action]);
    for text in texts.chain(readings) {
        let word = text.split(' ').next().unwrap();
        let name = word.chars().skip(1).any(char::is_uppercase);
        assert!(name || !word.starts_with(char::is_uppercase), "{text}");
        assert!(!text.ends_with('.') && !text.contains('\n') && !text.contains('|'), "{text}");
    }
}

#[test]
fn reasons_are_label_values_of_one_condition() {
    let mut reasons: Vec<_> = readings::RULES.iter().map(|rule| rule.reason).collect();
    for rule in readings::RULES {
        assert_eq!(rule.condition.rule().condition, rule.condition);
        assert_eq!(rule.condition.reason(), rule.reason);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(rule.reason.chars().all(plain), "{}", rule.reason);
    }
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), readings::RULES.len());
}

#[test]
fn the_tables_read_like_this() {
    insta::assert_snapshot!("xids", xid_table());
    insta::assert_snapshot!("readings", reading_table());
}

#[test]
fn operators_read_the_same_tables() {
    let page = include_str!("../../../../docs/health.md");
    for table in [xid_table(), reading_table()] {
        assert!(page.contains(&table), "docs/health.md lacks:\n{table}");
    }
}
