//! A session made by hand, with all that can happen to a document: processes that leak, lose, crash and cannot be
//! followed, names that a hostile process can choose, and call stacks of which parts are not known.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::exit::Outcome;
use crate::model::finished::{About, Finished, Site};
use crate::model::gate::Gate;
use crate::model::image::{End, Image, Labels, Losses, Uncovered, samples};
use crate::model::ledger::Ledger;
use crate::model::limits::{Allowed, Limits};
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};
use crate::model::selection::Selection;
use crate::model::stack::{NamedFrame, NamedStack, WalkEnd};

pub(crate) const HOSTILE_COMM: &[u8] = b"</script>\n;\xff";
const HOSTILE_EXE: &str = "/tmp/a b;c\n]]><!--/\u{202e}'\"&%,";
pub(crate) const HOSTILE_FUNCTION: &str =
    "operator<</script><script>alert(1)</script>;\n\"'&]]>--\u{1b}[2J`${x}";

pub(crate) fn amount(bytes: u64, blocks: u64) -> Amount {
    Amount { bytes, blocks }
}

/// A frame of the project below /home/a/parser, or of a library.
pub(crate) fn frame(function: &str, module: &str, file: Option<(&str, u32)>) -> NamedFrame {
    NamedFrame {
        function: Some(function.to_owned()),
        linkage: Some(function.to_owned()),
        module: Some(module.into()),
        build_id: Some(vec![0xab, 0xcd]),
        offset: 0x1234,
        file: file.map(|(file, _)| file.into()),
        line: file.map(|(_, line)| line),
        inlined: false,
    }
}

pub(crate) fn stack(identity: u64, end: WalkEnd, frames: Vec<NamedFrame>) -> NamedStack {
    NamedStack {
        identity,
        frames: frames.into_iter().map(Arc::new).collect(),
        end,
        guessed: u16::from(end != WalkEnd::Complete),
    }
}

fn image(pid: u32, comm: &[u8], exe: &str, allocated: Amount, leaked: Amount) -> Image {
    let mut image = samples::image();
    image.pid = pid;
    image.comm = comm.to_vec();
    image.exe = Some(exe.into());
    image.counters.total_allocs_bytes = allocated.bytes;
    image.counters.alloc_count = allocated.blocks;
    image.counters.leaked_bytes = leaked.bytes;
    image.counters.leaked_blocks = leaked.blocks;
    image.counters.free_count = allocated.blocks - leaked.blocks;
    image
}

fn images() -> Vec<Image> {
    let parser = "/home/a/parser/build/parser";
    let mut shell = image(100, b"sh", "/bin/sh", amount(1_500, 3), Amount::default());
    shell.end = End::Exec;
    shell.reach = Reach::NotJudged;

    let mut leaking = image(
        101,
        b"parser",
        parser,
        amount(90_906, 120),
        amount(83_856, 102),
    );
    leaking.reach = Reach::Known(Reached {
        definite: amount(2_000, 20),
        indirect: amount(5_050, 80),
        possible: amount(6, 1),
        reachable: amount(76_800, 1),
    });

    let mut crashed = image(
        102,
        b"parser",
        parser,
        amount(10_000, 30),
        amount(4_000, 10),
    );
    crashed.end = End::Signaled {
        signal: 11,
        core: true,
    };
    crashed.reach = Reach::Unknown(ReachUnknown::Signal);
    crashed.losses = Losses {
        blocks_not_recorded: 2,
        bytes_not_recorded: 64,
        calls_without_return: 1,
        calls_in_flight: 0,
        rows_lost: 0,
    };

    let mut clean = image(
        103,
        b"grep",
        "/usr/bin/grep",
        amount(5_000, 9),
        Amount::default(),
    );
    clean.reach = Reach::Known(Reached::default());

    let mut hostile = image(
        666,
        HOSTILE_COMM,
        HOSTILE_EXE,
        amount(300, 3),
        amount(200, 2),
    );
    hostile.user = Some("<b>root".to_owned());
    hostile.reach = Reach::Known(Reached {
        definite: amount(200, 2),
        ..Reached::default()
    });

    let mut blind = image(
        104,
        b"static",
        "/opt/static",
        Amount::default(),
        Amount::default(),
    );
    blind.exe = None;
    blind.uncovered = Some(Uncovered::NoSymbols);

    let mut running = image(105, b"sleep", "/bin/sleep", amount(700, 7), amount(70, 7));
    running.end = End::Running;
    running.reach = Reach::NotJudged;

    vec![shell, leaking, crashed, clean, hostile, blind, running]
}

