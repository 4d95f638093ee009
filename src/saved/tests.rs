use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::record::{PROCESS, STACK};
use super::*;
use crate::model::exit::Outcome;
use crate::model::image::samples::{any_image, image};
use crate::model::image::{CommandLine, CountedBy, Image, Losses, Uncovered};
use crate::model::ledger::Ledger;
use crate::model::origin::Origin;
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached, StackReached};
use crate::model::stack::{CallStack, NamedFrame, NamedStack, StackShare, WalkEnd};
use crate::model::stack_coverage::StackCoverage;
use crate::report::destination::Output;
use crate::report::{Format, Options, Report, StackRow};

/// Remembers what is written.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The JSON that memleak writes.
fn json(write: impl FnOnce(&mut Report)) -> String {
    let memory = Memory::default();
    let mut report = Report::default();
    let output = Output::new("memory", Box::new(memory.clone()));
    report.add(Format::Json, Options::default(), output);
    write(&mut report);
    let bytes = std::mem::take(&mut *memory.0.lock().unwrap());
    String::from_utf8(bytes).unwrap()
}

fn json_of_image(image: &Image) -> String {
    json(|report| assert!(report.image(image, None).is_empty()))
}

fn json_of_stack(pid: u32, image: u32, share: &StackShare, stack: &NamedStack) -> String {
    let row = StackRow {
        pid,
        image,
        share,
        stack,
        suppressed_by: None,
        suppressed: Amount::default(),
        kept: Amount::default(),
    };
    json(|report| assert!(report.stack(&row).is_empty()))
}

fn saved_image(line: &str) -> SavedImage {
    match record(line.as_bytes()).unwrap() {
        Record::Process(saved) => *saved,
        other => panic!("{other:?}"),
    }
}

fn saved_stack(line: &str) -> SavedStack {
    match record(line.as_bytes()).unwrap() {
        Record::Stack(saved) => *saved,
        other => panic!("{other:?}"),
    }
}

/// Names of any bytes.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[ -~\\\\\"\u{e9}\u{9b}]{0,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..12),
    ]
}

fn any_frame() -> impl Strategy<Value = NamedFrame> {
    let path = || prop::option::of(any_name());
    let name = || prop::option::of("\\PC{0,12}");
    let build_id = prop::option::of(prop::collection::vec(any::<u8>(), 0..20));
    let numbers = (any::<u64>(), prop::option::of(any::<u32>()), any::<bool>());
    let names = (name(), name());
    (names, path(), build_id, path(), numbers).prop_map(
        |((function, linkage), module, build_id, file, (offset, line, inlined))| NamedFrame {
            function,
            linkage,
            module: module.map(as_path),
            build_id,
            offset,
            file: file.map(as_path),
            line,
            inlined,
        },
    )
}

fn as_path(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    OsString::from_vec(bytes).into()
}

proptest! {
    #[test]
    fn an_image_comes_back_from_json(
        mut image in any_image(),
        names in [any_name(), any_name(), any_name()],
        why in prop::sample::select(&ReachUnknown::ALL),
        uncovered in prop::option::of(prop::sample::select(&Uncovered::ALL)),
        counted_by in prop::sample::select(&CountedBy::ALL),
        args in prop::option::of((prop::collection::vec(any_name(), 0..3), any::<bool>())),
        labels in prop::collection::btree_map("[A-Z_]{1,8}", any_name(), 0..3),
    ) {
        let [comm, exe, allocator] = names;
        image.comm = comm;
        image.exe = Some(as_path(exe));
        image.allocators = vec![as_path(allocator)];
        image.uncovered = uncovered;
        image.counted_by = counted_by;
        image.labels = labels;
        image.args = args.map(|(words, is_cut)| CommandLine { words, is_cut });
        if matches!(image.reach, Reach::Unknown(_)) {
            image.reach = Reach::Unknown(why);
        }
        let line = json_of_image(&image);
        let saved = saved_image(&line);
        prop_assert!(!saved.is_look);
        prop_assert_eq!(json_of_image(&saved.image), line);
        // The sums are the same, too.
        let sums = |image: &Image| {
            let mut ledger = Ledger::new(None);
            ledger.record(image);
            let summary = ledger.finish(Losses::default(), Outcome::Saved);
            (summary.leaked, summary.lost.bytes, summary.complete, summary.processes)
        };
        prop_assert_eq!(sums(&saved.image), sums(&image));
    }

    #[test]
    fn a_stack_comes_back_from_json(
        identity in any::<u64>(),
        frames in prop::collection::vec(any_frame(), 0..5),
        end in prop::sample::select(&WalkEnd::ALL),
        guessed in any::<u16>(),
        [alloc_bytes, alloc_count, leaked_bytes, leaked_blocks] in any::<[u64; 4]>(),
        reached in prop::option::of(any::<[u64; 10]>()),
    ) {
        let frames = frames.into_iter().map(Arc::new).collect();
        let stack = NamedStack { identity, frames, end, guessed };
        let reached = reached.map(|[a, b, c, d, e, f, g, h, i, j]| {
            let amount = |bytes, blocks| Amount { bytes, blocks };
            let blocks = Reached {
                definite: amount(a, b),
                indirect: amount(c, d),
                possible: amount(e, f),
                reachable: amount(g, h),
            };
            StackReached { blocks, owned: amount(i, j) }
        });
        let call_stack = CallStack { frames: Vec::new(), end: WalkEnd::Complete, guessed: 0 };
        let share = StackShare {
            stack: Arc::new(call_stack),
            alloc_bytes,
            alloc_count,
            leaked_bytes,
            leaked_blocks,
            reached,
        };
        let line = json_of_stack(7, 1, &share, &stack);
        let saved = saved_stack(&line);
        prop_assert_eq!((saved.pid, saved.image), (7, 1));
        prop_assert_eq!(json_of_stack(7, 1, &saved.share, &saved.stack), line);
        prop_assert_eq!(saved.stack.identity, identity);
    }

    #[test]
    fn no_line_is_too_odd_to_read(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = record(&line);
        let _ = record(&[PROCESS, &line].concat());
        let _ = record(&[STACK, &line].concat());
    }
}

