//! Choices for nodes that people have, and, for any node, what a plain search over all sets finds.

use proptest::prelude::*;

use super::*;
use crate::model::topology::{Link, PcieLevel};

fn uuid(number: usize) -> GpuUuid {
    GpuUuid(format!("GPU-{number}"))
}

fn gpu(number: usize, numa: Option<u32>) -> Candidate {
    Candidate { id: number.to_string(), gpu: uuid(number), numa, part: Part::Whole }
}

/// GPUs on two NUMA nodes.
fn gpus(count: usize) -> Vec<Candidate> {
    (0..count).map(|number| gpu(number, Some(u32::from(number >= count / 2)))).collect()
}

fn join(count: usize, nvlinks: impl Fn(usize, usize) -> u32) -> Links {
    let mut links = Links::default();
    for one in 0..count {
        for other in one + 1..count {
            let near = (one < count / 2) == (other < count / 2);
            let pcie = Some(if near { PcieLevel::Node } else { PcieLevel::System });
            let link = Link { pcie, nvlinks: nvlinks(one, other) };
            links.insert(uuid(one), uuid(other), link);
        }
    }
    links
}

/// Joined in pairs: 0 and 1, 2 and 3, …
fn bridged(count: usize) -> Links {
    join(count, |one, other| if one / 2 == other / 2 { 4 } else { 0 })
}

fn switched(count: usize) -> Links {
    join(count, |_, _| 18)
}

fn ids(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(ToString::to_string).collect()
}

/// The whole GPUs that are preferred of these.
fn whole(free: &[usize], must: &[usize], size: usize, links: &Links) -> Vec<String> {
    let all = gpus(8);
    let available: Vec<_> = free.iter().map(|&number| all[number].clone()).collect();
    preferred(&available, &ids(must), size, links, SharedPolicy::default())
}

#[test]
fn bridges_are_kept_together_and_a_single_gpu_comes_from_a_broken_one() {
    let (all, links) = ([0, 1, 2, 3, 4, 5, 6, 7], bridged(8));
    assert_eq!(whole(&all, &[], 2, &links), ids(&[0, 1]));
    assert_eq!(whole(&all, &[], 3, &links), ids(&[0, 1, 2]));
    assert_eq!(whole(&all, &[], 4, &links), ids(&[0, 1, 2, 3]));
    assert_eq!(whole(&[0, 1, 2, 3, 5, 6, 7], &[], 1, &links), ids(&[5]));
    assert_eq!(whole(&[0, 1, 2, 3, 5, 6, 7], &[], 3, &links), ids(&[5, 6, 7]));
    assert_eq!(whole(&[1, 2, 4, 6, 7], &[], 2, &links), ids(&[6, 7]));
    assert_eq!(whole(&[1, 2, 4, 6, 7], &[6], 2, &links), ids(&[6, 7]));
    assert_eq!(whole(&[1, 2, 4, 6, 7], &[1], 2, &links), ids(&[1, 2]));
    assert_eq!(whole(&[1, 2, 4, 6, 7], &[1], 3, &links), ids(&[1, 6, 7]));
}

#[test]
fn behind_switches_a_numa_node_is_filled_first() {
    let links = switched(8);
    assert_eq!(whole(&[0, 1, 2, 3, 4, 5, 6, 7], &[], 4, &links), ids(&[0, 1, 2, 3]));
    assert_eq!(whole(&[0, 1, 2, 4, 5, 6, 7], &[], 4, &links), ids(&[4, 5, 6, 7]));
    assert_eq!(whole(&[0, 1, 2, 4, 5, 6, 7], &[], 1, &links), ids(&[0]));
    assert_eq!(whole(&[0, 1, 4, 5, 6], &[0], 3, &links), ids(&[0, 1, 4]));
}

#[test]
fn without_links_numa_nodes_decide_and_then_the_order() {
    let none = Links::default();
    assert_eq!(whole(&[2, 3, 4, 5, 6], &[], 3, &none), ids(&[4, 5, 6]));
    assert_eq!(whole(&[2, 3, 4, 5, 6], &[], 2, &none), ids(&[2, 3]));
    assert_eq!(whole(&[7, 3, 4, 0], &[], 1, &none), ids(&[7]));
    assert_eq!(whole(&[7, 3, 4, 0], &[], 2, &none), ids(&[7, 4]));
}

