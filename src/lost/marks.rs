//! What is known of each block while blocks are marked, and what their contents say before anything is followed. Pure.
//!
//! A search that follows pointers waits for memory at each step. So small blocks are looked into first, in the order of
//! their addresses, which takes a tenth of the time. Most have no pointer, or one to the start of another block. Of
//! these, nothing is read again. In a list, each block must still be read before the next one is known. So lists are
//! followed from several places at once, and where each leads is remembered (`Trails`).

use std::ops::Range;
use std::thread;

use super::block::Level;
use super::buffers::large_vec;
use super::copies::Snapshot;
use super::index::BlockIndex;

/// The most bytes of a block that are looked into.
const MOST_LOOKED_INTO: u64 = 512;

/// How many blocks are worth a second thread, and are more than the processor's cache holds.
const MANY: usize = 32768;

/// How many blocks are looked into before what they point to is looked up.
const TOGETHER: usize = 64;

/// How many lists are followed at once: about as many words as a processor waits for at once.
const AT_ONCE: usize = 16;

/// How many blocks of a list in a row are worth to be remembered.
const LONG: usize = 16;

/// What is known of a block's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointers {
    /// So many bytes may be pointers.
    Unknown(u64),
    /// Its only pointer is to the start of the block with this index.
    One(u32),
    /// The same, and the trail with this number begins there.
    Trail(u32),
}

/// What a search needs to know of a block, in one place: each look at another one is a miss of the cache.
#[derive(Clone, Copy, Default)]
pub struct Mark(u64);

impl Mark {
    const LEVEL: u64 = 3;
    const WAITS: u64 = 4;
    const WAS_SEEN: u64 = 8;
    const KIND: u64 = 0x30;
    const ONE: u64 = 0x10;
    const TRAIL: u64 = 0x20;
    /// What the kind of content is about is in the bits from here on.
    const CONTENT: u32 = 6;

    /// Of a block that nobody has reached.
    fn new(pointers: Pointers) -> Self {
        let (kind, value) = match pointers {
            // Nobody has as much memory as the highest bits would say.
            Pointers::Unknown(length) => (0, length.min(u64::MAX >> Self::CONTENT)),
            Pointers::One(to) => (Self::ONE, to.into()),
            Pointers::Trail(trail) => (Self::TRAIL, trail.into()),
        };
        Self(value << Self::CONTENT | kind)
    }

    pub fn pointers(self) -> Pointers {
        let value = self.0 >> Self::CONTENT;
        match self.0 & Self::KIND {
            0 => Pointers::Unknown(value),
            // These were made from 32 bits.
            Self::ONE => Pointers::One(value as u32),
            _ => Pointers::Trail(value as u32),
        }
    }

    pub fn level(self) -> Level {
        match self.0 & Self::LEVEL {
            0 => Level::Unreached,
            1 => Level::Indirect,
            2 => Level::Possible,
            _ => Level::Reachable,
        }
    }

    pub fn set_level(&mut self, level: Level) {
        self.0 = self.0 & !Self::LEVEL | level as u64;
    }

    pub fn is_lost(self) -> bool {
        self.0 & Self::LEVEL == Level::Unreached as u64
    }

    /// The block waits to be searched.
    pub fn waits(self) -> bool {
        self.0 & Self::WAITS != 0
    }

    pub fn set_waits(&mut self, waits: bool) {
        match waits {
            true => self.0 |= Self::WAITS,
            false => self.0 &= !Self::WAITS,
        }
    }

    /// The block to which its only pointer leads, unless it was asked for that before.
    fn see(&mut self) -> Option<u32> {
        match self.pointers() {
            Pointers::One(to) if self.0 & Self::WAS_SEEN == 0 => {
                self.0 |= Self::WAS_SEEN;
                Some(to)
            }
            _ => None,
        }
    }
}

/// The marks of all blocks, before anything is reached.
pub fn marks(snapshot: &Snapshot, index: &BlockIndex) -> Vec<Mark> {
    let count = index.blocks().len();
    let mut marks = large_vec(count);
    marks.extend(index.lengths().map(Pointers::Unknown).map(Mark::new));
    let first = if count < MANY { count } else { count / 2 };
    let (own, others) = marks.split_at_mut(first);
    thread::scope(|scope| {
        if !others.is_empty() {
            let helper = thread::Builder::new().name("memleak-judge".to_owned());
            let work = || look_into(snapshot, index, first, others);
            // If there is no other thread to be had, these blocks are searched when they are reached.
            let _ = helper.spawn_scoped(scope, work);
        }
        look_into(snapshot, index, 0, own);
    });
    marks
}

/// Looks into small blocks. `first` is the index of the first block of `marks`.
fn look_into(snapshot: &Snapshot, index: &BlockIndex, first: usize, marks: &mut [Mark]) {
    let mut hint = 0;
    // The only word of a block that may be a pointer, and the place of the block's mark.
    let mut single = Vec::with_capacity(TOGETHER);
    let blocks = index.blocks()[first..].chunks(TOGETHER);
    for (blocks, marks) in blocks.zip(marks.chunks_mut(TOGETHER)) {
        single.clear();
        for (at, (block, mark)) in blocks.iter().zip(&mut *marks).enumerate() {
            let Pointers::Unknown(length @ 1..=MOST_LOOKED_INTO) = mark.pointers() else {
                continue;
            };
            let range = block.address..block.address + length;
            let (mut count, mut last) = (0, 0);
            snapshot.scan(range, &mut hint, |_, words| {
                for &word in words.iter().filter(|&&word| index.may_be(word)) {
                    (count, last) = (count + 1, word);
                }
            });
            match count {
                0 => *mark = Mark::new(Pointers::Unknown(0)),
                1 => {
                    index.fetch(last);
                    single.push((at, last));
                }
                _ => {}
            }
        }
        for &(at, word) in &single {
            match index.find(word) {
                Some(to) if to.is_start => marks[at] = Mark::new(Pointers::One(to.at)),
                Some(_) => {}
                None => marks[at] = Mark::new(Pointers::Unknown(0)),
            }
        }
    }
}

