//! The frames that are on a thread's stack when it ends its process by the C library's `exit`: what of them is not the
//! program's. Pure.

use std::ops::Range;

use super::area::Backing;
use super::copies::{Snapshot, Thread};

/// The most frames that are followed. glibc has two.
const MOST: usize = 8;

/// The frame of a function of the C library at a call that leads to the end of the process. Of the program, it holds
/// saved registers only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitFrame {
    /// The offset in the file of the code that the call would return to.
    pub return_offset: u64,
    /// From the word with the call's return address to the one with the function's own.
    pub size: u64,
    /// What holds neither, nor a saved register. From the word with the call's return address on.
    pub left_out: Vec<Range<u64>>,
}

/// What the frames of the ending thread hold that is not the program's. The C library writes few of these words. Most are
/// left over from calls before. `frames` are those of the files that the process has used.
pub fn not_the_programs(snapshot: &Snapshot, frames: &[ExitFrame]) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    for thread in snapshot.threads.iter().filter(|thread| thread.at_end) {
        of_thread(snapshot, thread, frames, &mut found);
    }
    found
}

fn of_thread(
    snapshot: &Snapshot,
    thread: &Thread,
    frames: &[ExitFrame],
    found: &mut Vec<Range<u64>>,
) {
    let mut at = thread.sp;
    for _ in 0..MOST {
        let return_address = snapshot.word(at);
        let Some(frame) = return_address.and_then(|to| frame_at(snapshot, to, frames)) else {
            return;
        };
        let Some(next) = at.checked_add(frame.size) else {
            return;
        };
        let left_out = frame.left_out.iter();
        found.extend(left_out.map(|range| at + range.start..(at + range.end).min(next)));
        at = next;
    }
}

/// The frame whose call returns to an address.
fn frame_at<'a>(snapshot: &Snapshot, to: u64, frames: &'a [ExitFrame]) -> Option<&'a ExitFrame> {
    // The call may be the last instruction.
    let call = to.checked_sub(1)?;
    let area = snapshot.area(call)?;
    if !area.executable || area.backing != Backing::File {
        return None;
    }
    let offset = area.offset.checked_add(to - area.start)?;
    let mut known = frames.iter().filter(|frame| frame.return_offset == offset);
    let frame = known.next()?;
    // Which of several files it is, cannot be told.
    known.all(|other| other == frame).then_some(frame)
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]
mod tests {
    use super::super::samples::Memory;
    use super::*;

    const CODE: u64 = 0x7f00_0000_0000;
    const SP: u64 = 0x7ffd_0000;

    /// A stack that begins with these words, and the code of a file.
    fn memory(words: &[u64], code: Backing) -> Memory {
        Memory::default()
            .area(CODE, &[0; 512], "x", code)
            .area(SP, words, "rw", Backing::Stack)
    }

    fn found(memory: Memory, at_end: bool) -> Vec<Range<u64>> {
        let mut memory = memory.thread(SP, 0, &[]);
        memory.threads[0].at_end = at_end;
        let frame = |return_offset, size, left_out: &[Range<u64>]| ExitFrame {
            return_offset,
            size,
            left_out: left_out.to_vec(),
        };
        let frames = [
            frame(0x100, 32, &[8..16, 24..32]),
            frame(0x200, 16, &[8..16]),
            frame(0x300, 16, &[8..16]),
            frame(0x300, 16, &[]),
            frame(0x400, u64::MAX, &[8..16]),
            frame(0x1000, 16, &[8..16]),
        ];
        not_the_programs(&memory.snapshot(), &frames)
    }

    #[test]
    fn frames_are_followed_from_the_stack_pointer_on() {
        let file = |words: &[u64]| memory(words, Backing::File);
        let two = [CODE + 0x100, 1, 2, 3, CODE + 0x200, 5, 6];
        let expected = [SP + 8..SP + 16, SP + 24..SP + 32, SP + 40..SP + 48];
        assert_eq!(found(file(&two), true), expected);
        assert_eq!(found(file(&two[..4]), true), expected[..2]);
        assert_eq!(found(file(&[CODE + 0x1000, 0]), true), [SP + 8..SP + 16]);
        // Only the thread that ends the process has such frames.
        assert!(found(file(&two), false).is_empty());
        assert!(found(memory(&two, Backing::Anonymous), true).is_empty());
    }

    #[test]
    fn what_is_no_such_frame_is_the_programs() {
        for word in [
            0,
            CODE,
            CODE + 0x108,
            CODE + 0x300,
            CODE + 0x400,
            SP,
            u64::MAX,
        ] {
            let memory = memory(&[word, 1, 2, 3], Backing::File);
            assert!(found(memory, true).is_empty(), "{word:x}");
        }
    }
}
