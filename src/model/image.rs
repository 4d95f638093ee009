//! One process image: what it allocated, what it never freed, and how it ended.
//!
//! An *image* is the program that a process runs between two execs. The types here are plain values. The BPF programs
//! (`bpf/`) count them, `kernel` decodes them, `ledger` adds them up, and `report` prints them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::origin::Origin;
use crate::model::reach::Reach;
use crate::model::stack::{StackShare, UnlistedStacks};

/// The life of one process image, complete once the image has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Process id (of the group leader) in memleak's own pid namespace. 0 if the process has no id there.
    pub pid: u32,
    /// Process id of the parent that started the process, in memleak's own pid namespace. 0 if the parent has no id
    /// there.
    pub ppid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Name of `uid`, if known.
    pub user: Option<String>,
    /// Command name of the group leader (at most 15 bytes, any byte but NUL).
    pub comm: Vec<u8>,
    /// The path given to execve, made absolute. `None` if unknown.
    pub exe: Option<PathBuf>,
    /// The same path without symbolic links, as far as it was looked up.
    pub real_exe: Option<PathBuf>,
    /// The words that the image was executed with, if they were asked for and are known.
    pub args: Option<CommandLine>,
    /// The variables of its environment that were asked for.
    pub labels: Labels,
    /// Number of the image within its process, from 0: the number of execs before it.
    pub image: u32,
    pub end: End,
    pub from: From,
    /// When the image began (its fork or exec), since the Unix epoch.
    pub start_time: Duration,
    /// When the image ended, since the Unix epoch.
    pub end_time: Duration,
    pub counters: Counters,
    /// How the blocks that it never freed could be reached.
    pub reach: Reach,
    /// What it allocated by each call stack, as far as that is known. `None`: no call stacks were recorded.
    pub stacks: Option<Vec<StackShare>>,
    /// What it allocated by other stacks that are known.
    pub unlisted_stacks: UnlistedStacks,
    /// The files with a probed allocator that this image mapped.
    pub allocators: Vec<PathBuf>,
    /// Why the image, or a part of it, was not followed.
    pub uncovered: Option<Uncovered>,
    pub losses: Losses,
    /// The kernel's number of the control group (version 2) that the process was last in. 0 if unknown.
    pub cgroup: u64,
    /// Where the process belongs, as far as it was looked up.
    pub origin: Option<Arc<Origin>>,
}

impl Image {
    /// Whether all calls of the image's allocator were counted. That is so if nothing was missed, the allocator is known,
    /// and memleak followed the image from its first instruction.
    pub fn complete(&self) -> bool {
        self.losses.is_empty() && self.uncovered.is_none() && self.from == From::Start
    }

    /// Whether a valgrind tool (`…/valgrind/memcheck-amd64-linux`) died of a breakpoint. Valgrind translates the
    /// program's code, and with it the breakpoint instruction of a probe.
    pub fn died_under_valgrind(&self) -> bool {
        let is_trap =
            matches!(self.end, End::Signaled { signal, .. } if i32::from(signal) == libc::SIGTRAP);
        let directory = self.exe.as_deref().and_then(Path::parent);
        is_trap && directory.is_some_and(|directory| directory.ends_with("valgrind"))
    }
}

/// Variables of an environment: values of any bytes, by name.
pub type Labels = BTreeMap<String, Vec<u8>>;

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The words, of any bytes.
    pub words: Vec<Vec<u8>>,
    /// Whether the end is missing, which was too long to keep.
    pub is_cut: bool,
}

impl CommandLine {
    /// Reads words that each have a NUL at their end. If `is_cut`, the last word may have none.
    pub fn of_bytes(bytes: &[u8], is_cut: bool) -> Self {
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        let words = bytes.split(|&byte| byte == 0);
        Self {
            words: words.map(<[u8]>::to_vec).collect(),
            is_cut,
        }
    }
}

/// Why calls of an image's allocator were not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uncovered {
    /// The image mapped no file with a known allocator.
    NoAllocator,
    /// The image is a static program without symbols. The place of its allocator cannot be found.
    NoSymbols,
    /// The image is a 32-bit program.
    ThirtyTwoBit,
    /// The image continued before a file that it had mapped was examined.
    Late,
    /// A file that the image had mapped could not be examined.
    Unexamined,
    /// The probes were put into the processes of -p only, and the image ran, or may have run, code outside of them.
    Unreached,
}

impl Uncovered {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::NoAllocator,
        Self::NoSymbols,
        Self::ThirtyTwoBit,
        Self::Late,
        Self::Unexamined,
        Self::Unreached,
    ];
}

/// How an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process exited with this code (0–255).
    Exited(u8),
    /// The process died of this signal.
    Signaled { signal: u8, core: bool },
    /// An exec replaced the image. Its heap is gone, so the image leaks nothing.
    Exec,
    /// The image was still running when memleak ended or printed it.
    Running,
}

/// From when on an image was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// From its first instruction.
    Start,
    /// From the moment memleak attached. The process had started before.
    Attach,
}

/// The kernel's counters of one image. Sizes are the requested sizes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub total_allocs_bytes: u64,
    pub alloc_count: u64,
    /// Number of frees of blocks of this heap.
    pub free_count: u64,
    /// Bytes that were never freed. With losses, a lower bound.
    pub leaked_bytes: u64,
    /// Blocks that were never freed. With losses, a lower bound.
    pub leaked_blocks: u64,
    /// Highest number of live bytes at one time. `None` if the kernel side does not know it exactly.
    pub peak_live_bytes: Option<u64>,
    /// Calls that returned NULL because of missing memory.
    pub failed_allocs: u64,
    /// Frees of blocks that do not belong to this heap: inherited by a fork, or allocated before memleak attached.
    pub unknown_frees: u64,
}

