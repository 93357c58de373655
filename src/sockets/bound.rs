//! Which connections are open, and which of them has been idle longest.

use std::collections::BTreeMap;

/// Open connections in the order in which something last happened on them. `C` closes one.
#[derive(Debug)]
pub(super) struct Bound<C> {
    most: usize,
    /// Counts what happens: the times of two events may be the same.
    clock: u64,
    /// By their last event.
    open: BTreeMap<u64, (Id, C)>,
    last: BTreeMap<Id, u64>,
}

/// A connection: the event that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64);

impl<C> Bound<C> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, clock: 0, open: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Opens a connection, unless as many as may be are open.
    pub(super) fn open(&mut self, close: C) -> Result<Id, C> {
        if self.open.len() >= self.most {
            return Err(close);
        }
        let now = self.tick();
        self.open.insert(now, (Id(now), close));
        self.last.insert(Id(now), now);
        Ok(Id(now))
    }

    /// Something happened on a connection.
    pub(super) fn active(&mut self, id: Id) {
        let now = self.tick();
        let Some(last) = self.last.get_mut(&id) else { return };
        let connection = self.open.remove(last);
        *last = now;
        self.open.extend(connection.map(|connection| (now, connection)));
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, id: Id) {
        if let Some(last) = self.last.remove(&id) {
            self.open.remove(&last);
        }
    }

    /// What closes the connection on which nothing has happened for longest.
    pub(super) fn idle_longest(&self) -> Option<&C> {
        self.open.values().next().map(|(_, close)| close)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Opens,
        Active(usize),
        Ends(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Opens),
            3 => any::<usize>().prop_map(Step::Active),
            1 => any::<usize>().prop_map(Step::Ends),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// A list in which whoever does something goes to the end is what it must be like.
        #[test]
        fn never_more_are_open_and_the_one_idle_longest_makes_room(most in 1..9_usize, steps in steps()) {
            let mut bound = Bound::new(most);
            let mut expected: Vec<(Id, usize)> = Vec::new();
            for (name, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Opens => {
                        let mut opened = bound.open(name);
                        if expected.len() == most {
                            prop_assert_eq!(&opened, &Err(name));
                            prop_assert_eq!(bound.idle_longest(), Some(&expected[0].1));
                            bound.ended(expected.remove(0).0);
                            opened = bound.open(name);
                        }
                        expected.push((opened.unwrap(), name));
                    }
                    Step::Active(n) if !expected.is_empty() => {
                        let one = expected.remove(n % expected.len());
                        bound.active(one.0);
                        expected.push(one);
                    }
                    Step::Ends(n) if !expected.is_empty() => {
                        let (id, _) = expected.remove(n % expected.len());
                        bound.ended(id);
                        // What is said of one that has ended changes nothing.
                        bound.active(id);
                        bound.ended(id);
                    }
                    Step::Active(_) | Step::Ends(_) => {}
                }
                let open: Vec<_> = bound.open.values().copied().collect();
                prop_assert_eq!(&open, &expected);
                prop_assert!(bound.open.len() <= most);
                prop_assert_eq!(bound.last.len(), bound.open.len());
            }
        }
    }
}
