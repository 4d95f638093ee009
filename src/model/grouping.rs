//! Adds up what several sessions have saved by what processes have in common: their user, their node, the function that
//! allocated, and more. Memory is bounded.

use std::collections::HashMap;

use clap::ValueEnum;

use crate::model::bounds::Bounds;
use crate::model::commands::{Command, Commands, MOST};
use crate::model::image::{End, Image};
use crate::model::reach::{Amount, ReachUnknown, Reached};
use crate::model::stack::{NamedFrame, NamedStack};
use crate::text::escape;

/// By what processes are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Grouping {
    /// A row for each process.
    Process,
    /// By the command name.
    Comm,
    User,
    /// By the batch job.
    Job,
    /// By the rank within an MPI program.
    Rank,
    /// By the machine.
    Node,
    /// By the function that allocated.
    Function,
    /// By the source file that allocated.
    File,
}

impl Grouping {
    /// Whether call stacks are added up, not processes.
    pub fn is_of_stacks(self) -> bool {
        matches!(self, Self::Function | Self::File)
    }
}

/// What a record has not.
const NONE: &str = "(none)";

/// The sums of the groups.
#[derive(Debug)]
pub struct Groups {
    by: Grouping,
    sums: Commands,
    /// The image that was added last to each group of stacks. What an image allocated comes together.
    last: HashMap<Vec<u8>, (u32, u32)>,
}

impl Groups {
    pub fn new(by: Grouping) -> Self {
        Self {
            by,
            sums: Commands::default(),
            last: HashMap::new(),
        }
    }

    pub fn by(&self) -> Grouping {
        self.by
    }

    /// Takes a process that has exited, or died, into account. `file` stands for a node without a name.
    pub fn image(&mut self, image: &Image, file: &str) {
        if !matches!(image.end, End::Exited(_) | End::Signaled { .. }) {
            return;
        }
        let origin = image.origin.as_deref();
        let job = origin.and_then(|origin| origin.job.as_ref());
        let host = origin.and_then(|origin| origin.host.as_deref());
        let rank = origin.and_then(|origin| origin.rank);
        let number;
        let name = match self.by {
            Grouping::Comm | Grouping::Process => &image.comm,
            Grouping::User => match &image.user {
                Some(user) => user.as_bytes(),
                None => {
                    number = image.uid.to_string();
                    number.as_bytes()
                }
            },
            Grouping::Job => job.map_or(NONE, String::as_str).as_bytes(),
            Grouping::Rank => match rank {
                Some(rank) => {
                    number = rank.to_string();
                    number.as_bytes()
                }
                None => NONE.as_bytes(),
            },
            Grouping::Node => host.unwrap_or(file).as_bytes(),
            Grouping::Function | Grouping::File => return,
        };
        self.sums.record_as(name, image);
    }

    /// Takes into account what an image, known by its pid and its number, allocated by a call stack.
    pub fn stack(
        &mut self,
        image: (u32, u32),
        stack: &NamedStack,
        [allocated, leaked]: [Amount; 2],
        reached: Option<Reached>,
    ) {
        let name = match self.by {
            Grouping::Function => stack.frames().next().map(function),
            Grouping::File => {
                let with_file = stack.frames.iter().find_map(|frame| frame.file.as_ref());
                with_file.map(|file| file.to_string_lossy().into_owned())
            }
            _ => return,
        };
        let name = name.unwrap_or_else(|| NONE.to_owned()).into_bytes();
        let Command {
            processes,
            total_allocs_bytes,
            leaked_bytes,
            leaked_blocks,
            lost,
            ..
        } = self.sums.of(&name);
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(total_allocs_bytes, allocated.bytes);
        add(leaked_bytes, leaked.bytes);
        add(leaked_blocks, leaked.blocks);
        let certain = match reached {
            Some(reached) => {
                lost.known += reached;
                lost.judged += 1;
                Bounds {
                    lower: reached.lost().bytes,
                    upper: Some(reached.lost().bytes),
                }
            }
            None if leaked.blocks == 0 => Bounds::ZERO,
            None => {
                *lost.unknown.entry(ReachUnknown::Off).or_default() += 1;
                Bounds {
                    lower: 0,
                    upper: Some(leaked.bytes),
                }
            }
        };
        lost.bytes += certain;
        // An image is in a group once, however many of its stacks are. Memory is bounded.
        if self.last.get(&name) != Some(&image) {
            add(processes, 1);
            if self.last.len() < MOST || self.last.contains_key(&name) {
                self.last.insert(name, image);
            }
        }
    }

