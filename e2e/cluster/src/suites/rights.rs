//! What somebody can do who takes over a node and finds the agent's token there: for each right of docs/install.md what
//! lies just beyond it is tried, with that token. All rights that are optional are given.

mod lines;
mod token;

use std::{collections::BTreeSet, fs};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use self::token::Token;
use super::tests;
use crate::{
    cluster::Cluster,
    install::{self, root},
};

tests!("rights":
    each_line_of_the_table_ends_where_it_says,
    no_right_is_missing_in_the_table,
    what_is_in_no_line_is_refused,
);

/// What gives all rights that there are.
const ALL: [&str; 5] = [
    "interface=both",
    "claimStatus=true",
    "health.evictPluginPods=true",
    "health.evictOn={driver}",
    "devicePlugin.config.default.version=v1",
];

/// Does something while agents have all rights.
fn with_all_rights(
    cluster: &Cluster,
    test: impl FnOnce(&Token<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    install::install(cluster, &ALL)?;
    let there = install::rolled_out(cluster);
    let tested = there.and_then(|()| Token::of_node(cluster)).and_then(|token| test(&token));
    install::install(cluster, &[])?;
    tested
}

/// The first cells of the table of rights.
fn table() -> anyhow::Result<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/install.md"))?;
    let (_, table) =
        page.split_once("| right | for | without it |\n").context("no table of rights")?;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    Ok(rows.filter_map(|row| row.split(" | ").next()).map(|cell| cell[2..].to_owned()).collect())
}

fn each_line_of_the_table_ends_where_it_says(cluster: &mut Cluster) -> anyhow::Result<()> {
    let cluster = &*cluster;
    let lines: BTreeSet<_> = table()?.into_iter().collect();
    let tested: BTreeSet<_> = lines::ALL.iter().map(|(line, _)| (*line).to_owned()).collect();
    ensure!(lines == tested, "the table has {lines:#?}, and tests are of {tested:#?}");
    with_all_rights(cluster, |token| {
        for (line, test) in lines::ALL {
            test(cluster, token).with_context(|| line.to_owned())?;
        }
        Ok(())
    })
}

/// Nor in the table one that is not given. A right is a verb and a resource.
fn no_right_is_missing_in_the_table(cluster: &mut Cluster) -> anyhow::Result<()> {
    let cluster = &*cluster;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": cluster.namespace },
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    with_all_rights(cluster, |token| {
        let may = |token: &Token<'_>| {
            let mut answer = token.may("POST", path, &review)?;
            anyhow::Ok(rights(&answer["status"]["resourceRules"].take()))
        };
        let (given, everybody) = (may(token)?, may(&Token::of_anybody(cluster)?)?);
        let role = rights(&cluster.get(&["clusterrole", "kerf"])?["rules"]);
        let given: BTreeSet<_> = given.difference(&everybody).cloned().collect();
        ensure!(given == role, "the agent may {given:#?}, and its role has {role:#?}");
        let named: BTreeSet<_> = table()?.iter().flat_map(|line| named(line)).collect();
        ensure!(named == role, "the table names {named:#?}, and the role has {role:#?}");
        Ok(())
    })
}

/// `verb resource`, of rules.
fn rights(rules: &Value) -> BTreeSet<String> {
    let words = |list: &Value| -> Vec<String> {
        let words = list.as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let rules = rules.as_array().into_iter().flatten();
    let of_rule = rules.flat_map(|rule| {
        let (resources, verbs) = (words(&rule["resources"]), words(&rule["verbs"]));
        let all = resources.into_iter().flat_map(move |resource| {
            verbs.clone().into_iter().map(move |verb| format!("{verb} {resource}"))
        });
        all.collect::<Vec<_>>()
    });
    of_rule.collect()
}

/// The same of a line such as "`pods`: get, `pods/eviction`: create, with `a.value`".
fn named(line: &str) -> Vec<String> {
    let line = line.split(", with `").next().unwrap_or_default();
    let (mut resource, mut rights) = ("", Vec::new());
    for word in line.split(", ") {
        let verb = match word.split_once('`').and_then(|(_, rest)| rest.split_once('`')) {
            Some((name, rest)) => {
                resource = name;
                rest.split_once(": ").map_or(rest, |(_, verb)| verb)
            }
            None => word,
        };
        let verb = verb.split(' ').next().unwrap_or_default();
        rights.push(format!("{verb} {resource}"));
    }
    rights
}

fn what_is_in_no_line_is_refused(cluster: &mut Cluster) -> anyhow::Result<()> {
    let cluster = &*cluster;
    let namespaced = |path: &str| format!("/api/v1/namespaces/{}/{path}", cluster.namespace);
    let named = |kind: &str, version: &str| json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "mine" } });
    with_all_rights(cluster, |token| {
        let nothing = Value::Null;
        let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        let proxy = format!("/api/v1/nodes/{}/proxy/pods", token.node);
        let account = "/api/v1/namespaces/kube-system/serviceaccounts";
        for (method, path, body) in [
            ("GET", "/api/v1/secrets", nothing.clone()),
            ("GET", &namespaced("secrets/mine"), nothing.clone()),
            ("GET", &namespaced("configmaps"), nothing.clone()),
            ("GET", "/api/v1/pods", nothing.clone()),
            ("POST", &namespaced("pods"), named("Pod", "v1")),
            ("DELETE", &namespaced("pods/mine"), nothing.clone()),
            ("GET", &namespaced("pods/mine/log"), nothing.clone()),
            ("POST", &namespaced("pods/mine/exec?command=sh"), nothing.clone()),
            ("GET", &proxy, nothing.clone()),
            (
                "POST",
                &format!("{account}/kerf/token"),
                named("TokenRequest", "authentication.k8s.io/v1"),
            ),
            ("GET", roles, nothing.clone()),
            ("DELETE", &format!("{roles}/kerf"), nothing.clone()),
            ("DELETE", &format!("{policies}/kerf-slices"), nothing.clone()),
            ("DELETE", &format!("{policies}/kerf-claim-status"), nothing.clone()),
            ("DELETE", &format!("{policies}/kerf-evictions"), nothing.clone()),
            ("DELETE", "/apis/resource.k8s.io/v1/deviceclasses/gpu.nvidia.com", nothing.clone()),
            ("DELETE", "/apis/apps/v1/namespaces/kube-system/daemonsets/kerf", nothing.clone()),
        ] {
            token.may_not(method, path, &body)?;
        }
        Ok(())
    })
}
