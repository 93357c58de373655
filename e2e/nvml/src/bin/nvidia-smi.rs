//! What `nvidia-smi -L` prints of a simulated machine, by the library that the loader finds: a program
//! for containers, to list what they were given.

use std::process::ExitCode;

use nvml_wrapper::{Device, Nvml, error::NvmlError};

fn main() -> ExitCode {
    // The name with the version: what is in a driver's root, where nobody develops.
    let opened = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init();
    match opened.and_then(|nvml| list(&nvml)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("Failed to initialize NVML: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list(nvml: &Nvml) -> Result<(), NvmlError> {
    for index in 0..nvml.device_count()? {
        let gpu = nvml.device_by_index(index)?;
        println!("GPU {index}: {} (UUID: {})", gpu.name()?, gpu.uuid()?);
        list_mig(&gpu)?;
    }
    Ok(())
}

fn list_mig(gpu: &Device<'_>) -> Result<(), NvmlError> {
    let slots = match gpu.mig_device_count() {
        Err(NvmlError::NotSupported) => 0,
        slots => slots?,
    };
    for index in 0..slots {
        match gpu.mig_device_by_index(index) {
            Err(NvmlError::NotFound) => {}
            device => print_mig(&device?, index)?,
        }
    }
    Ok(())
}

fn print_mig(device: &Device<'_>, index: u32) -> Result<(), NvmlError> {
    let name = device.name()?;
    let profile = name.split_once("MIG ").map_or(&*name, |(_, profile)| profile);
    println!("  MIG {profile:<11} Device {index:>2}: (UUID: {})", device.uuid()?);
    Ok(())
}
