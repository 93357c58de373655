//! What users do in a cluster, with the tool that they have: apply, look, wait, run something in a pod.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    command::{Run, output},
    files, wait,
};

impl Cluster {
    /// kubectl, for which the kubeconfig names the namespace of the test that runs: unlike a flag, it gives
    /// way to what a manifest says.
    pub(crate) fn kubectl_command(&self) -> Command {
        let mut kubectl = Command::new(self.programs.kubernetes("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.kubeconfig());
        kubectl
    }

    /// kubectl with these arguments, to its end; what it prints.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(self.kubectl_command().args(arguments))
    }

    /// An object or a list.
    pub(crate) fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let printed = self.kubectl(&[&["get"], arguments, &["--output", "json"]].concat())?;
        Ok(serde_json::from_str(&printed)?)
    }

    /// The objects of a list.
    pub(crate) fn list(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let mut list = self.get(arguments)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("{arguments:?} names no list"),
        }
    }

    /// Applies manifests that are in a file.
    pub(crate) fn apply_file(&self, path: &Path) -> anyhow::Result<()> {
        self.kubectl_command().args(["apply", "--filename"]).arg(path).run()
    }

    /// Applies manifests, written here.
    pub(crate) fn apply(&self, manifests: &[Value]) -> anyhow::Result<()> {
        self.apply_file(&self.write_list(manifests)?)
    }

    /// Writes manifests into a file.
    pub(crate) fn write_list(&self, manifests: &[Value]) -> anyhow::Result<std::path::PathBuf> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": manifests });
        let path = self.dir().join(format!("{}.json", self.namespace));
        files::write(&path, list.to_string())?;
        Ok(path)
    }

    /// What a command prints in a pod's container.
    pub(crate) fn exec(
        &self,
        pod: &str,
        container: &str,
        command: &[&str],
    ) -> anyhow::Result<String> {
        self.kubectl(&[&["exec", pod, "--container", container, "--"], command].concat())
    }

    /// Waits until these pods are Running, each container of them ready.
    pub(crate) fn running(&self, pods: &[&str]) -> anyhow::Result<()> {
        self.reach(pods, "Running")
    }

    /// Waits until these pods have ended well.
    pub(crate) fn succeeded(&self, pods: &[&str]) -> anyhow::Result<()> {
        self.reach(pods, "Succeeded")
    }

    fn reach(&self, pods: &[&str], phase: &str) -> anyhow::Result<()> {
        wait::until(&format!("pods {pods:?} to be {phase}"), || {
            let all = self.list(&["pods"])?;
            let of = |name: &&str| all.iter().find(|pod| pod["metadata"]["name"] == **name);
            for pod in pods.iter().filter_map(of) {
                let ended =
                    ["Failed", "Succeeded"].iter().any(|end| pod["status"]["phase"] == *end);
                if ended && pod["status"]["phase"] != phase {
                    bail!("pod {} ended: {}", pod["metadata"]["name"], pod["status"]);
                }
            }
            Ok(pods.iter().all(|name| of(name).is_some_and(|pod| is_in(pod, phase))))
        })
    }

    /// Waits until so many pods of a Deployment are available.
    pub(crate) fn available(&self, deployment: &str, pods: u32) -> anyhow::Result<()> {
        wait::until(&format!("{pods} pods of {deployment} to be available"), || {
            let deployment = self.get(&["deployment", deployment])?;
            Ok(deployment["status"]["availableReplicas"] == pods)
        })
    }

    /// The pods of a Deployment, those that end included.
    pub(crate) fn pods_of(&self, deployment: &str) -> anyhow::Result<Vec<Value>> {
        self.list(&["pods", &format!("--selector=app={deployment}")])
    }

    /// Takes a pod away, and waits until it is gone.
    pub(crate) fn delete_pods(&self, pods: &[&str]) -> anyhow::Result<()> {
        self.kubectl(&[&["delete", "pod"], pods, &["--grace-period=1"]].concat()).map(drop)
    }

    /// The message of an event about a pod that has this reason and says this; waits for it.
    pub(crate) fn event(&self, pod: &str, reason: &str, says: &str) -> anyhow::Result<String> {
        let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
        let mut found = None;
        wait::until(&format!("an event {reason} of pod {pod} with `{says}`"), || {
            let events = self.list(&["events", &selector])?;
            let messages = events.iter().filter_map(|event| event["message"].as_str());
            found =
                messages.filter(|message| message.contains(says)).map(str::to_owned).next_back();
            Ok(found.is_some())
        })?;
        found.context("no event")
    }

    /// Waits until the scheduler has said why it does not place a pod; what it says.
    pub(crate) fn unschedulable(&self, pod: &str) -> anyhow::Result<String> {
        let mut said = None;
        wait::until(&format!("pod {pod} to be found unschedulable"), || {
            let pod = self.get(&["pod", pod])?;
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let scheduled = conditions.iter().find(|one| one["reason"] == "Unschedulable");
            said = scheduled.and_then(|one| one["message"].as_str().map(str::to_owned));
            Ok(said.is_some())
        })?;
        said.context("no condition")
    }

    /// Fails if the pod is not in this phase at any time while this long passes.
    pub(crate) fn stays(&self, pod: &str, phase: &str, long: Duration) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        while begun.elapsed() < long {
            let now = self.get(&["pod", pod])?;
            if now["status"]["phase"] != phase {
                bail!("pod {pod} is {}, not {phase}", now["status"]);
            }
        }
        Ok(())
    }
}

fn is_in(pod: &Value, phase: &str) -> bool {
    let ready = |pod: &Value| {
        let containers = pod["status"]["containerStatuses"].as_array();
        containers.is_some_and(|all| all.iter().all(|one| one["ready"] == true))
    };
    pod["status"]["phase"] == phase && (phase != "Running" || ready(pod))
}
