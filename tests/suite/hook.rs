//! `kerf-cdi-hook`, the real program, on directories made as the roots of containers.

mod compat;
mod container;
mod hostile;
mod installed;
mod linker;
mod links;
mod race;

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use kerf::model::linker::cache::Cache;
use kerf_nvml::elf;
use tempfile::TempDir;

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const CACHE: &str = "etc/ld.so.cache";

/// The program under test; `.ci/run` has the static one tested too.
fn program() -> OsString {
    std::env::var_os("KERF_CDI_HOOK").unwrap_or_else(|| env!("CARGO_BIN_EXE_kerf-cdi-hook").into())
}

/// A bundle with a container's root, as a runtime hands it to a hook, and beside it a directory of the
/// host's that is none of its business.
struct Container {
    dir: TempDir,
}

/// What became of a run.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    code: Option<i32>,
    said: String,
}

const DONE: fn() -> Ran = || Ran { code: Some(0), said: String::new() };

impl Container {
    fn new() -> Self {
        let container = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(container.root()).unwrap();
        fs::create_dir_all(container.host().join("lib")).unwrap();
        put(&container.host().join("lib/libcuda.so.1"), b"the host's");
        put(&container.host().join("ld.so.cache"), b"the host's");
        put(&container.dir.path().join("config.json"), br#"{"root":{"path":"rootfs"}}"#);
        container
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// A path below the root; the directories above it are made.
    fn at(&self, path: &str) -> PathBuf {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        put(&self.at(path), content.as_ref());
    }

    fn link(&self, target: impl AsRef<Path>, path: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    fn library(&self, path: &str, soname: &str) {
        self.write(path, elf::library(soname));
    }

    /// A container state as runc writes it.
    fn state(&self) -> String {
        let bundle = self.dir.path().display();
        format!(
            r#"{{"ociVersion":"1.0.2","id":"c","status":"creating","pid":1,"bundle":"{bundle}"}}"#
        )
    }

    fn hook(&self, arguments: &[&str]) -> Ran {
        self.hook_with(&self.state(), arguments)
    }

    fn hook_with(&self, state: &str, arguments: &[&str]) -> Ran {
        run(Command::new(program()).env_clear().args(arguments), state)
    }

    /// What is in the root: kind, path, and of links the target.
    fn tree(&self) -> Vec<String> {
        let root = self.root();
        let entries = walk(&root).into_iter().map(|path| {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            match fs::read_link(&path) {
                Ok(target) => format!("{name} -> {}", target.display()),
                Err(_) if path.is_dir() => format!("{name}/"),
                Err(_) => name,
            }
        });
        entries.collect()
    }

    /// Everything about what is in the root, so that any change shows.
    fn image(&self) -> Vec<String> {
        fingerprint(&self.root())
    }

    /// What the linker's cache of the image has, as `ldconfig -p` would show it.
    fn cache(&self) -> Vec<String> {
        let bytes = fs::read(self.root().join(CACHE)).unwrap();
        let cache = Cache::parse(&bytes).unwrap();
        let text = |bytes| str::from_utf8(bytes).unwrap().to_owned();
        cache.libraries().map(|(name, path)| format!("{} => {}", text(name), text(path))).collect()
    }
}

fn put(path: &Path, content: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(command: &mut Command, input: &str) -> Ran {
    let output = output(command, input);
    Ran { code: output.status.code(), said: String::from_utf8(output.stderr).unwrap() }
}

fn output(command: &mut Command, input: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// All paths below a directory, in order; links are not followed.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let below = |path: PathBuf| {
        let inner = if path.is_dir() && !path.is_symlink() { walk(&path) } else { Vec::new() };
        std::iter::once(path).chain(inner)
    };
    paths.into_iter().flat_map(below).collect()
}

/// Each file of a directory with what it is, what is in it and when it was changed.
fn fingerprint(dir: &Path) -> Vec<String> {
    let paths = std::iter::once(dir.to_owned()).chain(walk(dir));
    let line = |path: PathBuf| {
        let data = path.symlink_metadata().unwrap();
        let content = if data.is_file() && data.len() < 1 << 20 {
            fs::read(&path).unwrap()
        } else {
            fs::read_link(&path)
                .map(|path| path.into_os_string().into_encoded_bytes())
                .unwrap_or_default()
        };
        let changed = (data.ctime(), data.ctime_nsec());
        format!(
            "{} {:o} {} {} {} {} {changed:?} {}",
            path.display(),
            data.mode(),
            data.uid(),
            data.gid(),
            data.ino(),
            data.size(),
            content.escape_ascii(),
        )
    };
    paths.map(line).collect()
}

/// What CDI files have asked for since the first version: the arguments, in order, of a node whose driver
/// lies in Debian's place. They must go on to work.
const FIRST_VERSION: [&[&str]; 5] = [
    &[
        "create-symlinks",
        "--link",
        "../libnvidia-allocator.so.1::/usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so",
    ],
    &[
        "create-symlinks",
        "--link",
        "libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so",
        "--link",
        "libcuda.so.580.95.05::/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    ],
    &["enable-cuda-compat", "--host-driver-version=580.95.05"],
    &[
        "update-ldcache",
        "--folder",
        "/usr/lib/x86_64-linux-gnu",
        "--folder",
        "/usr/lib/x86_64-linux-gnu/vdpau",
    ],
    &["disable-device-node-modification"],
];

/// The libraries that a runtime has mounted before.
fn mounted(container: &Container) {
    container.library(&format!("{LIBRARIES}/libcuda.so.580.95.05"), "libcuda.so.1");
    container.library(
        &format!("{LIBRARIES}/vdpau/libvdpau_nvidia.so.580.95.05"),
        "libvdpau_nvidia.so.1",
    );
}

#[test]
fn files_of_the_first_version_work() {
    let container = Container::new();
    mounted(&container);
    for arguments in FIRST_VERSION {
        assert_eq!(container.hook(arguments), DONE(), "{arguments:?}");
    }
    let expected = [
        "etc/",
        "etc/ld.so.cache",
        "usr/",
        "usr/lib/",
        "usr/lib/x86_64-linux-gnu/",
        "usr/lib/x86_64-linux-gnu/gbm/",
        "usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so -> ../libnvidia-allocator.so.1",
        "usr/lib/x86_64-linux-gnu/libcuda.so -> libcuda.so.1",
        "usr/lib/x86_64-linux-gnu/libcuda.so.1 -> libcuda.so.580.95.05",
        "usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05",
        "usr/lib/x86_64-linux-gnu/vdpau/",
        "usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.580.95.05",
    ];
    assert_eq!(container.tree(), expected);
    let expected = [
        "libvdpau_nvidia.so.1 => /usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.580.95.05",
        "libcuda.so.1 => /usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "libcuda.so => /usr/lib/x86_64-linux-gnu/libcuda.so",
    ];
    assert_eq!(container.cache(), expected);
    // And again, since each claim of a container brings them: nothing is touched.
    let before = container.image();
    for arguments in FIRST_VERSION {
        assert_eq!(container.hook(arguments), DONE(), "{arguments:?}");
    }
    assert_eq!(container.image(), before);
}

#[test]
fn what_a_later_version_asks_for_is_passed_over() {
    let container = Container::new();
    let said = container.hook(&["update-application-profile", "--all"]);
    let expected = "kerf-cdi-hook: warning: `update-application-profile` is not a command of this version; \
                    nothing is done\n";
    assert_eq!(said, Ran { code: Some(0), said: expected.to_owned() });
    let said =
        container.hook(&["--quiet", "create-symlinks", "--to=x", "y", "--link=a::/b", "--debug"]);
    let expected = "kerf-cdi-hook: warning: `y` belongs to no flag and is ignored\n\
                    kerf-cdi-hook: warning: `--to` is not a flag of this version and is ignored\n";
    assert_eq!(said, Ran { code: Some(0), said: expected.to_owned() });
    assert_eq!(container.tree(), ["b -> a"]);
}

#[test]
fn the_root_is_where_the_runtime_says() {
    let container = Container::new();
    let (root, bundle) = (container.root(), container.dir.path().to_owned());
    let link = |state: &str, name: &str| {
        container.hook_with(state, &["create-symlinks", "--link", &format!("a::/{name}")])
    };
    // As crun says it, and as others do: relative and absolute.
    assert_eq!(
        link(&format!(r#"{{"bundle":"/nowhere","root":"{}"}}"#, root.display()), "crun"),
        DONE()
    );
    assert_eq!(link(&container.state(), "relative"), DONE());
    let config = format!(r#"{{"root":{{"path":"{}"}},"process":{{}}}}"#, root.display());
    put(&bundle.join("config.json"), config.as_bytes());
    assert_eq!(link(&container.state(), "absolute"), DONE());
    assert_eq!(container.tree(), ["absolute -> a", "crun -> a", "relative -> a"]);

    put(&bundle.join("config.json"), br#"{"root":{"path":""}}"#);
    for (state, expected) in [
        (
            "",
            "no state of a container on standard input: EOF while parsing a value at line 1 column 0",
        ),
        (
            r#"{"bundle":"/nowhere"}"#,
            "cannot read `/nowhere/config.json`: No such file or directory (os error 2)",
        ),
        (
            r#"{"bundle":"/nowhere","root":"/nowhere"}"#,
            "cannot open the root `/nowhere`: No such file or directory (os error 2)",
        ),
        (
            r#"{"bundle":"/nowhere","root":"/../"}"#,
            "`/../` is the host's own root: nothing is changed",
        ),
        (&container.state(), &format!("`{}` names no root", bundle.join("config.json").display())),
    ] {
        let expected = format!("kerf-cdi-hook: create-symlinks: {expected}\n");
        assert_eq!(link(state, "x"), Ran { code: Some(1), said: expected });
    }
}

#[test]
fn a_line_that_means_nothing_is_refused() {
    let container = Container::new();
    for (arguments, expected) in [
        (&[][..], "name a sub-command, such as `create-symlinks`"),
        (
            &["create-symlinks", "--link", "a:/b"],
            "create-symlinks: `a:/b` is not a link: write `<target>::<path>`",
        ),
        (&["create-symlinks", "--link", "a::/b/.."], "create-symlinks: `/b/..` ends in no name"),
        (&["create-symlinks", "--link", "a::/"], "create-symlinks: `/` ends in no name"),
    ] {
        let said = format!("kerf-cdi-hook: {expected}\n");
        assert_eq!(container.hook(arguments), Ran { code: Some(1), said });
    }
    assert_eq!(container.tree(), Vec::<String>::new());
    let version = output(Command::new(program()).arg("--version"), "");
    let expected = format!("kerf-cdi-hook {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
}
