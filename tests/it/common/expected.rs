//! The expected images and counts of each fixture, worked out by hand from its source. Tests compare them with the
//! counter without memleak, and with memleak with and without the counter.

use std::sync::OnceLock;

use super::side_by_side::side_by_side;
use super::{Counts, Job, Losses, Row, code, fixture, probes};

/// How an image ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Exec,
    Exit(i32),
    Signal(i32),
}

impl End {
    pub fn of(row: &Row) -> Self {
        match (&*row.end, row.exit_code, row.signal) {
            ("exec", None, None) => End::Exec,
            ("exited", Some(code), None) => End::Exit(code),
            ("signaled", None, Some(signal)) => End::Signal(signal),
            _ => panic!("the fields for the end of this row contradict each other: {row:#?}"),
        }
    }
}

/// An image that must be in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    pub image: u32,
    pub end: End,
    pub counts: Counts,
}

impl Expected {
    /// The image that a row of memleak's report describes.
    pub fn of(row: &Row) -> Self {
        Expected {
            image: row.image,
            end: End::of(row),
            counts: row.counts,
        }
    }
}

/// Gives the expected images, from the fixture's standard output.
type Images = dyn Fn(&str) -> Vec<Expected>;

/// A fixture with its arguments, and the images that the fixture makes, in any order.
pub struct Case {
    pub name: &'static str,
    pub job: Job,
    /// The command's exit code, or 128 + n if signal n ends the command.
    pub code: i32,
    pub images: Box<Images>,
    /// The losses of the fixture's only image. Fixtures with several images have none.
    pub losses: Losses,
}

/// Fails unless memleak counts exactly the images of the fixture. `options` are further options of memleak.
#[track_caller]
pub fn assert_counted(name: &str, options: &[String]) {
    printed_if_counted(name, options);
}

/// Fails unless memleak knows the peak of processes with one thread, and of no others.
pub fn assert_peaks(options: &[String]) {
    let peaks = [
        ("frees_all", Some(1_000_000)),
        ("leaks_2mb", Some(2_000_000)),
        ("one_idle_thread", None),
        ("threads_free_each_other", None),
    ];
    side_by_side(peaks, |(name, peak)| {
        let report = case(name).job.options(options).run();
        report.assert_complete();
        assert_eq!(report.only_row().peak_live_bytes, peak, "{name}");
    });
}

/// As `assert_counted`. Returns what the fixture printed.
#[track_caller]
pub fn printed_if_counted(name: &str, options: &[String]) -> String {
    let case = case(name);
    let report = case.job.options(options).run();
    assert_eq!(code(report.status), case.code, "{name}: {}", report.stderr);
    if case.losses == Losses::default() {
        report.assert_complete();
    }
    let mut found: Vec<_> = report.rows.iter().map(Expected::of).collect();
    let mut expected = (case.images)(&report.stdout);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{name}");
    report.stdout
}

/// Bytes that glibc allocates for a thread: one block for its table of thread-local storage. In these tests the size
/// depends only on glibc's version.
pub fn thread_bytes() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let (images, status, _) = Job::fixture("one_idle_thread", &[]).count();
        assert!(status.success());
        let counts = images[0].counts;
        assert_eq!(
            (counts.alloc_count, counts.free_count, counts.leaked_bytes),
            (1, 1, 0)
        );
        counts.total_allocs_bytes
    })
}

pub fn counts(total: u64, allocs: u64, frees: u64, leaked: u64, blocks: u64) -> Counts {
    Counts {
        total_allocs_bytes: total,
        alloc_count: allocs,
        free_count: frees,
        leaked_bytes: leaked,
        leaked_blocks: blocks,
        ..Counts::default()
    }
}

impl Counts {
    fn failed(self, failed_allocs: u64) -> Self {
        Counts {
            failed_allocs,
            ..self
        }
    }

    fn unknown(self, unknown_frees: u64) -> Self {
        Counts {
            unknown_frees,
            ..self
        }
    }

