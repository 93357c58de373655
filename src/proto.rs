//! The wire contracts of `proto/`, one module a file.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

/// Includes what `build.rs` made of one file.
macro_rules! service {
    ($module:ident, $file:literal) => {
        pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($module), "/", $file, ".rs"));
        }
    };
}

service!(device_plugin, "v1beta1");
service!(dra_health_v1, "v1");
service!(dra_health_v1alpha1, "v1alpha1");
service!(dra_v1, "k8s.io.kubelet.pkg.apis.dra.v1");
service!(dra_v1beta1, "k8s.io.kubelet.pkg.apis.dra.v1beta1");
service!(grpc_health, "grpc.health.v1");
service!(podresources, "v1");
service!(registration, "pluginregistration");
