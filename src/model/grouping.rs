//! Adds up what several sessions have saved by what processes have in common: their user, their node, the function that
//! allocated, and more. Of each group it says how that is spread over ranks and nodes. Memory is bounded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use clap::ValueEnum;

use crate::model::bounds::Bounds;
use crate::model::commands::{self, Command, CommandOrder};
use crate::model::image::{End, Image};
use crate::model::largest::{Largest, Sum, WEIGHTS};
use crate::model::reach::{Amount, ReachUnknown, Reached};
use crate::model::spread::{PartSpread, PartSum, Parts};
use crate::model::stack::{NamedFrame, NamedStack};
use crate::text::escape;

/// How many groups are told apart at a time. Those with small sums are added up as one.
const MOST_GROUPS: usize = 65_536;

/// How many ranks and nodes all groups have together.
const MOST_PARTS: usize = 1 << 19;

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

/// A rank, of the job that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobRank {
    pub job: Option<Arc<str>>,
    pub rank: u32,
}

/// What the processes of a group have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct GroupName {
    /// The job of a rank.
    job: Option<Arc<str>>,
    rank: Option<u32>,
    name: Vec<u8>,
}

/// A group so far.
#[derive(Debug, Default)]
struct GroupSum {
    command: Command,
    ranks: Parts<JobRank>,
    nodes: Parts<Arc<str>>,
}

impl Sum for GroupSum {
    fn weights(&self) -> [u64; WEIGHTS] {
        self.command.weights()
    }

    fn absorb(&mut self, other: Self) {
        self.command.absorb(other.command);
        self.ranks.absorb(other.ranks);
        self.nodes.absorb(other.nodes);
    }
}

/// What the processes of a group come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The job of a rank.
    pub job: Option<Arc<str>>,
    /// With the group's name as that of the command.
    pub sums: Command,
    /// `None`: no process has a rank, or the group is one.
    pub ranks: Option<PartSpread<JobRank>>,
    /// `None`: the group is of call stacks, or a node.
    pub nodes: Option<PartSpread<Arc<str>>>,
}

/// All groups.
#[derive(Debug)]
pub struct Grouped {
    pub by: Grouping,
    /// The last one is of those for which there was no room, until they are sorted.
    pub groups: Vec<Group>,
    /// All groups together. `None`: they are of call stacks, of which one process has several.
    pub all: Option<Group>,
    /// Whether ranks are of more than one job.
    pub has_several_jobs: bool,
}

impl Grouped {
    /// Those for which there was no room stay last, however many they are.
    pub fn sort(&mut self, order: CommandOrder) {
        commands::sort(&mut self.groups, order, |group| &group.sums);
        self.groups.sort_by_key(|group| group.sums.comm.is_none());
    }

    /// Whether the processes are of more than one node.
    pub fn has_several_nodes(&self) -> bool {
        let nodes = self.all.as_ref().and_then(|all| all.nodes.as_ref());
        nodes.is_some_and(|nodes| nodes.parts > 1)
    }

    /// Whether there was no room for all ranks and nodes.
    pub fn is_partial(&self) -> bool {
        let (ranks, nodes) = match &self.all {
            Some(all) => (all.ranks.as_ref(), all.nodes.as_ref()),
            None => (None, None),
        };
        ranks.is_some_and(|ranks| ranks.is_partial) || nodes.is_some_and(|nodes| nodes.is_partial)
    }
}

/// Names that come again and again. Each is in memory once.
#[derive(Debug, Default)]
struct CommonNames {
    known: HashSet<Arc<str>>,
    /// Most records have the name of the one before.
    last: Option<Arc<str>>,
}

impl CommonNames {
    fn of(&mut self, name: &str) -> Arc<str> {
        if let Some(last) = self.last.as_ref().filter(|last| ***last == *name) {
            return Arc::clone(last);
        }
        let found = self.known.get(name).cloned();
        let found = found.unwrap_or_else(|| {
            if self.known.len() >= MOST_GROUPS {
                self.known.clear();
            }
            let new: Arc<str> = name.into();
            self.known.insert(Arc::clone(&new));
            new
        });
        self.last = Some(Arc::clone(&found));
        found
    }
}

