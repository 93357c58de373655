//! Which claims are held though they no longer exist: their kubelet lost its state, and nobody will ever ask for
//! their unprepare. Concluded from what the API server and the kubelet said, twice, and never from their silence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::model::ended::Run;

/// How far two rounds are apart that say the same, and how long nothing counts after a start of agent or kubelet.
pub const APART: Duration = Duration::from_mins(10);

/// One claim at most is let go in this time.
pub const PACE: Duration = Duration::from_mins(1);

/// What the API server said of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// In so many words that this claim does not exist, or that its name is another's by now.
    Gone,
    /// It is there.
    There,
    /// Anything else, silence included.
    Unknown,
}

/// What one round of questions found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// UID of the agent's own node, asked after the claims; absent where the server did not say.
    pub node: Option<String>,
    /// Which run of the kubelet it was; absent where its list was not complete.
    pub kubelet: Option<Run>,
    /// What was said of each claim that is held, by UID.
    pub claims: BTreeMap<String, Answer>,
    /// The claims that the kubelet's list names.
    pub listed: BTreeSet<String>,
}

/// What earlier rounds found. Times are since the agent's start.
#[derive(Debug, Default)]
pub struct Rounds {
    node: Option<String>,
    kubelet: Option<(Run, Duration)>,
    /// Since when each claim is known to be gone.
    gone: BTreeMap<String, Duration>,
    let_go: Option<Duration>,
}

impl Rounds {
    /// The claims that may be let go after this round, the longest gone first.
    pub fn add(&mut self, round: &Round, now: Duration) -> Vec<String> {
        let same_node = self.same_node(round.node.as_ref());
        let settled = self.settled(round.kubelet, now);
        if !same_node || !settled {
            // What was seen of another cluster or kubelet proves nothing in this one.
            if round.node.is_some() && !same_node || round.kubelet.is_some() && !settled {
                self.gone.clear();
            }
            return Vec::new();
        }
        let still = |uid: &String| round.claims.get(uid) != Some(&Answer::There);
        self.gone.retain(|uid, _| {
            round.claims.contains_key(uid) && still(uid) && !round.listed.contains(uid)
        });
        let gone_now: BTreeSet<&String> = round
            .claims
            .iter()
            .filter(|(uid, answer)| **answer == Answer::Gone && !round.listed.contains(*uid))
            .map(|(uid, _)| uid)
            .collect();
        for uid in &gone_now {
            self.gone.entry((*uid).clone()).or_insert(now);
        }
        let mut long: Vec<_> = self
            .gone
            .iter()
            .filter(|(uid, since)| gone_now.contains(uid) && now.saturating_sub(**since) >= APART)
            .map(|(uid, since)| (*since, uid.clone()))
            .collect();
        long.sort();
        long.into_iter().map(|(_, uid)| uid).collect()
    }

    /// Whether one more may be let go now.
    pub fn may_let_go(&self, now: Duration) -> bool {
        self.let_go.is_none_or(|last| now.saturating_sub(last) >= PACE)
    }

    /// One was, or was tried.
    pub fn let_go(&mut self, uid: &str, now: Duration) {
        self.gone.remove(uid);
        self.let_go = Some(now);
    }

    /// The node of the first round is ours. Another UID under its name is that of a cluster that was restored or
    /// made anew, of which nothing is known: nothing is concluded until the agent starts again.
    fn same_node(&mut self, node: Option<&String>) -> bool {
        match (&self.node, node) {
            (_, None) => false,
            (None, Some(uid)) => {
                self.node = Some(uid.clone());
                true
            }
            (Some(known), Some(uid)) => known == uid,
        }
    }

