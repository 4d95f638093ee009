//! Frames of saved stacks. Each record of a stack has all of its frames again.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::stack::{NamedFrame, NamedStack};

/// How many frames are remembered. One takes about a quarter of a kilobyte.
const MOST: usize = 1 << 17;

/// Lets stacks share their frames, so that many stacks take little memory.
#[derive(Debug, Default)]
pub struct SharedFrames {
    known: HashSet<Arc<NamedFrame>>,
}

impl SharedFrames {
    /// Replaces the frames of a stack by the same ones of earlier stacks.
    pub fn share(&mut self, stack: &mut NamedStack) {
        for frame in &mut stack.frames {
            match self.known.get(&**frame) {
                Some(known) => *frame = Arc::clone(known),
                None => {
                    if self.known.len() >= MOST {
                        self.known.clear();
                    }
                    self.known.insert(Arc::clone(frame));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::finished::samples::{frame, stack};
    use crate::model::stack::WalkEnd;

    #[test]
    fn equal_frames_of_two_stacks_are_one() {
        let with = |inner: &str| {
            let frames = vec![
                frame(inner, "/a", None),
                frame("main", "/a", Some(("a.c", 3))),
            ];
            stack(1, WalkEnd::Complete, frames)
        };
        let (mut one, mut other) = (with("f"), with("g"));
        let mut frames = SharedFrames::default();
        frames.share(&mut one);
        frames.share(&mut other);
        assert_eq!((&one, &other), (&with("f"), &with("g")));
        let is_one = |at: usize| Arc::ptr_eq(&one.frames[at], &other.frames[at]);
        assert_eq!([0, 1].map(is_one), [false, true]);
    }
}
