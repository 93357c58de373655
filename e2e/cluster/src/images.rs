//! Images, written as OCI archives without any builder: one layer, its configuration, a manifest.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::command::output;

/// What holds a pod's namespaces.
pub(crate) const SANDBOX: &str = "docker.io/library/kerf-e2e-pause:1";

/// What `examples/` run in.
pub(crate) const UBUNTU: &str = "docker.io/library/ubuntu:24.04";

/// What is in an image.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) entrypoint: Vec<String>,
    /// Directories, files and links by their path in the image.
    entries: Vec<(String, Entry)>,
}

#[derive(Debug)]
enum Entry {
    Directory(u32),
    File(PathBuf),
    Text(String),
    Link(String),
}

impl Image {
    /// With the directories that every container has mounts on.
    pub(crate) fn new() -> Self {
        let directories = ["dev", "etc", "proc", "run", "sys", "usr", "usr/bin", "usr/lib", "var"];
        let mut image = Self::default();
        for directory in directories {
            image.entries.push((directory.to_owned(), Entry::Directory(0o755)));
        }
        image.entries.push(("tmp".to_owned(), Entry::Directory(0o1777)));
        image
    }

    pub(crate) fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub(crate) fn file(mut self, path: &str, from: &Path) -> Self {
        self.entries.push((path.to_owned(), Entry::File(from.to_owned())));
        self
    }

    pub(crate) fn text(mut self, path: &str, text: &str) -> Self {
        self.entries.push((path.to_owned(), Entry::Text(text.to_owned())));
        self
    }

    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        self.entries.push((path.to_owned(), Entry::Link(target.to_owned())));
        self
    }

    /// Adds the shared libraries that a program is linked to, and the loader, where it looks for them.
    pub(crate) fn libraries_of(mut self, program: &Path) -> anyhow::Result<Self> {
        let listed = output(Command::new("ldd").arg(program))?;
        let present: BTreeSet<_> = self.entries.iter().map(|(path, _)| path.clone()).collect();
        for path in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let name = path.trim_start_matches('/').to_owned();
            if !present.contains(&name) {
                self.entries.push((name, Entry::File(PathBuf::from(path))));
            }
        }
        Ok(self)
    }

    /// Writes the archive under a name; how many bytes the layer has.
    pub(crate) fn write(&self, name: &str, to: &Path) -> anyhow::Result<u64> {
        let layer = self.layer()?;
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": { "type": "layers", "diff_ids": [hash(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": [blob("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut described = blob("application/vnd.oci.image.manifest.v1+json", &manifest);
        described["annotations"] = json!({
            "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name,
        });
        let index = json!({ "schemaVersion": 2, "manifests": [described] }).to_string();

        let file = File::create(to).with_context(|| format!("cannot write `{}`", to.display()))?;
        let mut archive = tar::Builder::new(file);
        append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut archive, "index.json", index.as_bytes(), 0o644)?;
        for blob in [&layer, &config, &manifest] {
            let path = format!("blobs/{}", hash(blob).replace(':', "/"));
            append(&mut archive, &path, blob, 0o644)?;
        }
        archive.into_inner()?.flush()?;
        Ok(u64::try_from(layer.len())?)
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for (path, entry) in &self.entries {
            parents(&mut layer, path, &mut made)?;
            match entry {
                Entry::Directory(mode) => directory(&mut layer, path, *mode, &mut made)?,
                Entry::File(from) => {
                    let content = fs::read(from)
                        .with_context(|| format!("cannot read `{}`", from.display()))?;
                    append(&mut layer, path, &content, 0o755)?;
                }
                Entry::Text(text) => append(&mut layer, path, text.as_bytes(), 0o644)?,
                Entry::Link(target) => {
                    let mut header = header(tar::EntryType::Symlink, 0, 0o777);
                    layer.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

fn parents(
    layer: &mut tar::Builder<Vec<u8>>,
    path: &str,
    made: &mut BTreeSet<String>,
) -> anyhow::Result<()> {
    let above: Vec<_> = path.match_indices('/').map(|(end, _)| &path[..end]).collect();
    above.into_iter().try_for_each(|path| directory(layer, path, 0o755, made))
}

fn directory(
    layer: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    made: &mut BTreeSet<String>,
) -> anyhow::Result<()> {
    if made.insert(path.to_owned()) {
        let mut header = header(tar::EntryType::Directory, 0, mode);
        layer.append_data(&mut header, format!("{path}/"), std::io::empty())?;
    }
    Ok(())
}

fn append<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = header(tar::EntryType::Regular, u64::try_from(content.len())?, mode);
    Ok(archive.append_data(&mut header, path, content)?)
}

/// The same for the same content: no times, no owners.
fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn hash(content: &[u8]) -> String {
    let hash = digest(&SHA256, content);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": hash(content), "size": content.len() })
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What holds a pod's namespaces: a program that waits.
pub(crate) fn sandbox() -> Image {
    let busybox = Path::new("/bin/busybox");
    Image::new().file("bin/busybox", busybox).entrypoint(&["/bin/busybox", "sleep", "infinity"])
}

/// A small system under the name of the image that `examples/` use: shells, the program that lists what
/// its loader knows, and the libraries that the driver's client needs.
pub(crate) fn ubuntu(client: &Path) -> anyhow::Result<Image> {
    let busybox = PathBuf::from("/bin/busybox");
    let mut image = Image::new()
        .entrypoint(&["/bin/sh"])
        .file("bin/busybox", &busybox)
        .file("sbin/ldconfig", Path::new("/sbin/ldconfig"))
        .text("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n")
        .text("etc/ld.so.conf.d/libc.conf", "/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n");
    for name in ["sh", "cat", "echo", "env", "grep", "head", "ls", "sleep", "stat", "test", "true"]
    {
        image = image.link(&format!("bin/{name}"), "busybox");
    }
    let bash = Path::new("/bin/bash");
    image.file("bin/bash", bash).libraries_of(bash)?.libraries_of(client)
}
