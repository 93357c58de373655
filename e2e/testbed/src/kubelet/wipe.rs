//! When the kubelet removes ResourceSlices: all of the node at its start, those of a driver when no
//! plugin of it has been connected for a while.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::state::{State, Wipe};
use super::{Shared, Task};

/// Since when a driver has had no connected plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gone {
    /// It has one.
    #[default]
    No,
    /// Its slices are due at this time.
    Until(Instant),
    /// Its slices are wiped; once is enough.
    Wiped,
}

/// Wipes for as long as the kubelet runs.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut wipes = vec![Task::spawn(wipe(shared.clone(), Wipe::Node))];
    let mut states = shared.state.subscribe();
    let mut drivers = BTreeMap::new();
    loop {
        update(
            &mut drivers,
            &states.borrow_and_update(),
            Instant::now() + shared.options.wipe_after,
        );
        let due = drivers.iter().filter_map(|(driver, gone)| match gone {
            Gone::Until(due) => Some((*due, driver.clone())),
            Gone::No | Gone::Wiped => None,
        });
        let next = due.min();
        let elapsed = async {
            match next {
                Some((due, driver)) => {
                    sleep_until(due).await;
                    driver
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            driver = elapsed => {
                drivers.insert(driver.clone(), Gone::Wiped);
                wipes.push(Task::spawn(wipe(shared.clone(), Wipe::Driver(driver))));
            }
        }
    }
}

fn update(drivers: &mut BTreeMap<String, Gone>, state: &State, due: Instant) {
    for plugin in &state.plugins {
        drivers.entry(plugin.driver.clone()).or_default();
    }
    for (driver, gone) in drivers {
        *gone = match *gone {
            _ if state.connected(driver) => Gone::No,
            Gone::No => Gone::Until(due),
            waiting => waiting,
        };
    }
}

async fn wipe(shared: Arc<Shared>, what: Wipe) {
    if let Some(wipe) = &shared.options.wipe {
        wipe(what.clone()).await;
    }
    shared.state.send_modify(|state| state.wipes.push(what));
}
