//! `update-ldcache`: what the image's linker finds afterwards.

use std::fs;

use super::{CACHE, Container, DONE, LIBRARIES, Ran};
use kerf::model::linker::cache::Cache;

/// A cache of the image's own.
fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
    let mut cache = Cache::default();
    for (name, path) in libraries.iter().rev() {
        assert!(cache.add(name, path));
    }
    cache.encode().unwrap()
}

fn update(container: &Container, folders: &[&str]) -> Ran {
    let folders = folders.iter().flat_map(|folder| ["--folder", folder]);
    let arguments: Vec<_> = std::iter::once("update-ldcache").chain(folders).collect();
    container.hook(&arguments)
}

#[test]
fn programs_find_libraries_by_the_names_that_ldconfig_would_give() {
    let container = Container::new();
    let library = |name: &str, soname: &str| container.library(&format!("/opt/lib/{name}"), soname);
    library("libcuda.so.580.95.05", "libcuda.so.1");
    container.link("libcuda.so.580.95.05", "/opt/lib/libcuda.so.1");
    container.link("libcuda.so.1", "/opt/lib/libcuda.so");
    // Of two the newer, where no link says which.
    library("libnvidia-nvvm.so.580.95.05", "libnvidia-nvvm.so.4");
    library("libnvidia-nvvm.so.580.105.08", "libnvidia-nvvm.so.4");
    library("libnvidia-tls.so.580.95.05", "libnvidia-tls.so.580.95.05");
    // A link that leads nowhere is as none.
    library("libnvcuvid.so.580.95.05", "libnvcuvid.so.1");
    container.link("libnvcuvid.so.535", "/opt/lib/libnvcuvid.so.1");
    // No libraries, or none that is found by such a name.
    container.write("/opt/lib/libtext.so", "INPUT(libcuda.so)");
    container.write("/opt/lib/libempty.so.1", "");
    library("nvidia_drv.so", "nvidia_drv.so");
    container.link("libcuda.so.1", "/opt/lib/libalias.so");
    library("inner/libinner.so", "libinner.so");
    fs::create_dir(container.at("/opt/lib/libdir.so")).unwrap();
    assert_eq!(update(&container, &["/opt/lib/", "/opt/missing"]), DONE());
    let expected = [
        "libnvidia-tls.so.580.95.05 => /opt/lib/libnvidia-tls.so.580.95.05",
        "libnvidia-nvvm.so.4 => /opt/lib/libnvidia-nvvm.so.580.105.08",
        "libnvcuvid.so.1 => /opt/lib/libnvcuvid.so.580.95.05",
        "libcuda.so.1 => /opt/lib/libcuda.so.1",
        "libcuda.so => /opt/lib/libcuda.so",
    ];
    assert_eq!(container.cache(), expected);
}

#[test]
fn the_images_own_entries_stay_behind_the_drivers() {
    let container = Container::new();
    container.library("/opt/a/libcuda.so.1", "libcuda.so.1");
    container.library("/opt/b/libcuda.so.1", "libcuda.so.1");
    let own = [
        ("libz.so.1", "/lib/libz.so.1"),
        ("libcuda.so.1", "/usr/local/cuda/lib64/stubs/libcuda.so.1"),
        ("libc.so.6", "/lib/libc.so.6"),
    ];
    container.write(CACHE, cache(&own));
    assert_eq!(update(&container, &["/opt/a", "/opt/b"]), DONE());
    let expected = [
        "libz.so.1 => /lib/libz.so.1",
        "libcuda.so.1 => /opt/a/libcuda.so.1",
        "libcuda.so.1 => /opt/b/libcuda.so.1",
        "libcuda.so.1 => /usr/local/cuda/lib64/stubs/libcuda.so.1",
        "libc.so.6 => /lib/libc.so.6",
    ];
    assert_eq!(container.cache(), expected);
}