#[test]
fn what_cannot_be_has_no_preference() {
    let links = switched(8);
    assert_eq!(whole(&[0, 1], &[], 3, &links), ids(&[]));
    assert_eq!(whole(&[0, 1], &[0, 1], 1, &links), ids(&[]));
    assert_eq!(whole(&[0, 1], &[2], 1, &links), ids(&[]));
    assert_eq!(whole(&[], &[], 0, &links), ids(&[]));
    assert_eq!(whole(&[0, 1, 2], &[1, 1], 1, &links), ids(&[1]));
    assert_eq!(whole(&[0, 1, 2], &[2], 3, &links), ids(&[0, 1, 2]));
}

#[test]
fn more_gpus_than_can_be_searched_are_still_taken_together() {
    let count = 40;
    let links = bridged(count);
    let answer = preferred(&gpus(count)[1..], &[], 4, &links, SharedPolicy::default());
    assert_eq!(answer, ids(&[2, 3, 4, 5]));
}

/// Parts of GPUs: `2b` is the second of GPU 2.
fn parts(names: &[&str], part: impl Fn(&str) -> Part) -> Vec<Candidate> {
    let part = |name: &&str| Candidate {
        id: (*name).to_owned(),
        gpu: GpuUuid(name[..1].to_owned()),
        numa: None,
        part: part(&name[..1]),
    };
    names.iter().map(part).collect()
}

fn mig(names: &[&str], must: &[&str], size: usize) -> Vec<String> {
    let must: Vec<_> = must.iter().map(|&name| name.to_owned()).collect();
    let available = parts(names, |_| Part::Mig);
    preferred(&available, &must, size, &Links::default(), SharedPolicy::Distributed)
}

#[test]
fn mig_devices_come_from_the_gpus_with_the_fewest_left() {
    let free = ["0a", "0b", "0c", "1a", "2a", "2b"];
    assert_eq!(mig(&free, &[], 1), ["1a"]);
    assert_eq!(mig(&free, &[], 2), ["2a", "2b"]);
    assert_eq!(mig(&free, &[], 3), ["0a", "0b", "0c"]);
    assert_eq!(mig(&free, &[], 4), ["0a", "0b", "0c", "1a"]);
    assert_eq!(mig(&free, &[], 5), ["0a", "0b", "0c", "2a", "2b"]);
    assert_eq!(mig(&free, &["0b"], 2), ["0a", "0b"]);
    assert_eq!(mig(&free, &["1a"], 3), ["1a", "2a", "2b"]);
}

/// Shares of three GPUs, of which 3, 1 and 2 are taken.
fn shares(policy: SharedPolicy, must: &[&str], size: usize) -> Vec<String> {
    let taken = |gpu: &str| match gpu {
        "0" => 3,
        "1" => 1,
        _ => 2,
    };
    let share = |gpu: &str| Part::Share { of: gpu.to_owned(), taken: taken(gpu) };
    let available = parts(&["0a", "1a", "1b", "1c", "2a", "2b"], share);
    let must: Vec<_> = must.iter().map(|&name| name.to_owned()).collect();
    preferred(&available, &must, size, &Links::default(), policy)
}

#[test]
fn distributed_shares_are_of_different_gpus() {
    let shares = |must: &[&str], size| shares(SharedPolicy::Distributed, must, size);
    assert_eq!(shares(&[], 1), ["1a"]);
    assert_eq!(shares(&[], 2), ["1a", "2a"]);
    assert_eq!(shares(&[], 3), ["0a", "1a", "2a"]);
    assert_eq!(shares(&[], 5), ["0a", "1a", "1b", "2a", "2b"]);
    assert_eq!(shares(&["1b"], 2), ["1b", "2a"]);
}

#[test]
fn packed_shares_are_of_one_gpu() {
    let shares = |must: &[&str], size| shares(SharedPolicy::Packed, must, size);
    assert_eq!(shares(&[], 1), ["0a"]);
    assert_eq!(shares(&[], 2), ["2a", "2b"]);
    assert_eq!(shares(&[], 3), ["1a", "1b", "1c"]);
    assert_eq!(shares(&[], 4), ["0a", "1a", "1b", "1c"]);
    assert_eq!(shares(&["1b"], 2), ["1a", "1b"]);
}

