//! The stacks of threads: what of them is in use, and which ones belong to threads that have ended. Pure.
//!
//! glibc keeps the stacks of ended threads for new ones, with all that is on them. It also keeps the thread control block
//! (`struct pthread`), which lies at the upper end of a stack. Its layout is that of nptl/descr.h, glibc 2.31 to 2.43.
//!
//! Until glibc 2.41 a control block says whether its thread was joined, and a stack has a guard that is a mapping of its
//! own. Since 2.42 neither is so. But since 2.34 each control block is in one of three lists, whose heads stand side by
//! side: of glibc's stacks in use, of the program's, and of those that glibc keeps (`_dl_stack_cache`).

use std::ops::Range;

use super::area::{Area, Backing};
use super::copies::{Snapshot, Thread};

const PAGE: u64 = 4096;

/// A thread control block is aligned to this.
const ALIGNMENT: u64 = 64;

/// Where the words are in a thread control block that name it, and the table of its thread-local storage.
const TABLE: u64 = 8;
const SELF: u64 = 16;
/// From a block to what the thread control block says of it: the table's first entry is its length.
const TABLE_IN_BLOCK: u64 = 16;

/// Where a control block is linked into its list: the next one, and the one before.
const LIST: u64 = 0x2c0;
/// A list's head has these two words.
const LIST_HEAD: u64 = 16;
/// The most threads of a list that are followed.
const MOST_LISTED: usize = 1 << 16;

/// The kernel's number of the thread, -1 after another thread has joined this one.
const TID: u64 = 0x2d0;
/// Where the stack's address and size stand side by side, and the thread that will join this one.
const LATER_WORDS: Range<u64> = 0x200..0x900;
/// How much of a stack can be behind the beginning of its thread control block.
const MOST_BEHIND: u64 = 64 << 10;

/// What is known of a process's stacks.
#[derive(Debug, Default)]
pub struct Stacks {
    /// What is on them, but is not in use.
    pub unused: Vec<Range<u64>>,
    /// The addresses of the blocks with tables of thread-local storage. The only pointers to them lead into them.
    pub tables: Vec<u64>,
}

impl Stacks {
    pub fn find(snapshot: &Snapshot) -> Self {
        let mut stacks = Self::default();
        for thread in &snapshot.threads {
            stacks.table(snapshot, thread.tls);
        }
        stacks.unused_below_pointers(snapshot);
        stacks.listed(snapshot);
        for area in snapshot.areas.iter().filter(|area| may_be_stack(area)) {
            stacks.of_ended_threads(snapshot, area);
        }
        stacks
    }

    fn table(&mut self, snapshot: &Snapshot, tls: u64) {
        let table = tls.checked_add(TABLE).and_then(|at| snapshot.word(at));
        self.tables
            .extend(table.and_then(|table| table.checked_sub(TABLE_IN_BLOCK)));
    }

    fn unused_below_pointers(&mut self, snapshot: &Snapshot) {
        for thread in &snapshot.threads {
            let Some(area) = snapshot.area(thread.sp) else {
                continue;
            };
            let start = match area.backing {
                Backing::Stack => Some(area.start),
                // A thread's stack may share its area with other memory of the program.
                _ => stack_of(snapshot, thread.tls)
                    .filter(|stack| stack.contains(&thread.sp))
                    .map(|stack| stack.start),
            };
            let Some(start) = start else {
                continue;
            };
            // Another thread may have moved to the same stack.
            let on_it = snapshot
                .threads
                .iter()
                .filter(|thread| area.contains(thread.sp) && thread.sp >= start);
            let end = on_it.map(Thread::used_from).min().unwrap_or(start);
            if start < end {
                self.unused.push(start..end);
            }
        }
    }

    /// Finds the threads that have ended, by the lists of all control blocks.
    fn listed(&mut self, snapshot: &Snapshot) {
        let head_of = |thread: &Thread| list_at(snapshot, thread.tls.checked_add(LIST)?)?.0;
        let Some(head) = snapshot.threads.iter().find_map(head_of) else {
            return;
        };
        let lowest = head.saturating_sub(2 * LIST_HEAD);
        for head in (lowest..).step_by(LIST_HEAD as usize).take(5) {
            let Some((None, listed)) = list_at(snapshot, head) else {
                continue;
            };
            for &tls in &listed {
                self.table(snapshot, tls);
            }
            let is_live = |tls: &u64| snapshot.threads.iter().any(|thread| thread.tls == *tls);
            let stacks: Option<Vec<_>> = listed
                .iter()
                .map(|tls| stack_of(snapshot, *tls).filter(|_| !is_live(tls)))
                .collect();
            let Some(stacks) = stacks else {
                continue;
            };
            // The sum of the sizes of what is kept stands behind the list's head, in a static program before it.
            let sizes = stacks.iter().map(|stack| stack.end - stack.start);
            let sum = sizes.fold(0, u64::saturating_add);
            let beside = [head.checked_add(LIST_HEAD), head.checked_sub(LIST_HEAD)];
            let mut beside = beside.into_iter().flatten();
            if beside.any(|at| snapshot.word(at) == Some(sum)) {
                self.unused.extend(stacks);
            }
        }
    }

