//! `enable-cuda-compat`: whether the image's own libraries of a newer driver go first.

use std::{fs, process::Command};

use super::{CACHE, Container, DONE, LIBRARIES, Ran};

const COMPAT: &str = "usr/local/cuda/compat";

/// A library with NVIDIA's note, made by the C compiler that links this test too.
fn library_with_note(note: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let [source, library] = ["a.c", "a.so"].map(|name| dir.path().join(name));
    let (size, text) = (note.len(), note.replace('"', "\\\""));
    let code = format!(
        r#"__attribute__((section(".note.cuda.fwd_compatibility"), aligned(4), used))
           static const struct {{ unsigned sizes[3]; char name[20]; char text[{size}]; }}
           note = {{ {{ 19, {size}, 1 }}, "NVIDIA Corporation", "{text}" }};"#
    );
    super::put(&source, code.as_bytes());
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-o"]);
    let made =
        compiler.args([&library, &source]).status().expect("a C compiler, as Rust needs one");
    assert!(made.success());
    fs::read(library).unwrap()
}

/// An image that brings libraries of this version, and was given those of its host.
fn image(version: &str, library: &[u8]) -> Container {
    let container = Container::new();
    container.write(&format!("usr/local/cuda-13/compat/libcuda.so.{version}"), library);
    container.link(format!("libcuda.so.{version}"), "usr/local/cuda-13/compat/libcuda.so.1");
    container.link("/usr/local/cuda-13", "usr/local/cuda");
    container.library(&format!("{LIBRARIES}/libcuda.so.1"), "libcuda.so.1");
    container
}

/// The libraries that programs find as `libcuda.so.1`, best first.
fn libcuda(container: &Container, host: &str) -> Vec<String> {
    let version = format!("--host-driver-version={host}");
    assert_eq!(container.hook(&["enable-cuda-compat", &version]), DONE());
    assert_eq!(container.hook(&["update-ldcache", "--folder", LIBRARIES]), DONE());
    let cache = container.cache().into_iter();
    cache.filter_map(|line| Some(line.strip_prefix("libcuda.so.1 => /")?.to_owned())).collect()
}

fn first_of_both() -> [String; 2] {
    [format!("{COMPAT}/libcuda.so.1"), format!("{}/libcuda.so.1", &LIBRARIES[1..])]
}

#[test]
fn newer_libraries_that_fit_the_hosts_driver_go_first() {
    let plain = kerf_nvml::elf::library("libcuda.so.1");
    let note =
        r#"{"Format": 1, "CUDA Version": "13.1", "Driver": [535, 570, 580, 590], "Device": [1]}"#;
    let noted = library_with_note(note);
    let open = library_with_note(r#"{"CUDA Version": "13.1"}"#);
    for (library, compat, host, first) in [
        // Without a word from the library, by the major version.
        (&plain, "590.44.01", "580.95.05", true),
        (&plain, "580.105.08", "580.95.05", false),
        (&plain, "570.1", "580.95.05", false),
        (&open, "590.44.01", "580.95.05", true),
        // The library's own list, and never an older one than the host's.
        (&noted, "590.44.01", "580.95.05", true),
        (&noted, "590.44.01", "565.1", false),
        (&noted, "590.44.01", "590.43.9", true),
        (&noted, "590.44.01", "590.44.01", false),
        (&noted, "590.44.01", "600.1", false),
    ] {
        let found = libcuda(&image(compat, library), host);
        let expected =
            if first { first_of_both().to_vec() } else { vec![first_of_both()[1].clone()] };
        assert_eq!(found, expected, "{compat} on {host}");
    }
}

#[test]
fn an_image_that_prefers_its_own_is_left_alone_and_one_of_another_host_is_set_right() {
    let container = image("590.44.01", &kerf_nvml::elf::library("libcuda.so.1"));
    assert_eq!(libcuda(&container, "580.95.05"), first_of_both());
    let file = container.root().join("etc/ld.so.conf.d/00-kerf-cuda-compat.conf");
    assert_eq!(fs::read_to_string(&file).unwrap(), "/usr/local/cuda/compat\n");
    let before = container.image();
    assert_eq!(libcuda(&container, "580.95.05"), first_of_both());
    assert_eq!(container.image(), before);
    // The same image, kept, on a host with a newer driver: its cache is the image's own by now.
    assert_eq!(container.hook(&["enable-cuda-compat", "--host-driver-version=600.1"]), DONE());
    assert!(!file.exists());
    fs::remove_file(container.root().join(CACHE)).unwrap();
    assert_eq!(libcuda(&container, "600.1"), first_of_both()[1..]);
}

#[test]
fn what_is_not_understood_is_not_used() {
    let broken = library_with_note("{");
    let of = |version: &str, library: &[u8]| image(version, library);
    let two = of("590.44.01", b"");
    two.write("usr/local/cuda-13/compat/libcuda.so.595.1", "");
    for (container, expected) in [
        (Container::new(), ""),
        (two, ""),
        (of("590.44.x", b""), "`libcuda.so.590.44.x` has no version"),
        (of("590.44.01", b""), "`libcuda.so.590.44.01` is no ELF file"),
        (
            of("590.44.01", &broken),
            "`.note.cuda.fwd_compatibility` of `libcuda.so.590.44.01` is broken: EOF while parsing an object at \
             line 1 column 1",
        ),
    ] {
        let before = container.image();
        let ran = container.hook(&["enable-cuda-compat", "--host-driver-version", "580.95.05"]);
        let said = match expected {
            "" => String::new(),
            why => format!(
                "kerf-cdi-hook: warning: the image's `/usr/local/cuda/compat` is not used: {why}\n"
            ),
        };
        assert_eq!(ran, Ran { code: Some(0), said });
        assert_eq!(container.image(), before);
    }
}
