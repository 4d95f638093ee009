//! A baseline: what leaked in an earlier run, and may leak again. Tells what is new from what is known. Pure.
//!
//! With call stacks, leaks are compared by the identities of their stacks, which stay the same when lines move. Without
//! them, and for the part of a leak that no stack is known of, they are compared by the name of the executable. What one
//! process leaked in the baseline, each process may leak again: how many processes run may differ.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::model::image::{End, Image};
use crate::model::lost::reached;
use crate::model::selection::Selection;

/// How much leaked, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeakSize {
    pub leaked: u64,
    /// How much of it was lost. `None`: not known.
    pub lost: Option<u64>,
}

impl LeakSize {
    /// What an image leaked.
    pub fn of(image: &Image) -> Self {
        Self {
            leaked: image.counters.leaked_bytes,
            lost: reached(image).map(|reached| reached.lost().bytes),
        }
    }

    /// What may have been lost at most.
    fn lost_at_most(self) -> u64 {
        self.lost.unwrap_or(self.leaked)
    }

    fn max(self, other: Self) -> Self {
        Self {
            leaked: self.leaked.max(other.leaked),
            lost: Some(self.lost_at_most().max(other.lost_at_most())),
        }
    }

    fn add(self, other: Self) -> Self {
        Self {
            leaked: self.leaked.saturating_add(other.leaked),
            lost: self.lost.zip(other.lost).map(|(a, b)| a.saturating_add(b)),
        }
    }

    /// What is left without a part of it.
    pub fn less(self, other: Self) -> Self {
        let lost = self.lost.zip(other.lost);
        Self {
            leaked: self.leaked.saturating_sub(other.leaked),
            lost: lost.map(|(all, part)| all.saturating_sub(part)),
        }
    }
}

/// Where something leaked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeakKey {
    /// By a call stack of this identity.
    Stack(u64),
    /// In an executable of this name.
    Executable(Vec<u8>),
    /// In an executable of this name, by stacks that are not known.
    Rest(Vec<u8>),
}

/// What a process leaked in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackLeak {
    pub identity: u64,
    pub size: LeakSize,
    /// The innermost call, as printable text.
    pub place: String,
}

/// A process of the baseline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaselineProcess {
    pub exe: Option<PathBuf>,
    pub comm: Vec<u8>,
    pub size: LeakSize,
    pub stacks: Vec<StackLeak>,
}

/// What leaked in a place of the baseline, in one process at most.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BaselineEntry {
    size: LeakSize,
    exe: Option<PathBuf>,
    comm: Vec<u8>,
    place: String,
}

/// What leaked in an earlier run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    entries: BTreeMap<LeakKey, BaselineEntry>,
    has_stacks: bool,
}

impl Baseline {
    /// Adds a process that has ended.
    pub fn add(&mut self, process: BaselineProcess) {
        let name = name_of(process.exe.as_deref(), &process.comm);
        self.has_stacks |= !process.stacks.is_empty();
        let mut stacks = by_identity(&process.stacks);
        let attributed = sum(stacks.values().map(|(size, _)| *size));
        let rest = process.size.less(attributed);
        let all = process.size;
        for (key, size, place) in stacks
            .drain()
            .map(|(identity, (size, place))| (LeakKey::Stack(identity), size, place))
            .chain([
                (LeakKey::Executable(name.clone()), all, String::new()),
                (LeakKey::Rest(name), rest, String::new()),
            ])
        {
            if size.leaked == 0 {
                continue;
            }
            let entry = self.entries.entry(key).or_insert_with(|| BaselineEntry {
                size: LeakSize::default(),
                exe: process.exe.clone(),
                comm: process.comm.clone(),
                place,
            });
            entry.size = entry.size.max(size);
        }
    }
}

