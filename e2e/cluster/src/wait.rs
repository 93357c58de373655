//! Waiting for something to be so.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Longer than anything takes that goes well.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns when it is so; fails when that takes too long, or asking fails.
pub(crate) fn until(
    what: &str,
    mut so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !so()? {
        if begun.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
