//! How much each suppression has matched.

use crate::model::reach::Amount;
use crate::model::suppressed::SuppressionUse;
use crate::stacks::suppressions::Suppressions;

/// How much each suppression of a list has matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuppressedSums {
    used: Vec<Used>,
}

/// How much one suppression has matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub amount: Amount,
    /// How many stacks.
    pub stacks: u64,
}

impl SuppressedSums {
    /// Of these suppressions, none of which has matched yet.
    pub fn new(suppressions: &Suppressions) -> Self {
        Self {
            used: vec![Used::default(); suppressions.list().len()],
        }
    }

    /// Adds what suppressions matched of one stack. Its blocks may be of several kinds, and so may have several
    /// suppressions, or the same one several times. The number is that of [`Matcher::find`](super::Matcher::find).
    pub fn add(&mut self, matched: &[(usize, Amount)]) {
        for (at, (number, amount)) in matched.iter().enumerate() {
            let Some(used) = self.used.get_mut(*number) else {
                continue;
            };
            used.amount += *amount;
            if !matched[..at].iter().any(|(before, _)| before == number) {
                used.stacks += 1;
            }
        }
    }

    /// For each suppression of the list how much it has matched.
    pub fn used(&self) -> &[Used] {
        &self.used
    }

    /// The same with the suppressions' names.
    pub fn uses(&self, suppressions: &Suppressions) -> Vec<SuppressionUse> {
        let uses = suppressions.list().iter().zip(&self.used);
        let uses = uses.map(|(suppression, used)| SuppressionUse {
            name: suppression.name.clone(),
            file: suppression.file.clone(),
            line: suppression.line,
            amount: used.amount,
            places: used.stacks,
        });
        uses.collect()
    }

    /// The sum of all.
    pub fn sum(&self) -> Used {
        (self.used.iter()).fold(Used::default(), |sum, used| Used {
            amount: sum.amount + used.amount,
            stacks: sum.stacks + used.stacks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_counted_once_for_each_suppression_that_matched_some_of_it() {
        let mut list = Suppressions::default();
        list.add("x", b"leak:a\nleak:b\nleak:c").unwrap();
        let mut sums = SuppressedSums::new(&list);
        let amount = |bytes, blocks| Amount { bytes, blocks };
        sums.add(&[(0, amount(10, 1)), (2, amount(5, 2)), (0, amount(1, 1))]);
        sums.add(&[(0, amount(4, 4))]);
        sums.add(&[]);
        let used = |bytes, blocks, stacks| Used {
            amount: amount(bytes, blocks),
            stacks,
        };
        assert_eq!(sums.used(), [used(15, 6, 2), used(0, 0, 0), used(5, 2, 1)]);
        assert_eq!(sums.sum(), used(20, 8, 3));
    }
}
