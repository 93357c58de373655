//! The kubelet's calls: one claim, eight claims, and eight on GPUs that take their time.

use std::time::Duration;

use kerf_nvml::{Effect, Fault};
use kerf_testbed::node::Testbed;

use crate::{
    node::{Times, claim, mig, node, one_each, prepare, rounds, unprepare, whole},
    table::{Table, milliseconds},
};

/// Milliseconds for one claim.
const ONE: f64 = 1.2;

/// Milliseconds for eight claims in one call.
const EIGHT: f64 = 8.0;

/// Eight times one claim's creation would be 8.
const SIDE_BY_SIDE: f64 = 1.3;

const CREATE: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";
const CREATION: Duration = Duration::from_millis(300);

/// Prepare and unprepare of a single claim.
pub(crate) async fn one_claim(table: &mut Table) -> anyhow::Result<()> {
    let testbed = node().start().await?;
    one(table, &testbed, "whole GPU", &whole(0)).await?;
    one(table, &testbed, "MIG, first of its GPU", &mig(1, 0)).await?;
    let neighbour = [claim(&testbed, &mig(2, 6))?];
    prepare(&testbed, &neighbour).await?;
    one(table, &testbed, "MIG, on a GPU in MIG mode", &mig(2, 0)).await?;
    unprepare(&testbed, &neighbour).await?;
    Ok(())
}

async fn one(table: &Table, testbed: &Testbed, what: &str, device: &str) -> anyhow::Result<()> {
    let claims = [claim(testbed, device)?];
    let (prepared, unprepared) = rounds(testbed, &claims, 300).await?;
    calls(table, what, ["prepare", "unprepare"], [prepared, unprepared], ONE);
    Ok(())
}

/// Eight claims on eight GPUs in one call.
pub(crate) async fn batch(table: &mut Table) -> anyhow::Result<()> {
    let testbed = node().start().await?;
    let names = ["prepare 8 in a call", "unprepare 8 in a call"];
    for (what, claims) in [
        ("whole GPUs", one_each(&testbed, whole)?),
        ("MIG, first of their GPUs", one_each(&testbed, |gpu| mig(gpu, 0))?),
    ] {
        let (prepared, unprepared) = rounds(&testbed, &claims, 50).await?;
        calls(table, what, names, [prepared, unprepared], EIGHT);
    }
    Ok(())
}

fn calls(table: &Table, what: &str, names: [&str; 2], times: [Times; 2], most: f64) {
    for (name, times) in names.into_iter().zip(times) {
        let slowest = milliseconds(times.percentile(99));
        let more = format!(" p50, {slowest:.2} ms p99");
        table.time(&format!("{name}, {what}"), times.median(), &more, Some(most));
    }
}

/// Eight claims on eight GPUs that each take long to carve, against one.
pub(crate) async fn side_by_side(table: &mut Table) -> anyhow::Result<()> {
    let testbed = node().start().await?;
    let eight = one_each(&testbed, |gpu| mig(gpu, 0))?;
    testbed.machine.inject(Fault::always(CREATE, Effect::Delay(CREATION)))?;
    let (one, _) = rounds(&testbed, &eight[..1], 5).await?;
    let (all, _) = rounds(&testbed, &eight, 5).await?;
    let (one, all) = (one.median(), all.median());
    let ratio = all.as_secs_f64() / one.as_secs_f64();
    let (one, all) = (milliseconds(one), milliseconds(all));
    let more = format!(" ({all:.1} ms to {one:.1} ms)");
    table.figure("prepare 8 MIG to 1, 300 ms a creation", ratio, "", &more, Some(SIDE_BY_SIDE));
    Ok(())
}
