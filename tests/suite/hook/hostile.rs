//! Images that were made to have the host's root do what it should not.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{CACHE, Container, FIRST_VERSION, LIBRARIES, Ran, fingerprint, mounted};

/// What each command says and how it ends, on an image that is spoilt in one way; nothing of the host's
/// may change.
fn attack(name: &str, spoil: impl FnOnce(&Container)) -> String {
    let container = Container::new();
    spoil(&container);
    let before = fingerprint(&container.host());
    let mut lines = format!("{name}\n");
    for arguments in FIRST_VERSION {
        let Ran { code, said } = container.hook(arguments);
        assert!([Some(0), Some(1)].contains(&code), "{name}: {code:?} {said}");
        let said = said.replace(container.dir.path().to_str().unwrap(), "<dir>");
        for line in said.lines() {
            let line =
                line.strip_prefix("kerf-cdi-hook: ").unwrap_or_else(|| panic!("{name}: {said}"));
            lines.push_str(&format!("  {}: {line}\n", code.unwrap()));
        }
    }
    assert_eq!(fingerprint(&container.host()), before, "{name}");
    assert!(!container.root().join(CACHE).is_symlink(), "{name}: not replaced");
    lines
}

/// A link to the host's directory in the place of each directory on the way to what the hook touches: by
/// an absolute path, by `..`, and through `/proc`.
#[test]
fn links_out_of_the_root() {
    let places = [
        "etc",
        "etc/ld.so.conf.d",
        "usr",
        "usr/lib",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu/gbm",
        "usr/lib/x86_64-linux-gnu/vdpau",
        "usr/local/cuda/compat",
        "proc",
        "proc/driver/nvidia",
    ];
    let mut told = String::new();
    for place in places {
        let out = |container: &Container, target: &Path| {
            container.link(target, place);
            if !place.starts_with("usr") {
                mounted(container);
            }
        };
        told += &attack(&format!("{place} -> <host>"), |image| out(image, &image.host()));
        let up = "../".repeat(20);
        told += &attack(&format!("{place} -> ../…/<host>"), |image| {
            out(image, &Path::new(&up).join(image.host().strip_prefix("/").unwrap()));
        });
        told += &attack(&format!("{place} -> itself"), |image| {
            out(image, Path::new(place).file_name().unwrap().as_ref());
        });
    }
    insta::assert_snapshot!(told);
}

/// Links to the host's files in the place of the files that the hook reads and writes.
#[test]
fn links_in_the_place_of_files() {
    let files = [
        CACHE,
        "etc/ld.so.conf.d/00-kerf-cuda-compat.conf",
        "etc/ld.so.conf.d/zz-kerf.conf",
        "usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "usr/lib/x86_64-linux-gnu/libevil.so",
        "usr/local/cuda/compat/libcuda.so.600.1",
        "proc/driver/nvidia/params",
    ];
    let mut told = String::new();
    for file in files {
        told += &attack(&format!("{file} -> <host>"), |image| {
            mounted(image);
            image.link(image.host().join("ld.so.cache"), file);
        });
        told += &attack(&format!("{file} -> ../…/<host>"), |image| {
            mounted(image);
            let up = "../".repeat(20);
            image.link(
                Path::new(&up).join(image.host().join("ld.so.cache").strip_prefix("/").unwrap()),
                file,
            );
        });
    }
    insta::assert_snapshot!(told);
}

/// What would block whoever opens it, or never end.
#[test]
fn files_that_are_none() {
    let node = |path: &Path, kind, device| {
        mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device).is_ok()
    };
    let mut told = String::new();
    for file in [
        CACHE,
        "etc/ld.so.conf.d/zz-kerf.conf",
        "usr/lib/x86_64-linux-gnu/libevil.so",
        "usr/local/cuda/compat/libcuda.so.600.1",
        "proc/driver/nvidia/params",
    ] {
        told += &attack(&format!("{file} is a pipe"), |image| {
            mounted(image);
            assert!(node(&image.at(file), FileType::Fifo, 0));
        });
        told += &attack(&format!("{file} is a socket"), |image| {
            mounted(image);
            // The path of a socket is short.
            let short = tempfile::tempdir_in("/tmp").unwrap();
            UnixListener::bind(short.path().join("s")).unwrap();
            fs::rename(short.path().join("s"), image.at(file)).unwrap();
        });
        told += &attack(&format!("{file} is a directory"), |image| {
            mounted(image);
            fs::create_dir(image.at(file)).unwrap();
        });
        told += &attack(&format!("{file} is a terabyte"), |image| {
            mounted(image);
            File::create(image.at(file)).unwrap().set_len(1 << 40).unwrap();
        });
        // Without a node, which only root makes, the same is said of what a link leads to.
        told += &attack(&format!("{file} is a device"), |image| {
            mounted(image);
            if !node(&image.at(file), FileType::CharacterDevice, makedev(1, 5)) {
                node(&image.at(file), FileType::Fifo, 0);
            }
        });
    }
    insta::assert_snapshot!(told);
}

