//! How far it is known by which call stacks images have allocated.

use std::collections::BTreeMap;

use crate::model::image::Image;
use crate::model::reach::Amount;
use crate::model::stack::{UnlistedStacks, WalkEnd};

/// What is not known of the call stacks of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StackCoverage {
    /// What was never freed, and is of no known stack: the sums of the images less those of their stacks.
    pub leaked: Amount,
    /// What was allocated by such calls.
    pub allocated: Amount,
    /// How many calls have a stack without its outermost frames, by the reason.
    pub early: BTreeMap<WalkEnd, u64>,
}

impl StackCoverage {
    /// Of one image. `None`: no call stacks were recorded.
    pub fn of(image: &Image) -> Option<Self> {
        let UnlistedStacks {
            mut leaked,
            mut allocated,
            mut early,
        } = image.unlisted_stacks.clone();
        for share in image.stacks.as_ref()? {
            // A stack without a frame says nothing.
            if share.stack.frames.is_empty() {
                continue;
            }
            leaked += Amount {
                bytes: share.leaked_bytes,
                blocks: share.leaked_blocks,
            };
            allocated += Amount {
                bytes: share.alloc_bytes,
                blocks: share.alloc_count,
            };
            if share.stack.end != WalkEnd::Complete {
                *early.entry(share.stack.end).or_default() += share.alloc_count;
            }
        }
        let counters = &image.counters;
        let rest = |bytes: u64, blocks: u64, known: Amount| Amount {
            bytes: bytes.saturating_sub(known.bytes),
            blocks: blocks.saturating_sub(known.blocks),
        };
        Some(Self {
            leaked: rest(counters.leaked_bytes, counters.leaked_blocks, leaked),
            allocated: rest(counters.total_allocs_bytes, counters.alloc_count, allocated),
            early,
        })
    }
}

impl std::ops::AddAssign for StackCoverage {
    fn add_assign(&mut self, other: Self) {
        self.leaked += other.leaked;
        self.allocated += other.allocated;
        for (end, calls) in other.early {
            *self.early.entry(end).or_default() += calls;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::image::samples::image;
    use crate::model::stack::{CallStack, CodePlace, Frame, StackShare};

    #[test]
    fn what_no_known_stack_has_is_unknown() {
        let share = |frames: usize, end, leaked_bytes| StackShare {
            stack: Arc::new(CallStack {
                frames: vec![
                    Frame {
                        place: CodePlace::Address(7),
                        interrupted: false
                    };
                    frames
                ],
                end,
                guessed: 0,
            }),
            alloc_bytes: 100,
            alloc_count: 2,
            leaked_bytes,
            leaked_blocks: 1,
            reached: None,
        };
        let mut image = image();
        image.counters.total_allocs_bytes = 1_000;
        image.counters.alloc_count = 20;
        image.counters.leaked_bytes = 90;
        image.counters.leaked_blocks = 9;
        assert_eq!(StackCoverage::of(&image), None);
        image.stacks = Some(vec![
            share(2, WalkEnd::Complete, 10),
            share(1, WalkEnd::NoRule, 20),
            share(0, WalkEnd::Pending, 30),
        ]);
        let of_image = StackCoverage::of(&image).unwrap();
        let amount = |bytes, blocks| Amount { bytes, blocks };
        assert_eq!(of_image.leaked, amount(60, 7));
        assert_eq!(of_image.allocated, amount(800, 16));
        assert_eq!(of_image.early, [(WalkEnd::NoRule, 2)].into());
        let freed = share(1, WalkEnd::NoRule, 0).stack;
        image.unlisted_stacks.add(&freed, amount(500, 5));
        image
            .unlisted_stacks
            .add(&share(0, WalkEnd::NoRule, 0).stack, amount(50, 1));
        let with_freed = StackCoverage::of(&image).unwrap();
        assert_eq!(with_freed.allocated, amount(300, 11));
        assert_eq!(
            (with_freed.leaked, with_freed.early),
            (amount(60, 7), [(WalkEnd::NoRule, 7)].into())
        );
        let mut sum = of_image.clone();
        sum += of_image;
        assert_eq!(
            (sum.leaked, sum.early[&WalkEnd::NoRule]),
            (amount(120, 14), 4)
        );
    }
}
