//! Chart, manifest and image are those of this version.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn what_is_installed_has_the_version_of_the_crate() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, line) in [
        ("deploy/helm/kerf/Chart.yaml", format!("\nversion: {version}\n")),
        ("deploy/helm/kerf/Chart.yaml", format!("\nappVersion: {version}\n")),
        ("deploy/kerf.yaml", format!(" image: kerf:{version}\n")),
        ("deploy/image/Containerfile", format!("image.version=\"{version}\"")),
    ] {
        assert!(read(path).contains(&line), "{path} has no `{line}`");
    }
}

#[test]
fn the_image_is_built_with_the_toolchain_that_is_tested() {
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap();
    let image = format!("docker.io/library/rust:{}-bookworm", channel.trim_matches('"'));
    assert!(read("deploy/image/Containerfile").contains(&image), "{image}");
}
