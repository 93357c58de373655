//! Every manifest of `examples/`: as it is, and with programs that wait, so that one can look into them.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{cluster::Cluster, install::root, manifests::WAIT, suite::Test};

pub(super) fn tests() -> anyhow::Result<Vec<Test>> {
    let mut paths: Vec<_> = fs::read_dir(root().join("examples"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "yaml"));
    paths.sort();
    let test = |path: std::path::PathBuf| Test {
        suite: "examples",
        name: path.file_stem().unwrap_or_default().display().to_string(),
        run: Box::new(move |cluster| example(cluster, &path)),
    };
    Ok(paths.into_iter().map(test).collect())
}

fn example(cluster: &mut Cluster, path: &Path) -> anyhow::Result<()> {
    let file = path.display().to_string();
    let printed = cluster.kubectl(&["create", "--dry-run=client", "--output=json", "-f", &file])?;
    let objects: Vec<Value> = serde_json::Deserializer::from_str(&printed)
        .into_iter()
        .collect::<Result<_, _>>()
        .with_context(|| format!("kubectl prints no JSON of {file}"))?;
    let test = cluster.namespace.clone();
    let own = objects.iter().find(|object| object["kind"] == "Namespace");
    let own = own.and_then(|object| object["metadata"]["name"].as_str().map(str::to_owned));
    let pods: Vec<_> = objects.iter().filter(|object| object["kind"] == "Pod").collect();
    let names: Vec<_> = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    ensure!(!names.is_empty(), "{file} has no pod");

    cluster.apply_file(path)?;
    if let Some(own) = &own {
        cluster.work_in(own)?;
    }
    cluster.succeeded(&names)?;
    for pod in &names {
        let log = cluster.kubectl(&["logs", pod, "--all-containers"])?;
        ensure!(log.contains("(UUID: GPU-"), "the log of {pod} lists no GPU: {log}");
    }
    cluster.delete_pods(&names)?;

    let waiting: Vec<_> = pods.into_iter().cloned().map(wait_instead).collect();
    cluster.apply(&waiting)?;
    cluster.running(&names)?;
    names.iter().try_for_each(|pod| cluster.check_devices(pod))?;
    cluster.empty()?;
    if own.is_some() {
        cluster.leave()?;
    }
    cluster.work_in(&test)
}

/// The same pod, whose containers do nothing.
fn wait_instead(mut pod: Value) -> Value {
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["command"] = json!(WAIT);
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("namespace");
    }
    pod
}
