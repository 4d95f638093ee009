//! What is known of an amount of which memleak may have missed a part: its bounds, and the verdict that they allow.

use crate::model::image::{From, Image};
use crate::model::reach::Reach;

/// A verdict of a gate. The verdicts are in ascending order of weight: of several verdicts, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Passed,
    /// Too little is known to decide, or nobody was judged.
    Unknown,
    Failed,
}

impl Verdict {
    /// The spelling in JSON, CSV and the closing line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

/// The bounds of an amount, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub lower: u64,
    /// `None`: no upper bound is known.
    pub upper: Option<u64>,
}

impl Bounds {
    /// Certainly nothing.
    pub const ZERO: Self = Self {
        lower: 0,
        upper: Some(0),
    };

    /// The bounds of an image's leak: of what it never freed. Blocks that were not recorded may or may not have been
    /// freed. There is no upper bound after a call that never returned or was in flight, with a missed row, with an
    /// allocator that was not followed, or if the image ran before memleak attached.
    pub fn of(image: &Image) -> Self {
        let lower = image.counters.leaked_bytes;
        let bounded = image.losses.calls_without_return == 0
            && image.losses.calls_in_flight == 0
            && image.losses.rows_lost == 0
            && image.uncovered.is_none()
            && image.from == From::Start;
        Self {
            lower,
            upper: bounded.then(|| lower.saturating_add(image.losses.bytes_not_recorded)),
        }
    }

    /// The bounds of what an image lost: of the part of its leak that it could not reach any more. Where that is not
    /// known, anything from nothing to the whole leak may be lost.
    pub fn of_lost(image: &Image) -> Self {
        let leak = Self::of(image);
        match image.reach {
            Reach::Known(reached) => {
                let lower = reached.lost().bytes;
                let not_recorded = image.losses.bytes_not_recorded;
                let bounded = leak.upper.is_some();
                Self {
                    lower,
                    upper: bounded.then(|| lower.saturating_add(not_recorded)),
                }
            }
            Reach::Unknown(_) | Reach::NotJudged => Self { lower: 0, ..leak },
        }
    }

    /// Whether the amount is known exactly.
    pub fn exact(self) -> bool {
        self.upper == Some(self.lower)
    }

    /// Whether the amount is certainly not more than `limit`.
    pub fn within(self, limit: u64) -> bool {
        self.upper.is_some_and(|upper| upper <= limit)
    }

    /// Whether the amount is more than `limit`.
    pub fn verdict(self, limit: u64) -> Verdict {
        if self.lower > limit {
            Verdict::Failed
        } else if self.within(limit) {
            Verdict::Passed
        } else {
            Verdict::Unknown
        }
    }
}

impl std::ops::AddAssign for Bounds {
    fn add_assign(&mut self, other: Self) {
        self.lower = self.lower.saturating_add(other.lower);
        self.upper = match (self.upper, other.upper) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Uncovered;
    use crate::model::image::samples::image;
    use crate::model::reach::{Amount, ReachUnknown, Reached};

    fn bounds(lower: u64, upper: impl Into<Option<u64>>) -> Bounds {
        let upper = upper.into();
        Bounds { lower, upper }
    }

    #[test]
    fn what_is_lost_is_definite_and_indirect_and_otherwise_at_most_what_was_never_freed() {
        let known = Reach::Known(Reached {
            definite: Amount {
                bytes: 7,
                blocks: 1,
            },
            indirect: Amount {
                bytes: 5,
                blocks: 1,
            },
            possible: Amount {
                bytes: 40,
                blocks: 1,
            },
            reachable: Amount {
                bytes: 48,
                blocks: 1,
            },
        });
        let unknown = Reach::Unknown(ReachUnknown::Signal);
        for (reach, not_recorded, expected) in [
            (known, 0, bounds(12, 12)),
            (known, 3, bounds(12, 15)),
            (unknown, 0, bounds(0, 100)),
            (unknown, 3, bounds(0, 103)),
            (Reach::NotJudged, 0, bounds(0, 100)),
        ] {
            let mut image = image();
            image.counters.leaked_bytes = 100;
            image.reach = reach;
            image.losses.bytes_not_recorded = not_recorded;
            assert_eq!(
                Bounds::of_lost(&image),
                expected,
                "{reach:?} {not_recorded}"
            );
            image.uncovered = Some(Uncovered::Late);
            let unbounded = bounds(expected.lower, None);
            assert_eq!(Bounds::of_lost(&image), unbounded, "{reach:?}");
        }
    }

    #[test]
    fn an_image_that_freed_everything_has_lost_nothing_whether_or_not_it_was_scanned() {
        assert_eq!(Bounds::of_lost(&image()), Bounds::ZERO);
    }
}
