//! Keys and certificates of a cluster: one authority, which signs everybody.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::Run,
    control_plane::{ADDRESS, URL},
    files,
};

/// Of a kind that takes no time to make.
const NEW_KEY: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// A directory of keys and certificates.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes the authority, and those of the control plane.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let pki = Self { dir: dir.to_owned() };
        let mut authority = pki.openssl();
        authority.args(["req", "-x509", "-nodes", "-days", "30"]).args(NEW_KEY);
        authority.args(["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca"]).run()?;
        let server = format!(
            "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:{ADDRESS}"
        );
        pki.sign("apiserver", "/CN=kube-apiserver", &server)?;
        pki.sign("admin", "/O=system:masters/CN=admin", "DNS:localhost")?;
        let curve = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"];
        pki.openssl().args(curve).run()?;
        pki.openssl().args(["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"]).run()?;
        Ok(pki)
    }

    fn openssl(&self) -> Command {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(&self.dir);
        openssl
    }

    /// A key and its certificate.
    pub(crate) fn sign(&self, name: &str, subject: &str, names: &str) -> anyhow::Result<()> {
        let [key, request, certificate, extensions] =
            ["key", "csr", "crt", "ext"].map(|kind| format!("{name}.{kind}"));
        files::write(&self.dir.join(&extensions), format!("subjectAltName={names}\n"))?;
        let mut make = self.openssl();
        make.args(["req", "-nodes", "-keyout", &key, "-out", &request]).args(NEW_KEY);
        make.args(["-subj", subject]).run()?;
        let mut sign = self.openssl();
        sign.args(["x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key"]);
        sign.args(["-CAcreateserial", "-days", "30", "-extfile", &extensions]);
        sign.args(["-out", &certificate]).run()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a kubeconfig for who has this certificate, and works in this namespace.
    pub(crate) fn kubeconfig(
        &self,
        user: &str,
        namespace: &str,
        path: &Path,
    ) -> anyhow::Result<()> {
        let file = |name: String| self.file(&name).display().to_string();
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "clusters": [{ "name": "e2e", "cluster": {
                "server": URL, "certificate-authority": file("ca.crt".to_owned()),
            } }],
            "users": [{ "name": user, "user": {
                "client-certificate": file(format!("{user}.crt")),
                "client-key": file(format!("{user}.key")),
            } }],
            "contexts": [{ "name": "e2e", "context": {
                "cluster": "e2e", "user": user, "namespace": namespace,
            } }],
        });
        files::write(path, config.to_string())
    }
}
