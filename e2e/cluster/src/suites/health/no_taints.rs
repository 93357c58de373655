//! Where the API server keeps no taints, as it is on 1.34 by default, a GPU that fails is withdrawn.

use super::ward::Ward;
use crate::{cluster::Cluster, control_plane, install};

pub(super) fn a_gpu_is_withdrawn_where_there_are_no_taints(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    serve(cluster, &["--feature-gates=DRADeviceTaints=false"])?;
    let tested = Ward::with(cluster, &["health.holdDown=5"], |ward| {
        let gpu = ward.gpu_at(1)?;
        gpu.tainted(&[])?;
        gpu.makes_no_progress()?;
        gpu.is_not_published()?;
        gpu.is_reset()?;
        gpu.tainted(&[])
    });
    serve(cluster, &[])?;
    install::ready(cluster)?;
    tested
}

/// Starts the API server anew, with more flags than it has here.
fn serve(cluster: &Cluster, flags: &[&str]) -> anyhow::Result<()> {
    cluster.daemons.stop("kube-apiserver")?;
    let mut server = control_plane::api_server(cluster.release, &cluster.programs, cluster.pki());
    cluster.daemons.start("kube-apiserver", server.args(flags))?;
    control_plane::wait_until_ready(cluster.dir(), &cluster.programs)
}
