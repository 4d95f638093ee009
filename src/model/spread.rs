//! How what leaked is spread over parts: the ranks of a job, its nodes.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;

use crate::model::largest::largest_by_each;

/// What a part leaked, and what of that it certainly lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartSum {
    pub leaked: u64,
    pub lost: u64,
}

impl PartSum {
    fn add(&mut self, other: Self) {
        self.leaked = self.leaked.saturating_add(other.leaked);
        self.lost = self.lost.saturating_add(other.lost);
    }
}

/// The sums of the parts.
#[derive(Clone, Debug)]
pub(super) struct Parts<K> {
    sums: HashMap<K, PartSum>,
    /// Parts were left out. Their sums are in no spread.
    is_partial: bool,
}

impl<K> Default for Parts<K> {
    fn default() -> Self {
        Self {
            sums: HashMap::new(),
            is_partial: false,
        }
    }
}

impl<K: Clone + Eq + Ord + Hash> Parts<K> {
    /// Returns how many parts that adds.
    pub(super) fn add(&mut self, part: &K, sum: PartSum) -> usize {
        match self.sums.get_mut(part) {
            Some(all) => all.add(sum),
            None => {
                self.sums.insert(part.clone(), sum);
                return 1;
            }
        }
        0
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.is_partial |= other.is_partial;
        // The smaller ones go into the larger ones.
        let (mut into, from) = match self.sums.len() < other.sums.len() {
            true => (other.sums, mem::take(&mut self.sums)),
            false => (mem::take(&mut self.sums), other.sums),
        };
        for (part, sum) in from {
            into.entry(part).or_default().add(sum);
        }
        self.sums = into;
    }

    /// Leaves out about half of the parts, never one that leaked or lost most. Returns how many are left.
    pub(super) fn halve(&mut self) -> usize {
        let each = self.sums.len().div_ceil(4);
        if 2 * each >= self.sums.len() {
            return self.sums.len();
        }
        let all = mem::take(&mut self.sums);
        (self.sums, _) = largest_by_each(all, each, |sum| [sum.leaked, sum.lost]);
        self.is_partial = true;
        self.sums.len()
    }

    pub(super) fn len(&self) -> usize {
        self.sums.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &K> {
        self.sums.keys()
    }

    /// `None`: there are no parts.
    pub(super) fn spread(&self) -> Option<PartSpread<K>> {
        (!self.sums.is_empty()).then(|| PartSpread {
            parts: self.sums.len() as u64,
            is_partial: self.is_partial,
            leaked: self.spread_of(|sum| sum.leaked),
            lost: self.spread_of(|sum| sum.lost),
        })
    }

    fn spread_of(&self, bytes: impl Fn(&PartSum) -> u64) -> Spread<K> {
        let mut all: Vec<u64> = self.sums.values().map(&bytes).collect();
        let middle = all.len() / 2;
        let (below, upper, above) = all.select_nth_unstable(middle);
        let upper = *upper;
        let median = match (above.len() == below.len(), below.iter().max()) {
            (false, Some(lower)) => lower.midpoint(upper),
            (true, _) | (_, None) => upper,
        };
        let min = below.iter().min().copied().unwrap_or(upper);
        let max = above.iter().max().copied().unwrap_or(upper);
        let largest = self.sums.iter().filter(|(_, sum)| bytes(sum) == max);
        Spread {
            least: (!self.is_partial).then_some((min, median)),
            max,
            worst: match max {
                0 => None,
                _ => largest.map(|(part, _)| part).min().cloned(),
            },
        }
    }
}

/// How what leaked, and what was lost, is spread over the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpread<K> {
    /// How many parts there are. At least, if it is partial.
    pub parts: u64,
    /// There was no room for all parts.
    pub is_partial: bool,
    pub leaked: Spread<K>,
    /// With processes of which it is not known, lower bounds.
    pub lost: Spread<K>,
}

/// How bytes are spread over parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread<K> {
    /// The smallest sum, and the median: with an even number of parts, what is between the two in the middle. `None`:
    /// parts were left out.
    pub least: Option<(u64, u64)>,
    /// The largest sum.
    pub max: u64,
    /// The part with the largest sum. Of several, the one whose name is the first. `None`: all are zero.
    pub worst: Option<K>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(sums: &[(u32, u64, u64)]) -> Parts<u32> {
        let mut parts = Parts::default();
        for &(part, leaked, lost) in sums {
            parts.add(&part, PartSum { leaked, lost });
        }
        parts
    }

    #[test]
    fn a_spread_has_the_least_the_middle_and_the_worst() {
        let spread = |sums| parts(sums).spread().unwrap();
        let odd = spread(&[(1, 5, 0), (2, 20, 1), (3, 1, 9), (2, 20, 1)]);
        assert_eq!(odd.parts, 3);
        let expected = |least, max, worst| Spread {
            least: Some(least),
            max,
            worst,
        };
        assert_eq!(odd.leaked, expected((1, 5), 40, Some(2)));
        assert_eq!(odd.lost, expected((0, 2), 9, Some(3)));
        let even = spread(&[(7, 10, 0), (4, 10, 0), (5, 2, 0), (6, 5, 0)]);
        assert_eq!(even.leaked, expected((2, 7), 10, Some(4)));
        assert_eq!(even.lost, expected((0, 0), 0, None));
        assert_eq!(spread(&[(1, 3, 0)]).leaked, expected((3, 3), 3, Some(1)));
        let two = spread(&[(1, u64::MAX, 0), (2, u64::MAX - 2, 0)]);
        assert_eq!(two.leaked.least, Some((u64::MAX - 2, u64::MAX - 1)));
        assert_eq!(parts(&[]).spread(), None);
    }

    #[test]
    fn the_worst_stay_when_there_is_no_room() {
        let mut all = parts(&[]);
        for part in 0..1_000 {
            let leaked = u64::from(part) % 10;
            let lost = u64::from(part == 500);
            assert_eq!(all.add(&part, PartSum { leaked, lost }), 1);
        }
        all.add(
            &3,
            PartSum {
                leaked: 100,
                lost: 0,
            },
        );
        assert!((250..=500).contains(&all.halve()));
        let spread = all.spread().unwrap();
        assert!(spread.is_partial);
        assert_eq!((spread.leaked.worst, spread.leaked.max), (Some(3), 103));
        assert_eq!((spread.lost.worst, spread.lost.max), (Some(500), 1));
        // What was left out may have been less.
        assert_eq!(spread.leaked.least, None);
        // Two stay two.
        let mut few = parts(&[(1, 1, 0), (2, 0, 1)]);
        assert_eq!(few.halve(), 2);
        assert!(!few.spread().unwrap().is_partial);
    }

    #[test]
    fn the_same_parts_of_several_are_added_up() {
        let mut all = parts(&[(1, 1, 0), (2, 2, 0)]);
        all.absorb(parts(&[(1, 10, 1), (3, 5, 0), (4, 4, 0)]));
        all.absorb(parts(&[(2, 20, 0)]));
        let spread = all.spread().unwrap();
        assert_eq!((spread.parts, spread.leaked.max), (4, 22));
        assert_eq!(spread.leaked.least, Some((4, 8)));
    }
}
