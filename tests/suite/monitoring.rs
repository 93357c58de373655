//! Dashboards and alerts: what they ask for is there, and what installs them installs just these.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use kerf::{
    metrics::{self, Metrics},
    model::{
        exposition::Kind,
        gpu::Inventory,
        health::Findings,
        sample::Samples,
        series::{self, HostnameLabel, Input, Options},
    },
};
use serde_json::Value;

fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap()
}

fn files(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(path(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn dashboards() -> BTreeMap<String, Value> {
    let boards = files("deploy/monitoring").into_iter().filter(|name| name.ends_with(".json"));
    let board = |name: String| {
        let parsed = serde_json::from_str(&read(&format!("deploy/monitoring/{name}"))).unwrap();
        (name, parsed)
    };
    boards.map(board).collect()
}

fn rules() -> Vec<Value> {
    let alerts: Value = serde_saphyr::from_str(&read("deploy/monitoring/alerts.yaml")).unwrap();
    let groups = alerts["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn variables(board: &Value) -> Vec<&Value> {
    array(&board["templating"]["list"]).iter().collect()
}

/// The queries of a dashboard's panels and variables.
fn queries(board: &Value) -> Vec<&str> {
    let targets = array(&board["panels"]).iter().flat_map(|panel| array(&panel["targets"]));
    let asked = targets.map(|target| text(&target["expr"]));
    let of_variables = variables(board).into_iter();
    asked.chain(of_variables.filter_map(|one| one["query"]["query"].as_str())).collect()
}

/// The words of PromQL that are metrics: neither text nor labels, functions, operators or variables.
fn named(query: &str) -> BTreeSet<String> {
    const AGGREGATIONS: [&str; 8] =
        ["avg", "by", "count", "group", "max", "min", "sum", "histogram_quantile"];
    const BEFORE_LABELS: [&str; 5] = ["by", "group_left", "group_right", "ignoring", "on"];
    const OPERATORS: [&str; 4] = ["and", "bool", "or", "unless"];
    let mut found = BTreeSet::new();
    let (mut rest, mut before) = (query, "");
    while let Some(first) = rest.chars().next() {
        let past =
            |end: char, from: usize| rest[from..].find(end).map_or("", |at| &rest[from + at + 1..]);
        rest = match first {
            '"' => past('"', 1),
            '{' => past('}', 1),
            '[' => past(']', 1),
            '(' if BEFORE_LABELS.contains(&before) => past(')', 1),
            '$' => rest[1..].trim_start_matches(is_of_word),
            _ if is_of_word(first) => {
                let after = rest.trim_start_matches(is_of_word);
                let word = &rest[..rest.len() - after.len()];
                let plain = !first.is_ascii_digit() && !after.trim_start().starts_with('(');
                let reserved = [&AGGREGATIONS[..], &BEFORE_LABELS, &OPERATORS].concat();
                if plain && !reserved.contains(&word) {
                    found.insert(word.to_owned());
                }
                before = word;
                rest = after;
                continue;
            }
            _ => &rest[first.len_utf8()..],
        };
        if !first.is_whitespace() {
            before = "";
        }
    }
    found
}

fn is_of_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

#[test]
fn metrics_of_a_query_are_told_from_its_other_words() {
    let query = "sum by (gpu, x) (rate(a_total{b=\"c\"}[5m])) * on (d) group_left () max(e) > bool 1e3 \
                 or vector(0) unless on (up) f_bucket and $node";
    let expected = ["a_total", "e", "f_bucket"].map(str::to_owned);
    assert_eq!(named(query), BTreeSet::from(expected));
}

/// Every name that a page can have.
fn offered() -> BTreeSet<String> {
    let options = Options {
        hostname: String::new(),
        hostname_label: HostnameLabel::default(),
        max_age: 0.0,
        xid_window: 0,
        clock_event_window: 0,
    };
    let of_gpus = series::families(&Input {
        inventory: &Inventory::default(),
        samples: &Samples::default(),
        records: &[],
        containers: &BTreeMap::new(),
        findings: &Findings::default(),
        events: &BTreeMap::new(),
        now: 0.0,
        options: &options,
    });
    let families = of_gpus.into_iter().chain(Metrics::default().families());
    let families = families.chain([metrics::readiness(true)]);
    let names = families.flat_map(|family| {
        let suffixes = match family.kind {
            Kind::Histogram => &["_bucket", "_count", "_sum"][..],
            Kind::Counter | Kind::Gauge => &[""],
        };
        suffixes.iter().map(move |suffix| format!("{}{suffix}", family.name))
    });
    // The last is Prometheus's own.
    names.chain(["up".to_owned()]).collect()
}

#[test]
fn agents_have_all_that_is_asked_for() {
    let boards = dashboards();
    let rules = rules();
    let of_boards = boards.values().flat_map(queries);
    let mut asked: BTreeSet<String> =
        of_boards.chain(rules.iter().map(|rule| text(&rule["expr"]))).flat_map(named).collect();
    // `label_values(metric, label)` is Grafana's own: its labels look like metrics.
    for label in ["gpu", "hostname", "instance", "namespace"] {
        asked.remove(label);
    }
    assert!(asked.len() > 40, "{asked:?}");
    let missing: Vec<_> = asked.difference(&offered()).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn dashboards_can_be_imported_side_by_side() {
    let boards = dashboards();
    let names: Vec<_> = boards.keys().collect();
    assert_eq!(names, ["fleet.json", "gpu.json", "node.json"]);
    for (name, board) in &boards {
        assert_eq!(text(&board["uid"]), format!("kerf-{}", name.trim_end_matches(".json")));
        let panels = array(&board["panels"]);
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{name}: ids of panels");
        for panel in panels {
            let title = text(&panel["title"]);
            assert!(
                panel["type"] == "row" || !array(&panel["targets"]).is_empty(),
                "{name}: {title}"
            );
            for target in array(&panel["targets"]) {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {title}");
            }
        }
    }
}

#[test]
fn variables_are_declared_and_used() {
    // Grafana's own.
    const BUILT_IN: [&str; 1] = ["__rate_interval"];
    for (name, board) in dashboards() {
        let declared: BTreeSet<_> =
            variables(&board).iter().map(|one| text(&one["name"]).to_owned()).collect();
        let queries = queries(&board);
        let used = queries.iter().flat_map(|query| query.split('$').skip(1));
        let used = used.map(|rest| rest.split(|letter| !is_of_word(letter)).next().unwrap());
        let mut used: BTreeSet<_> =
            used.filter(|used| !BUILT_IN.contains(used)).map(str::to_owned).collect();
        used.insert("datasource".to_owned());
        assert_eq!(used, declared, "{name}");
    }
}

#[test]
fn alerts_say_what_is_wrong_and_what_to_do() {
    let mut listed = String::new();
    for rule in rules() {
        let name = text(&rule["alert"]);
        for annotation in ["summary", "description", "runbook"] {
            assert!(!text(&rule["annotations"][annotation]).is_empty(), "{name}: {annotation}");
        }
        listed += &format!("{name} {}\n", text(&rule["labels"]["severity"]));
    }
    let readme = read("deploy/monitoring/README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| Kerf"));
    let row = |row: &str| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        format!("{} {}\n", cells[1], cells[3])
    };
    assert_eq!(rows.map(row).collect::<String>(), listed);
}

#[test]
fn the_chart_has_the_files_that_are_shown_here() {
    let mut shown = files("deploy/monitoring");
    shown.remove("README.md");
    assert_eq!(shown, files("deploy/helm/kerf/monitoring"));
    for file in shown {
        let [shown, has] = ["deploy/monitoring", "deploy/helm/kerf/monitoring"]
            .map(|folder| path(folder).join(&file).canonicalize().unwrap());
        assert_eq!(shown, has);
    }
    let template = read("deploy/helm/kerf/templates/monitoring.yaml");
    for from in ["$.Files.Get \"monitoring/alerts.yaml\"", "$.Files.Glob \"monitoring/*.json\""] {
        assert!(template.contains(from), "{from}");
    }
}
