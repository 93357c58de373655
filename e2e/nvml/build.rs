//! Makes the shared library what programs expect of `libnvidia-ml.so.1`: its SONAME, never unmapped
//! (go-nvml closes and opens it again, while Rust's thread locals live on), and small enough to copy.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in ["-Wl,-soname,libnvidia-ml.so.1", "-Wl,-z,nodelete", "-Wl,-s"] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
