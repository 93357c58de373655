//! Compiles `proto/` without protoc. Each file gets a folder of its own, because several of them
//! share the package names `v1` and `v1beta1`.

use std::{env, error::Error, fs, path::PathBuf};

const SERVICES: [&str; 8] = [
    "device_plugin",
    "dra_health_v1",
    "dra_health_v1alpha1",
    "dra_v1",
    "dra_v1beta1",
    "grpc_health",
    "podresources",
    "registration",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for service in SERVICES {
        let dir = out.join(service);
        fs::create_dir_all(&dir)?;
        let descriptors = protox::compile([format!("{service}.proto")], ["proto"])?;
        tonic_prost_build::configure().btree_map(".").out_dir(dir).compile_fds(descriptors)?;
    }
    Ok(())
}