    /// All groups, in the order of their names.
    pub fn finish(self) -> Vec<Command> {
        self.sums.finish()
    }
}

/// A frame's function, or its place in its file.
fn function(frame: &NamedFrame) -> String {
    match (&frame.function, &frame.module) {
        (Some(function), _) => function.clone(),
        (None, Some(module)) => {
            let name = module.file_name().unwrap_or(module.as_os_str());
            let name = escape::escaped(name.as_encoded_bytes());
            format!("[{name}+{:#x}]", frame.offset)
        }
        (None, None) => format!("[{:#x}]", frame.offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::finished::samples::{frame, stack};
    use crate::model::image::samples::image;
    use crate::model::origin::Origin;
    use crate::model::stack::WalkEnd;

    fn amount(bytes: u64) -> Amount {
        Amount { bytes, blocks: 1 }
    }

    #[test]
    fn processes_are_added_up_by_what_they_have_in_common() {
        let located = |host: &str, job: &str| {
            let mut image = image();
            let origin = Origin {
                host: Some(host.to_owned()),
                job: Some(job.to_owned()),
                ..Origin::default()
            };
            image.origin = Some(origin.into());
            image
        };
        let mut nameless = image();
        nameless.user = None;
        for (by, expected) in [
            (Grouping::Node, &[("a", 2), ("file", 1)][..]),
            (Grouping::Job, &[("(none)", 1), ("7", 1), ("8", 1)]),
            (Grouping::Rank, &[("(none)", 3)]),
            (Grouping::User, &[("1001", 1), ("alice", 2)]),
            (Grouping::Comm, &[("python3", 3)]),
            (Grouping::File, &[]),
        ] {
            let mut groups = Groups::new(by);
            groups.image(&located("a", "7"), "file");
            groups.image(&located("a", "8"), "file");
            groups.image(&nameless, "file");
            let mut running = image();
            running.end = End::Running;
            groups.image(&running, "file");
            let found = groups.finish().into_iter().map(|group| {
                let name = String::from_utf8(group.comm.unwrap()).unwrap();
                (name, group.processes)
            });
            let expected = expected
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count));
            assert!(found.eq(expected), "{by:?}");
        }
    }

    #[test]
    fn stacks_are_added_up_by_the_innermost_function_or_source_file() {
        let inner = |name: &str, file| {
            let frames = vec![
                frame(name, "/lib/a.so", None),
                frame("main", "/bin/a", Some((file, 1))),
            ];
            stack(1, WalkEnd::Complete, frames)
        };
        let lost = Some(Reached {
            definite: amount(3),
            ..Reached::default()
        });
        let stacks = [
            ((1, 0), inner("f", "x.c"), 3, lost),
            ((1, 0), inner("g", "x.c"), 5, None),
            ((1, 0), inner("f", "y.c"), 7, None),
            ((1, 1), inner("f", "x.c"), 0, lost),
        ];
        for (by, expected) in [
            (Grouping::Function, [("f", 2, 10), ("g", 1, 5)]),
            (Grouping::File, [("x.c", 2, 8), ("y.c", 1, 7)]),
        ] {
            let mut groups = Groups::new(by);
            for (image, stack, leaked, reached) in &stacks {
                let amounts = [amount(100), amount(*leaked)];
                groups.stack(*image, stack, amounts, *reached);
            }
            let found = groups.finish();
            let figures = found.iter().map(|group| {
                let name = std::str::from_utf8(group.comm.as_ref().unwrap()).unwrap();
                (name, group.processes, group.leaked_bytes)
            });
            assert!(figures.eq(expected), "{by:?}: {found:?}");
            // Of one stack it is not known what was lost.
            let lost = found[0].lost.bytes;
            let upper = if by == Grouping::Function { 13 } else { 11 };
            assert_eq!((lost.lower, lost.upper), (6, Some(upper)));
        }
    }
}