    /// Finds threads that have ended, and whose stacks are still in an area: glibc keeps its own, and a program may keep
    /// those that it provides.
    fn of_ended_threads(&mut self, snapshot: &Snapshot, area: &Area) {
        let mut hint = 0;
        let mut found = Vec::new();
        snapshot.scan(area.range(), &mut hint, |start, words| {
            let skipped = start.next_multiple_of(ALIGNMENT) - start;
            let first = start + skipped;
            let blocks = words
                .get(skipped as usize / 8..)
                .unwrap_or_default()
                .chunks(ALIGNMENT as usize / 8);
            for (at, block) in (first..).step_by(ALIGNMENT as usize).zip(blocks) {
                if block[0] == at && block.get(SELF as usize / 8) == Some(&at) {
                    found.push(at);
                }
            }
        });
        for at in found {
            if snapshot.threads.iter().any(|thread| thread.tls == at) {
                continue;
            }
            self.table(snapshot, at);
            // A thread that was not joined still has its result.
            if let Some(stack) = stack_of(snapshot, at)
                && is_kept(snapshot, at)
            {
                self.unused.push(stack);
            }
        }
    }
}

/// The list with a link at `start`: the address of its head, unless that is `start`, and the control blocks in it.
/// `None` if this is no such list.
fn list_at(snapshot: &Snapshot, start: u64) -> Option<(Option<u64>, Vec<u64>)> {
    let mut head = None;
    let mut found = Vec::new();
    let mut link = start;
    while found.len() <= MOST_LISTED {
        let next = snapshot.word(link)?;
        // Each link is named by the next one, too.
        if snapshot.word(next.checked_add(8)?)? != link {
            return None;
        }
        if next == start {
            return Some((head, found));
        }
        let tls = next.checked_sub(LIST)?;
        match is_control_block(snapshot, tls) {
            true => found.push(tls),
            false if head.is_none() => head = Some(next),
            false => return None,
        }
        link = next;
    }
    None
}

fn is_control_block(snapshot: &Snapshot, tls: u64) -> bool {
    let names_itself = |at: u64| tls.checked_add(at).and_then(|at| snapshot.word(at)) == Some(tls);
    tls.is_multiple_of(ALIGNMENT) && names_itself(0) && names_itself(SELF)
}

/// Whether a thread may have its stack here. A stack that the program provides has no guard below it.
fn may_be_stack(area: &Area) -> bool {
    area.readable && area.writable && area.backing == Backing::Anonymous
}

/// The stack of a thread with its guard, as its control block has it.
fn stack_of(snapshot: &Snapshot, tls: u64) -> Option<Range<u64>> {
    let mut start = None;
    for at in LATER_WORDS.step_by(8) {
        let word = snapshot.word(tls.checked_add(at)?)?;
        if let Some(start) = start
            && let Some(end) = u64::checked_add(start, word)
            && word.is_multiple_of(PAGE)
            && end > tls
            && end - tls < MOST_BEHIND
        {
            return Some(start..end);
        }
        start = (word != 0 && word.is_multiple_of(PAGE) && word <= tls).then_some(word);
    }
    None
}

/// Whether the stack of an ended thread is kept for a new thread: another thread has joined this one, or none may.
fn is_kept(snapshot: &Snapshot, tls: u64) -> bool {
    const JOINED: u32 = -1_i32 as u32;
    let word = |at: u64| snapshot.word(tls.saturating_add(at));
    // The upper half of the word is another field.
    let is_joined = word(TID).is_some_and(|word| word as u32 == JOINED);
    let is_detached = || LATER_WORDS.step_by(8).any(|at| word(at) == Some(tls));
    is_joined || is_detached()
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]
mod tests {
    use super::super::samples::Memory;
    use super::*;

    const STACK: u64 = 0x7f00_0000_0000;
    const SIZE: u64 = 0x4000;
    const TLS: u64 = STACK + SIZE - 0x940;
    const TABLE_BLOCK: u64 = 0x5555_0010;

    /// A stack with a control block, and with a guard below it or without one.
    fn memory(tid: u64, guard: &str) -> Memory {
        let mut words = vec![0; ((SIZE - PAGE) / 8) as usize];
        let at = |address: u64| ((address - STACK - PAGE) / 8) as usize;
        words[at(TLS)] = TLS;
        words[at(TLS + TABLE)] = TABLE_BLOCK + TABLE_IN_BLOCK;
        words[at(TLS + SELF)] = TLS;
        words[at(TLS + TID)] = tid;
        words[at(TLS + 0x690)] = STACK;
        words[at(TLS + 0x698)] = SIZE;
        Memory::default()
            .area(STACK, &[0; PAGE as usize / 8], guard, Backing::Anonymous)
            .anonymous(STACK + PAGE, &words)
    }

