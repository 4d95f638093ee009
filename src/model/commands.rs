//! Adds up the processes that have ended by their command names: a tree of hundreds of processes in a few lines.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use clap::ValueEnum;

use crate::model::bounds::Bounds;
use crate::model::image::Image;
use crate::model::lost::LostSum;

/// How many command names are told apart. The processes of all further ones are added up as one.
pub(super) const MOST: usize = 4096;

/// What the processes of one command name have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// `None`: the processes of the names for which there was no room.
    pub comm: Option<Vec<u8>>,
    pub processes: u64,
    pub total_allocs_bytes: u64,
    /// With losses, a lower bound.
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    /// The process that leaked most, and how many bytes. `None`: none leaked.
    pub worst: Option<(u32, u64)>,
    pub lost: LostSum,
    /// The process that certainly lost most, and how many bytes. `None`: none is known to have lost anything.
    pub worst_lost: Option<(u32, u64)>,
}

/// By what the commands are ordered, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CommandOrder {
    #[default]
    Leak,
    Lost,
    Allocs,
    Processes,
}

/// The commands so far.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    named: BTreeMap<Vec<u8>, Command>,
    further: Command,
}

impl Commands {
    /// Takes a process that has exited, or died, into account. Sums saturate.
    pub(super) fn record(&mut self, image: &Image) {
        self.record_as(&image.comm, image);
    }

    /// The sums under a name.
    pub(super) fn of(&mut self, name: &[u8]) -> &mut Command {
        // Most names are there already.
        match self.named.contains_key(name) || self.named.len() >= MOST {
            true => self.named.get_mut(name).unwrap_or(&mut self.further),
            false => self.named.entry(name.to_vec()).or_default(),
        }
    }

    /// Takes a process into account under another name than its own.
    pub(super) fn record_as(&mut self, name: &[u8], image: &Image) {
        let command = self.of(name);
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        let counters = &image.counters;
        add(&mut command.processes, 1);
        add(&mut command.total_allocs_bytes, counters.total_allocs_bytes);
        add(&mut command.leaked_bytes, counters.leaked_bytes);
        add(&mut command.leaked_blocks, counters.leaked_blocks);
        command.lost.record(image);
        let lost = Bounds::of_lost(image).lower;
        for (worst, bytes) in [
            (&mut command.worst, counters.leaked_bytes),
            (&mut command.worst_lost, lost),
        ] {
            if bytes > worst.map_or(0, |(_, bytes)| bytes) {
                *worst = Some((image.pid, bytes));
            }
        }
    }

    /// All commands, in the order of their names.
    pub fn finish(self) -> Vec<Command> {
        let further = Some(self.further).filter(|further| further.processes > 0);
        let named = self.named.into_iter().map(|(comm, command)| Command {
            comm: Some(comm),
            ..command
        });
        named.chain(further).collect()
    }
}

/// Puts the commands into an order. Commands of equal weight stay in the order that they have.
pub fn sort(commands: &mut [Command], order: CommandOrder) {
    commands.sort_by_key(|command| {
        let Command {
            leaked_bytes,
            total_allocs_bytes,
            processes,
            ..
        } = *command;
        let lost_bytes = command.lost.bytes.lower;
        Reverse(match order {
            CommandOrder::Lost => (lost_bytes, leaked_bytes),
            CommandOrder::Leak => (leaked_bytes, total_allocs_bytes),
            CommandOrder::Allocs => (total_allocs_bytes, leaked_bytes),
            CommandOrder::Processes => (processes, leaked_bytes),
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::samples::image;
    use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};

    fn ended(pid: u32, comm: &str, allocated: u64, leaked: u64) -> Image {
        let mut image = image();
        image.pid = pid;
        image.comm = comm.into();
        image.counters.total_allocs_bytes = allocated;
        image.counters.leaked_bytes = leaked;
        image.counters.leaked_blocks = leaked.min(1);
        image
    }

    fn commands(images: &[Image]) -> Vec<Command> {
        let mut commands = Commands::default();
        images.iter().for_each(|image| commands.record(image));
        commands.finish()
    }

    #[test]
    fn processes_of_one_name_are_added_up_and_the_worst_is_named() {
        let images = [
            ended(1, "b", 5, 0),
            ended(2, "a", 10, 3),
            ended(3, "a", 20, 4),
            ended(5, "a", 1, 4),
        ];
        let expected = Command {
            comm: Some(b"a".to_vec()),
            processes: 3,
            total_allocs_bytes: 31,
            leaked_bytes: 11,
            leaked_blocks: 3,
            worst: Some((3, 4)),
            lost: LostSum {
                bytes: Bounds {
                    lower: 0,
                    upper: Some(11),
                },
                unknown: [(ReachUnknown::Off, 3)].into(),
                ..LostSum::default()
            },
            worst_lost: None,
        };
        let found = commands(&images);
        assert_eq!(found[0], expected);
        assert_eq!((found.len(), found[1].worst), (2, None));
    }

    #[test]
    fn what_is_lost_is_added_up_as_far_as_it_is_known() {
        let losing = |pid, lost| {
            let mut image = ended(pid, "a", 10, 9);
            let definite = Amount {
                bytes: lost,
                blocks: 1,
            };
            image.reach = Reach::Known(Reached {
                definite,
                ..Reached::default()
            });
            image
        };
        let found = commands(&[losing(1, 2), ended(2, "a", 10, 5), losing(3, 4)]);
        let bounds = Bounds {
            lower: 6,
            upper: Some(11),
        };
        assert_eq!((found[0].lost.bytes, found[0].lost.judged), (bounds, 2));
        assert_eq!(
            (found[0].worst, found[0].worst_lost),
            (Some((1, 9)), Some((3, 4)))
        );
    }

    #[test]
    fn the_largest_comes_first() {
        let mut found = commands(&[
            ended(1, "a", 10, 1),
            ended(2, "b", 20, 5),
            ended(3, "c", 30, 0),
            ended(4, "c", 1, 0),
        ]);
        let mut order = |by| {
            sort(&mut found, by);
            let names = found.iter().filter_map(|command| command.comm.clone());
            String::from_utf8(names.flatten().collect()).unwrap()
        };
        assert_eq!(order(CommandOrder::Leak), "bac");
        assert_eq!(order(CommandOrder::Lost), "bac");
        assert_eq!(order(CommandOrder::Allocs), "cba");
        assert_eq!(order(CommandOrder::Processes), "cba");
    }

    #[test]
    fn memory_is_bounded_and_no_process_is_dropped() {
        let images: Vec<_> = (0..MOST as u32 + 9)
            .map(|pid| ended(pid, &format!("n{pid}"), 1, 1))
            .collect();
        let found = commands(&images);
        assert_eq!(found.len(), MOST + 1);
        let further = found.last().unwrap();
        assert_eq!((&further.comm, further.processes), (&None, 9));
    }
}
