//! Adds up the processes that have ended by their command names: a tree of hundreds of processes in a few lines.

use std::cmp::Reverse;
use std::sync::Arc;

use clap::ValueEnum;

use crate::model::bounds::Bounds;
use crate::model::image::Image;
use crate::model::largest::{Largest, Sum, WEIGHTS};
use crate::model::lost::LostSum;

/// How many command names are told apart at a time. The processes of those with small sums are added up as one.
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
    /// The process that leaked most. `None`: none leaked.
    pub worst: Option<Worst>,
    pub lost: LostSum,
    /// The process that certainly lost most. `None`: none is known to have lost anything.
    pub worst_lost: Option<Worst>,
}

/// The worst of several processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worst {
    pub pid: u32,
    /// Its machine, where that is known.
    pub host: Option<Arc<str>>,
    pub bytes: u64,
}

impl Worst {
    /// The one that has more bytes. Of two that have as many, the one whose name is the first.
    fn of(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let weight = |worst: &Self| (Reverse(worst.bytes), worst.host.clone(), worst.pid);
        one.into_iter().chain(other).min_by_key(weight)
    }
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

impl Command {
    /// Takes a process that has exited, or died, into account. Sums saturate.
    pub(super) fn record(&mut self, image: &Image, host: Option<&Arc<str>>) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        let counters = &image.counters;
        add(&mut self.processes, 1);
        add(&mut self.total_allocs_bytes, counters.total_allocs_bytes);
        add(&mut self.leaked_bytes, counters.leaked_bytes);
        add(&mut self.leaked_blocks, counters.leaked_blocks);
        self.lost.record(image);
        let lost = Bounds::of_lost(image).lower;
        for (worst, bytes) in [
            (&mut self.worst, counters.leaked_bytes),
            (&mut self.worst_lost, lost),
        ] {
            if bytes > worst.as_ref().map_or(0, |worst| worst.bytes) {
                *worst = Some(Worst {
                    pid: image.pid,
                    host: host.cloned(),
                    bytes,
                });
            }
        }
    }
}

impl Sum for Command {
    fn weights(&self) -> [u64; WEIGHTS] {
        [
            self.leaked_bytes,
            self.lost.bytes.lower,
            self.total_allocs_bytes,
            self.processes,
        ]
    }

    fn absorb(&mut self, other: Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.processes, other.processes);
        add(&mut self.total_allocs_bytes, other.total_allocs_bytes);
        add(&mut self.leaked_bytes, other.leaked_bytes);
        add(&mut self.leaked_blocks, other.leaked_blocks);
        self.lost.absorb(other.lost);
        self.worst = Worst::of(self.worst.take(), other.worst);
        self.worst_lost = Worst::of(self.worst_lost.take(), other.worst_lost);
    }
}

/// The commands so far.
#[derive(Clone, Debug)]
pub struct Commands {
    named: Largest<Vec<u8>, Command>,
    /// The machine of the last process.
    host: Option<Arc<str>>,
    has_several_hosts: bool,
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            named: Largest::new(MOST),
            host: None,
            has_several_hosts: false,
        }
    }
}

impl Commands {
    /// Takes a process that has exited, or died, into account.
    pub(super) fn record(&mut self, image: &Image) {
        let host = image.origin.as_ref();
        let host = host.and_then(|origin| origin.host.as_deref());
        if host.is_some() && host != self.host.as_deref() {
            self.has_several_hosts |= self.host.is_some();
            self.host = host.map(Arc::from);
        }
        let host = host.and(self.host.as_ref());
        self.named.of(&image.comm[..]).record(image, host);
    }

    /// Whether the processes are of more than one machine.
    pub(super) fn have_several_hosts(&self) -> bool {
        self.has_several_hosts
    }

    /// All commands, in the order of their names.
    pub(super) fn finish(self) -> Vec<Command> {
        let named = self.named.finish();
        named
            .map(|(comm, command)| Command { comm, ..command })
            .collect()
    }
}

/// Puts commands, or what has the sums of one, into an order. Those of equal weight stay in the order that they have.
pub fn sort<T>(all: &mut [T], order: CommandOrder, command: impl Fn(&T) -> &Command) {
    all.sort_by_key(|one| {
        let command = command(one);
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
    use crate::model::origin::Origin;
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

    fn worst(pid: u32, bytes: u64) -> Option<Worst> {
        let host = None;
        Some(Worst { pid, host, bytes })
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
            worst: worst(3, 4),
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
        assert_eq!((found.len(), &found[1].worst), (2, &None));
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
            (&found[0].worst, &found[0].worst_lost),
            (&worst(1, 9), &worst(3, 4))
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
            sort(&mut found, by, |command| command);
            let names = found.iter().filter_map(|command| command.comm.clone());
            String::from_utf8(names.flatten().collect()).unwrap()
        };
        assert_eq!(order(CommandOrder::Leak), "bac");
        assert_eq!(order(CommandOrder::Lost), "bac");
        assert_eq!(order(CommandOrder::Allocs), "cba");
        assert_eq!(order(CommandOrder::Processes), "cba");
    }

    #[test]
    fn memory_is_bounded_no_process_is_dropped_and_the_worst_has_its_name() {
        let images: Vec<_> = (0..2 * MOST as u32)
            .map(|pid| ended(pid, &format!("n{pid}"), 1, 1 + u64::from(pid / 6000 * 9)))
            .collect();
        let mut commands = Commands::default();
        for image in &images {
            commands.record(image);
        }
        commands.record(&ended(7, "late", 1, 1_000));
        let mut found = commands.finish();
        assert!(found.len() <= MOST + 1);
        let processes: u64 = found.iter().map(|command| command.processes).sum();
        assert_eq!(processes, 2 * MOST as u64 + 1);
        let further = found.last().unwrap();
        assert_eq!(further.comm, None);
        assert!(further.processes > MOST as u64);
        sort(&mut found, CommandOrder::Leak, |command| command);
        let late = |command: &&Command| command.comm.as_deref() == Some(b"late");
        let late = found.iter().find(late).unwrap();
        assert_eq!((late.processes, &late.worst), (1, &worst(7, 1_000)));
    }

    #[test]
    fn the_worst_process_of_several_machines_is_named_with_its_own() {
        let on = |host: &str, pid, leaked| {
            let mut image = ended(pid, "a", 10, leaked);
            let origin = Origin {
                host: Some(host.to_owned()),
                ..Origin::default()
            };
            image.origin = Some(origin.into());
            image
        };
        let mut commands = Commands::default();
        commands.record(&on("n1", 5, 3));
        commands.record(&ended(6, "a", 1, 1));
        commands.record(&on("n1", 7, 2));
        assert!(!commands.have_several_hosts());
        commands.record(&on("n2", 5, 9));
        assert!(commands.have_several_hosts());
        let found = commands.finish();
        let worst = found[0].worst.as_ref().unwrap();
        assert_eq!((worst.pid, worst.host.as_deref()), (5, Some("n2")));
    }
}