/// The same stack may be there several times, where frames differ that do not count for its identity.
fn by_identity(stacks: &[StackLeak]) -> HashMap<u64, (LeakSize, String)> {
    let mut sums: HashMap<u64, (LeakSize, String)> = HashMap::new();
    for stack in stacks {
        sums.entry(stack.identity)
            .and_modify(|(size, _)| *size = size.add(stack.size))
            .or_insert_with(|| (stack.size, stack.place.clone()));
    }
    sums
}

fn sum(sizes: impl Iterator<Item = LeakSize>) -> LeakSize {
    let none = LeakSize {
        leaked: 0,
        lost: Some(0),
    };
    sizes.fold(none, LeakSize::add)
}

/// The last part of an executable's path: a checkout may be in another directory. Without a path, the command name.
fn name_of(exe: Option<&Path>, comm: &[u8]) -> Vec<u8> {
    let name = exe.and_then(Path::file_name);
    name.map_or(comm, |name| name.as_bytes()).to_vec()
}

/// What of an image's leak the baseline has, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownLeak {
    pub leaked: u64,
    pub lost: u64,
}

/// Compares a run with a baseline, process by process.
#[derive(Clone, Debug)]
pub struct Comparison {
    baseline: Baseline,
    /// Whether all that leaked counts, or only what is lost, where that is known.
    counts_leaks: bool,
    new: BTreeMap<LeakKey, NewLeak>,
    seen: HashSet<LeakKey>,
    known: BTreeMap<LeakKey, u64>,
}

/// Something that leaked beyond the baseline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLeak {
    /// In bytes, in all processes together.
    pub bytes: u64,
    pub comm: Vec<u8>,
    /// The innermost call, as printable text. Empty if it is not known.
    pub place: String,
    /// The baseline has the place, with less.
    pub grown: bool,
}

impl Comparison {
    /// `counts_leaks`: all that leaks counts, and not only what is lost.
    pub fn new(baseline: Baseline, counts_leaks: bool) -> Self {
        Self {
            baseline,
            counts_leaks,
            new: BTreeMap::new(),
            seen: HashSet::new(),
            known: BTreeMap::new(),
        }
    }

    /// Whether leaks are compared by call stacks, if a run has any.
    pub fn is_by_stack(&self) -> bool {
        self.baseline.has_stacks
    }

    /// Takes a process that has ended, with all that it leaked, and what it leaked by each call stack if call stacks were
    /// recorded, both without what is suppressed. Returns what the baseline knows of it.
    pub fn image(
        &mut self,
        image: &Image,
        all: LeakSize,
        stacks: Option<&[StackLeak]>,
    ) -> KnownLeak {
        if matches!(image.end, End::Exec | End::Running) {
            return KnownLeak::default();
        }
        let name = name_of(image.exe.as_deref(), &image.comm);
        let stacks = stacks.filter(|_| self.baseline.has_stacks);
        let mut parts = Vec::new();
        match stacks {
            None => parts.push((LeakKey::Executable(name), all, String::new())),
            Some(stacks) => {
                let stacks = by_identity(stacks);
                let attributed = sum(stacks.values().map(|(size, _)| *size));
                parts.extend(
                    stacks
                        .into_iter()
                        .map(|(identity, (size, place))| (LeakKey::Stack(identity), size, place)),
                );
                parts.push((LeakKey::Rest(name), all.less(attributed), String::new()));
            }
        }
        let mut known = KnownLeak::default();
        let mut lost_by_stack = true;
        for (key, size, place) in parts {
            lost_by_stack &= size.lost.is_some() || size.leaked == 0;
            let (leaked, lost) = self.part(key, size, place, &image.comm);
            known.leaked = known.leaked.saturating_add(leaked);
            known.lost = known.lost.saturating_add(lost);
        }
        if !lost_by_stack && let Some(lost) = all.lost {
            // What is lost is known of the process, but not of its stacks.
            let name = name_of(image.exe.as_deref(), &image.comm);
            let entry = self.baseline.entries.get(&LeakKey::Executable(name));
            known.lost = entry.map_or(0, |entry| entry.size.lost_at_most().min(lost));
        }
        known
    }

