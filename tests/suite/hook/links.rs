//! `create-symlinks`.

use super::{Container, DONE, Ran};

#[test]
fn links_take_the_place_of_what_the_image_has() {
    let container = Container::new();
    container.link("libcuda.so.535.1", "lib/libcuda.so.1");
    container.write("lib/libcuda.so", "a stub");
    container.link("/nowhere", "lib/libnvidia-ml.so.1");
    let links = [
        "--link",
        "libcuda.so.580.1::/lib/libcuda.so.1",
        "--link=libcuda.so.1::/lib/libcuda.so",
        "--link",
        "libnvidia-ml.so.580.1::/lib/libnvidia-ml.so.1",
    ];
    let arguments = [&["create-symlinks"][..], &links].concat();
    assert_eq!(container.hook(&arguments), DONE());
    let expected = [
        "lib/",
        "lib/libcuda.so -> libcuda.so.1",
        "lib/libcuda.so.1 -> libcuda.so.580.1",
        "lib/libnvidia-ml.so.1 -> libnvidia-ml.so.580.1",
    ];
    assert_eq!(container.tree(), expected);
}

#[test]
fn directories_are_made_and_links_to_them_followed_within_the_root() {
    let container = Container::new();
    container.at("usr/lib/x");
    container.link("usr/lib", "lib");
    container.link("/usr/lib/", "usr/lib64");
    let arguments = [
        "create-symlinks",
        "--link",
        "../card1::/dev/dri/by-path/pci-0000:1b:00.0-card",
        "--link",
        "a::/lib/x/y/z",
        "--link",
        "a::/usr/lib64/x/../b",
        "--link",
        // Beyond the root is the root.
        "a::/usr/../../../c",
        "--link",
        "a::d",
    ];
    assert_eq!(container.hook(&arguments), DONE());
    let expected = [
        "c -> a",
        "d -> a",
        "dev/",
        "dev/dri/",
        "dev/dri/by-path/",
        "dev/dri/by-path/pci-0000:1b:00.0-card -> ../card1",
        "lib -> usr/lib",
        "usr/",
        "usr/lib/",
        "usr/lib/b -> a",
        "usr/lib/x/",
        "usr/lib/x/y/",
        "usr/lib/x/y/z -> a",
        "usr/lib64 -> /usr/lib/",
    ];
    assert_eq!(container.tree(), expected);
}

#[test]
fn a_directory_in_the_place_of_a_link_is_left() {
    let container = Container::new();
    container.write("lib/libcuda.so.1/file", "");
    let before = container.tree();
    let expected = "kerf-cdi-hook: create-symlinks: cannot replace `/lib/libcuda.so.1` in the container: \
                    Is a directory (os error 21)\n";
    let said = container.hook(&["create-symlinks", "--link", "a::/lib/libcuda.so.1"]);
    assert_eq!(said, Ran { code: Some(1), said: expected.to_owned() });
    assert_eq!(container.tree(), before);
}
