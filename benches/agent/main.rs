//! What the performance claims rest on: the real agent on a simulated node, over real sockets. No
//! latency is injected but where a line says so.
//!
//! Prints a table. Times depend on the machine, and missing one's target is only said; a ratio, a memory
//! or a size over its target is also the exit status.

mod calls;
mod life;
mod node;
mod rest;
mod table;

use std::process::ExitCode;

use self::table::Table;

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut table = Table::default();
    runtime.block_on(measure(&mut table))?;
    Ok(if table.missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn measure(table: &mut Table) -> anyhow::Result<()> {
    table.head();
    life::binary(table)?;
    life::start(table).await?;
    life::wiped(table).await?;
    rest::memory(table).await?;
    rest::all_on(table).await?;
    calls::one_claim(table).await?;
    calls::batch(table).await?;
    calls::side_by_side(table).await?;
    life::hand_over(table).await
}