    /// Takes a part of a leak. Returns what of it is known.
    fn part(&mut self, key: LeakKey, size: LeakSize, place: String, comm: &[u8]) -> (u64, u64) {
        let entry = self.baseline.entries.get(&key);
        let base = entry.map(|entry| entry.size).unwrap_or_default();
        let leaked = base.leaked.min(size.leaked);
        let lost = size
            .lost
            .map_or(leaked, |lost| base.lost_at_most().min(lost));
        let (all, known) = match size.lost {
            Some(all) if !self.counts_leaks => (all, lost),
            _ => (size.leaked, leaked),
        };
        if size.leaked > 0 {
            self.seen.insert(key.clone());
        }
        if known > 0 {
            let sum = self.known.entry(key.clone()).or_default();
            *sum = sum.saturating_add(known);
        }
        if all > known {
            let new = self.new.entry(key).or_insert_with(|| NewLeak {
                bytes: 0,
                comm: comm.to_vec(),
                place,
                grown: base.leaked > 0,
            });
            new.bytes = new.bytes.saturating_add(all - known);
        }
        (leaked, lost)
    }

    /// The result. `selection`: the baseline may have processes that are not judged now.
    pub fn finish(self, selection: &Selection) -> Compared {
        // Without call stacks now, places of the baseline are not looked for.
        let by_stack = self.seen.iter().any(|key| matches!(key, LeakKey::Stack(_)))
            || self.baseline.has_stacks && self.seen.is_empty();
        let counts = |entry: &BaselineEntry| match self.counts_leaks {
            true => entry.size.leaked,
            false => entry.size.lost_at_most(),
        };
        let is_gone = |key: &LeakKey, entry: &BaselineEntry| {
            let is_compared = match key {
                LeakKey::Executable(_) => !by_stack,
                LeakKey::Stack(_) | LeakKey::Rest(_) => by_stack,
            };
            let chosen = selection.may_choose(&entry.comm, entry.exe.as_deref());
            is_compared && chosen && counts(entry) > 0 && !self.seen.contains(key)
        };
        let gone = self.baseline.entries.iter();
        let gone = gone.filter(|(key, entry)| is_gone(key, entry));
        let mut gone: Vec<_> = gone
            .map(|(_, entry)| NewLeak {
                bytes: counts(entry),
                comm: entry.comm.clone(),
                place: entry.place.clone(),
                grown: false,
            })
            .collect();
        let mut new: Vec<_> = self.new.into_iter().collect();
        gone.sort_by_key(|leak| Reverse(leak.bytes));
        new.sort_by_key(|(_, leak)| Reverse(leak.bytes));
        Compared {
            known: self.known.len() as u64,
            known_bytes: self
                .known
                .values()
                .fold(0, |sum, bytes| sum.saturating_add(*bytes)),
            new,
            gone,
        }
    }
}

/// What a run has that its baseline has not, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The largest first.
    pub new: Vec<(LeakKey, NewLeak)>,
    /// In how many places something leaked that the baseline has, and how much.
    pub known: u64,
    pub known_bytes: u64,
    /// What leaked in the baseline, in places where nothing leaks now. The largest first.
    pub gone: Vec<NewLeak>,
}

impl Compared {
    /// Whether what leaked by a call stack, or in an executable, is new.
    pub fn is_new(&self, identity: u64, exe: Option<&Path>, comm: &[u8]) -> bool {
        self.new.iter().any(|(key, _)| match key {
            LeakKey::Stack(new) => *new == identity,
            LeakKey::Executable(name) => *name == name_of(exe, comm),
            LeakKey::Rest(_) => false,
        })
    }