/// The sums of the groups.
#[derive(Debug)]
pub struct Groups {
    by: Grouping,
    sums: Largest<GroupName, GroupSum>,
    /// How many ranks and nodes the groups have together, at most.
    parts: usize,
    most_parts: usize,
    hosts: CommonNames,
    jobs: CommonNames,
    /// The name of the last group.
    name: GroupName,
    /// The image that was added last to each group of stacks. What an image allocated comes together.
    last: HashMap<Vec<u8>, (u32, u32)>,
}

impl Groups {
    pub fn new(by: Grouping) -> Self {
        Self::with_room(by, MOST_GROUPS, MOST_PARTS)
    }

    fn with_room(by: Grouping, most_groups: usize, most_parts: usize) -> Self {
        Self {
            by,
            sums: Largest::new(most_groups),
            parts: 0,
            most_parts,
            hosts: CommonNames::default(),
            jobs: CommonNames::default(),
            name: GroupName::default(),
            last: HashMap::new(),
        }
    }

    pub fn by(&self) -> Grouping {
        self.by
    }

    /// Takes a process that has exited, or died, into account. `file` stands for a node without a name.
    pub fn image(&mut self, image: &Image, file: &str) {
        if !matches!(image.end, End::Exited(_) | End::Signaled { .. }) || self.by.is_of_stacks() {
            return;
        }
        let origin = image.origin.as_deref();
        let job = origin.and_then(|origin| origin.job.as_deref());
        let host = origin.and_then(|origin| origin.host.as_deref());
        let host = self.hosts.of(host.unwrap_or(file));
        let rank = origin.and_then(|origin| origin.rank);
        let rank = rank.map(|rank| JobRank {
            job: job.map(|job| self.jobs.of(job)),
            rank,
        });
        self.begin_name();
        let name = &mut self.name.name;
        match self.by {
            Grouping::Comm | Grouping::Process => name.extend(&image.comm),
            Grouping::User => match &image.user {
                Some(user) => name.extend(user.as_bytes()),
                None => name.extend(image.uid.to_string().as_bytes()),
            },
            Grouping::Job => name.extend(job.unwrap_or(NONE).as_bytes()),
            Grouping::Rank => match &rank {
                Some(JobRank { job, rank }) => {
                    self.name.job.clone_from(job);
                    self.name.rank = Some(*rank);
                }
                None => name.extend(NONE.as_bytes()),
            },
            Grouping::Node => name.extend(host.as_bytes()),
            Grouping::Function | Grouping::File => {}
        }
        let group = self.sums.of(&self.name);
        group.command.record(image, Some(&host));
        let sum = PartSum {
            leaked: image.counters.leaked_bytes,
            lost: Bounds::of_lost(image).lower,
        };
        self.parts += group.nodes.add(&host, sum);
        if let Some(rank) = rank {
            self.parts += group.ranks.add(&rank, sum);
        }
        if self.parts > self.most_parts {
            self.make_room();
        }
    }

    /// Leaves out parts, if there really are too many: groups that became one may have had the same.
    fn make_room(&mut self) {
        let (_, groups) = self.sums.each();
        self.parts = groups
            .map(|group| group.ranks.len() + group.nodes.len())
            .sum();
        // The next count comes only after as many new parts again.
        if self.parts > self.most_parts / 2 {
            let (_, groups) = self.sums.each();
            self.parts = groups
                .map(|group| group.ranks.halve() + group.nodes.halve())
                .sum();
        }
    }