#[test]
fn an_image_whose_names_are_utf_8_is_the_same_to_the_microsecond() {
    let mut image = image();
    image.reach = Reach::Known(Reached::default());
    image.start_time = Duration::from_micros(1_761_153_780_123_456);
    image.end_time = Duration::from_micros(1_761_153_781_999_999);
    assert_eq!(saved_image(&json_of_image(&image)).image, image);
}

#[test]
fn where_a_process_ran_is_read_where_it_is_said() {
    let line = json_of_image(&image());
    assert_eq!(saved_image(&line).image.origin, None);
    let more = line.replace(
        "}\n",
        ",\"host\":\"n1\",\"job\":77,\"step\":\"batch\",\"rank\":0,\"container\":\"c\",\"pod\":\"p\",\"news\":[{}]}\n",
    );
    let text = |text: &str| Some(text.to_owned());
    let expected = Origin {
        host: text("n1"),
        job: text("77"),
        step: text("batch"),
        rank: Some(0),
        container: text("c"),
        pod: text("p"),
        cgroup: None,
    };
    assert_eq!(saved_image(&more).image.origin.as_deref(), Some(&expected));
}

#[test]
fn how_a_stack_is_reached_is_read_where_it_is_said() {
    let share = saved_stack(
        r#"{"schema":"memleak/1","type":"stack","pid":1,"image":0,"stack":"00ff","alloc_bytes":9,"alloc_count":2,
            "leaked_bytes":9,"leaked_blocks":2,"definite_bytes":1,"definite_blocks":1,"indirect_bytes":4,
            "indirect_blocks":1,"possible_bytes":0,"possible_blocks":0,"reachable_bytes":8,"reachable_blocks":1,
            "walk":"complete","suppressed_by":null,"frames":[]}"#,
    );
    let amount = |bytes, blocks| Amount { bytes, blocks };
    let blocks = Reached {
        definite: amount(1, 1),
        indirect: amount(4, 1),
        reachable: amount(8, 1),
        ..Reached::default()
    };
    // It was saved before owners were known.
    let owned = blocks.indirect;
    let expected = StackReached { blocks, owned };
    assert_eq!(
        (share.share.reached, share.stack.identity),
        (Some(expected), 255)
    );
}

#[test]
fn the_summary_has_the_commands_end_and_the_losses() {
    let losses = Losses {
        rows_lost: 2,
        ..Losses::default()
    };
    for (outcome, read) in [
        (Outcome::Exited(7), Some(Outcome::Exited(7))),
        (Outcome::Watched, None),
        (Outcome::ToolError, None),
    ] {
        let summary = Ledger::new(None).finish(losses, outcome);
        let line = json(|report| assert!(report.summary(&summary).is_empty()));
        match record(line.as_bytes()).unwrap() {
            Record::Summary(saved) => {
                assert_eq!((saved.outcome, saved.losses), (read, losses));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_memleak_has_not_written_is_named() {
    for (line, said) in [
        ("", "no JSON of memleak"),
        ("UID USER PID", "no JSON of memleak"),
        ("{\"a\":1}", "missing field `schema`"),
        (
            "{\"schema\":\"memleak/2\",\"type\":\"process\"}",
            "the schema memleak/2",
        ),
        (
            "{\"schema\":\"memleak/1\",\"type\":\"process\",\"pid\":1",
            "EOF",
        ),
        (
            "{\"schema\":\"memleak/1\",\"type\":\"process\",\"pid\":-1}",
            "-1",
        ),
    ] {
        let error = record(line.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(said), "{line}: {error}");
    }
    let line = json_of_image(&image()).replace("\"exited\"", "\"melted\"");
    let error = record(line.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("end is 'melted'"), "{error}");
    let newer = b"{\"schema\":\"memleak/1\",\"type\":\"window\"}";
    assert!(matches!(record(newer), Ok(Record::Other)));
}

#[test]
fn how_far_stacks_are_known_is_read_where_they_were_recorded() {
    let mut image = image();
    image.counters.leaked_bytes = 90;
    image.counters.leaked_blocks = 9;
    image.stacks = Some(Vec::new());
    image.unlisted_stacks.leaked = Amount {
        bytes: 60,
        blocks: 7,
    };
    image.unlisted_stacks.early = [(WalkEnd::NoRule, 2)].into();
    let read = saved_image(&json_of_image(&image)).image;
    assert!(StackCoverage::of(&image).is_some());
    assert_eq!(StackCoverage::of(&read), StackCoverage::of(&image));
}
