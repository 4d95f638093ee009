//! Sums by name in bounded memory. When there are too many names, the small sums become one.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// What is added up under a name.
pub(super) trait Sum: Default {
    /// By each of these, the largest keep their names.
    fn weights(&self) -> [u64; WEIGHTS];

    fn absorb(&mut self, other: Self);
}

pub(super) const WEIGHTS: usize = 4;

/// The sums so far.
#[derive(Clone, Debug)]
pub(super) struct Largest<K, S> {
    most: usize,
    named: HashMap<K, S>,
    /// The sum of those that have lost their names.
    further: S,
    has_further: bool,
}

impl<K: Clone + Eq + Ord + Hash, S: Sum> Largest<K, S> {
    /// `most`: how many names there are at a time. At least eight, of which each weight keeps one.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(2 * WEIGHTS),
            named: HashMap::new(),
            further: S::default(),
            has_further: false,
        }
    }

    /// The sum under a name. A name that was lost begins anew.
    pub(super) fn of<Q>(&mut self, name: &Q) -> &mut S
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        // Most names are there already.
        if self.named.contains_key(name) {
            return self.named.get_mut(name).unwrap_or(&mut self.further);
        }
        if self.named.len() >= self.most {
            self.fold();
        }
        self.named.entry(name.to_owned()).or_default()
    }

    /// Takes their names from at least half of the sums: from those that are among the largest by no weight.
    fn fold(&mut self) {
        let each = self.most / (2 * WEIGHTS);
        let all = std::mem::take(&mut self.named);
        let (kept, rest) = largest_by_each(all, each, |sum: &S| sum.weights());
        self.named = kept;
        self.has_further |= !rest.is_empty();
        for (_, sum) in rest {
            self.further.absorb(sum);
        }
    }

    /// All sums, and how many have names.
    pub(super) fn each(&mut self) -> (usize, impl Iterator<Item = &mut S>) {
        let named = self.named.len();
        (named, self.named.values_mut().chain([&mut self.further]))
    }

    /// All sums, in the order of their names. That of those without names comes last.
    pub(super) fn finish(self) -> impl Iterator<Item = (Option<K>, S)> {
        let further = self.has_further.then_some((None, self.further));
        let mut named: Vec<_> = self.named.into_iter().collect();
        named.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let named = named.into_iter().map(|(name, sum)| (Some(name), sum));
        named.chain(further)
    }
}

/// Those that are among the `each` largest by one of their weights, and the others. Of two that weigh the same, the one
/// whose name is the first counts as larger.
pub(super) fn largest_by_each<K: Eq + Ord + Hash, S, const N: usize>(
    all: HashMap<K, S>,
    each: usize,
    weights: impl Fn(&S) -> [u64; N],
) -> (HashMap<K, S>, Vec<(K, S)>) {
    let mut all: Vec<(K, S, bool)> = (all.into_iter())
        .map(|(name, sum)| (name, sum, false))
        .collect();
    for weight in 0..N {
        if each < all.len() {
            all.select_nth_unstable_by(each, |(one, a, _), (other, b, _)| {
                let heavier = weights(b)[weight].cmp(&weights(a)[weight]);
                heavier.then_with(|| one.cmp(other))
            });
        }
        all.iter_mut()
            .take(each)
            .for_each(|(.., is_large)| *is_large = true);
    }
    let (large, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(.., is_large)| *is_large);
    let without_mark = |(name, sum, _)| (name, sum);
    (
        large.into_iter().map(without_mark).collect(),
        others.into_iter().map(without_mark).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By how much, and how often.
    #[derive(Debug, Default, PartialEq)]
    struct Counted(u64, u64);

    impl Sum for Counted {
        fn weights(&self) -> [u64; WEIGHTS] {
            [self.0, self.1, 0, 0]
        }

        fn absorb(&mut self, other: Self) {
            self.0 += other.0;
            self.1 += other.1;
        }
    }

    #[test]
    fn the_largest_keep_their_names_wherever_they_come() {
        let mut sums: Largest<u32, Counted> = Largest::new(64);
        for name in 0..10_000 {
            let amount = if name == 17 || name == 9_999 {
                1_000
            } else {
                1
            };
            let sum = sums.of(&name);
            sum.0 += amount;
            sum.1 += 1;
            // Often, and of no weight.
            sums.of(&5_000).1 += 1;
        }
        assert!(sums.each().0 <= 64);
        let all: Vec<_> = sums.finish().collect();
        let of = |wanted| {
            let mut found = all.iter().filter(|(name, _)| *name == wanted);
            found.next().map(|(_, sum)| (sum.0, sum.1))
        };
        assert_eq!(of(Some(17)), Some((1_000, 1)));
        assert_eq!(of(Some(9_999)), Some((1_000, 1)));
        assert_eq!(of(Some(5_000)), Some((1, 10_001)));
        // Nothing is dropped.
        let total = all
            .iter()
            .fold((0, 0), |(a, b), (_, sum)| (a + sum.0, b + sum.1));
        assert_eq!(total, (11_998, 20_000));
        assert!(all.is_sorted_by_key(|(name, _)| name.unwrap_or(u32::MAX)));
        assert_eq!(all.last().map(|(name, _)| *name), Some(None));
    }

    #[test]
    fn without_too_many_names_all_stay() {
        let mut sums: Largest<u32, Counted> = Largest::new(64);
        (0..64).for_each(|name| sums.of(&name).0 += 1);
        assert_eq!(sums.finish().filter(|(name, _)| name.is_some()).count(), 64);
    }
}
