//! Which containers with devices have ended. Nobody tells of an end: the kubelet lists containers, though not
//! all, and keeps a file of all, though not always up to date. That something is not named is no statement yet.

use std::{collections::BTreeMap, time::Duration};

/// How long a kubelet that has started takes until it knows its pods, which it takes up one by one.
pub const SETTLING: Duration = Duration::from_secs(10);

/// How far two looks are apart that say the same.
pub const APART: Duration = Duration::from_secs(2);

/// What tells one run of the kubelet from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Inode of its socket.
    pub inode: u64,
    /// When the socket was made, in nanoseconds of the node's clock.
    pub made: i128,
}

/// What is said of a device that a container holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is listed, or was given out so lately that it need not be.
    Listed,
    /// Only the kubelet's file names it, for a pod that is not known to be gone.
    Kept,
    /// The file cannot be read, so nothing is known.
    Unknown,
    /// Neither names it.
    Nothing,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// The container has it.
    Held,
    /// Another look, [`APART`] from this one, may tell.
    LookAgain,
    /// The same, once the kubelet has written its file anew.
    AskForFile,
    /// The container has ended.
    Ended,
}

/// What earlier looks found. Times are those of one clock that never goes back.
#[derive(Debug, Default)]
pub struct Looks {
    run: Option<(Run, Duration)>,
    unlisted: BTreeMap<String, Unlisted>,
}

#[derive(Clone, Copy, Debug)]
struct Unlisted {
    since: Duration,
    /// When the file was last asked for, and how often.
    asked: Option<Duration>,
}

/// Asking for the file becomes rarer, up to this: an init container may run for hours.
const RAREST: Duration = Duration::from_secs(60);

impl Looks {
    /// A look begins at `now`; the kubelet is in this run. Nothing that an earlier run did not name counts.
    pub fn begin(&mut self, run: Run, now: Duration) {
        if self.run.is_none_or(|(known, _)| known != run) {
            self.run = Some((run, now));
        }
        if !self.settled(now) {
            self.unlisted.clear();
        }
    }

    /// Whether what the kubelet does not name may count at all.
    pub fn settled(&self, now: Duration) -> bool {
        self.run.is_some_and(|(_, since)| now.saturating_sub(since) >= SETTLING)
    }

    /// What follows for the device from what is said of it. `urgent` if somebody waits for it.
    pub fn say(&mut self, id: &str, said: Said, now: Duration, urgent: bool) -> Follows {
        if said == Said::Listed || !self.settled(now) {
            self.unlisted.remove(id);
            return Follows::Held;
        }
        let new = Unlisted { since: now, asked: None };
        let unlisted = self.unlisted.entry(id.to_owned()).or_insert(new);
        let since = now.saturating_sub(unlisted.since);
        match said {
            Said::Listed | Said::Unknown => Follows::Held,
            Said::Nothing if since >= APART => Follows::Ended,
            Said::Nothing => Follows::LookAgain,
            Said::Kept => {
                let pause = (since / 2).min(RAREST);
                let asked = unlisted.asked.map(|asked| now.saturating_sub(asked));
                if asked.is_some_and(|asked| asked < APART || (!urgent && asked < pause)) {
                    return Follows::Held;
                }
                unlisted.asked = Some(now);
                Follows::AskForFile
            }
        }
    }

    /// The device was given out anew, or let go.
    pub fn forget(&mut self, id: &str) {
        self.unlisted.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "gpu";

    fn run(inode: u64) -> Run {
        Run { inode, made: 0 }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A look at one device by nobody in a hurry.
    fn look(looks: &mut Looks, inode: u64, at: u64, said: Said) -> Follows {
        looks.begin(run(inode), secs(at));
        looks.say(ID, said, secs(at), false)
    }

    #[test]
    fn an_end_is_seen_twice() {
        let looks = &mut Looks::default();
        assert_eq!(look(looks, 1, 0, Said::Nothing), Follows::Held);
        assert_eq!(look(looks, 1, 20, Said::Listed), Follows::Held);
        assert_eq!(look(looks, 1, 25, Said::Nothing), Follows::LookAgain);
        assert_eq!(look(looks, 1, 26, Said::Nothing), Follows::LookAgain);
        assert_eq!(look(looks, 1, 27, Said::Nothing), Follows::Ended);
    }

    #[test]
    fn what_is_listed_again_has_not_ended() {
        let looks = &mut Looks::default();
        look(looks, 1, 0, Said::Listed);
        assert_eq!(look(looks, 1, 20, Said::Nothing), Follows::LookAgain);
        assert_eq!(look(looks, 1, 25, Said::Listed), Follows::Held);
        assert_eq!(look(looks, 1, 30, Said::Nothing), Follows::LookAgain);
    }

    #[test]
    fn an_init_container_is_held_by_the_file_alone_which_is_asked_for_ever_more_rarely() {
        let looks = &mut Looks::default();
        look(looks, 1, 0, Said::Listed);
        let asked: Vec<u64> =
            (10..400).filter(|&at| look(looks, 1, at, Said::Kept) == Follows::AskForFile).collect();
        assert_eq!(asked, [10, 12, 14, 18, 26, 42, 74, 134, 194, 254, 314, 374]);
        assert_eq!(look(looks, 1, 400, Said::Nothing), Follows::Ended);
    }

    #[test]
    fn a_file_that_cannot_be_read_frees_nothing() {
        let looks = &mut Looks::default();
        for at in 0..1000 {
            assert_eq!(look(looks, 1, at, Said::Unknown), Follows::Held);
        }
    }

    #[test]
    fn a_kubelet_that_starts_again_is_given_time() {
        let looks = &mut Looks::default();
        look(looks, 1, 0, Said::Listed);
        assert_eq!(look(looks, 1, 20, Said::Nothing), Follows::LookAgain);
        for at in 22..32 {
            assert_eq!(look(looks, 2, at, Said::Nothing), Follows::Held);
        }
        assert_eq!(look(looks, 2, 32, Said::Nothing), Follows::LookAgain);
        assert_eq!(look(looks, 2, 34, Said::Nothing), Follows::Ended);
    }

    fn said() -> impl Strategy<Value = Said> {
        prop_oneof![
            1 => Just(Said::Listed),
            1 => Just(Said::Kept),
            1 => Just(Said::Unknown),
            4 => Just(Said::Nothing),
        ]
    }

    proptest! {
        /// Ended is only what one settled run of the kubelet has named in no list for [`APART`], and
        /// neither list nor file at the last look.
        #[test]
        fn an_end_rests_on_what_was_seen(
            history in proptest::collection::vec((0_u64..6, 0_u8..20, said(), any::<bool>()), 1..80),
        ) {
            let mut looks = Looks::default();
            let mut past: Vec<(u64, u64, Said)> = Vec::new();
            let (mut at, mut kubelet) = (0, 0);
            for (pause, restart, said, urgent) in history {
                at += pause;
                kubelet += u64::from(restart == 0);
                looks.begin(run(kubelet), secs(at));
                past.push((at, kubelet, said));
                if looks.say(ID, said, secs(at), urgent) != Follows::Ended {
                    continue;
                }
                let started = past.iter().find(|look| look.1 == kubelet).unwrap().0;
                let unlisted: Vec<_> =
                    past.iter().rev().take_while(|look| look.2 != Said::Listed).collect();
                let settled = |look: &(u64, u64, Said)| {
                    look.1 == kubelet && secs(look.0 - started) >= SETTLING
                };
                let first = unlisted.iter().rev().find(|look| settled(look)).unwrap().0;
                prop_assert!(said == Said::Nothing && secs(at - first) >= APART);
            }
        }
    }
}
