//! The agent's token, and what the API server says to whoever has it.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    command::output,
    install::{self, NAMESPACE},
};

const SERVER: &str = "10.96.0.1:443";

/// A token, and the server that it is for.
pub(super) struct Token<'c> {
    cluster: &'c Cluster,
    token: String,
    /// Where its agent runs.
    pub(super) node: &'c str,
}

/// What the server answers.
pub(super) struct Answer {
    status: u16,
    pub(super) body: Value,
}

impl<'c> Token<'c> {
    /// As whoever takes over a node finds it, in the agent's pod.
    pub(super) fn of_node(cluster: &'c Cluster) -> anyhow::Result<Self> {
        let node = cluster.node();
        let pods = install::pods(cluster)?;
        let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == *node.name);
        let uid =
            pod.context("no agent")?["metadata"]["uid"].as_str().context("a pod has a UID")?;
        let path = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/*/token");
        let token = output(node.command("sh")?.args(["-c", &format!("cat {path}")]))?;
        Ok(Self { cluster, token, node: &node.name })
    }

    /// One of the same account that is of no pod.
    pub(super) fn unbound(cluster: &'c Cluster) -> anyhow::Result<Self> {
        Self::made(cluster, "kerf", NAMESPACE)
    }

    /// One of an account that was given nothing.
    pub(super) fn of_anybody(cluster: &'c Cluster) -> anyhow::Result<Self> {
        Self::made(cluster, "default", &cluster.namespace)
    }

    fn made(cluster: &'c Cluster, account: &str, namespace: &str) -> anyhow::Result<Self> {
        let token = cluster.kubectl(&["create", "token", account, "--namespace", namespace])?;
        Ok(Self { cluster, token, node: "" })
    }

    /// Asks for something as just these words of HTTP: tools would ask for more.
    pub(super) fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {SERVER}\r\nAuthorization: Bearer {}\r\nAccept: application/json\r\n\
             Content-Type: application/{kind}\r\nContent-Length: {}\r\n\r\n{body}",
            self.token.trim(),
            body.len()
        );
        let mut tls = Command::new("openssl");
        tls.args([
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-verify_return_error",
            "-connect",
            SERVER,
        ]);
        tls.arg("-CAfile").arg(self.cluster.pki().file("ca.crt"));
        tls.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut tls = tls.spawn()?;
        // It ends with the connection, not with what it reads.
        let mut stdin = tls.stdin.take().context("stdin is piped")?;
        stdin.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        tls.stdout.take().context("stdout is piped")?.read_to_end(&mut answer)?;
        tls.wait()?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("the server answers no HTTP")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        Ok(Answer { status: status.context("an answer has a status")?, body })
    }

    /// Checks that the server lets it.
    pub(super) fn may(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.ask(method, path, body)?;
        ensure!((200..300).contains(&answer.status), "{method} {path}: {}", answer.body);
        Ok(answer.body)
    }

    /// Checks that the server refuses it because of who asks.
    pub(super) fn may_not(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        self.is_told(method, path, body, " cannot ")
    }

    /// Checks that a policy refuses it with just this line.
    pub(super) fn denied(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        line: &str,
    ) -> anyhow::Result<()> {
        self.is_told(method, path, body, &format!("denied request: {line}"))
    }

    /// Checks that the server refuses it, for whatever reason.
    pub(super) fn refused(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        self.is_told(method, path, body, "orbidden")
    }

    fn is_told(&self, method: &str, path: &str, body: &Value, words: &str) -> anyhow::Result<()> {
        let Answer { status, body } = self.ask(method, path, body)?;
        let said = body["message"].as_str().unwrap_or_default();
        ensure!(
            [403, 422].contains(&status) && said.contains(words),
            "{method} {path} of {}: {status} `{said}`, without `{words}`",
            self.node
        );
        Ok(())
    }
}