/// Caches that say what is not so.
#[test]
fn spoilt_caches() {
    let magic = b"glibc-ld.so.cache1.1";
    let word = |number: u32| number.to_le_bytes();
    let header = |count: u32, extension: u32| {
        [&magic[..], &word(count), &word(0), &word(2), &word(extension), &[0; 12]].concat()
    };
    let caches = [
        ("empty", Vec::new()),
        ("text", b"root:x:0:0".to_vec()),
        ("only a header", header(0, 0)),
        ("four thousand million entries", header(u32::MAX, 0)),
        ("an extension behind the end", header(0, u32::MAX)),
        ("an extension in the header", header(0, 4)),
        ("strings behind the end", [header(1, 0), [0xff; 24].to_vec()].concat()),
        ("cut off", header(1, 0)[..30].to_vec()),
        ("the older format alone", b"ld.so-1.7.0\0\0\0\0\0".to_vec()),
    ];
    let mut told = String::new();
    for (name, bytes) in caches {
        let mut found = Vec::new();
        told += &attack(name, |image| {
            mounted(image);
            image.write(CACHE, &bytes);
        });
        let image = Container::new();
        mounted(&image);
        image.write(CACHE, &bytes);
        image.hook(&["update-ldcache", "--folder", LIBRARIES]);
        found.extend(image.cache());
        assert_eq!(found, [format!("libcuda.so.1 => {LIBRARIES}/libcuda.so.580.95.05")], "{name}");
    }
    insta::assert_snapshot!(told);
}

/// Libraries whose names and contents were made up.
#[test]
fn spoilt_libraries() {
    let image = Container::new();
    let library = |name: &str, bytes: &[u8]| image.write(&format!("{LIBRARIES}/{name}"), bytes);
    let good = kerf_nvml::elf::library("libgood.so.1");
    for end in 0..good.len() {
        library(&format!("libcut{end}.so"), &good[..end]);
    }
    for at in 0..good.len() {
        let mut spoilt = good.clone();
        spoilt[at] ^= 0xff;
        library(&format!("libspoilt{at}.so"), &spoilt);
    }
    library("libgood.so.1", &good);
    for soname in ["../../etc/passwd", "/etc/passwd", "..", "", "a\nb"] {
        library(&format!("libname{}.so.1", soname.len()), &kerf_nvml::elf::library(soname));
    }
    symlink("/proc/self/exe", image.at(&format!("{LIBRARIES}/libmagic.so"))).unwrap();
    let host = fingerprint(&image.host());
    let ran = image.hook(&["update-ldcache", "--folder", LIBRARIES]);
    assert_eq!(ran, super::DONE());
    let cache = image.cache();
    assert!(cache.contains(&format!("libgood.so.1 => {LIBRARIES}/libgood.so.1")));
    let inside =
        |line: &String| line.split(" => ").nth(1).unwrap().rsplit_once('/').unwrap().0 == LIBRARIES;
    assert!(cache.iter().all(inside), "{cache:?}");
    assert_eq!(fingerprint(&image.host()), host);
}

/// Files whose text the hook copies into files of its own, and how an image may say them.
const COPIED: [&str; 3] = [CACHE, MUSL, "proc/driver/nvidia/params"];
const MUSL: &str = if cfg!(target_arch = "aarch64") {
    "etc/ld-musl-aarch64.path"
} else {
    "etc/ld-musl-x86_64.path"
};

fn musl_image() -> Container {
    let image = Container::new();
    mounted(&image);
    image.write(&MUSL.replace("etc/", "lib/").replace(".path", ".so.1"), "");
    image
}

/// What only root may read, in a volume for example, is copied nowhere.
#[test]
fn links_to_what_not_everybody_may_read() {
    const SECRET: &str = "/secret/of/others\nModifyDeviceFiles: 1\n";
    for file in COPIED {
        for mode in [0o600, 0o640, 0o000, 0o711] {
            let image = musl_image();
            image.write("volume/secret", SECRET);
            let secret = image.root().join("volume/secret");
            fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
            image.link("/volume/secret", file);
            for arguments in FIRST_VERSION {
                image.hook(arguments);
            }
            let copies = super::walk(&image.root()).into_iter().filter(|path| {
                let is_file = path.symlink_metadata().unwrap().is_file() && *path != secret;
                is_file && String::from_utf8_lossy(&fs::read(path).unwrap()).contains("/secret/of")
            });
            assert_eq!(
                copies.collect::<Vec<_>>(),
                Vec::<std::path::PathBuf>::new(),
                "{file} {mode:o}"
            );
        }
    }
}

/// Of a list of directories, directories are kept.
#[test]
fn a_list_of_directories_that_holds_something_else() {
    let image = musl_image();
    image.write(MUSL, "/opt/lib:relative\npassword=1\n\n/usr/lib\n  /x\0\n");
    image.hook(&["update-ldcache", "--folder", LIBRARIES]);
    let list = fs::read_to_string(image.root().join(MUSL)).unwrap();
    assert_eq!(list, format!("/opt/lib\n/usr/lib\n{LIBRARIES}\n"));
}
