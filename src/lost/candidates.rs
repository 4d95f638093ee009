//! Where the blocks of a process may be, told from its memory alone. Whoever has a large table of blocks can look these
//! addresses up, and need not read the table. Pure.

use super::area::{Area, Backing};
use super::arenas::Arenas;
use super::buffers::large_vec;
use super::chunks;
use super::copies::Snapshot;
use super::index::BlockIndex;
use super::roots::walk;

/// The addresses of glibc's chunks that look as if they were in use, in order. Blocks of other allocators, and blocks
/// whose neighbours were overwritten, are missing. Freed blocks may be among them. `expected`: about how many there are.
pub fn candidates(snapshot: &Snapshot, expected: u64) -> Vec<u64> {
    let none = BlockIndex::default();
    // There cannot be more.
    let expected = expected.min(snapshot.bytes() / chunks::SMALLEST);
    let mut found = large_vec(expected as usize);
    walk(snapshot, &none, &Arenas::find(snapshot), |chunk| {
        found.push(chunk.block);
    });
    let alone = snapshot.areas.iter().filter(|area| may_be_alone(area));
    for area in alone {
        found.extend(chunks::mapped_in(snapshot, area.range()));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether glibc may have made a mapping for a single block.
fn may_be_alone(area: &Area) -> bool {
    area.readable && area.writable && !area.shared && area.backing == Backing::Anonymous
}

#[cfg(test)]
mod tests {
    use super::super::samples::Memory;
    use super::*;

    #[test]
    fn blocks_with_mappings_of_their_own_are_candidates() {
        const START: u64 = 0x7f00_0000_0000;
        let mut words = vec![0; 3 * 512];
        words[1] = 0x1002;
        words[512 + 1] = 0x2002;
        let snapshot = Memory::default().anonymous(START, &words).snapshot();
        assert_eq!(candidates(&snapshot, 1), [START + 0x10, START + 0x1010]);
        // The program's own mapping.
        let snapshot = Memory::default()
            .anonymous(START, &[START, START, 3])
            .snapshot();
        assert!(candidates(&snapshot, 1000).is_empty());
    }
}