    /// How much is new, in bytes.
    pub fn new_bytes(&self) -> u64 {
        let bytes = self.new.iter().map(|(_, leak)| leak.bytes);
        bytes.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bounds::Bounds;
    use crate::model::image::samples;
    use crate::model::reach::{Amount, Reach, Reached};
    use crate::model::suppressed::Suppressed;

    fn size(leaked: u64, lost: Option<u64>) -> LeakSize {
        LeakSize { leaked, lost }
    }

    fn stack(identity: u64, leaked: u64) -> StackLeak {
        StackLeak {
            identity,
            size: size(leaked, None),
            place: format!("f{identity}"),
        }
    }

    fn process(exe: &str, leaked: u64, stacks: &[StackLeak]) -> BaselineProcess {
        BaselineProcess {
            exe: Some(exe.into()),
            comm: b"app".to_vec(),
            size: size(leaked, None),
            stacks: stacks.to_vec(),
        }
    }

    fn image(exe: &str, leaked: u64, lost: Option<u64>) -> Image {
        let mut image = samples::image();
        image.exe = Some(exe.into());
        image.comm = b"app".to_vec();
        image.counters.leaked_bytes = leaked;
        image.counters.leaked_blocks = leaked.min(1);
        if let Some(lost) = lost {
            let amount = |bytes| Amount { bytes, blocks: 1 };
            image.reach = Reach::Known(Reached {
                definite: amount(lost),
                reachable: amount(leaked - lost),
                ..Reached::default()
            });
        }
        image
    }

    fn compare(
        comparison: &mut Comparison,
        image: &Image,
        stacks: Option<&[StackLeak]>,
    ) -> KnownLeak {
        comparison.image(image, LeakSize::of(image), stacks)
    }

    /// The bounds of what an image lost beyond the baseline.
    fn new_lost(known: KnownLeak, image: &Image) -> Bounds {
        let suppressed = Suppressed {
            known,
            ..Suppressed::default()
        };
        suppressed.of_lost(
            Bounds::of_lost(image),
            matches!(image.reach, Reach::Known(_)),
        )
    }

    fn baseline(processes: &[BaselineProcess]) -> Baseline {
        let mut baseline = Baseline::default();
        processes
            .iter()
            .cloned()
            .for_each(|process| baseline.add(process));
        baseline
    }

    fn new(compared: &Compared) -> Vec<(&str, u64, bool)> {
        let new = compared.new.iter();
        new.map(|(_, leak)| (&*leak.place, leak.bytes, leak.grown))
            .collect()
    }

    #[test]
    fn what_leaked_by_a_stack_may_leak_again_as_much_in_each_process() {
        let before = process("/old/app", 30, &[stack(1, 10), stack(2, 20)]);
        let mut comparison = Comparison::new(baseline(&[before]), true);
        for _ in 0..3 {
            let now = [stack(1, 10), stack(2, 19)];
            let known = compare(&mut comparison, &image("/new/app", 29, None), Some(&now));
            assert_eq!(known.leaked, 29);
        }
        let now = [stack(1, 12), stack(3, 5)];
        let known = compare(&mut comparison, &image("/new/app", 17, None), Some(&now));
        assert_eq!(known.leaked, 10);
        let compared = comparison.finish(&Selection::default());
        assert_eq!(new(&compared), [("f3", 5, false), ("f1", 2, true)]);
        assert_eq!((compared.known, compared.known_bytes), (2, 97));
        assert!(compared.gone.is_empty());
    }

    #[test]
    fn what_does_not_leak_any_more_is_gone_unless_it_is_not_judged_now() {
        let before = [
            process("/old/app", 30, &[stack(1, 10), stack(2, 20)]),
            BaselineProcess {
                comm: b"gcc".to_vec(),
                ..process("/usr/bin/gcc", 7, &[stack(9, 7)])
            },
        ];
        let selection = Selection {
            names: crate::text::globs::CommNames::new(vec!["app".parse().unwrap()]),
            ..Selection::default()
        };
        let mut comparison = Comparison::new(baseline(&before), true);
        compare(
            &mut comparison,
            &image("/new/app", 10, None),
            Some(&[stack(1, 10)]),
        );
        let compared = comparison.finish(&selection);
        let gone: Vec<_> = compared.gone.iter().map(|leak| &*leak.place).collect();
        assert_eq!(gone, ["f2"]);
        assert!(compared.new.is_empty());
    }

    #[test]
    fn without_stacks_leaks_are_compared_by_the_names_of_executables() {
        for (before, now) in [
            (process("/old/app", 30, &[]), Some(&[stack(1, 40)][..])),
            (process("/old/app", 30, &[stack(1, 30)]), None),
        ] {
            let mut comparison = Comparison::new(baseline(&[before]), true);
            let known = compare(&mut comparison, &image("/new/app", 40, None), now);
            assert_eq!(known.leaked, 30);
            let known = compare(&mut comparison, &image("/new/other", 5, None), now);
            assert_eq!(known.leaked, 0);
            let compared = comparison.finish(&Selection::default());
            assert_eq!(compared.new_bytes(), 15);
            assert!(compared.gone.is_empty());
        }
    }

    #[test]
    fn what_no_stack_is_known_of_is_compared_by_executable() {
        let before = process("/old/app", 30, &[stack(1, 10)]);
        let mut comparison = Comparison::new(baseline(&[before]), true);
        let known = compare(
            &mut comparison,
            &image("/new/app", 35, None),
            Some(&[stack(1, 10)]),
        );
        assert_eq!(known.leaked, 30);
        let compared = comparison.finish(&Selection::default());
        assert_eq!(compared.new_bytes(), 5);
    }

    #[test]
    fn what_is_lost_is_compared_with_what_was_lost_or_may_have_been() {
        for (before, known_lost) in [(Some(4), 4), (None, 9)] {
            let mut old = process("/old/app", 30, &[]);
            old.size.lost = before;
            let mut comparison = Comparison::new(baseline(&[old]), false);
            let image = image("/new/app", 20, Some(9));
            let known = compare(&mut comparison, &image, None);
            assert_eq!(
                known,
                KnownLeak {
                    leaked: 20,
                    lost: known_lost
                }
            );
            assert_eq!(new_lost(known, &image).lower, 9 - known_lost);
            let compared = comparison.finish(&Selection::default());
            assert_eq!(compared.new_bytes(), 9 - known_lost);
        }
    }

    /// The stacks do not say what is lost, but the process does.
    #[test]
    fn what_a_process_lost_is_compared_by_executable_if_its_stacks_do_not_tell() {
        let mut old = process("/old/app", 30, &[stack(1, 30)]);
        old.size.lost = Some(4);
        let mut comparison = Comparison::new(baseline(&[old]), false);
        let image = image("/new/app", 30, Some(9));
        let known = compare(&mut comparison, &image, Some(&[stack(1, 30)]));
        assert_eq!(
            known,
            KnownLeak {
                leaked: 30,
                lost: 4
            }
        );
    }

    #[test]
    fn of_a_process_that_was_not_scanned_only_what_is_new_may_be_lost() {
        let mut comparison = Comparison::new(baseline(&[process("/a", 30, &[])]), false);
        let image = image("/a", 40, None);
        let known = compare(&mut comparison, &image, None);
        let lost = new_lost(known, &image);
        assert_eq!((lost.lower, lost.upper), (0, Some(10)));
    }

    #[test]
    fn what_still_runs_and_what_an_exec_replaced_is_not_compared() {
        for end in [End::Exec, End::Running] {
            let mut comparison = Comparison::new(Baseline::default(), true);
            let mut image = image("/a", 40, None);
            image.end = end;
            compare(&mut comparison, &image, None);
            assert_eq!(
                comparison.finish(&Selection::default()),
                Compared::default()
            );
        }
    }
}