#[derive(Clone, Debug)]
struct Case {
    available: Vec<Candidate>,
    must: Vec<String>,
    size: usize,
    links: Links,
    policy: SharedPolicy,
}

impl Case {
    fn answer(&self) -> Vec<String> {
        preferred(&self.available, &self.must, self.size, &self.links, self.policy)
    }

    fn sets(&self) -> impl Iterator<Item = Vec<&Candidate>> {
        let subsets = (0..1_usize << self.available.len()).map(|bits| {
            let all = self.available.iter().enumerate();
            all.filter(|(at, _)| bits >> at & 1 == 1).map(|(_, gpu)| gpu).collect::<Vec<_>>()
        });
        subsets.filter(|set| {
            let has = |id: &String| set.iter().any(|candidate| candidate.id == *id);
            set.len() == self.size && self.must.iter().all(has)
        })
    }

    fn score(&self, one: &Candidate, other: &Candidate) -> u32 {
        self.links.between(&one.gpu, &other.gpu).score()
    }

    /// By definition: of all sets the highest sum, then the least cut, the most pairs on a NUMA node, and
    /// the first.
    fn best_whole(&self) -> Option<Vec<String>> {
        let worth = |set: &Vec<&Candidate>| {
            let (mut sum, mut cut, mut near) = (0, 0, 0);
            for (index, one) in set.iter().enumerate() {
                for other in &set[index + 1..] {
                    sum += self.score(one, other);
                    near += u32::from(one.numa.is_some() && one.numa == other.numa);
                }
                let rest = self.available.iter().filter(|other| !set.contains(other));
                cut += rest.map(|other| self.score(one, other)).sum::<u32>();
            }
            let places: Vec<_> = self.available.iter().map(|gpu| !set.contains(&gpu)).collect();
            (Reverse(sum), cut, Reverse(near), places)
        };
        let best = self.sets().min_by_key(worth)?;
        Some(best.into_iter().map(|gpu| gpu.id.clone()).collect())
    }

    /// How many parents a set has, how many of them it has not from the start, and by what they rank,
    /// lowest first.
    fn packing(&self, set: &[&Candidate], rank: impl Fn(&str) -> i64) -> (usize, Vec<i64>) {
        let of = |set: &mut dyn Iterator<Item = &Candidate>| {
            set.map(|part| part.parent().to_owned()).collect::<BTreeSet<_>>()
        };
        let begun = of(&mut self.available.iter().filter(|part| self.must.contains(&part.id)));
        let parents = of(&mut set.iter().copied());
        let mut ranks: Vec<_> = parents.difference(&begun).map(|parent| rank(parent)).collect();
        ranks.sort_unstable();
        (parents.union(&begun).count(), ranks)
    }
}

/// Anything that may join two GPUs, few kinds of it so that much is equal.
fn link() -> impl Strategy<Value = Link> {
    let pcie = proptest::sample::select(vec![None, Some(PcieLevel::System), Some(PcieLevel::Node)]);
    (pcie, 0..3_u32).prop_map(|(pcie, nvlinks)| Link { pcie, nvlinks })
}

fn links(count: usize) -> impl Strategy<Value = Links> {
    let any = proptest::collection::vec(link(), count * count).prop_map(move |all| {
        let mut links = Links::default();
        for one in 0..count {
            for other in one + 1..count {
                links.insert(uuid(one), uuid(other), all[one * count + other]);
            }
        }
        links
    });
    prop_oneof![any, Just(bridged(count)), Just(switched(count)), Just(Links::default())]
}

fn case(available: Vec<Candidate>, links: Links) -> impl Strategy<Value = Case> {
    let ids: Vec<_> = available.iter().map(|candidate| candidate.id.clone()).collect();
    let count = ids.len();
    let policy = proptest::sample::select(vec![SharedPolicy::Distributed, SharedPolicy::Packed]);
    let must = proptest::sample::subsequence(ids, 0..=count);
    (must, 0..=count, policy).prop_map(move |(must, size, policy)| {
        let size = size.max(must.len());
        Case { available: available.clone(), must, size, links: links.clone(), policy }
    })
}