    /// Adds the blocks that glibc allocates for `started` threads and frees for `joined` threads.
    pub fn threads(mut self, started: u64, joined: u64) -> Self {
        self.total_allocs_bytes += started * thread_bytes();
        self.alloc_count += started;
        self.free_count += joined;
        self.leaked_bytes += (started - joined) * thread_bytes();
        self.leaked_blocks += started - joined;
        self
    }
}

/// The counts of `joined_midway BEFORE AFTER` after it has read its input.
pub fn midway(before: u64, after: u64) -> Counts {
    Counts {
        unknown_frees: before + 1,
        ..counts(
            after * 10 + 300,
            after + 1,
            after / 2,
            after.div_ceil(2) * 10 + 300,
            after.div_ceil(2) + 1,
        )
    }
}

/// The counts of `threads_joined_midway THREADS` from its input on.
pub fn threads_midway(threads: u64) -> Counts {
    let held: u64 = (0..threads).map(|thread| 1000 + thread).sum();
    Counts {
        unknown_frees: threads,
        ..counts(
            held + threads * 1000,
            threads * 101,
            threads * 100,
            held,
            threads,
        )
    }
}

/// What `executes_after_reading HOW PROGRAM` allocates and holds between its input and the program.
pub fn held_before_exec(how: &str) -> Counts {
    match how {
        "busy" => counts(30, 1, 0, 30, 1),
        _ => Counts::default(),
    }
}

pub fn ends(image: u32, end: End, counts: Counts) -> Expected {
    Expected { image, end, counts }
}

/// A fixture with any number of processes. The command's exit code is `code`.
fn tree(
    name: &'static str,
    fixture: &str,
    arguments: &[&str],
    code: i32,
    images: impl Fn(&str) -> Vec<Expected> + 'static,
) -> Case {
    let job = Job::fixture(fixture, arguments);
    Case {
        name,
        job,
        code,
        images: Box::new(images),
        losses: Losses::default(),
    }
}

/// A fixture with one process and one image. It exits with 0.
fn single(name: &'static str, counts: impl Fn() -> Counts + 'static) -> Case {
    tree(name, name, &[], 0, move |_| {
        vec![ends(0, End::Exit(0), counts())]
    })
}

fn dies(name: &'static str, how: &str, signal: i32) -> Case {
    tree(name, "dies_of_signal", &[how], 128 + signal, move |_| {
        vec![ends(0, End::Signal(signal), counts(4196, 2, 1, 4096, 1))]
    })
}

fn leader(name: &'static str, arguments: &[&str], code: i32) -> Case {
    tree(name, "leader_leaves_first", arguments, code, move |_| {
        vec![ends(
            0,
            End::Exit(code),
            counts(3010, 4, 0, 3010, 4).threads(1, 0),
        )]
    })
}

fn handler(name: &'static str, by: &'static str, stack: &str) -> Case {
    tree(name, "handler_mallocs", &[by, stack], 0, move |printed| {
        let printed: Vec<u64> = printed
            .split_whitespace()
            .map(|n| n.parse().expect("the word is a number"))
            .collect();
        let [looped, handled, _] = printed[..] else {
            panic!("the fixture printed {printed:?}")
        };
        assert_eq!(handled, 1001);
        let total = looped * 24 + handled * 200 + 4000;
        let own = counts(total, looped + handled + 100, looped + handled, 4000, 100);
        let threads = u64::from(by == "thread");
        vec![ends(0, End::Exit(0), own.threads(threads, threads))]
    })
}

fn inside_calloc(name: &'static str, stack: &str) -> Case {
    tree(name, "handler_mallocs_inside_calloc", &[stack], 0, |_| {
        vec![ends(0, End::Exit(0), counts(4_002_520, 100, 60, 1860, 40))]
    })
}

fn by_libc(name: &'static str, stack: &str) -> Case {
    tree(name, "handler_enters_by_libc", &[stack], 0, |_| {
        vec![ends(0, End::Exit(0), counts(4_001_180, 100, 60, 520, 40))]
    })
}

