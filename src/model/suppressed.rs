//! What suppressions do to a leak, as far as gates are concerned.

use crate::model::baseline::KnownLeak;
use crate::model::bounds::Bounds;
use crate::model::reach::{Amount, Reached};
use crate::model::unfreed::Unfreed;

/// How much one suppression has matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuppressionUse {
    /// As printable text.
    pub name: String,
    /// As the user named it, of any characters.
    pub file: String,
    /// From 1.
    pub line: usize,
    pub amount: Amount,
    /// In how many places.
    pub places: u64,
}

/// What suppressions match of what an image never freed, and on what they could not be tried. In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suppressed {
    /// Of what it leaked.
    pub leaked: u64,
    /// Of what it lost.
    pub lost: u64,
    /// What it leaked by stacks that are not known.
    pub unknown_leaked: u64,
    /// What it lost by them.
    pub unknown_lost: u64,
    /// What a baseline knows of the rest.
    pub known: KnownLeak,
}

/// Adds up what suppressions match of an image, stack by stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct SuppressedShares {
    suppressed: Unfreed,
    /// What is known to be of some stack.
    attributed: Unfreed,
}

impl SuppressedShares {
    /// Adds what the image never freed of what it allocated by one stack, and the part of it that is suppressed. Only
    /// for stacks that have frames.
    pub fn add(&mut self, unfreed: Unfreed, suppressed: Unfreed) {
        self.attributed += unfreed;
        self.suppressed += suppressed;
    }

    /// The result for an image that leaked so many bytes. `reached`: how these could be reached, if that is known.
    pub fn of_image(&self, leaked: u64, reached: Option<Reached>) -> Suppressed {
        let lost = reached.map_or(0, |reached| reached.lost().bytes);
        let attributed = self.attributed;
        Suppressed {
            leaked: self.suppressed.sum().bytes,
            lost: self.suppressed.reached.lost().bytes,
            unknown_leaked: leaked.saturating_sub(attributed.sum().bytes),
            unknown_lost: lost.saturating_sub(attributed.reached.lost().bytes),
            known: KnownLeak::default(),
        }
    }
}

impl Suppressed {
    /// The bounds of a leak that counts, of one with these bounds. An unknown stack is never suppressed. But it may be
    /// one that would be, if it were known.
    pub fn of_leak(self, bounds: Bounds) -> Bounds {
        less(
            bounds,
            self.leaked.saturating_add(self.known.leaked),
            self.unknown_leaked,
        )
    }

    /// The same of what is lost. `is_known`: it is known what the image lost. Otherwise anything that it leaked may be
    /// lost, but not what is suppressed whatever it is.
    pub fn of_lost(self, bounds: Bounds, is_known: bool) -> Bounds {
        match is_known {
            true => less(
                bounds,
                self.lost.saturating_add(self.known.lost),
                self.unknown_lost,
            ),
            false => less(bounds, self.leaked.saturating_add(self.known.leaked), 0),
        }
    }
}

fn less(bounds: Bounds, suppressed: u64, unknown: u64) -> Bounds {
    let lower = bounds.lower.saturating_sub(suppressed);
    Bounds {
        lower: lower.saturating_sub(unknown),
        upper: bounds.upper.map(|upper| upper.saturating_sub(suppressed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(bytes: u64) -> Amount {
        Amount { bytes, blocks: 1 }
    }

    fn unfreed(definite: u64, reachable: u64) -> Unfreed {
        Unfreed {
            reached: Reached {
                definite: amount(definite),
                reachable: amount(reachable),
                ..Reached::default()
            },
            ..Unfreed::default()
        }
    }

    #[test]
    fn what_is_suppressed_does_not_count_and_what_has_no_stack_may_or_may_not() {
        let mut shares = SuppressedShares::default();
        shares.add(unfreed(100, 1_000), unfreed(100, 0));
        shares.add(unfreed(7, 500), Unfreed::default());
        let all = unfreed(110, 1_600).reached;
        let suppressed = shares.of_image(1_710, Some(all));
        let exactly = |bytes| Bounds {
            lower: bytes,
            upper: Some(bytes),
        };
        let leak = suppressed.of_leak(exactly(1_710));
        assert_eq!((leak.lower, leak.upper), (1_507, Some(1_610)));
        let lost = suppressed.of_lost(exactly(110), true);
        assert_eq!((lost.lower, lost.upper), (7, Some(10)));
        // Where it is not known what is lost, the rest of the leak may be.
        let unknown = Bounds {
            lower: 0,
            upper: Some(1_710),
        };
        let lost = suppressed.of_lost(unknown, false);
        assert_eq!((lost.lower, lost.upper), (0, Some(1_610)));
        let unbounded = Bounds {
            upper: None,
            ..exactly(1_710)
        };
        assert_eq!(suppressed.of_leak(unbounded).upper, None);
    }

    #[test]
    fn without_suppressions_nothing_changes() {
        let bounds = Bounds {
            lower: 5,
            upper: Some(9),
        };
        let none = Suppressed::default();
        assert_eq!(none.of_leak(bounds), bounds);
        assert_eq!(none.of_lost(bounds, true), bounds);
        assert_eq!(none.of_lost(bounds, false), bounds);
    }
}