    fn unused(memory: Memory) -> Vec<Range<u64>> {
        Stacks::find(&memory.snapshot()).unused
    }

    #[test]
    fn a_stack_is_in_use_from_its_pointer_on() {
        let snapshot = Memory::default()
            .area(0x7ffd_0000, &[0; 512], "rw", Backing::Stack)
            .thread(0x7ffd_0800, 0, &[])
            .snapshot();
        assert_eq!(Stacks::find(&snapshot).unused, [0x7ffd_0000..0x7ffd_0780]);
        // The pointer is elsewhere.
        let snapshot = Memory::default()
            .area(0x7ffd_0000, &[0; 512], "rw", Backing::Stack)
            .thread(0x6ffd_0800, 0, &[])
            .snapshot();
        assert!(Stacks::find(&snapshot).unused.is_empty());
    }

    #[test]
    fn the_stack_of_a_thread_that_runs_is_in_use_from_its_pointer_on() {
        let sp = STACK + 0x2000;
        let running = memory(100, "").thread(sp, TLS, &[]);
        assert_eq!(unused(running), [STACK..sp - 128]);
        // The lower one counts.
        let two = memory(100, "")
            .thread(sp, TLS, &[])
            .thread(sp - 512, 1, &[]);
        assert_eq!(unused(two), [STACK..sp - 512 - 128]);
        // What the program provided may share its area with anything, but its bounds are known, too.
        let provided = memory(100, "rw").thread(sp, TLS, &[]);
        assert_eq!(unused(provided), [STACK..sp - 128]);
    }

    #[test]
    fn the_stack_of_a_joined_thread_is_not_in_use() {
        let joined = 0xdead_ffff_ffff;
        assert_eq!(unused(memory(joined, "")), [STACK..STACK + SIZE]);
        // The program has provided this one.
        assert_eq!(unused(memory(joined, "rw")), [STACK..STACK + SIZE]);
        // It was not joined: its result is still wanted.
        assert!(unused(memory(0, "")).is_empty());
        assert!(unused(memory(100, "")).is_empty());
    }

    /// Three stacks without guards, each with its thread in a list: of those that run, of those that were not joined, and
    /// of those that glibc keeps. `sum` is what stands behind the last list's head, or before it.
    fn listed(sum: u64, before: bool) -> Stacks {
        const HEADS: u64 = 0x6000_0000;
        let mut heads = vec![0; 9];
        let mut memory = Memory::default();
        let order = if before { [6, 4, 2] } else { [2, 4, 6] };
        for (stack, head) in [0, 0x10_0000, 0x20_0000].into_iter().zip(order) {
            let tls = TLS + stack;
            let mut words = vec![0; (SIZE / 8) as usize];
            let mut set = |offset: u64, word| {
                words[((tls + offset - STACK - stack) / 8) as usize] = word;
            };
            for (offset, word) in [(0, tls), (TABLE, TABLE_BLOCK + stack + TABLE_IN_BLOCK)] {
                set(offset, word);
            }
            let link = HEADS + head * 8;
            for (offset, word) in [(SELF, tls), (LIST, link), (LIST + 8, link)] {
                set(offset, word);
            }
            set(0x690, STACK + stack);
            set(0x698, SIZE);
            let head = head as usize;
            heads[head..head + 2].fill(tls + LIST);
            memory = memory.anonymous(STACK + stack, &words);
        }
        heads[if before { 0 } else { 8 }] = sum;
        let memory = memory.data(HEADS, &heads);
        Stacks::find(&memory.thread(STACK + SIZE - 0x2000, TLS, &[]).snapshot())
    }

    #[test]
    fn what_glibc_keeps_is_known_by_its_list() {
        let running = STACK..STACK + SIZE - 0x2000 - 128;
        let kept = STACK + 0x20_0000;
        for before in [false, true] {
            let mut stacks = listed(SIZE, before);
            assert_eq!(stacks.unused, [running.clone(), kept..kept + SIZE]);
            stacks.tables.sort_unstable();
            stacks.tables.dedup();
            let tables = [0, 0x10_0000, 0x20_0000].map(|stack| TABLE_BLOCK + stack);
            assert_eq!(stacks.tables, tables);
            assert_eq!(listed(0, before).unused, std::slice::from_ref(&running));
        }
    }

    #[test]
    fn the_table_of_a_thread_is_known_by_its_block() {
        let tables = |memory: Memory| Stacks::find(&memory.snapshot()).tables;
        assert_eq!(tables(memory(0, "")), [TABLE_BLOCK]);
        let running = memory(100, "").thread(STACK + 0x2000, TLS, &[]);
        assert_eq!(tables(running), [TABLE_BLOCK]);
    }
}