/// Blocks each of which leads to the next one, and nowhere else. The content of the last one is not known, or another
/// trail goes on there. No block but a last one is in two trails.
#[derive(Debug, Default)]
pub struct Trails(Vec<Vec<u32>>);

/// Follows one trail after the other.
struct Follower {
    /// Where further trails may begin.
    starts: Range<u32>,
    start: u32,
    /// The blocks behind the start. Empty if no trail is being followed.
    blocks: Vec<u32>,
}

impl Follower {
    /// Comes to the next block. `false` if there is none.
    fn step(&mut self, marks: &mut [Mark], trails: &mut Trails) -> bool {
        if let Some(last) = self.blocks.last() {
            match marks[*last as usize].see() {
                Some(to) => self.blocks.push(to),
                None => trails.add(std::mem::take(&mut self.blocks), self.start, marks),
            }
            return true;
        }
        let next = self.starts.find_map(|start| {
            let to = marks[start as usize].see()?;
            Some((start, to))
        });
        if let Some((start, to)) = next {
            self.start = start;
            self.blocks.push(to);
        }
        next.is_some()
    }
}

impl Trails {
    /// Finds the long ones, and enters where each begins.
    pub fn find(marks: &mut [Mark]) -> Self {
        let mut trails = Self::default();
        let count = marks.len();
        if count < MANY {
            return trails;
        }
        // Each has its own part of the memory, so that they do not meet at once.
        let bounds = |part: usize| (count * part / AT_ONCE) as u32;
        let mut followers: Vec<Follower> = (0..AT_ONCE)
            .map(|part| Follower {
                starts: bounds(part)..bounds(part + 1),
                start: 0,
                blocks: Vec::new(),
            })
            .collect();
        while !followers.is_empty() {
            followers.retain_mut(|follower| follower.step(marks, &mut trails));
        }
        trails
    }

    fn add(&mut self, mut blocks: Vec<u32>, start: u32, marks: &mut [Mark]) {
        if blocks.len() >= LONG {
            blocks.shrink_to_fit();
            marks[start as usize] = Mark::new(Pointers::Trail(self.0.len() as u32));
            self.0.push(blocks);
        }
    }

    /// The blocks of a trail behind the one with which it begins.
    pub fn get(&self, number: u32) -> &[u32] {
        self.0.get(number as usize).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Block;
    use super::super::samples::Memory;
    use super::*;

    const AT: u64 = 0x7000_0000;

    /// What is known of blocks side by side, with this content.
    fn known(contents: &[Vec<u64>]) -> Vec<Pointers> {
        let mut address = AT;
        let blocks = contents.iter().map(|words| {
            let block = Block {
                address,
                size: words.len() as u64 * 8,
                ..Block::default()
            };
            address += block.size;
            block
        });
        let index = BlockIndex::new(blocks.collect());
        let snapshot = Memory::default()
            .anonymous(AT, &contents.concat())
            .snapshot();
        let marks = marks(&snapshot, &index);
        marks.iter().map(|mark| mark.pointers()).collect()
    }

    #[test]
    fn a_small_block_with_one_pointer_to_a_start_is_known() {
        let large = |first| [vec![first], vec![0; 64]].concat();
        let contents = [
            vec![0, AT],
            vec![AT + 16, 7],
            // No pointer.
            vec![AT - 8, 1],
            // Into a block, two, and a large block.
            vec![AT + 8, 0],
            vec![AT, AT],
            large(AT),
        ];
        let expected = [
            Pointers::One(0),
            Pointers::One(1),
            Pointers::Unknown(0),
            Pointers::Unknown(16),
            Pointers::Unknown(16),
            Pointers::Unknown(65 * 8),
        ];
        assert_eq!(known(&contents), expected);
    }

    /// The trails of blocks each of which leads to the next one, except for the last.
    fn trails(count: u32) -> (Trails, Vec<Mark>) {
        let pointers = (1..=count).map(|next| match next {
            next if next == count => Pointers::Unknown(8),
            next => Pointers::One(next),
        });
        let mut marks: Vec<Mark> = pointers.map(Mark::new).collect();
        (Trails::find(&mut marks), marks)
    }

    #[test]
    fn a_trail_leads_where_the_pointers_lead() {
        let count = MANY as u32;
        let (trails, marks) = trails(count);
        let mut at = 0;
        let mut steps = 0;
        while at < count - 1 {
            at = match marks[at as usize].pointers() {
                Pointers::One(to) => to,
                Pointers::Trail(number) => {
                    let blocks = trails.get(number);
                    assert!(blocks.iter().copied().eq(at + 1..=at + blocks.len() as u32));
                    *blocks.last().expect("it is long")
                }
                Pointers::Unknown(_) => panic!("{at}"),
            };
            steps += 1;
        }
        assert!(steps < AT_ONCE * 2, "{steps}");
        assert!(trails.get(count).is_empty());
    }

    #[test]
    fn of_few_blocks_no_trails_are_kept() {
        assert!(trails(1000).0.0.is_empty());
    }
}
