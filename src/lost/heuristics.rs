//! Pointers into a block that count like one to its start, because a language's runtime keeps only those. Pure.
//!
//! The four kinds and their conditions are those of valgrind's option `--leak-check-heuristics=all`, its default
//! (heuristic_reachedness in memcheck/mc_leakcheck.c, valgrind 3.19).

use super::area::Backing;
use super::block::Block;
use super::copies::Snapshot;

/// The most words of a table of functions that are looked at.
const MOST_WORDS: u64 = 20;

/// Whether a pointer into a block, behind its start, counts like one to its start.
pub fn counts_as_start(snapshot: &Snapshot, block: Block, pointer: u64) -> bool {
    let Some(offset) = pointer.checked_sub(block.address) else {
        return false;
    };
    let word = |at: u64| snapshot.word(block.address.saturating_add(at));
    match offset {
        24 if is_string(block.size, word(0), word(8)) => return true,
        8 if is_counted(block.size, word(0)) => return true,
        _ => {}
    }
    // A base class that is not the first one. Each base class begins with the address of its virtual functions.
    let tables = [snapshot.word(pointer), word(0)];
    tables
        .iter()
        .all(|table| table.is_some_and(|table| is_function_table(snapshot, table)))
}

/// A string of libstdc++'s old kind: length, capacity, number of users, characters and a zero byte.
fn is_string(size: u64, length: Option<u64>, capacity: Option<u64>) -> bool {
    let (Some(length), Some(capacity)) = (length, capacity) else {
        return false;
    };
    size.checked_sub(25) == Some(capacity) && length <= capacity
}

/// A block that begins with the size of what follows, or an array of `new[]` that begins with its number of elements.
/// The size is the number of elements of one byte each.
fn is_counted(size: u64, count: Option<u64>) -> bool {
    let (Some(rest), Some(count)) = (size.checked_sub(8), count) else {
        return false;
    };
    count > 0 && rest % count == 0
}

/// Whether functions of files are listed at an address of a file: two, with nothing between but zeros.
fn is_function_table(snapshot: &Snapshot, table: u64) -> bool {
    const PAGE: u64 = 4096;
    if !table.is_multiple_of(8) || table < PAGE {
        return false;
    }
    let Some(area) = snapshot.area(table) else {
        return false;
    };
    if area.backing != Backing::File || !area.readable {
        return false;
    }
    let last = table.saturating_add(MOST_WORDS * 8).min(area.end - 8);
    let mut functions = 0;
    for at in (table..=last).step_by(8) {
        let Some(function) = snapshot.word(at) else {
            return false;
        };
        if function == 0 {
            continue;
        }
        let is_function = snapshot
            .area(function)
            .is_some_and(|area| area.backing == Backing::File && area.executable);
        if !is_function {
            return false;
        }
        functions += 1;
        if functions == 2 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::samples::Memory;
    use super::*;

    const AT: u64 = 0x7000_0000;

    /// Whether a pointer to `offset` counts, in a block with this content.
    fn counts(offset: u64, size: u64, content: &[u64]) -> bool {
        let mut words = content.to_vec();
        words.resize(64, 0);
        let snapshot = Memory::default()
            .anonymous(AT, &words)
            // The code of a library, its virtual functions, and a table that leads elsewhere.
            .area(0x10_0000, &[0; 16], "rx", Backing::File)
            .area(0x20_0000, &[0, 0x10_0000, 0x10_0008], "r", Backing::File)
            .area(0x30_0000, &[0x10_0000, AT, 0x10_0008], "r", Backing::File)
            .area(0x40_0000, &[0x10_0000, 0x10_0008], "r", Backing::Anonymous)
            .snapshot();
        let block = Block {
            address: AT,
            size,
            ..Block::default()
        };
        counts_as_start(&snapshot, block, AT + offset)
    }

    #[test]
    fn a_string_counts_from_its_characters() {
        assert!(counts(24, 125, &[7, 100]));
        assert!(!counts(24, 126, &[7, 100]));
        assert!(!counts(24, 125, &[101, 100]));
        assert!(!counts(16, 125, &[7, 100]));
        assert!(!counts(24, 24, &[0, u64::MAX]));
    }

    #[test]
    fn a_length_or_a_number_of_elements_may_stand_in_front() {
        assert!(counts(8, 108, &[100]));
        assert!(counts(8, 108, &[50]));
        assert!(!counts(8, 108, &[51]));
        assert!(!counts(8, 108, &[0]));
        assert!(!counts(16, 108, &[100]));
    }

    #[test]
    fn a_second_base_class_counts() {
        let second = |first, inner| counts(16, 64, &[first, 0, inner]);
        assert!(second(0x20_0000, 0x20_0008));
        assert!(!second(0x20_0000, 0x20_0010), "only one function");
        assert!(!second(0x20_0000, 0x20_0001), "not aligned");
        assert!(!second(0x20_0000, 0x30_0000), "not only functions");
        assert!(!second(0x20_0000, 0x40_0000), "not in a file");
        assert!(!second(0x20_0000, 8));
        assert!(!second(0, 0x20_0000));
        assert!(!counts(17, 64, &[0x20_0000, 0, 0x20_0000 << 8]));
    }
}
