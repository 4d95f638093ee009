//! The processes of a saved report, until their call stacks have come.
//!
//! A session writes the stacks of processes after the processes: a run at its end, a watching memleak after each window.
//! A pid may come again meanwhile. The stacks of the two processes then come in the order of the processes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::model::image::Image;
use crate::model::reach::Amount;

/// Of how many processes something is kept.
const MOST: usize = 1 << 20;

/// Something of each image whose stacks have yet to come.
#[derive(Debug)]
pub struct SavedProcesses<T> {
    kept: Vec<AwaitingStacks<T>>,
    /// By pid and number of the image.
    queues: HashMap<(u32, u32), Queue>,
    /// Stacks have come of those that are kept.
    has_stacks: bool,
}

/// The images with one pid and number: places in `kept`.
#[derive(Debug)]
struct Queue {
    /// Whose stacks come next.
    current: usize,
    last: usize,
}

#[derive(Debug)]
struct AwaitingStacks<T> {
    value: T,
    /// How many blocks it leaked by stacks that have yet to come.
    left: u64,
    /// The next image with the same pid and number.
    next: Option<usize>,
}

impl<T> Default for SavedProcesses<T> {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            queues: HashMap::new(),
            has_stacks: false,
        }
    }
}

impl<T> SavedProcesses<T> {
    /// All of those that were kept, if another process comes now: their stacks have all come. To be called before
    /// [`add`](Self::add), and for rows that are not added.
    pub fn complete(&mut self) -> Vec<T> {
        match self.has_stacks {
            true => self.take(),
            false => Vec::new(),
        }
    }

    /// Keeps something of an image.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn add(&mut self, image: &Image, value: T) -> Result<(), T> {
        let at = self.kept.len();
        if at >= MOST {
            return Err(value);
        }
        let stacks = image.stacks.as_ref();
        self.kept.push(AwaitingStacks {
            value,
            left: stacks.map_or(0, |_| image.unlisted_stacks.leaked.blocks),
            next: None,
        });
        match self.queues.entry((image.pid, image.image)) {
            Entry::Occupied(mut queue) => {
                let last = std::mem::replace(&mut queue.get_mut().last, at);
                self.kept[last].next = Some(at);
            }
            Entry::Vacant(place) => {
                place.insert(Queue {
                    current: at,
                    last: at,
                });
            }
        }
        Ok(())
    }

    /// What was kept of the image that allocated by a stack. `leaked`: by that stack, if it is known.
    pub fn of_stack(&mut self, id: (u32, u32), leaked: Amount) -> Option<&mut T> {
        self.has_stacks = true;
        let current = &mut self.queues.get_mut(&id)?.current;
        if leaked.blocks > 0 {
            while self.kept[*current].left == 0
                && let Some(next) = self.kept[*current].next
            {
                *current = next;
            }
        }
        let kept = &mut self.kept[*current];
        kept.left = kept.left.saturating_sub(leaked.blocks);
        Some(&mut kept.value)
    }

    /// All that is kept, in the order in which it came.
    pub fn take(&mut self) -> Vec<T> {
        self.has_stacks = false;
        self.queues.clear();
        let kept = std::mem::take(&mut self.kept);
        kept.into_iter().map(|kept| kept.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::samples::image;

    fn leaking(pid: u32, blocks: u64) -> Image {
        let mut image = image();
        image.pid = pid;
        image.stacks = Some(Vec::new());
        image.unlisted_stacks.leaked.blocks = blocks;
        image
    }

    fn blocks(blocks: u64) -> Amount {
        Amount { bytes: 8, blocks }
    }

    #[test]
    fn the_stacks_of_two_processes_with_one_pid_come_in_their_order() {
        let mut processes = SavedProcesses::default();
        for (pid, leaked, name) in [(7, 3, "a"), (8, 1, "b"), (7, 0, "c"), (7, 2, "d")] {
            processes.add(&leaking(pid, leaked), name).unwrap();
        }
        let id = |pid| (pid, image().image);
        for (pid, leaked, name) in [
            (7, 2, "a"),
            (7, 0, "a"),
            (7, 1, "a"),
            (7, 0, "a"),
            (7, 2, "d"),
            (8, 1, "b"),
        ] {
            let found = processes.of_stack(id(pid), blocks(leaked));
            assert_eq!(found.copied(), Some(name));
        }
        assert_eq!(processes.of_stack(id(9), blocks(1)), None);
        assert_eq!(processes.complete(), ["a", "b", "c", "d"]);
        assert!(processes.take().is_empty());
    }

    #[test]
    fn a_process_that_comes_after_stacks_begins_anew() {
        let mut processes = SavedProcesses::default();
        processes.add(&leaking(7, 5), "a").unwrap();
        assert!(processes.complete().is_empty());
        let id = (7, image().image);
        // Of a window, not all stacks are saved.
        processes.of_stack(id, blocks(1));
        assert_eq!(processes.complete(), ["a"]);
        processes.add(&leaking(7, 5), "b").unwrap();
        assert_eq!(processes.of_stack(id, blocks(1)).copied(), Some("b"));
    }
}
