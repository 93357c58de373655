//! A real Prometheus, Debian's, that scrapes the agents of a cluster as `deploy/monitoring` says, and what it answers.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::{cluster::Cluster, files, install::root, wait};

/// Where it listens.
const ADDRESS: &str = "127.0.0.1:19090";

/// Its name among the cluster's programs.
pub(crate) const NAME: &str = "prometheus";

/// Longer than anybody takes to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One that runs for as long as this is there.
pub(crate) struct Prometheus<'c> {
    cluster: &'c Cluster,
}

impl<'c> Prometheus<'c> {
    /// Starts it, with nothing in it, and waits until every node's agent has been scraped.
    pub(crate) fn start(cluster: &'c Cluster) -> anyhow::Result<Self> {
        let dir = cluster.dir().join(NAME);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        let path = dir.join("prometheus.yml");
        files::write(&path, configuration(cluster)?)?;
        let mut prometheus = Command::new("prometheus");
        prometheus.arg("--config.file").arg(path);
        prometheus.arg("--storage.tsdb.path").arg(dir.join("data"));
        prometheus.args(["--web.listen-address", ADDRESS, "--log.level", "warn"]);
        cluster.daemons.start(NAME, &mut prometheus)?;
        let prometheus = Self { cluster };
        let agents = cluster.nodes().len();
        wait::until("Prometheus to have scraped all agents", || {
            let up = prometheus.query("up == 1 and on (job, instance) kerf_build_info");
            Ok(up.is_ok_and(|up| up.len() == agents))
        })?;
        Ok(prometheus)
    }

    /// The series that an expression selects or makes now.
    pub(crate) fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let mut data = api(&format!("query?query={}", encoded(expression)))?;
        match data["result"].take() {
            Value::Array(series) => Ok(series),
            other => bail!("`{expression}` is {other}"),
        }
    }

    /// Waits until an expression selects so many series; which.
    pub(crate) fn selects(&self, count: usize, expression: &str) -> anyhow::Result<Vec<Value>> {
        let mut series = Vec::new();
        let waited = wait::until("series", || {
            series = self.query(expression)?;
            Ok(series.len() == count)
        });
        waited.with_context(|| format!("`{expression}` is not {count} series, but {series:?}"))?;
        Ok(series)
    }

    /// The values that a label has in the series of a selector.
    pub(crate) fn values(&self, selector: &str, label: &str) -> anyhow::Result<Vec<String>> {
        let mut data = api(&format!("label/{label}/values?match[]={}", encoded(selector)))?;
        Ok(serde_json::from_value(data.take())?)
    }

    /// The alerts that it was given, each with those that wait or fire now.
    pub(crate) fn alerts(&self) -> anyhow::Result<Vec<Value>> {
        let data = api("rules?type=alert")?;
        let groups = data["groups"].as_array().context("there are no groups of rules")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        Ok(rules.flatten().cloned().collect())
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.daemons.stop(NAME) {
            println!("        Prometheus does not end: {error:#}");
        }
    }
}

/// With what users are told to write, and times for a test.
fn configuration(cluster: &Cluster) -> anyhow::Result<String> {
    let deploy = root().join("deploy/monitoring");
    let readme = fs::read_to_string(deploy.join("README.md"))?;
    let blocks = readme.split("```yaml\n").skip(1);
    let mut blocks = blocks.filter_map(|block| block.split("```").next());
    let scrape = blocks.find(|block| block.starts_with("scrape_configs:"));
    let scrape = scrape.context("deploy/monitoring/README.md does not say how to scrape")?;
    // Debian's is built without it.
    let discovery = "kubernetes_sd_configs:\n      - role: pod\n";
    ensure!(scrape.contains(discovery), "deploy/monitoring/README.md does not find pods");
    let found = format!("static_configs: {}\n", Value::Array(targets(cluster)?));
    let alerts = deploy.join("alerts.yaml");
    Ok(format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
         rule_files: ['{}']\n{}",
        alerts.display(),
        scrape.replace(discovery, &found)
    ))
}

/// The ports of pods, with the labels under which Prometheus's discovery finds them.
fn targets(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let mut targets = Vec::new();
    for pod in cluster.list(&["pods", "--all-namespaces"])? {
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            for port in container["ports"].as_array().into_iter().flatten() {
                targets.push(json!({
                    "targets": [format!("{ip}:{}", port["containerPort"])],
                    "labels": {
                        "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
                        "__meta_kubernetes_pod_container_port_name": port["name"],
                        "__meta_kubernetes_pod_label_app_kubernetes_io_name":
                            pod["metadata"]["labels"]["app.kubernetes.io/name"],
                        "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                        "__meta_kubernetes_pod_node_name": pod["spec"]["nodeName"],
                    },
                }));
            }
        }
    }
    Ok(targets)
}

/// What its HTTP API has to say.
fn api(path: &str) -> anyhow::Result<Value> {
    let mut answer: Value = serde_json::from_str(&fetch(ADDRESS, &format!("/api/v1/{path}"))?)?;
    Ok(answer["data"].take())
}

/// The body of a page.
pub(crate) fn fetch(address: &str, path: &str) -> anyhow::Result<String> {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // A later version could have its answer in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = ask().with_context(|| format!("cannot ask {address} for {path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("this is no answer of HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{address} answers {path} with {status}: {body}");
    Ok(body.to_owned())
}

/// As a part of a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' => {
                encoded.push(char::from(byte));
            }
            // Writing to a `String` cannot fail.
            _ => write!(encoded, "%{byte:02X}").unwrap_or_default(),
        }
    }
    encoded
}