fn whole_gpus(count: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let numa = proptest::sample::select(vec![None, Some(0), Some(1)]);
    count.prop_flat_map(move |count| {
        let numas = proptest::collection::vec(numa.clone(), count);
        (numas, links(count)).prop_flat_map(|(numas, links)| {
            let gpus = numas.into_iter().enumerate().map(|(number, numa)| gpu(number, numa));
            case(gpus.collect(), links)
        })
    })
}

/// Up to eight parts of four GPUs.
fn some_parts(share: bool) -> impl Strategy<Value = Case> {
    let taken = proptest::collection::vec(0..3_u32, 4);
    let parents = proptest::collection::vec(0..4_usize, 0..=8);
    (taken, parents).prop_flat_map(move |(taken, parents)| {
        let part = |parent: usize| match share {
            true => Part::Share { of: uuid(parent).0, taken: taken[parent] },
            false => Part::Mig,
        };
        let part = |(number, parent): (usize, usize)| Candidate {
            id: number.to_string(),
            gpu: uuid(parent),
            numa: None,
            part: part(parent),
        };
        case(parents.into_iter().enumerate().map(part).collect(), Links::default())
    })
}

fn assert_acceptable(case: &Case, answer: &[String]) {
    assert_eq!(answer.len(), case.size);
    let places = answer.iter().map(|id| case.available.iter().position(|gpu| gpu.id == *id));
    assert!(places.clone().all(|place| place.is_some()), "{answer:?}");
    assert!(places.is_sorted_by(|one, next| one < next), "{answer:?}");
    assert!(case.must.iter().all(|id| answer.contains(id)), "{answer:?}");
    assert_eq!(case.answer(), answer);
}

proptest! {
    #[test]
    fn whole_gpus_are_those_of_a_plain_search(case in whole_gpus(0..=8_usize)) {
        let answer = case.answer();
        assert_acceptable(&case, &answer);
        prop_assert_eq!(Some(answer), case.best_whole());
    }

    #[test]
    fn any_number_of_gpus_is_answered(case in whole_gpus(9..=48_usize)) {
        assert_acceptable(&case, &case.answer());
    }

    #[test]
    fn mig_devices_are_packed(case in some_parts(false)) {
        let answer = case.answer();
        assert_acceptable(&case, &answer);
        let free = |parent: &str| {
            let of = case.available.iter().filter(|part| part.parent() == parent);
            i64::try_from(of.filter(|part| !case.must.contains(&part.id)).count()).unwrap()
        };
        let set: Vec<_> = case.available.iter().filter(|one| answer.contains(&one.id)).collect();
        let best = case.sets().map(|set| case.packing(&set, free)).min();
        prop_assert_eq!(Some(case.packing(&set, free)), best);
    }

    #[test]
    fn shares_follow_the_policy(case in some_parts(true)) {
        let answer = case.answer();
        assert_acceptable(&case, &answer);
        let taken = |parent: &str| {
            let mut of = case.available.iter().filter(|part| part.parent() == parent);
            i64::from(of.next().unwrap().taken())
        };
        let set: Vec<_> = case.available.iter().filter(|one| answer.contains(&one.id)).collect();
        if case.policy == SharedPolicy::Packed {
            let packing = |set: &[&Candidate]| case.packing(set, |parent| -taken(parent));
            let best = case.sets().map(|set| packing(&set)).min();
            prop_assert_eq!(Some(packing(&set)), best);
            return Ok(());
        }
        // Evenly over the devices, and of those with shares taken as few as that allows.
        let spread = |set: &[&Candidate]| {
            let mut counts = BTreeMap::new();
            set.iter().for_each(|part| *counts.entry(part.parent()).or_insert(0) += 1);
            let uneven: i64 = counts.values().map(|count| count * count).sum();
            (uneven, counts.iter().map(|(parent, count)| count * taken(parent)).sum::<i64>())
        };
        let best = case.sets().map(|set| spread(&set)).min();
        prop_assert_eq!(Some(spread(&set)), best);
    }
}