/// Debian's caches say `/lib`, which is a link to `/usr/lib`: what the image has in the driver's folder
/// keeps its place, behind what the image puts before it.
#[test]
fn what_the_cache_knows_by_another_path_is_known() {
    let container = Container::new();
    container.link("usr/lib", "lib");
    for name in ["libfoo.so.1", "libcuda.so.580.95.05"] {
        let soname = name.replace("580.95.05", "1");
        container.library(&format!("{LIBRARIES}/{name}"), &soname);
    }
    container.library("usr/local/lib/libfoo.so.1", "libfoo.so.1");
    let own = [
        ("libfoo.so.1", "/usr/local/lib/libfoo.so.1"),
        ("libfoo.so.1", "/lib/x86_64-linux-gnu/libfoo.so.1"),
    ];
    container.write(CACHE, cache(&own));
    assert_eq!(update(&container, &[LIBRARIES]), DONE());
    let expected = [
        "libfoo.so.1 => /usr/local/lib/libfoo.so.1",
        "libfoo.so.1 => /lib/x86_64-linux-gnu/libfoo.so.1",
        "libcuda.so.1 => /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05",
    ];
    assert_eq!(container.cache(), expected);
}

#[test]
fn a_later_ldconfig_is_told_of_the_folders() {
    let container = Container::new();
    container.write("etc/ld.so.conf.d/libc.conf", "/usr/local/lib\n");
    container.library("/opt/a/libcuda.so.1", "libcuda.so.1");
    assert_eq!(update(&container, &["/opt/a", "/opt/b"]), DONE());
    let told = fs::read_to_string(container.root().join("etc/ld.so.conf.d/zz-kerf.conf")).unwrap();
    assert_eq!(told, "/opt/a\n/opt/b\n");
    let before = container.image();
    assert_eq!(update(&container, &["/opt/a", "/opt/b"]), DONE());
    assert_eq!(container.image(), before);
}

#[test]
fn nothing_to_find_leaves_no_trace() {
    let container = Container::new();
    container.write("usr/bin/static", "");
    let before = container.image();
    assert_eq!(update(&container, &["/opt/missing", "/usr/bin"]), DONE());
    assert_eq!(container.image(), before);
}

#[test]
fn musl_is_told_by_its_list_of_directories() {
    let usual = "/lib\n/usr/local/lib\n/usr/lib\n";
    for (own, folders, expected) in [
        (None, &["/opt/a"][..], Some(format!("{usual}/opt/a\n"))),
        (
            Some("/lib:/usr/lib"),
            &["/opt/a", "/opt/b"],
            Some("/lib\n/usr/lib\n/opt/a\n/opt/b\n".to_owned()),
        ),
        (Some("/opt/a\n/lib\n"), &["/opt/b"], Some("/opt/a\n/lib\n/opt/b\n".to_owned())),
        // What is listed is not listed twice.
        (Some("/lib:/opt/a:/b"), &["/opt/a"], Some("/lib:/opt/a:/b".to_owned())),
        (None, &["/usr/lib"], None),
    ] {
        let container = Container::new();
        let arch = std::env::consts::ARCH;
        container.write(&format!("lib/ld-musl-{arch}.so.1"), "");
        let list = format!("etc/ld-musl-{arch}.path");
        if let Some(own) = own {
            container.write(&list, own);
        }
        container.library("/opt/a/libcuda.so.1", "libcuda.so.1");
        assert_eq!(update(&container, folders), DONE());
        let found = fs::read_to_string(container.root().join(&list)).ok();
        assert_eq!(found, expected, "{own:?} {folders:?}");
        assert!(!container.root().join(CACHE).exists());
    }
}

#[test]
fn an_image_with_both_libraries_gets_both() {
    let container = Container::new();
    let (arch, loader) = if cfg!(target_arch = "aarch64") {
        ("aarch64", "lib/ld-linux-aarch64.so.1")
    } else {
        ("x86_64", "lib64/ld-linux-x86-64.so.2")
    };
    container.write(&format!("lib/ld-musl-{arch}.so.1"), "");
    container.write(loader, "");
    container.library("/opt/a/libcuda.so.1", "libcuda.so.1");
    assert_eq!(update(&container, &["/opt/a"]), DONE());
    assert!(container.root().join(format!("etc/ld-musl-{arch}.path")).exists());
    assert_eq!(container.cache(), ["libcuda.so.1 => /opt/a/libcuda.so.1"]);
}
