//! The queries of dashboards, as Grafana asks them: from the files, with each value that a variable can have.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{install::root, prometheus::Prometheus, wait};

/// A panel's query, with all choices of variables.
#[derive(Debug)]
struct Query {
    panel: String,
    asked: Vec<String>,
}

/// Values of variables.
type Choice = BTreeMap<String, String>;

/// Waits until each query of each panel has given a number, with some choice of variables.
pub(super) fn have_data(prometheus: &Prometheus<'_>) -> anyhow::Result<()> {
    let mut empty = queries(prometheus)?;
    ensure!(empty.len() > 80, "dashboards have {} queries", empty.len());
    let waited = wait::until("every panel to have data", || {
        let all = std::mem::take(&mut empty);
        for query in all {
            if !has_data(prometheus, &query)? {
                empty.push(query);
            }
        }
        Ok(empty.is_empty())
    });
    let empty: Vec<_> = empty.iter().map(|query| (&query.panel, query.asked.first())).collect();
    waited.with_context(|| format!("without data: {empty:#?}"))
}

fn has_data(prometheus: &Prometheus<'_>, query: &Query) -> anyhow::Result<bool> {
    for asked in &query.asked {
        let series = prometheus.query(asked).with_context(|| query.panel.clone())?;
        let value = |series: &Value| series["value"][1].as_str().and_then(|text| text.parse().ok());
        // A quantile of nothing is not a number.
        if series.iter().filter_map(value).any(|value: f64| !value.is_nan()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn queries(prometheus: &Prometheus<'_>) -> anyhow::Result<Vec<Query>> {
    let mut queries = Vec::new();
    for entry in fs::read_dir(root().join("deploy/monitoring"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let board: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let choices = choices(prometheus, &board)?;
        ensure!(!choices.is_empty(), "{} has nothing to choose from", path.display());
        for panel in board["panels"].as_array().into_iter().flatten() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().context("a target has an expression")?;
                let asked = choices.iter().map(|choice| filled(expression, choice)).collect();
                let panel = format!("{}, {}: {expression}", board["title"], panel["title"]);
                queries.push(Query { panel, asked });
            }
        }
    }
    Ok(queries)
}

/// What can be chosen on a dashboard, in all combinations.
fn choices(prometheus: &Prometheus<'_>, board: &Value) -> anyhow::Result<Vec<Choice>> {
    let mut choices = vec![Choice::new()];
    for variable in board["templating"]["list"].as_array().into_iter().flatten() {
        if variable["type"] != "query" {
            continue;
        }
        let name = variable["name"].as_str().context("a variable has a name")?;
        let query = variable["query"]["query"].as_str().context("a variable has a query")?;
        let mut more = Vec::new();
        for choice in choices {
            let values = values(prometheus, &filled(query, &choice))?;
            ensure!(!values.is_empty(), "{}: `{query}` has no values", board["title"]);
            // The choice of all of them.
            let all = variable["allValue"].as_str().map(|all| vec![all.to_owned()]);
            let with = |value| {
                choice.iter().map(|(k, v)| (k.clone(), v.clone())).chain([(name.to_owned(), value)])
            };
            more.extend(all.unwrap_or(values).into_iter().map(|value| with(value).collect()));
        }
        choices = more;
    }
    Ok(choices)
}

/// `label_values(selector, label)`.
fn values(prometheus: &Prometheus<'_>, query: &str) -> anyhow::Result<Vec<String>> {
    let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let (selector, label) = inner
        .and_then(|inner| inner.rsplit_once(", "))
        .with_context(|| format!("`{query}` is not `label_values(selector, label)`"))?;
    prometheus.values(selector, label)
}

fn filled(query: &str, choice: &Choice) -> String {
    let query = query.replace("$__rate_interval", "5m");
    choice.iter().fold(query, |query, (name, value)| query.replace(&format!("${name}"), value))
}
