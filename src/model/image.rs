//! One process image: what it allocated, what it never freed, how it ended.
//!
//! An *image* is what runs in a process between two execs. These are plain values: the kernel counted
//! them (`bpf/`), `collect` decoded them, `ledger` adds them up, `report` shows them.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The life of one process image, complete once the image has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Process id (of the group leader) in memleak's own pid namespace; 0 where it has none there.
    pub pid: u32,
    /// Process id of the parent that started the process, in memleak's own pid namespace; 0 where it
    /// has none there.
    pub ppid: u32,
    /// Real user id, as the initial user namespace sees it.
    pub uid: u32,
    /// Name of `uid`, where one is known.
    pub user: Option<String>,
    /// Command name of the group leader (at most 15 bytes, any byte but NUL).
    pub comm: Vec<u8>,
    /// The path given to execve, made absolute; `None` where unknown.
    pub exe: Option<PathBuf>,
    /// Which image of its process this is: execs before it, counted from 0.
    pub image: u32,
    pub end: End,
    pub from: From,
    /// When the image began (its fork or exec), since the Unix epoch.
    pub start_time: Duration,
    /// When the image ended, since the Unix epoch.
    pub end_time: Duration,
    pub counters: Counters,
    /// Files with a probed allocator that this image mapped.
    pub allocators: Vec<PathBuf>,
    /// Why the image, or a part of it, was not followed at all.
    pub uncovered: Option<Uncovered>,
    pub losses: Losses,
}

impl Image {
    /// Whether everything the image did with its allocator was counted: nothing lost, an allocator
    /// known, and there from the image's first instruction.
    pub fn complete(&self) -> bool {
        self.losses.is_empty() && self.uncovered.is_none() && self.from == From::Start
    }

    /// Whether a tool of valgrind's (`…/valgrind/memcheck-amd64-linux`) died of a breakpoint. It translates the
    /// program's code, a probe's instruction with it.
    pub fn died_under_valgrind(&self) -> bool {
        let is_trap =
            matches!(self.end, End::Signaled { signal, .. } if i32::from(signal) == libc::SIGTRAP);
        let directory = self.exe.as_deref().and_then(Path::parent);
        is_trap && directory.is_some_and(|directory| directory.ends_with("valgrind"))
    }
}

/// Why calls of an image's allocator were not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uncovered {
    /// It mapped no file with an allocator that is known.
    NoAllocator,
    /// It is a static program without symbols: where its allocator is cannot be told.
    NoSymbols,
    /// It is a 32-bit program.
    ThirtyTwoBit,
    /// It went on before a file that it had mapped was examined.
    Late,
    /// A file that it had mapped could not be examined.
    Unexamined,
}

/// How an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process exited with this code (0–255).
    Exited(u8),
    /// The process died of this signal.
    Signaled { signal: u8, core: bool },
    /// The image was replaced by an exec; its heap went with it, so it leaks nothing.
    Exec,
    /// Still alive when memleak left.
    Running,
}

/// Since when an image was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// From its first instruction.
    Start,
    /// From the moment memleak attached; the process was there before.
    Attach,
}

/// What the kernel counted for one image. Sizes are the requested ones, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub total_allocs_bytes: u64,
    pub alloc_count: u64,
    /// Frees of blocks of this heap.
    pub free_count: u64,
    /// Bytes never freed. With losses, a lower bound.
    pub leaked_bytes: u64,
    /// Blocks never freed. With losses, a lower bound.
    pub leaked_blocks: u64,
    /// Highest number of bytes live at one time; `None` where the kernel cannot tell exactly.
    pub peak_live_bytes: Option<u64>,
    /// Calls that returned NULL for want of memory.
    pub failed_allocs: u64,
    /// Frees of blocks that are not of this heap: inherited over a fork, or from before memleak came.
    pub unknown_frees: u64,
}

/// What could not be counted. All zero: nothing was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Blocks allocated while the table of live blocks was full: counted in the totals, but their free
    /// could not be told apart, so whether they leaked is unknown.
    pub blocks_not_recorded: u64,
    /// Bytes of those blocks.
    pub bytes_not_recorded: u64,
    /// Calls that entered an allocator and never came back (jumped out of), or whose return was missed.
    pub calls_without_return: u64,
    /// Images (rows) that could not be followed or delivered at all.
    pub rows_lost: u64,
}

impl Losses {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many single things were lost: the number the table shows.
    pub fn count(&self) -> u64 {
        self.blocks_not_recorded
            .saturating_add(self.calls_without_return)
            .saturating_add(self.rows_lost)
    }
}

/// Saturating: a sum that does not fit must not end the report.
impl std::ops::AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.blocks_not_recorded, other.blocks_not_recorded);
        add(&mut self.bytes_not_recorded, other.bytes_not_recorded);
        add(&mut self.calls_without_return, other.calls_without_return);
        add(&mut self.rows_lost, other.rows_lost);
    }
}

/// Images for the tests of those who use them.
#[cfg(test)]
pub(crate) mod samples {
    use proptest::prelude::*;

    use super::{Counters, Duration, End, From, Image, Losses, Uncovered};

    /// A complete image that leaks nothing and exited with 0.
    pub(crate) fn image() -> Image {
        Image {
            pid: 12345,
            ppid: 12300,
            uid: 1001,
            user: Some("alice".to_owned()),
            comm: b"python3".to_vec(),
            exe: Some("/usr/bin/python3.11".into()),
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
            allocators: vec!["/lib/x86_64-linux-gnu/libc.so.6".into()],
            uncovered: None,
            losses: Losses::default(),
        }
    }

    /// Any image, as far as sums and gates look at it: small numbers that meet, and huge ones.
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
        )
            .prop_map(
                |((pid, comm, end, attached), (total, leaked, blind), lost)| {
                    let mut image = image();
                    image.pid = pid;
                    image.comm = comm.into_bytes();
                    image.end = end;
                    image.counters.total_allocs_bytes = total;
                    image.counters.leaked_bytes = leaked;
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
}
