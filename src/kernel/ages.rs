//! How old live blocks are, where the programs record that.

use std::collections::HashMap;
use std::time::Duration;

use libbpf_rs::MapHandle;

use crate::kernel::error::LoadError;
use crate::kernel::lists::for_each_hashed;
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::skeletons::types::birth;
use crate::kernel::slots::{LiveBlock, Slots};
use crate::model::reach::Amount;
use crate::os::clock::monotonic;

/// The tables of live blocks, which have the time of each block's allocation.
pub(super) struct DatedBlocks {
    slots: Slots,
    hashed: MapHandle,
    /// The age of the blocks that are looked for.
    least: Duration,
}

/// What the blocks of an age hold, by the heap and the number of the call stack that allocated them.
pub struct OldBlocks(HashMap<(u64, u32), Amount>);

impl OldBlocks {
    pub(super) fn of(&self, heap: u64, stack: u32) -> Amount {
        self.0.get(&(heap, stack)).copied().unwrap_or_default()
    }
}

impl DatedBlocks {
    /// # Errors
    /// There is no address space, or no descriptor, left.
    pub(super) fn open(skel: &MemleakSkel<'static>, least: Duration) -> Result<Self, LoadError> {
        Ok(Self {
            slots: Slots::map(&skel.maps.slots).map_err(LoadError::mapping)?,
            hashed: MapHandle::try_from(&skel.maps.blocks).map_err(LoadError::ring)?,
            least,
        })
    }

    /// Sums up the blocks that are at least that old now. The whole of both tables is read.
    ///
    /// # Errors
    /// The kernel cannot read its table.
    pub(super) fn old(&self) -> nix::Result<OldBlocks> {
        let before = monotonic().saturating_sub(self.least);
        let mut sums: HashMap<(u64, u32), Amount> = HashMap::new();
        let mut add = |live: LiveBlock| {
            if was_born_before(live.born, before) {
                let sum = sums.entry((live.heap, live.block.stack)).or_default();
                sum.bytes = sum.bytes.saturating_add(live.block.size);
                sum.blocks += 1;
            }
        };
        self.slots.blocks().for_each(&mut add);
        for_each_hashed(&self.hashed, add)?;
        Ok(OldBlocks(sums))
    }
}

/// Whether a block was allocated before that time, a monotonic one. The end of the unit in which it was allocated counts,
/// so that no block is called older than it is.
fn was_born_before(born: u32, time: Duration) -> bool {
    let end = (u64::from(born) + 1) << birth::BORN_SHIFT.0;
    born != 0 && Duration::from_nanos(end) <= time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_is_called_older_than_it_is() {
        let unit = 1 << birth::BORN_SHIFT.0;
        let at = |nanos: u64| Duration::from_nanos(nanos);
        // It was allocated at some time in the unit from 7 to 8.
        assert!(!was_born_before(7, at(7 * unit)));
        assert!(!was_born_before(7, at(8 * unit - 1)));
        assert!(was_born_before(7, at(8 * unit)));
        assert!(!was_born_before(0, at(u64::MAX)));
    }
}
