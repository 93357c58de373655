//! The GPUs that are nearest to each other.
//!
//! A set of GPUs is worth the scores of its pairs. Of sets worth the same, that one is better whose
//! pairs with the GPUs outside score least, so that a single GPU is taken from a group that is broken
//! already; then the one with more pairs on a NUMA node; then the one that comes first.
//!
//! All of that is a sum over the set's GPUs and pairs, which grows GPU by GPU, so sets are searched
//! depth first and left as soon as the best that can become of them is no better than what was found.

use std::cmp::Reverse;

use super::Request;
use crate::model::topology::Links;

/// Among more free GPUs the choice is [`Graph::grown`].
const MOST: usize = 32;

/// Sets that are looked at, at most: as many as 16 GPUs have, so that the answer is exact for them
/// whatever joins them. Of more GPUs, the best is answered that was found until then.
const SETS: u32 = 1 << 16;

/// What a score counts. Scores, and what is lost to the GPUs outside, have 40 bits each before they
/// reach the next: 4096 GPUs whose pairs have 16.
const SCORE: i128 = 1 << 64;
/// What a score counts that is lost.
const LOSS: i128 = 1 << 24;

/// Chooses GPUs to go with those that are included.
pub(super) fn choose(request: &Request<'_>, links: &Links) -> Vec<usize> {
    let free = request.free();
    if request.left == 0 || request.left == free.len() {
        return free.into_iter().take(request.left).collect();
    }
    let graph = Graph::of(request, &free, links);
    let grown = graph.grown(request.left);
    let chosen = match free.len() {
        0..=MOST => graph.best(request.left, grown),
        _ => grown.chosen,
    };
    chosen.into_iter().map(|gpu| free[gpu]).collect()
}

/// The free GPUs, counted from 0.
struct Graph {
    /// What each adds to those that are included.
    alone: Vec<i128>,
    /// What each adds to each other, at least 0.
    pairs: Vec<Vec<i128>>,
    /// [`reach`] of each.
    reach: Vec<Vec<i128>>,
}

/// A set of free GPUs and its worth.
struct Set {
    worth: i128,
    chosen: Vec<usize>,
}

impl Graph {
    fn of(request: &Request<'_>, free: &[usize], links: &Links) -> Self {
        let all = request.available;
        let score = |one: usize, other: usize| {
            let score = links.between(&all[one].gpu, &all[other].gpu).score();
            i128::from(score.min(u32::from(u16::MAX)))
        };
        let pair = |one: usize, other: usize| {
            let near = all[one].numa.is_some() && all[one].numa == all[other].numa;
            SCORE * score(one, other) + i128::from(near)
        };
        let included: Vec<_> = (0..all.len()).filter(|&at| request.included[at]).collect();
        let alone = free.iter().map(|&gpu| {
            // Scores within the set count here too, which makes no difference between equal ones.
            let loss: i128 = (0..all.len()).map(|other| score(gpu, other)).sum();
            included.iter().map(|&other| pair(gpu, other)).sum::<i128>() - LOSS * loss
        });
        let row = |&gpu: &usize| free.iter().map(|&other| pair(gpu, other)).collect();
        let pairs: Vec<Vec<i128>> = free.iter().map(row).collect();
        let reach = pairs.iter().enumerate().map(|(gpu, pairs)| reach(gpu, pairs)).collect();
        Self { alone: alone.collect(), pairs, reach }
    }

    /// Twice the most that a GPU can add to a set together with so many more, which count their half.
    fn promise(&self, gpu: usize, gain: i128, more: usize) -> i128 {
        2 * gain + self.reach[gpu][more]
    }

    /// Sets grown from each GPU in turn by what promises most; the best of them.
    fn grown(&self, size: usize) -> Set {
        let sets = (0..self.alone.len()).map(|seed| self.grown_from(seed, size));
        let best = sets.reduce(|best, set| if set.worth > best.worth { set } else { best });
        best.unwrap_or(Set { worth: 0, chosen: Vec::new() })
    }

    fn grown_from(&self, seed: usize, size: usize) -> Set {
        let mut gains = self.alone.clone();
        let mut set = Set { worth: 0, chosen: Vec::with_capacity(size) };
        let mut next = Some(seed);
        while let Some(gpu) = next {
            set.worth += gains[gpu];
            set.chosen.push(gpu);
            if set.chosen.len() == size {
                break;
            }
            gains.iter_mut().zip(&self.pairs[gpu]).for_each(|(gain, pair)| *gain += pair);
            let more = size - set.chosen.len() - 1;
            let others = (0..gains.len()).filter(|other| !set.chosen.contains(other));
            next = others.max_by_key(|&gpu| (self.promise(gpu, gains[gpu], more), Reverse(gpu)));
        }
        set
    }