    fn settled(&mut self, run: Option<Run>, now: Duration) -> bool {
        let Some(run) = run else { return false };
        if self.kubelet.is_none_or(|(known, _)| known != run) {
            self.kubelet = Some((run, now));
        }
        self.kubelet.is_some_and(|(_, since)| now.saturating_sub(since) >= APART && now >= APART)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "uid-1";

    fn minutes(minutes: u64) -> Duration {
        Duration::from_mins(minutes)
    }

    fn round(node: Option<&str>, kubelet: Option<u64>, answer: Answer, listed: bool) -> Round {
        Round {
            node: node.map(str::to_owned),
            kubelet: kubelet.map(|inode| Run { inode, made: 0 }),
            claims: BTreeMap::from([(UID.to_owned(), answer)]),
            listed: listed.then(|| UID.to_owned()).into_iter().collect(),
        }
    }

    fn gone() -> Round {
        round(Some("node"), Some(1), Answer::Gone, false)
    }

    /// In which minutes it may be let go, with this at minute 25 and all else as it should be.
    fn with(odd: &Round) -> Vec<u64> {
        let mut rounds = Rounds::default();
        let add = |at| {
            let round = if at == 25 { odd.clone() } else { gone() };
            rounds.add(&round, minutes(at))
        };
        let mut add = add;
        (0..40).filter(|&at| !add(at).is_empty()).collect()
    }

    #[test]
    fn a_claim_that_is_gone_twice_is_let_go_ten_minutes_after_the_first() {
        assert_eq!(with(&gone()), (20..40).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_says_otherwise_begins_it_anew() {
        let after = |first| (20..25).chain(first..40).collect::<Vec<_>>();
        let node = Some("node");
        // Silence is no statement either way.
        assert_eq!(with(&round(node, Some(1), Answer::Unknown, false)), after(26));
        assert_eq!(with(&round(None, Some(1), Answer::Gone, false)), after(26));
        assert_eq!(with(&round(node, None, Answer::Gone, false)), after(26));
        // It is there, it is listed, it is another cluster.
        assert_eq!(with(&round(node, Some(1), Answer::There, false)), after(36));
        assert_eq!(with(&round(node, Some(1), Answer::Gone, true)), after(36));
        assert_eq!(with(&round(Some("restored"), Some(1), Answer::Gone, false)), after(36));
        // Another kubelet, and then the one of before anew.
        assert_eq!(with(&round(node, Some(2), Answer::Gone, false)), after(99));
    }

    #[test]
    fn nothing_is_concluded_in_a_cluster_that_was_made_anew() {
        let mut rounds = Rounds::default();
        for at in 0..15 {
            rounds.add(&gone(), minutes(at));
        }
        for at in 15..100 {
            let restored = round(Some("restored"), Some(1), Answer::Gone, false);
            assert_eq!(rounds.add(&restored, minutes(at)), [""; 0]);
        }
    }

    #[test]
    fn one_a_minute_is_let_go() {
        let mut rounds = Rounds::default();
        assert!(rounds.may_let_go(minutes(20)));
        rounds.let_go(UID, minutes(20));
        assert!(!rounds.may_let_go(minutes(20) + Duration::from_secs(59)));
        assert!(rounds.may_let_go(minutes(21)));
    }

    fn any_round() -> impl Strategy<Value = Round> {
        let node = prop_oneof![1 => Just(None), 12 => Just(Some("node")), 1 => Just(Some("other"))];
        let kubelet = prop_oneof![1 => Just(None), 12 => Just(Some(1)), 1 => Just(Some(2))];
        let answer = prop_oneof![
            12 => Just(Answer::Gone),
            1 => Just(Answer::There),
            1 => Just(Answer::Unknown),
        ];
        (node, kubelet, answer, prop::bool::weighted(0.05))
            .prop_map(|(node, kubelet, answer, listed)| round(node, kubelet, answer, listed))
    }

    proptest! {
        /// Whoever is let go was gone in two rounds, ten minutes apart, of the node that was known first, with a
        /// list of a kubelet that had run for ten minutes both times; and nothing between them said otherwise.
        #[test]
        fn what_is_let_go_was_gone_twice(
            history in prop::collection::vec((0_u64..9, any_round()), 1..60),
        ) {
            let mut rounds = Rounds::default();
            let mut past: Vec<(u64, Round)> = Vec::new();
            let mut at = 0;
            for (pause, round) in history {
                at += pause;
                past.push((at, round.clone()));
                if rounds.add(&round, minutes(at)).is_empty() {
                    continue;
                }
                let node = past.iter().find_map(|(_, round)| round.node.clone());
                let run = round.kubelet;
                let started = |n: usize| {
                    let mut before = past[..=n].iter().rev().filter(|(_, r)| r.kubelet.is_some());
                    let other = before.find(|(_, r)| r.kubelet != run).map(|(at, _)| *at);
                    let mut same = past.iter().filter(|(at, r)| r.kubelet == run && other.is_none_or(|o| *at >= o));
                    same.next().map(|(at, _)| *at).unwrap()
                };
                let says = |n: usize| {
                    let (then, r) = &past[n];
                    r.node == node && r.kubelet == run && r.claims[UID] == Answer::Gone
                        && r.listed.is_empty() && then.saturating_sub(started(n)) >= 10
                };
                let last = past.len() - 1;
                prop_assert!(says(last));
                let first = (0..last).rev().find(|&n| past[n].0 + 10 <= at && says(n));
                prop_assert!(first.is_some());
                for (_, between) in &past[first.unwrap()..] {
                    // A round without word of node or kubelet says nothing of claims either.
                    let heard = between.node == node && between.kubelet == run;
                    let contrary = between.claims[UID] == Answer::There || !between.listed.is_empty();
                    prop_assert!(!(heard && contrary));
                }
            }
        }
    }
}