    fn begin_name(&mut self) {
        self.name.name.clear();
        self.name.job = None;
        self.name.rank = None;
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
        self.begin_name();
        let name = name.unwrap_or_else(|| NONE.to_owned()).into_bytes();
        self.name.name.extend(&name);
        let Command {
            processes,
            total_allocs_bytes,
            leaked_bytes,
            leaked_blocks,
            lost,
            ..
        } = &mut self.sums.of(&self.name).command;
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
            if self.last.len() < MOST_GROUPS || self.last.contains_key(&name) {
                self.last.insert(name, image);
            }
        }
    }

    /// All groups, in the order of their names.
    pub fn finish(self) -> Grouped {
        let by = self.by;
        let mut all = GroupSum::default();
        let groups = self.sums.finish().map(|(name, sum)| {
            let job = name.as_ref().and_then(|name| name.job.clone());
            let name = name.map(|GroupName { rank, name, .. }| match rank {
                Some(rank) => rank.to_string().into_bytes(),
                None => name,
            });
            let ranks = || sum.ranks.spread();
            let nodes = || sum.nodes.spread();
            let group = Group {
                job,
                sums: Command {
                    comm: name,
                    ..sum.command.clone()
                },
                ranks: (by != Grouping::Rank).then(ranks).flatten(),
                nodes: (by != Grouping::Node).then(nodes).flatten(),
            };
            all.absorb(sum);
            group
        });
        let groups = groups.collect();
        let mut jobs = all.ranks.names().map(|rank| &rank.job);
        let first = jobs.next();
        let has_several_jobs = jobs.any(|job| Some(job) != first);
        let all = (!by.is_of_stacks()).then(|| Group {
            job: None,
            ranks: all.ranks.spread(),
            nodes: all.nodes.spread(),
            sums: all.command,
        });
        Grouped {
            by,
            groups,
            all,
            has_several_jobs,
        }
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
            let found = groups.finish().groups.into_iter().map(|group| {
                let name = String::from_utf8(group.sums.comm.unwrap()).unwrap();
                (name, group.sums.processes)
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
            assert_eq!(found.all, None);
            let found: Vec<_> = found.groups.iter().map(|group| &group.sums).collect();
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

    /// A process of a host, a job and a rank that leaked so many bytes.
    fn leaking(host: &str, job: &str, rank: u32, leaked: u64) -> Image {
        let mut image = image();
        let origin = Origin {
            host: Some(host.to_owned()),
            job: Some(job.to_owned()),
            rank: Some(rank),
            ..Origin::default()
        };
        image.pid = 100 + rank;
        image.origin = Some(origin.into());
        image.counters.leaked_bytes = leaked;
        image
    }

    /// Two jobs, each with a rank 1, on two nodes.
    fn grouped(by: Grouping) -> Grouped {
        let mut groups = Groups::new(by);
        for image in [
            leaking("n1", "7", 0, 10),
            leaking("n1", "7", 1, 20),
            leaking("n2", "7", 2, 60),
            leaking("n2", "7", 10, 0),
            leaking("n1", "8", 1, 5),
            leaking("n2", "7", 2, 1),
        ] {
            groups.image(&image, "file");
        }
        groups.finish()
    }

    fn rank(job: &str, rank: u32) -> JobRank {
        let job = Some(job.into());
        JobRank { job, rank }
    }

    #[test]
    fn a_job_has_its_worst_rank_its_worst_node_and_the_spread_over_both() {
        let found = grouped(Grouping::Job);
        let [seven, eight] = &found.groups[..] else {
            panic!("{found:?}");
        };
        let ranks = seven.ranks.as_ref().unwrap();
        assert_eq!((ranks.parts, ranks.leaked.least), (4, Some((0, 15))));
        assert_eq!(ranks.leaked.worst, Some(rank("7", 2)));
        assert_eq!(ranks.leaked.max, 61);
        let nodes = seven.nodes.as_ref().unwrap();
        assert_eq!((nodes.parts, nodes.leaked.least), (2, Some((30, 45))));
        assert_eq!(nodes.leaked.worst.as_deref(), Some("n2"));
        assert_eq!(nodes.leaked.max, 61);
        let worst = seven.sums.worst.as_ref().unwrap();
        assert_eq!((worst.pid, worst.host.as_deref()), (102, Some("n2")));
        assert_eq!(eight.nodes.as_ref().unwrap().parts, 1);
        let all = found.all.as_ref().unwrap();
        assert_eq!((all.sums.processes, all.sums.leaked_bytes), (6, 96));
        let ranks = all.ranks.as_ref().unwrap();
        // Rank 1 of one job is not that of another one.
        assert_eq!((ranks.parts, ranks.leaked.least), (5, Some((0, 10))));
        assert_eq!(all.nodes.as_ref().unwrap().leaked.least, Some((35, 48)));
        assert!(found.has_several_nodes());
    }

    #[test]
    fn ranks_of_several_jobs_are_told_apart_and_are_in_the_order_of_their_numbers() {
        let found = grouped(Grouping::Rank);
        let names = found.groups.iter().map(|group| {
            let name = group.sums.comm.as_deref().unwrap();
            let name = std::str::from_utf8(name).unwrap();
            (group.job.as_deref().unwrap(), name, group.sums.leaked_bytes)
        });
        assert!(names.eq([
            ("7", "0", 10),
            ("7", "1", 20),
            ("7", "2", 61),
            ("7", "10", 0),
            ("8", "1", 5)
        ]));
        assert!(found.has_several_jobs);
        assert!(found.groups.iter().all(|group| group.ranks.is_none()));
        let all = found.all.unwrap();
        let ranks = all.ranks.unwrap();
        assert_eq!((ranks.parts, ranks.leaked.worst), (5, Some(rank("7", 2))));

        let mut nodes = grouped(Grouping::Node);
        nodes.sort(CommandOrder::Leak);
        let [n2, n1] = &nodes.groups[..] else {
            panic!("{nodes:?}");
        };
        assert_eq!((n2.sums.leaked_bytes, n1.sums.leaked_bytes), (61, 35));
        assert_eq!(n1.ranks.as_ref().unwrap().leaked.worst, Some(rank("7", 1)));
        assert_eq!(
            (&n1.nodes, nodes.all.unwrap().nodes.unwrap().parts),
            (&None, 2)
        );
    }

    #[test]
    fn memory_is_bounded_and_the_worst_are_named() {
        for by in [Grouping::Job, Grouping::Rank, Grouping::Node] {
            let mut groups = Groups::with_room(by, 64, 400);
            for number in 0..5_000_u32 {
                let [job, host] = [number % 50, number / 20].map(|n| n.to_string());
                groups.image(&leaking(&host, &job, number, 1), "file");
                assert!(groups.parts <= 400 && groups.sums.each().0 <= 64);
                if number == 1_234 {
                    groups.image(&leaking("worst", "99", 7, 1_000), "file");
                }
            }
            let mut found = groups.finish();
            found.sort(CommandOrder::Leak);
            let all = found.all.as_ref().unwrap();
            let total = (all.sums.processes, all.sums.leaked_bytes);
            assert_eq!(total, (5_001, 6_000), "{by:?}");
            let counted = found.groups.iter().map(|group| group.sums.processes);
            assert_eq!(counted.sum::<u64>(), 5_001, "{by:?}");
            let named = found
                .groups
                .iter()
                .filter(|group| group.sums.comm.is_some());
            let worst = named.max_by_key(|group| group.sums.leaked_bytes).unwrap();
            assert_eq!(worst.sums.leaked_bytes, 1_000, "{by:?}");
            let ranks = &all.ranks.as_ref().unwrap();
            assert_eq!(ranks.leaked.worst, Some(rank("99", 7)), "{by:?}");
            let nodes = &all.nodes.as_ref().unwrap();
            assert_eq!(nodes.leaked.worst.as_deref(), Some("worst"), "{by:?}");
            assert!(found.is_partial(), "{by:?}");
        }
    }

    #[test]
    fn ranks_that_come_again_after_their_groups_became_one_need_no_more_room() {
        let mut groups = Groups::with_room(Grouping::Rank, 64, 1_000);
        for _ in 0..20 {
            for rank in 0..200 {
                groups.image(&leaking("n1", "7", rank, 1), "file");
            }
        }
        let found = groups.finish();
        assert!(!found.is_partial());
        let ranks = found.all.unwrap().ranks.unwrap();
        assert_eq!((ranks.parts, ranks.leaked.least), (200, Some((20, 20))));
    }
}