    /// The best set, given a good one.
    fn best(&self, size: usize, good: Set) -> Vec<usize> {
        let chosen = good.chosen.iter().fold(0, |chosen, gpu| chosen | 1 << gpu);
        let mut search = Search {
            graph: self,
            twins: (0..self.alone.len()).map(|gpu| self.twins_before(gpu)).collect(),
            // A set that is worth as much may come before it.
            best: (good.worth - 1, chosen),
            sets: 0,
        };
        let mut gains = [0; MOST];
        gains.iter_mut().zip(&self.alone).for_each(|(gain, alone)| *gain = *alone);
        search.extend(Node { at: 0, left: size, worth: 0, chosen: 0, skipped: 0, gains });
        (0..self.alone.len()).filter(|gpu| search.best.1 >> gpu & 1 == 1).collect()
    }

    /// GPUs before this one that can stand for it in any set.
    fn twins_before(&self, gpu: usize) -> u32 {
        let same = |one: usize, other: usize| {
            let rest = (0..self.alone.len()).filter(|&rest| rest != one && rest != other);
            self.alone[one] == self.alone[other]
                && rest.into_iter().all(|rest| self.pairs[one][rest] == self.pairs[other][rest])
        };
        let twins = (0..gpu).filter(|&other| same(gpu, other));
        twins.fold(0, |twins, other| twins | 1 << other)
    }
}

/// The most that a GPU's pairs with 0, 1, 2, … others can add.
fn reach(gpu: usize, pairs: &[i128]) -> Vec<i128> {
    let others = pairs.iter().enumerate().filter(|(other, _)| *other != gpu);
    let mut others: Vec<i128> = others.map(|(_, pair)| *pair).collect();
    others.sort_unstable_by_key(|pair| Reverse(*pair));
    let sums = others.iter().scan(0, |sum, pair| {
        *sum += pair;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

/// A depth-first search. Sets of GPUs are bits.
struct Search<'g> {
    graph: &'g Graph,
    /// [`Graph::twins_before`] of each GPU.
    twins: Vec<u32>,
    /// The best set and its worth.
    best: (i128, u32),
    /// How many have been looked at.
    sets: u32,
}

/// A set to be extended.
#[derive(Clone)]
struct Node {
    /// The first GPU that has not been decided on.
    at: usize,
    /// How many are to be added.
    left: usize,
    worth: i128,
    chosen: u32,
    skipped: u32,
    /// What each GPU would add.
    gains: [i128; MOST],
}

impl Search<'_> {
    fn extend(&mut self, mut node: Node) {
        self.sets += 1;
        if node.left == 0 {
            if node.worth > self.best.0 {
                self.best = (node.worth, node.chosen);
            }
            return;
        }
        let count = self.graph.alone.len();
        while node.at + node.left <= count && self.sets < SETS && self.promises(&node) {
            // Where a twin that comes first was skipped, the set with it was looked at.
            if self.twins[node.at] & node.skipped == 0 {
                self.extend(self.with_next(&node));
            }
            node.skipped |= 1 << node.at;
            node.at += 1;
        }
    }

    fn with_next(&self, node: &Node) -> Node {
        let gpu = node.at;
        let mut next = node.clone();
        next.at += 1;
        next.left -= 1;
        next.worth += node.gains[gpu];
        next.chosen |= 1 << gpu;
        let pairs = &self.graph.pairs[gpu];
        next.gains.iter_mut().zip(pairs).skip(gpu).for_each(|(gain, pair)| *gain += pair);
        next
    }

    /// Whether it may become better than the best.
    fn promises(&self, node: &Node) -> bool {
        let mut most = [i128::MIN; MOST];
        let undecided = node.at..self.graph.alone.len();
        for gpu in undecided.clone() {
            most[gpu - node.at] = self.graph.promise(gpu, node.gains[gpu], node.left - 1);
        }
        let most = &mut most[..undecided.len()];
        if node.left < most.len() {
            most.select_nth_unstable_by_key(node.left, |most| Reverse(*most));
        }
        2 * node.worth + most.iter().take(node.left).sum::<i128>() > 2 * self.best.0
    }
}
