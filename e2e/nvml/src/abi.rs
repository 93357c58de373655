//! The C interface: one function for each symbol of `nvml.h`, which only turns C into Rust and back.
//!
//! Parameters have the types of [`wire`], which C's pointers fit into, so that no function here follows
//! a pointer itself. `unsafe` is in [`wire`] and in the attributes that export the functions.
#![allow(unsafe_code, reason = "exported names are part of the C interface")]
#![allow(non_snake_case, reason = "the names are NVML's")]

mod device;
mod events;
mod fields;
mod gpm;
mod health;
mod instances;
mod mig;
mod processes;
mod sensors;
mod stubs;
mod system;
mod topology;
mod wire;

pub(crate) use events::EventSet;
pub(crate) use gpm::Sample;

/// Exports functions under their own names. The first argument of each body is that name.
macro_rules! export {
    ($(
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $call:expr;
    )*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> u32 {
            ($call)(stringify!($name))
        }
    )*};
}
use export;
