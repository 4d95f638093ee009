//! Adds up how the blocks that processes never freed could be reached at their ends.

use crate::model::bounds::Bounds;
use crate::model::image::Image;
use crate::model::judgement::Reasons;
use crate::model::reach::{Reach, Reached};

/// The sums over processes that have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSum {
    /// The bytes that the processes lost.
    pub bytes: Bounds,
    /// The sums over the processes of which it is known.
    pub known: Reached,
    /// How many these are.
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

    /// Whether anything is known: at least one process was judged, or none can have lost anything.
    pub fn is_known(&self) -> bool {
        self.judged > 0 || self.bytes.exact()
    }
}
