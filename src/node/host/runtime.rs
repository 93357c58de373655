//! Whether the container runtime gives GPUs to containers that claimed none: NVIDIA's runtime, as the
//! default one, takes `NVIDIA_VISIBLE_DEVICES` in an image's environment for a request.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use toml::Value;

use super::{document::Document, root::Root};

/// containerd's configuration, what it imports when it does not say, and the names that its plugin for
/// the kubelet has had.
const CONTAINERD: &str = "/etc/containerd/config.toml";
const IMPORTS: &str = "/etc/containerd/conf.d/*.toml";
const PLUGINS: [&str; 3] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];

/// CRI-O's configuration, and the directory of files that are read after it.
const CRIO: &str = "/etc/crio/crio.conf";
const CRIO_MORE: &str = "/etc/crio/crio.conf.d";

/// Configuration of NVIDIA's runtime; beside a runtime of the GPU operator it lies in `.config`.
const NVIDIA: &str = "nvidia-container-runtime/config.toml";

/// The option of NVIDIA's runtime that ends it.
const HARMLESS: &str = "accept-nvidia-visible-devices-envvar-when-unprivileged";

/// A runtime that runs what asks for none by name.
struct DefaultRuntime {
    /// Which program has it.
    of: &'static str,
    /// Where that says so.
    file: &'static str,
    /// Its name there.
    name: String,
    /// Its program, where that is said.
    program: Option<PathBuf>,
}

/// What lets containers on this host have GPUs without a claim, one line for each container runtime.
/// `host_root` is the host's `/` as this process sees it; what cannot be read there is no news.
pub fn bypasses(host_root: &Path) -> Vec<String> {
    let Ok(root) = Root::new(host_root, Path::new("/")) else { return Vec::new() };
    let defaults = [containerd(&root), crio(&root)].into_iter().flatten();
    let nvidia = defaults.filter(|default| default.is_nvidias() && !default.is_harmless(&root));
    nvidia.map(|default| default.line()).collect()
}

impl DefaultRuntime {
    fn is_nvidias(&self) -> bool {
        let program = self.program.as_deref().and_then(Path::file_name).and_then(OsStr::to_str);
        self.name.starts_with("nvidia")
            || program.is_some_and(|name| name.starts_with("nvidia-container-runtime"))
    }

    /// Whether NVIDIA's runtime leaves the environment of plain containers alone.
    fn is_harmless(&self, root: &Root<'_>) -> bool {
        let beside = self.program.as_deref().and_then(Path::parent).map(|dir| dir.join(".config"));
        let directories = beside.into_iter().chain([PathBuf::from("/etc")]);
        let text = directories.filter_map(|dir| read(root, &dir.join(NVIDIA))).next();
        let mut document = Document::default();
        document.read(&text.unwrap_or_default());
        document.get(&[HARMLESS]).and_then(Value::as_bool) == Some(false)
    }

    fn line(&self) -> String {
        let Self { of, file, name, .. } = self;
        format!(
            "default runtime `{name}` of {of} (`{file}`) is NVIDIA's: a container whose image sets \
             `NVIDIA_VISIBLE_DEVICES=all` gets every GPU without a claim; make `runc` the default, or set \
             `{HARMLESS} = false` in `/etc/{NVIDIA}`"
        )
    }
}

fn containerd(root: &Root<'_>) -> Option<DefaultRuntime> {
    let main = read(root, Path::new(CONTAINERD));
    let mut document = Document::default();
    document.read(main.as_deref().unwrap_or_default());
    let imported: Vec<_> = document
        .list(&["imports"])
        .unwrap_or_else(|| vec![IMPORTS.to_owned()])
        .iter()
        .flat_map(|pattern| matching(root, &Path::new("/etc/containerd").join(pattern)))
        .collect();
    imported.iter().for_each(|text| document.read(text));
    if main.is_none() && imported.is_empty() {
        return None;
    }
    let get = |rest: &[&str]| {
        PLUGINS
            .iter()
            .find_map(|name| document.text(&[&["plugins", name, "containerd"], rest].concat()))
    };
    let name = get(&["default_runtime_name"]).unwrap_or("runc").to_owned();
    let program = get(&["runtimes", &name, "options", "BinaryName"]).map(PathBuf::from);
    Some(DefaultRuntime { of: "containerd", file: CONTAINERD, name, program })
}

fn crio(root: &Root<'_>) -> Option<DefaultRuntime> {
    let more = matching(root, &Path::new(CRIO_MORE).join("*"));
    let texts: Vec<_> = read(root, Path::new(CRIO)).into_iter().chain(more).collect();
    if texts.is_empty() {
        return None;
    }
    let mut document = Document::default();
    texts.iter().for_each(|text| document.read(text));
    let get = |rest: &[&str]| document.text(&[&["crio", "runtime"], rest].concat());
    let name = get(&["default_runtime"]).unwrap_or("crun").to_owned();
    let program = get(&["runtimes", &name, "runtime_path"]).map(PathBuf::from);
    Some(DefaultRuntime { of: "CRI-O", file: CRIO, name, program })
}

/// The texts of the files whose path this is, with at most one `*` in their name, in order.
fn matching(root: &Root<'_>, pattern: &Path) -> Vec<String> {
    let (Some(directory), Some(name)) =
        (pattern.parent(), pattern.file_name().and_then(OsStr::to_str))
    else {
        return Vec::new();
    };
    let Some((prefix, suffix)) = name.split_once('*') else {
        return read(root, pattern).into_iter().collect();
    };
    let names = root.names(directory).unwrap_or_default().into_iter();
    let fitting =
        names.filter(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.ends_with(suffix)));
    fitting.filter_map(|name| read(root, &directory.join(name))).collect()
}

fn read(root: &Root<'_>, path: &Path) -> Option<String> {
    String::from_utf8(root.read(path).ok()??).ok()
}