/// The losses: what memleak missed and could not count. All zero if it missed nothing. What a *process* lost is another
/// matter: see `reach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Blocks that were allocated while the table of live blocks was full. The totals contain them. Their frees could
    /// not be recognised, so it is unknown whether they leaked.
    pub blocks_not_recorded: u64,
    /// Total size of these blocks, in bytes.
    pub bytes_not_recorded: u64,
    /// Calls of an allocator that never returned (the program jumped out of them), or whose return was missed.
    pub calls_without_return: u64,
    /// Images (rows) that could not be followed or delivered at all.
    pub rows_lost: u64,
}

impl Losses {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The number of missed items, as shown in the table.
    pub fn count(&self) -> u64 {
        self.blocks_not_recorded
            .saturating_add(self.calls_without_return)
            .saturating_add(self.rows_lost)
    }
}

/// The sums saturate: an overflow must not end the report.
impl std::ops::AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.blocks_not_recorded, other.blocks_not_recorded);
        add(&mut self.bytes_not_recorded, other.bytes_not_recorded);
        add(&mut self.calls_without_return, other.calls_without_return);
        add(&mut self.rows_lost, other.rows_lost);
    }
}

/// Images for tests, including those of other modules.
#[cfg(test)]
pub(crate) mod samples {
    use proptest::prelude::*;

    use super::{
        Counters, Duration, End, From, Image, Labels, Losses, Reach, Uncovered, UnlistedStacks,
    };
    use crate::model::reach::{Amount, ReachUnknown, Reached};

    /// A complete image that leaks nothing and exited with 0.
    pub(crate) fn image() -> Image {
        Image {
            pid: 12345,
            ppid: 12300,
            uid: 1001,
            user: Some("alice".to_owned()),
            comm: b"python3".to_vec(),
            exe: Some("/usr/bin/python3.11".into()),
            real_exe: None,
            args: None,
            labels: Labels::new(),
            image: 0,
            end: End::Exited(0),
            from: From::Start,
            start_time: Duration::new(1_761_153_780, 123_456_789),
            end_time: Duration::new(1_761_153_781, 500_000_000),
            counters: Counters {
                total_allocs_bytes: 7_208_122,
                alloc_count: 3_534,
                free_count: 3_534,
                peak_live_bytes: Some(1_892_331),
                ..Counters::default()
            },
            stacks: None,
            unlisted_stacks: UnlistedStacks::default(),
            reach: Reach::Unknown(ReachUnknown::Off),
            allocators: vec!["/lib/x86_64-linux-gnu/libc.so.6".into()],
            uncovered: None,
            losses: Losses::default(),
            cgroup: 0,
            origin: None,
        }
    }

    /// An arbitrary image, in the fields that sums and gates use. Most numbers are small, so that they meet limits and
    /// each other. Some are huge.
    pub(crate) fn any_image() -> impl Strategy<Value = Image> {
        let end = prop_oneof![
            any::<u8>().prop_map(End::Exited),
            (1..65_u8, any::<bool>()).prop_map(|(signal, core)| End::Signaled { signal, core }),
            Just(End::Exec),
            Just(End::Running),
        ];
        let bytes = || prop_oneof![8 => 0..50_000_u64, 1 => any::<u64>()];
        let lost = || prop_oneof![4 => Just(0), 1 => 1..1_000_u64];
        (
            (0..100_u32, "[abc]{0,3}", end, prop::bool::weighted(0.1)),
            (bytes(), bytes(), prop::bool::weighted(0.2)),
            (lost(), lost(), lost(), lost()),
            any_parts(),
        )
            .prop_map(
                |((pid, comm, end, attached), (total, leaked, blind), lost, parts)| {
                    let mut image = image();
                    image.pid = pid;
                    image.comm = comm.into_bytes();
                    image.end = end;
                    image.counters.total_allocs_bytes = total;
                    image.counters.leaked_bytes = leaked;
                    image.reach = reach(end, leaked, parts);
                    image.losses = Losses {
                        blocks_not_recorded: lost.0,
                        bytes_not_recorded: lost.1,
                        calls_without_return: lost.2,
                        rows_lost: lost.3,
                    };
                    if attached {
                        image.from = From::Attach;
                    }
                    if blind {
                        image.allocators.clear();
                        image.uncovered = Some(Uncovered::NoAllocator);
                    }
                    image
                },
            )
    }

    /// How the leaked bytes of an image are reached. `None`: it is not known.
    pub(crate) fn any_parts() -> impl Strategy<Value = Option<[f64; 3]>> {
        prop::option::of([0.0..=1.0_f64, 0.0..=1.0, 0.0..=1.0])
    }

    /// Divides `leaked` bytes: each part is taken from what the parts before it left.
    pub(crate) fn reach(end: End, leaked: u64, parts: Option<[f64; 3]>) -> Reach {
        if matches!(end, End::Exec | End::Running) {
            return Reach::NotJudged;
        }
        let Some(parts) = parts else {
            return Reach::Unknown(ReachUnknown::Signal);
        };
        let mut rest = leaked;
        let mut take = |part: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss
            )]
            let bytes = ((rest as f64 * part) as u64).min(rest);
            rest -= bytes;
            let blocks = u64::from(bytes > 0);
            Amount { bytes, blocks }
        };
        let [definite, indirect, possible] = parts.map(&mut take);
        let reachable = take(1.0);
        Reach::Known(Reached {
            definite,
            indirect,
            possible,
            reachable,
        })
    }
}
