//! What is known of how the blocks that processes never freed could be reached at their ends, and its sums.

use crate::model::bounds::Bounds;
use crate::model::image::Image;
use crate::model::judgement::Reasons;
use crate::model::reach::{Reach, Reached};

/// How the blocks that an image never freed could be reached, if that is known. It is known without a scan of a process
/// that certainly freed all its blocks.
pub fn reached(image: &Image) -> Option<Reached> {
    match image.reach {
        Reach::Known(reached) => Some(reached),
        Reach::Unknown(_) => {
            let freed_all = Bounds::of(image) == Bounds::ZERO && image.counters.leaked_blocks == 0;
            freed_all.then(Reached::default)
        }
        Reach::NotJudged => None,
    }
}

/// The sums over processes that have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSum {
    /// The bytes that the processes lost.
    pub bytes: Bounds,
    /// The sums over the processes of which it is known.
    pub known: Reached,
    /// How many processes were scanned.
    pub judged: u64,
    /// The processes of which it is not known. Those that certainly have lost nothing are not in it.
    pub unknown: Reasons,
}

impl Default for LostSum {
    fn default() -> Self {
        Self {
            bytes: Bounds::ZERO,
            known: Reached::default(),
            judged: 0,
            unknown: Reasons::new(),
        }
    }
}

impl LostSum {
    /// Takes a process into account that has exited, or died. Sums saturate.
    pub(super) fn record(&mut self, image: &Image) {
        let bytes = Bounds::of_lost(image);
        self.bytes += bytes;
        match image.reach {
            Reach::Known(reached) => {
                self.known += reached;
                self.judged += 1;
            }
            Reach::Unknown(why) if bytes != Bounds::ZERO => {
                *self.unknown.entry(why).or_default() += 1;
            }
            Reach::Unknown(_) | Reach::NotJudged => {}
        }
    }

    /// Takes another sum into account. Sums saturate.
    pub(super) fn absorb(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.known += other.known;
        self.judged += other.judged;
        for (why, processes) in other.unknown {
            *self.unknown.entry(why).or_default() += processes;
        }
    }

    /// Whether anything is known: at least one process was scanned, or none can have lost anything.
    pub fn is_known(&self) -> bool {
        self.judged > 0 || self.bytes.exact()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::samples::image;
    use crate::model::reach::ReachUnknown;

    #[test]
    fn a_process_that_freed_all_its_blocks_needs_no_scan() {
        let mut ended = image();
        ended.reach = Reach::Unknown(ReachUnknown::Signal);
        assert_eq!(reached(&ended), Some(Reached::default()));
        // A block may have no bytes.
        ended.counters.leaked_blocks = 1;
        assert_eq!(reached(&ended), None);
        let mut incomplete = image();
        incomplete.losses.calls_without_return = 1;
        assert_eq!(reached(&incomplete), None);
        let mut replaced = image();
        replaced.reach = Reach::NotJudged;
        assert_eq!(reached(&replaced), None);
    }

    #[test]
    fn sums_know_whether_anything_is_known() {
        let mut sum = LostSum::default();
        sum.record(&image());
        assert!(sum.is_known() && sum.unknown.is_empty());
        let mut unknown = image();
        unknown.counters.leaked_bytes = 7;
        unknown.reach = Reach::Unknown(ReachUnknown::Timer);
        sum.record(&unknown);
        assert!(!sum.is_known());
        assert_eq!(sum.unknown, [(ReachUnknown::Timer, 1)].into());
        let mut known = unknown;
        known.reach = Reach::Known(Reached::default());
        sum.record(&known);
        assert!(sum.is_known());
        assert_eq!((sum.bytes.lower, sum.bytes.upper), (0, Some(7)));
    }
}