fn jumps(name: &'static str, stack: &str) -> Case {
    let case = tree(name, "jumps_out_of_calloc", &[stack], 0, |_| {
        vec![ends(
            0,
            End::Exit(0),
            counts(20_013_200, 1400, 200, 13_200, 1200),
        )]
    });
    // Inside, a call that was jumped out of looks like one that is still under way.
    let losses = match probes::are_inside() {
        false => Losses {
            calls_without_return: 200,
            ..Losses::default()
        },
        true => Losses {
            calls_in_flight: 200,
            ..Losses::default()
        },
    };
    Case { losses, ..case }
}

/// All cases. Each has the name of its fixture. Where a fixture has several cases, their names also have the arguments.
pub fn cases() -> Vec<Case> {
    vec![
        single("allocates_nothing", Counts::default),
        single("leaks_2mb", || counts(2_000_000, 1, 0, 2_000_000, 1)),
        single("frees_all", || counts(10_500_500, 1010, 1010, 0, 0)),
        single("zero_sized", || counts(0, 3, 1, 0, 2)),
        single("whole_family", || {
            counts(31_111_151, 11, 2, 31_111_143, 9).failed(1)
        }),
        single("whole_family_fails", || {
            counts(500, 1, 0, 500, 1).failed(11)
        }),
        single("realloc_forms", || {
            counts(4_005_892, 9, 7, 432, 2).failed(2)
        }),
        single("realloc_raced", || {
            counts(240_000_000, 80_000, 80_000, 0, 0)
                .failed(10_000)
                .threads(4, 4)
        }),
        single("calloc_overflows", || counts(64, 1, 0, 64, 1).failed(2)),
        single("malloc_fails_under_limit", || {
            counts(1_001_000, 2, 0, 1_001_000, 2).failed(3)
        }),
        single("one_idle_thread", || Counts::default().threads(1, 1)),
        single("threads_free_each_other", || {
            counts(360_000, 8000, 7200, 36_000, 800).threads(8, 8)
        }),
        single("thread_frees_for_main", || {
            counts(4800 + 240, 110, 108, 72, 2).threads(1, 1)
        }),
        single("thread_cache_at_its_end", || {
            counts(202_000, 400, 400, 0, 0).threads(4, 4)
        }),
        single("exits_under_waiting_threads", || {
            counts(300, 3, 0, 300, 3).threads(3, 0)
        }),
        single("before_and_after_main", || counts(61, 4, 1, 51, 3)),
        single("exec_fails", || counts(150, 2, 0, 150, 2)),
        single("vfork_exit", || counts(1074, 3, 1, 1064, 2)),
        single("clone_vm_child", || counts(1074, 3, 1, 1064, 2)),
        single("million_blocks", || {
            counts(16_000_000, 1_000_000, 0, 16_000_000, 1_000_000)
        }),
        tree("leaves_by__exit", "leaves_by__exit", &[], 9, |_| {
            vec![ends(0, End::Exit(9), counts(1110, 10, 0, 1110, 10))]
        }),
        leader("leader_leaves_first", &[], 3),
        leader("leader_leaves_first _exit", &["_exit"], 4),
        tree("exec_from_thread", "exec_from_thread", &[], 0, |_| {
            vec![
                ends(0, End::Exec, counts(1500, 2, 0, 1500, 2).threads(1, 0)),
                ends(1, End::Exit(0), counts(77, 1, 0, 77, 1)),
            ]
        }),
        tree("exec_chain", "exec_chain", &[], 4, |_| {
            (0..5)
                .map(|i| {
                    let end = if i < 4 { End::Exec } else { End::Exit(4) };
                    let size = u64::from(i + 1) * 100;
                    ends(i, end, counts(size + 7, 2, 1, size, 1))
                })
                .collect()
        }),
        tree(
            "child_frees_inherited",
            "child_frees_inherited",
            &[],
            0,
            |_| {
                vec![
                    ends(0, End::Exit(0), counts(1200, 2, 0, 1200, 2)),
                    ends(0, End::Exit(5), counts(3050, 2, 0, 3050, 2).unknown(2)),
                ]
            },
        ),
        tree("vfork_exec", "vfork_exec", &[], 0, |_| {
            vec![
                ends(0, End::Exit(0), counts(1000, 1, 0, 1000, 1)),
                ends(0, End::Exit(6), counts(30, 1, 0, 30, 1)),
            ]
        }),
        tree("spawns_many", "spawns_many", &["1000"], 0, |_| {
            let parent = ends(0, End::Exit(0), counts(1_000_000, 1, 0, 1_000_000, 1));
            let child = ends(0, End::Exit(0), counts(10, 1, 0, 10, 1));
            std::iter::once(parent)
                .chain(std::iter::repeat_n(child, 1000))
                .collect()
        }),
        dies("dies_of_signal segv", "segv", libc::SIGSEGV),
        dies("dies_of_signal abort", "abort", libc::SIGABRT),
        dies("dies_of_signal kill", "9", libc::SIGKILL),
        dies("dies_of_signal term", "15", libc::SIGTERM),
        handler("handler_mallocs timer stack", "timer", "stack"),
        handler("handler_mallocs timer altstack", "timer", "altstack"),
        handler("handler_mallocs thread stack", "thread", "stack"),
        handler("handler_mallocs thread altstack", "thread", "altstack"),
        inside_calloc("handler_mallocs_inside_calloc stack", "stack"),
        inside_calloc("handler_mallocs_inside_calloc altstack", "altstack"),
        by_libc("handler_enters_by_libc stack", "stack"),
        by_libc("handler_enters_by_libc altstack", "altstack"),
        jumps("jumps_out_of_calloc stack", "stack"),
        jumps("jumps_out_of_calloc altstack", "altstack"),
        tree("forks_in_threads", "forks_in_threads", &[], 0, |_| {
            let parent = ends(0, End::Exit(0), counts(40, 4, 0, 40, 4).threads(4, 4));
            let child = |c: u64| ends(0, End::Exit(0), counts(150 + c, 2, 1, 100 + c, 1));
            std::iter::once(parent).chain((0..20).map(child)).collect()
        }),
        tree("fork_storm", "fork_storm", &["300"], 0, |_| {
            let parent = ends(0, End::Exit(0), counts(1, 1, 0, 1, 1));
            let child = |c: u64| ends(0, End::Exit(0), counts(1000 + c % 100, 2, 1, c % 100, 1));
            std::iter::once(parent).chain((0..300).map(child)).collect()
        }),
        tree(
            "two_heaps_one_address",
            "two_heaps_one_address",
            &[],
            0,
            |_| {
                vec![
                    ends(0, End::Exit(0), counts(1000, 2, 2, 0, 0)),
                    ends(0, End::Exit(0), counts(500, 1, 0, 500, 1)),
                ]
            },
        ),
        tree("generations", "generations", &[], 0, |_| {
            (1..=12)
                .map(|d| ends(0, End::Exit(0), counts(d * 10, 1, 0, d * 10, 1)))
                .collect()
        }),
        Case {
            job: Job::new(fixture("runs"), [fixture("leaks_2mb")]),
            ..tree("runs leaks_2mb", "runs", &[], 0, |_| {
                vec![
                    ends(0, End::Exit(0), counts(100, 1, 0, 100, 1)),
                    ends(0, End::Exec, Counts::default()),
                    ends(1, End::Exit(0), counts(2_000_000, 1, 0, 2_000_000, 1)),
                ]
            })
        },
        tree(
            "leaks_over_many_lives",
            "leaks_over_many_lives",
            &["20", "50"],
            0,
            |_| {
                let parent = ends(0, End::Exit(0), Counts::default());
                let child = ends(0, End::Exit(0), counts(400, 50, 0, 400, 50));
                std::iter::once(parent)
                    .chain(std::iter::repeat_n(child, 20))
                    .collect()
            },
        ),
        tree(
            "holds_blocks",
            "holds_blocks",
            &["1001", "100", "free"],
            0,
            |_| {
                vec![ends(
                    0,
                    End::Exit(0),
                    counts(100_100, 1001, 500, 50_100, 501),
                )]
            },
        ),
    ]
}

/// The case with this name.
pub fn case(name: &str) -> Case {
    cases()
        .into_iter()
        .find(|case| case.name == name)
        .unwrap_or_else(|| panic!("no case is named {name}"))
}
