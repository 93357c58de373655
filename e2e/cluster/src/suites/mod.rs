//! The suites, a file each.

mod admission;
mod allocation;
mod both;
mod compatibility;
mod examples;
mod health;
mod installation;
mod life;
mod monitoring;
mod plugin;
mod refusals;
mod restarts;
mod rights;
mod scale;

use crate::{programs::Release, suite::Test};

/// All tests of a release, in the order in which they run.
pub(crate) fn all(release: Release) -> anyhow::Result<Vec<Test>> {
    // It has no claims.
    if release == Release::V1_31 {
        return Ok(plugin::tests());
    }
    let suites = [
        examples::tests()?,
        admission::tests(),
        allocation::tests(),
        compatibility::tests(),
        life::tests(),
        restarts::tests(),
        refusals::tests(),
        both::of(release),
        health::of(release),
        scale::tests(),
        monitoring::tests(),
        rights::tests(),
        installation::tests(),
    ];
    Ok(suites.into_iter().flatten().collect())
}

/// The tests of one suite, named as their functions.
macro_rules! tests {
    ($suite:literal: $($name:ident),+ $(,)?) => {
        pub(super) fn tests() -> Vec<$crate::suite::Test> {
            vec![$($crate::suite::Test {
                suite: $suite,
                name: stringify!($name).to_owned(),
                run: Box::new($name),
            }),+]
        }
    };
}
pub(crate) use tests;