fn sites() -> Vec<Site> {
    let exe = "/home/a/parser/build/parser";
    let list = "/home/a/parser/src/list.c";
    let main = || frame("main", exe, Some(("/home/a/parser/src/main.c", 8)));
    let start = || {
        frame(
            "__libc_start_call_main",
            "/lib/x86_64-linux-gnu/libc.so.6",
            None,
        )
    };
    let inlined = NamedFrame {
        inlined: true,
        ..frame("node_size(int)", exe, Some((list, 30)))
    };
    let site = |comm: &[u8], stack, allocated, leaked, reached| Site {
        exe: Some(PathBuf::from(exe)),
        comm: comm.to_vec(),
        labels: Labels::new(),
        stack,
        allocated,
        leaked,
        reached,
        images: 1,
    };
    let reachable = site(
        b"parser",
        stack(
            0x6f1d_0000_0000_0001,
            WalkEnd::Complete,
            vec![
                frame("std::locale::init", "/lib/libstdc++.so.6", None),
                main(),
                start(),
            ],
        ),
        amount(76_800, 1),
        amount(76_800, 1),
        Some(Reached {
            reachable: amount(76_800, 1),
            ..Reached::default()
        }),
    );
    let lost = site(
        b"parser",
        stack(
            0x6f1d_0000_0000_0002,
            WalkEnd::Complete,
            vec![
                inlined,
                frame("make_node", exe, Some((list, 31))),
                main(),
                start(),
            ],
        ),
        amount(12_000, 110),
        amount(7_050, 100),
        Some(Reached {
            definite: amount(2_000, 20),
            indirect: amount(5_050, 80),
            ..Reached::default()
        }),
    );
    // Of processes that died, and so of which not all was judged.
    let unjudged = Site {
        images: 2,
        ..site(
            b"parser",
            stack(
                0x6f1d_0000_0000_0003,
                WalkEnd::NoRule,
                vec![
                    frame("strdup", "/lib/x86_64-linux-gnu/libc.so.6", None),
                    NamedFrame {
                        module: Some("/opt/lib/libjit;odd.so".into()),
                        offset: 0x4660,
                        ..NamedFrame::default()
                    },
                ],
            ),
            amount(4_006, 11),
            amount(4_006, 11),
            None,
        )
    };
    let hostile = Site {
        exe: Some(HOSTILE_EXE.into()),
        ..site(
            HOSTILE_COMM,
            stack(
                0x6f1d_0000_0000_0004,
                WalkEnd::TooDeep,
                vec![
                    frame(
                        HOSTILE_FUNCTION,
                        HOSTILE_EXE,
                        Some(("/tmp/a b;c\n</script>.c", 7)),
                    ),
                    NamedFrame {
                        offset: 0x7fff_0000_1000,
                        ..NamedFrame::default()
                    },
                ],
            ),
            amount(200, 2),
            amount(200, 2),
            Some(Reached {
                definite: amount(200, 2),
                ..Reached::default()
            }),
        )
    };
    let freed = Site {
        exe: Some("/usr/bin/grep".into()),
        ..site(
            b"grep",
            stack(
                0x6f1d_0000_0000_0005,
                WalkEnd::Complete,
                vec![frame("main", "/usr/bin/grep", None)],
            ),
            amount(5_000, 9),
            Amount::default(),
            Some(Reached::default()),
        )
    };
    vec![reachable, lost, unjudged, hostile, freed]
}

/// The session: a gate on what is lost has failed.
pub(crate) fn finished() -> Finished {
    let images = images();
    let limits = |process| Limits {
        process,
        total: None,
    };
    let allowed = Allowed {
        leak: Limits::default(),
        lost: limits(Some(1_000)),
    };
    let mut ledger = Ledger::new(Gate::new(allowed, Selection::default()));
    for image in &images {
        ledger.record(image);
    }
    Finished {
        about: About {
            command: vec![
                b"make".to_vec(),
                b"check it".to_vec(),
                b"\xff</script>".to_vec(),
            ],
            directory: Some("/home/a/parser".into()),
            hosts: vec!["build-7".to_owned()],
            began: Duration::new(1_761_153_780, 0),
            ended: Duration::new(1_761_153_782, 250_000_000),
        },
        images,
        more_images: 0,
        has_more_sites: false,
        sites: sites(),
        selection: Selection::default(),
        summary: ledger.finish(Losses::default(), Outcome::Exited(2)),
    }
}

/// The same without call stacks, as of a session that recorded none, and without what is known of its start.
pub(crate) fn without_stacks() -> Finished {
    Finished {
        sites: Vec::new(),
        about: About::default(),
        ..finished()
    }
}
