use std::sync::{Arc, Mutex};
use std::time::Duration;

use unicode_width::UnicodeWidthStr;

use crate::model::commands::CommandOrder;
use crate::model::exit::{ExecErrorKind, Outcome};
use crate::model::gate::Gate;
use crate::model::image::samples::image;
use crate::model::image::{CountedBy, End, From, Losses, Uncovered};
use crate::model::ledger::Ledger;
use crate::model::limits::{Allowed, Limits};
use crate::model::live::{Growing, GrowingPlace};
use crate::model::origin::Origin;
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};
use crate::model::stack::{CallStack, NamedFrame, NamedStack, StackShare, WalkEnd};
use crate::report::table::{NO_WRAP, WRAP};
use crate::report::*;

/// Remembers every write. With `broken`, fails like a pipe without a reader.
#[derive(Clone, Default)]
struct Written {
    writes: Arc<Mutex<Vec<String>>>,
    broken: bool,
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let text = String::from_utf8(bytes.to_vec()).expect("a report is UTF-8");
        self.writes.lock().unwrap().push(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A report made by hand: all that can happen to an image, and names that a hostile process can choose.
fn images() -> Vec<Image> {
    let named = |pid, comm: &[u8]| {
        let mut image = image();
        image.pid = pid;
        image.comm = comm.to_vec();
        image
    };

    let mut shell = named(12300, b"sh");
    shell.ppid = 12299;
    shell.exe = Some("/bin/sh".into());
    shell.end = End::Exec;
    shell.counters.total_allocs_bytes = 1_500;
    shell.counters.leaked_bytes = 1_500;
    shell.counters.leaked_blocks = 3;

    let mut replaced = named(12300, b"make");
    replaced.image = 1;
    replaced.end = End::Exited(2);

    let mut leaking = named(12345, b"python3");
    leaking.counters.total_allocs_bytes = 245_340_000;
    leaking.counters.free_count = 3_433;
    leaking.counters.leaked_bytes = 12_450_000;
    leaking.counters.leaked_blocks = 101;

    let mut crashed = named(7, b"Web Content");
    crashed.end = End::Signaled {
        signal: 11,
        core: true,
    };
    crashed.counters.failed_allocs = 2;

    let mut real_time = named(8, b"rt");
    real_time.end = End::Signaled {
        signal: 64,
        core: false,
    };

    let mut incomplete = named(12347, b"full");
    incomplete.user = None;
    incomplete.counters.leaked_bytes = 400_000;
    incomplete.counters.peak_live_bytes = None;
    incomplete.losses = Losses {
        blocks_not_recorded: 10,
        bytes_not_recorded: 40_960,
        calls_without_return: 2,
        calls_in_flight: 0,
        rows_lost: 0,
    };

    let mut blind = named(12348, b"static");
    blind.allocators.clear();
    blind.uncovered = Some(Uncovered::NoSymbols);
    blind.counters = Default::default();
    blind.exe = None;
    blind.counters.peak_live_bytes = Some(0);

    let mut late = named(12349, b"daemon");
    late.from = From::Attach;

    let mut running = named(4_194_304, b"sleep");
    running.end = End::Running;

    let mut wide = named(4_194_303, b"fifteen_bytes__");
    wide.uid = 4_294_967_294;
    wide.user = Some("a_user_with_a_long_name".to_owned());
    wide.counters.total_allocs_bytes = u64::MAX;
    wide.allocators = vec!["/opt/a:b/liba.so".into(), "/opt/c\"d/lib,b.so".into()];

    let mut hostile = named(666, b"\x1b[2J\r\nx\xff");
    hostile.user = Some("\u{202e}\u{9b}31mroot\u{e0041}".to_owned());
    hostile.exe = Some("/tmp/\u{7f}\u{1b}]0;x\u{7}".into());

    let mut formula = named(667, b"=1+1,\"x\" ");
    formula.user = Some("'@cmd".to_owned());

    let nameless = named(668, b"");
    let chinese = named(669, "日本語".as_bytes());

    // What was not scanned at its end has nothing to judge.
    for image in [&mut shell, &mut running] {
        image.reach = Reach::NotJudged;
    }
    vec![
        shell, replaced, leaking, crashed, real_time, incomplete, blind, late, running, wide,
        hostile, formula, nameless, chinese,
    ]
}

fn options(verbosity: Verbosity, color: bool) -> Options {
    Options {
        verbosity,
        color,
        ..Options::default()
    }
}

fn gate(process: Option<u64>, total: Option<u64>) -> Option<Gate> {
    let allowed = Allowed {
        leak: Limits { process, total },
        ..Allowed::default()
    };
    Gate::new(allowed, crate::model::selection::Selection::default())
}

/// A report in one place.
fn report(format: Format, options: Options, to: &Written) -> Report {
    let mut report = Report::default();
    report.add(format, options, output("place", to));
    report
}

/// A place that remembers what is written.
fn output(name: &str, to: &Written) -> Output {
    Output::new(name, Box::new(to.clone()))
}

/// The writes of a report over these images.
fn writes(
    format: Format,
    options: Options,
    gate: Option<Gate>,
    images: &[Image],
    outcome: Outcome,
) -> Vec<String> {
    let sink = Written::default();
    let mut report = report(format, options, &sink);
    let mut ledger = Ledger::new(gate);
    for image in images {
        let verdict = ledger.record(image);
        assert!(report.image(image, verdict).is_empty());
    }
    let summary = ledger.finish(Losses::default(), outcome);
    assert!(report.summary(&summary).is_empty());
    std::mem::take(&mut sink.writes.lock().unwrap())
}

const NORMAL: Verbosity = Verbosity::Normal;
const EXITED_2: Outcome = Outcome::Exited(2);

fn whole(format: Format, verbosity: Verbosity) -> String {
    let gate = gate(Some(1_000_000), None);
    writes(format, options(verbosity, false), gate, &images(), EXITED_2).concat()
}

#[test]
fn the_report_as_a_table() {
    insta::assert_snapshot!(whole(Format::Table, NORMAL));
}

#[test]
fn the_report_as_a_verbose_table() {
    insta::assert_snapshot!(whole(Format::Table, Verbosity::Verbose));
}

#[test]
fn a_verbose_table_says_by_what_a_row_was_counted() {
    let row = |by, verbosity| {
        let mut image = images().swap_remove(7);
        assert_eq!(image.from, From::Attach);
        image.counted_by = by;
        let table = writes(
            Format::Table,
            options(verbosity, false),
            None,
            &[image],
            EXITED_2,
        );
        table.concat().lines().nth(1).unwrap().to_owned()
    };
    for (by, note) in [
        (CountedBy::Uprobes, "since attach"),
        (CountedBy::Inside, "since attach; counted inside"),
        (
            CountedBy::Both,
            "since attach; counted inside and by uprobes",
        ),
    ] {
        let verbose = row(by, Verbosity::Verbose);
        assert!(verbose.ends_with(note), "{verbose}");
        assert!(row(by, NORMAL).ends_with("since attach"));
    }
}

#[test]
fn the_report_as_json_lines() {
    insta::assert_snapshot!(whole(Format::Json, NORMAL));
}

#[test]
fn the_report_as_csv() {
    insta::assert_snapshot!(whole(Format::Csv, NORMAL));
}

#[test]
fn a_quiet_report_of_a_failed_gate() {
    let all: Vec<String> = [Format::Table, Format::Json, Format::Csv]
        .into_iter()
        .map(|format| whole(format, Verbosity::Quiet))
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn colour_only_marks_the_row_over_the_limit_and_the_verdict() {
    let shown = |gate| {
        let images = &images()[1..3];
        writes(Format::Table, options(NORMAL, true), gate, images, EXITED_2).concat()
    };
    let failed = shown(gate(Some(1_000_000), None));
    let red: Vec<&str> = failed.split("\x1b[31m").skip(1).collect();
    assert_eq!(red.len(), 2, "{failed:?}");
    assert!(
        red[0].contains("python3") && red[0].contains("\x1b[0m\n"),
        "{failed:?}"
    );
    assert!(red[1].starts_with("gate failed: "), "{failed:?}");
    assert!(red[1].contains("\x1b[0m"), "{failed:?}");
    for gate in [None, gate(Some(u64::MAX), None)] {
        assert!(!shown(gate).contains('\x1b'));
    }
}

#[test]
fn the_header_and_the_first_columns_are_those_of_the_contract() {
    let table = whole(Format::Table, NORMAL);
    assert!(
        table.starts_with("UID      USER         PID    COMM             TOTAL_ALLOCS_MB MEM_LEAK_MB EXIT      NOTE\n"),
        "{table}"
    );
    assert!(
        table.contains(
            "\n1001     alice        12345  python3          245.340         12.450      0\n"
        ),
        "{table}"
    );
}

#[test]
fn every_row_is_one_write_and_the_first_one_contains_the_header() {
    for format in [Format::Table, Format::Json, Format::Csv] {
        let images = &images()[1..5];
        let writes = writes(format, options(NORMAL, false), None, images, EXITED_2);
        assert_eq!(writes.len(), images.len() + 1, "{format:?}");
        for (at, write) in writes.iter().enumerate() {
            let header = at == 0 && format != Format::Json;
            assert!(write.ends_with('\n'), "{write:?}");
            assert_eq!(write.lines().count(), 1 + usize::from(header), "{write:?}");
        }
    }
}

#[test]
fn no_format_sends_a_character_on_which_a_terminal_would_act() {
    for format in [Format::Table, Format::Json, Format::Csv] {
        let report = whole(format, Verbosity::Verbose);
        let sent = report
            .chars()
            .find(|c| *c != '\n' && !crate::text::escape::is_printable(*c));
        assert_eq!(sent, None, "{format:?}");
    }
}

#[test]
fn no_line_of_a_table_ends_in_a_blank() {
    for line in whole(Format::Table, Verbosity::Verbose).lines() {
        assert_eq!(line, line.trim_end());
    }
}

#[test]
fn a_json_reader_gets_the_values_of_the_images_back() {
    let report = whole(Format::Json, NORMAL);
    let lines: Vec<serde_json::Value> = report
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), images().len() + 1);
    for (line, image) in lines.iter().zip(images()) {
        assert_eq!(line["schema"], "memleak/1");
        assert_eq!(line["pid"], image.pid);
        assert_eq!(line["comm"], *crate::text::escape::text(&image.comm));
        assert_eq!(line["user"].as_str(), image.user.as_deref());
        assert_eq!(
            line["total_allocs_bytes"],
            image.counters.total_allocs_bytes
        );
        assert_eq!(line["complete"], image.complete());
        assert_eq!(line["start_time"], 1_761_153_780.123_456);
    }
    assert_eq!(lines[2]["losses"], serde_json::json!({}));
    assert_eq!(
        lines[5]["losses"],
        serde_json::json!({"blocks_not_recorded": 10, "bytes_not_recorded": 40_960, "calls_without_return": 2})
    );
}

#[test]
fn a_json_line_has_the_fields_of_the_schema_in_order() {
    let mut sample = image();
    sample.counters.free_count = 3_433;
    sample.counters.leaked_bytes = 440_807;
    sample.counters.leaked_blocks = 101;
    let gate = gate(Some(1_000_000), None);
    let lines = writes(
        Format::Json,
        Options::default(),
        gate,
        &[sample],
        Outcome::Exited(0),
    );
    assert_eq!(
        lines[0],
        concat!(
            r#"{"schema":"memleak/1","type":"process","pid":12345,"ppid":12300,"uid":1001,"user":"alice","#,
            r#""comm":"python3","exe":"/usr/bin/python3.11","image":0,"end":"exited","exit_code":0,"#,
            r#""signal":null,"from":"start","start_time":1761153780.123456,"end_time":1761153781.5,"#,
            r#""total_allocs_bytes":7208122,"alloc_count":3534,"free_count":3433,"leaked_bytes":440807,"#,
            r#""leaked_blocks":101,"reach":null,"reach_unknown":"off","peak_live_bytes":1892331,"failed_allocs":0,"unknown_frees":0,"#,
            r#""allocators":["/lib/x86_64-linux-gnu/libc.so.6"],"counted_by":["uprobes"],"complete":true,"losses":{}}"#,
            "\n"
        )
    );
    assert_eq!(
        lines[1],
        concat!(
            r#"{"schema":"memleak/1","type":"summary","outcome":"exited","code":0,"signal":null,"#,
            r#""core":false,"processes":1,"covered_processes":1,"total_allocs_bytes":7208122,"leaked_bytes":440807,"#,
            r#""leaked_blocks":101,"lost_bytes":null,"lost_blocks":null,"reach":null,"reach_unknown_processes":1,"#,
            r#""gate":{"limit_bytes":1000000,"verdict":"passed","judged":1},"complete":true,"losses":{}}"#,
            "\n"
        )
    );
}

#[test]
fn the_gate_of_a_summary_has_the_limits_of_the_command_line() {
    for (gate, json, csv) in [
        (gate(None, None), r#""gate":null"#, ",,,,,1,,"),
        (
            gate(Some(5), None),
            r#""gate":{"limit_bytes":5,"verdict":"passed","judged":1}"#,
            ",5,,passed,,1,,1",
        ),
        (
            gate(None, Some(6)),
            r#""gate":{"limit_bytes":null,"total_limit_bytes":6,"verdict":"passed","judged":1}"#,
            ",,6,passed,,1,,1",
        ),
        (
            gate(Some(5), Some(6)),
            r#""gate":{"limit_bytes":5,"total_limit_bytes":6,"verdict":"passed","judged":1}"#,
            ",5,6,passed,,1,,1",
        ),
    ] {
        let last = |format| {
            let options = options(NORMAL, false);
            writes(format, options, gate.clone(), &[image()], EXITED_2)
                .pop()
                .unwrap()
        };
        assert!(last(Format::Json).contains(json), "{}", last(Format::Json));
        assert!(
            last(Format::Csv).contains(&format!("false,1{csv},,0,")),
            "{}",
            last(Format::Csv)
        );
    }
}

#[test]
fn every_outcome_has_its_code_or_signal_in_the_summary() {
    for (outcome, says) in [
        (
            Outcome::Exited(3),
            r#""outcome":"exited","code":3,"signal":null,"core":false"#,
        ),
        (
            Outcome::Signaled {
                signal: 11,
                core: true,
            },
            r#""outcome":"signaled","code":null,"signal":11,"core":true"#,
        ),
        (
            Outcome::ExecError(ExecErrorKind::NotFound),
            r#""outcome":"exec_error","code":127,"signal":null,"core":false"#,
        ),
        (
            Outcome::ToolError,
            r#""outcome":"tool_error","code":125,"signal":null,"core":false"#,
        ),
    ] {
        let lines = writes(Format::Json, Options::default(), None, &[], outcome);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains(says), "{}", lines[0]);
    }
}

#[test]
fn all_rows_of_csv_have_the_same_number_of_fields_and_names_can_be_recovered() {
    let report = whole(Format::Csv, NORMAL);
    let mut reader = ::csv::Reader::from_reader(report.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let at = |name: &str| headers.iter().position(|header| header == name).unwrap();
    // The reader refuses rows with another number of fields.
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), images().len() + 1);
    for row in &rows {
        for field in row {
            assert!(
                !field.starts_with(['=', '+', '-', '@', '\t', '\r']),
                "{field:?}"
            );
        }
    }
    let formula = rows.iter().find(|row| &row[at("pid")] == "667").unwrap();
    assert_eq!(&formula[at("comm")], "'=1+1,\"x\"\\x20");
    assert_eq!(&formula[at("user")], "''@cmd");
    let wide = rows
        .iter()
        .find(|row| &row[at("pid")] == "4194303")
        .unwrap();
    assert_eq!(
        &wide[at("allocators")],
        "/opt/a\\x3ab/liba.so:/opt/c\"d/lib,b.so"
    );
    let summary = rows.last().unwrap();
    assert_eq!(&summary[at("type")], "summary");
    assert_eq!(&summary[at("gate_verdict")], "failed");
    assert_eq!(&summary[at("pid")], "");
}

#[test]
fn json_and_csv_have_the_same_values_for_every_process() {
    let json = whole(Format::Json, NORMAL);
    let csv = whole(Format::Csv, NORMAL);
    assert_same_values(&json, &csv);
}

#[track_caller]
fn assert_same_values(json: &str, csv: &str) {
    let mut reader = ::csv::Reader::from_reader(csv.as_bytes());
    let headers = reader.headers().unwrap().clone();
    for (line, row) in json.lines().zip(reader.records()) {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let row = row.unwrap();
        for (name, value) in &line {
            let field =
                |name: &str| &row[headers.iter().position(|header| header == name).unwrap()];
            match value {
                serde_json::Value::Null if name == "gate" => assert_eq!(field("gate_verdict"), ""),
                serde_json::Value::Null if name == "reach" => {
                    assert_eq!(field("reach_definite_bytes"), "");
                }
                serde_json::Value::Null => assert_eq!(field(name), "", "{name}"),
                serde_json::Value::Number(number) => {
                    assert_eq!(field(name), number.to_string(), "{name}");
                }
                serde_json::Value::Bool(value) => {
                    assert_eq!(field(name), value.to_string(), "{name}")
                }
                serde_json::Value::Object(inner) => {
                    for (inner_name, value) in inner {
                        let text = |value: &serde_json::Value| {
                            value
                                .as_str()
                                .map_or_else(|| value.to_string(), str::to_owned)
                        };
                        let value = match value {
                            serde_json::Value::Array(names) => {
                                names.iter().map(text).collect::<Vec<_>>().join(":")
                            }
                            serde_json::Value::Null => String::new(),
                            _ => text(value),
                        };
                        assert_eq!(field(&format!("{name}_{inner_name}")), value);
                    }
                }
                // These are escaped in CSV. Other tests check them.
                serde_json::Value::String(_) | serde_json::Value::Array(_) => _ = field(name),
            }
        }
    }
}

#[test]
fn quiet_is_silent_unless_the_gate_failed_or_is_unknown() {
    let mut lossy = image();
    lossy.losses.calls_without_return = 1;
    for format in [Format::Table, Format::Json, Format::Csv] {
        let quiet = |gate, image: &Image| {
            let options = options(Verbosity::Quiet, false);
            writes(format, options, gate, std::slice::from_ref(image), EXITED_2)
        };
        assert!(quiet(None, &image()).is_empty());
        assert!(quiet(None, &lossy).is_empty());
        assert!(quiet(gate(Some(0), None), &image()).is_empty());
        assert_eq!(quiet(gate(Some(0), None), &lossy).len(), 1);
    }
    let options = options(Verbosity::Quiet, false);
    let said = writes(
        Format::Table,
        options,
        gate(Some(0), None),
        &[lossy],
        EXITED_2,
    );
    assert_eq!(
        said,
        [
            "memleak: gate unknown: whether any of 1 process leaked more than 0 bytes cannot be told; \
          incomplete: 0 of 1 process fully covered, 1 call without return\n"
        ]
    );
}

#[test]
fn a_closing_line_only_says_what_is_known() {
    let closing = |image: Image| {
        writes(
            Format::Table,
            options(NORMAL, false),
            None,
            &[image],
            EXITED_2,
        )
        .pop()
        .unwrap()
    };
    assert_eq!(
        closing(image()),
        "memleak: 1 process, 7.208 MB allocated, 0 bytes leaked\n"
    );
    let mut bounded = image();
    bounded.losses.blocks_not_recorded = 1;
    bounded.losses.bytes_not_recorded = 2_000;
    assert_eq!(
        closing(bounded.clone()),
        "memleak: 1 process, 7.208 MB allocated, 0 bytes to 0.002 MB leaked\n\
         memleak: incomplete: 0 of 1 process fully covered, 1 block of 2000 bytes not recorded (raise --max-allocs)\n"
    );
    bounded.losses.rows_lost = 3;
    assert_eq!(
        closing(bounded),
        "memleak: 1 process, 7.208 MB allocated, at least 0 bytes leaked\n\
         memleak: incomplete: 0 of 1 process fully covered, 1 block of 2000 bytes not recorded (raise --max-allocs), 3 rows missed\n"
    );
}

#[test]
fn a_table_of_a_command_that_never_ran_is_empty() {
    for outcome in [
        Outcome::ExecError(ExecErrorKind::NotFound),
        Outcome::ToolError,
    ] {
        for gate in [None, gate(Some(0), None)] {
            let said = writes(Format::Table, options(NORMAL, false), gate, &[], outcome);
            assert!(said.is_empty(), "{said:?}");
        }
    }
}

#[test]
fn a_place_whose_reader_has_closed_its_end_is_given_up_and_the_others_go_on() {
    for format in [Format::Table, Format::Json, Format::Csv] {
        let broken = Written {
            broken: true,
            ..Written::default()
        };
        let good = Written::default();
        let mut report = Report::default();
        for to in [&broken, &good] {
            report.add(format, Options::default(), output("place", to));
        }
        assert!(report.image(&image(), None).is_empty());
        assert!(!report.is_unread());
        let summary = Ledger::new(None).finish(Losses::default(), EXITED_2);
        assert!(report.summary(&summary).is_empty());
        assert_eq!(good.writes.lock().unwrap().len(), 2);
        let mut unread = super::tests::report(format, Options::default(), &broken);
        assert!(unread.image(&image(), None).is_empty());
        assert!(unread.is_unread());
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named_and_tried_again() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let full = Output {
        writer: Box::new(full.unwrap()),
        ..output("/dev/full", &Written::default())
    };
    let mut report = Report::default();
    report.add(Format::Json, Options::default(), full);
    for _ in 0..2 {
        let unwritten = report.image(&image(), None);
        assert_eq!(unwritten.len(), 1);
        assert_eq!(unwritten[0].to, "/dev/full");
        assert_eq!(unwritten[0].error.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn ten_processes_are_also_shown_by_command() {
    let images: Vec<Image> = (1..=12)
        .map(|pid| {
            let mut image = image();
            image.pid = pid;
            image.comm = ["leak", "grep", "日本語"][pid as usize % 3].into();
            image.counters.leaked_bytes = u64::from(pid % 3 == 0) * u64::from(pid) * 1_000;
            image.counters.leaked_blocks = u64::from(pid % 3 == 0);
            image
        })
        .collect();
    let whole = |count: usize, verbosity, order| {
        let options = Options {
            order,
            ..options(verbosity, false)
        };
        writes(Format::Table, options, None, &images[..count], EXITED_2)
            .pop()
            .unwrap()
    };
    assert_eq!(whole(9, NORMAL, CommandOrder::Leak).lines().count(), 1);
    let blocks = [
        whole(12, NORMAL, CommandOrder::Leak),
        whole(12, Verbosity::Verbose, CommandOrder::Allocs),
    ];
    insta::assert_snapshot!(blocks.concat());
}

#[test]
fn a_tree_of_many_programs_shows_the_largest_and_counts_the_others() {
    let images: Vec<Image> = (0..50)
        .map(|pid| {
            let mut image = image();
            image.comm = format!("program{pid}").into_bytes();
            image
        })
        .collect();
    let end = writes(
        Format::Table,
        options(NORMAL, false),
        None,
        &images,
        EXITED_2,
    )
    .pop()
    .unwrap();
    assert!(
        end.contains("\nand 30 more commands\nmemleak: 50 processes, "),
        "{end}"
    );
}

// ---- what is lost ---------------------------------------------------------------------------------------

fn amount(bytes: u64, blocks: u64) -> Amount {
    Amount { bytes, blocks }
}

/// Images with every kind of knowledge of what they lost.
fn judged_images() -> Vec<Image> {
    let leaking = |pid, comm: &str, reach| {
        let mut image = image();
        image.pid = pid;
        image.comm = comm.into();
        image.counters.total_allocs_bytes = 90_906;
        image.counters.leaked_bytes = 83_856;
        image.counters.leaked_blocks = 103;
        image.reach = reach;
        image
    };
    let known = Reached {
        definite: amount(2_006, 2),
        indirect: amount(5_050, 99),
        reachable: amount(76_800, 2),
        ..Reached::default()
    };
    let possible = Reached {
        possible: amount(83_855, 102),
        reachable: amount(1, 1),
        ..Reached::default()
    };
    let unknown = |why| Reach::Unknown(why);
    let mut killed = leaking(16693, "killed", unknown(ReachUnknown::Signal));
    killed.end = End::Signaled {
        signal: 9,
        core: false,
    };
    let mut nothing = leaking(16694, "clean", unknown(ReachUnknown::RawExit));
    nothing.counters.leaked_bytes = 0;
    nothing.counters.leaked_blocks = 0;
    let mut replaced = leaking(16695, "sh", Reach::NotJudged);
    replaced.end = End::Exec;
    let mut incomplete = leaking(16697, "full", Reach::Known(known));
    incomplete.losses.blocks_not_recorded = 1;
    incomplete.losses.bytes_not_recorded = 40;
    vec![
        leaking(16691, "leak", Reach::Known(known)),
        leaking(16692, "grep", Reach::Known(possible)),
        killed,
        nothing,
        replaced,
        leaking(16696, "quick", unknown(ReachUnknown::Off)),
        incomplete,
    ]
}

/// Limits of what is lost.
fn lost_gate(process: Option<u64>, total: Option<u64>) -> Option<Gate> {
    let allowed = Allowed {
        lost: Limits { process, total },
        ..Allowed::default()
    };
    Gate::new(allowed, crate::model::selection::Selection::default())
}

fn judged(format: Format, verbosity: Verbosity, gate: Option<Gate>, images: &[Image]) -> String {
    let options = Options {
        lost: true,
        ..options(verbosity, false)
    };
    writes(format, options, gate, images, Outcome::Exited(0)).concat()
}

#[test]
fn what_is_lost_as_tables() {
    let images = judged_images();
    let one = judged(Format::Table, NORMAL, None, &images[..1]);
    let gate = lost_gate(Some(0), Some(1_000_000));
    let all = judged(Format::Table, Verbosity::Verbose, gate.clone(), &images);
    let many: Vec<_> = images.iter().cycle().take(21).cloned().collect();
    let many = judged(Format::Table, NORMAL, gate, &many);
    let many = many.split("\n\n").skip(1).collect::<Vec<_>>().join("\n\n");
    insta::assert_snapshot!([one, all, many].join("\n----\n"));
}

#[test]
fn what_is_lost_as_json_lines() {
    let gate = lost_gate(Some(0), Some(1_000_000));
    insta::assert_snapshot!(judged(Format::Json, NORMAL, gate, &judged_images()));
}

#[test]
fn what_is_lost_as_csv() {
    let gate = lost_gate(Some(0), Some(1_000_000));
    insta::assert_snapshot!(judged(Format::Csv, NORMAL, gate, &judged_images()));
}

#[test]
fn a_row_says_what_is_lost_only_where_that_is_asked_for() {
    for image in judged_images() {
        let row = |lost| {
            let options = Options {
                lost,
                ..options(NORMAL, false)
            };
            let mut table = table::TableRender::new(options);
            String::from_utf8(table.image(&image, None).unwrap()).unwrap()
        };
        assert!(!row(false).contains("LOST_MB") && !row(false).contains("lost"));
        let heading = "MEM_LEAK_MB LOST_MB  EXIT";
        assert!(row(true).contains(heading) || row(true).is_empty());
    }
}

#[test]
fn every_reason_has_words_of_its_own_and_a_short_note() {
    let mut words = std::collections::BTreeSet::new();
    for why in ReachUnknown::ALL {
        let mut image = judged_images().remove(0);
        image.reach = Reach::Unknown(why);
        let json = judged(Format::Json, NORMAL, None, std::slice::from_ref(&image));
        let field = format!(r#""reach":null,"reach_unknown":"{}","#, why.word());
        assert!(json.contains(&field), "{json}");
        let table = judged(Format::Table, NORMAL, None, &[image]);
        let row = table.lines().nth(1).unwrap();
        assert!(row.contains(" 0.084       ?        0"), "{row}");
        let note = row.split_once("lost unknown: ").map(|(_, note)| note);
        // Not to scan a process is no news.
        assert_eq!(note.is_none(), why == ReachUnknown::Off, "{row}");
        let note = note.unwrap_or_default();
        assert!(note.len() <= 36, "{note}");
        assert!(words.insert(note.to_owned()), "{note}");
    }
}

#[test]
fn a_gate_over_what_is_lost_has_its_limits_and_says_which_failed() {
    let images = judged_images();
    for (gate, images, json, csv) in [
        (
            lost_gate(Some(9_000), None),
            &images[..1],
            r#""gate":{"limit_bytes":null,"lost_limit_bytes":9000,"verdict":"passed","judged":1}"#,
            ",0,9000,,,,,,,,,,,0",
        ),
        (
            lost_gate(Some(0), Some(8)),
            &images[..1],
            r#""gate":{"limit_bytes":null,"lost_limit_bytes":0,"total_lost_limit_bytes":8,"verdict":"failed","failed":["lost","total_lost"],"judged":1}"#,
            ",0,0,8,lost:total_lost,,,,,,,,,0",
        ),
        (
            lost_gate(Some(9_000), Some(7_056)),
            &images[..3],
            r#""gate":{"limit_bytes":null,"lost_limit_bytes":9000,"total_lost_limit_bytes":7056,"verdict":"unknown","unknown":["lost","total_lost"],"judged":3}"#,
            ",1,9000,7056,,lost:total_lost,,,,,,,,0",
        ),
    ] {
        let last = |format| {
            let report = judged(format, NORMAL, gate.clone(), images);
            report.lines().last().unwrap().to_owned()
        };
        let found = last(Format::Json);
        assert!(found.contains(json), "{found}");
        let found = last(Format::Csv);
        // The columns behind them are empty.
        let filled = |line: &str| line.trim_end_matches(',').to_owned();
        assert!(filled(&found).ends_with(&filled(csv)), "{found}");
    }
}

#[test]
fn json_and_csv_agree_on_what_is_lost() {
    let gate = || lost_gate(Some(0), Some(1_000_000));
    let json = judged(Format::Json, NORMAL, gate(), &judged_images());
    let csv = judged(Format::Csv, NORMAL, gate(), &judged_images());
    assert_same_values(&json, &csv);
}

// ---- windows and running processes ----------------------------------------------------------------------

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn window(images: Vec<Image>) -> Window {
    Window {
        start: at(1_761_153_780),
        end: at(1_761_153_785),
        images,
    }
}

fn live() -> Live {
    let rows: Vec<Growing> = images()
        .into_iter()
        .zip([3_000_000, 0, -1_234])
        .zip([
            (7, None),
            (60 * 3 + 5, Some(367_612_345)),
            (86_400 * 2 + 3_600, Some(1_004_999)),
        ])
        .map(|((mut image, growth), (age, rate))| {
            image.end = End::Running;
            image.reach = Reach::NotJudged;
            image.start_time = at(1_761_153_785 - age);
            Growing {
                id: 0,
                image,
                growth,
                rate,
                places: Vec::new(),
            }
        })
        .collect();
    Live {
        time: at(1_761_153_785),
        since: at(1_761_153_780),
        rest: vec![rows[2].clone(); 12],
        rows,
        held_bytes: 812_400_000,
        growth_bytes: 1_200_000,
        older: None,
    }
}

/// Running processes of which the first has grown in places with these functions, as deep as that.
fn live_with_places(functions: &[&str], depth: usize) -> Live {
    let place = |function: &&str| GrowingPlace {
        share: StackShare {
            stack: Arc::new(CallStack {
                frames: Vec::new(),
                end: WalkEnd::Complete,
                guessed: 0,
            }),
            alloc_bytes: 9_000,
            alloc_count: 9,
            leaked_bytes: 7_000,
            leaked_blocks: 7,
            reached: None,
        },
        stack: NamedStack {
            identity: 7,
            frames: {
                let frame = Arc::new(NamedFrame {
                    function: Some((*function).to_owned()),
                    ..NamedFrame::default()
                });
                std::iter::repeat_n(frame, depth).collect()
            },
            end: WalkEnd::Complete,
            guessed: 0,
        },
        growth: 2_000,
    };
    let mut live = live();
    live.rows[0].places = functions.iter().map(place).collect();
    live
}

#[test]
fn where_a_process_grows_is_below_the_table_and_fits_the_terminal() {
    let long = "f".repeat(200);
    let live = live_with_places(&["first", &long, "third"], 20);
    for (lines, blocks) in [(60, 3), (31, 2), (20, 1), (10, 0), (2, 0)] {
        let to = Written::default();
        let refresh = Options {
            refresh: true,
            ..options(NORMAL, false)
        };
        let mut report = report(Format::Table, refresh, &to);
        assert!(report.live(&live, Some(&screen(80, lines))).is_empty());
        let shown = to.writes.lock().unwrap().concat();
        assert_eq!(
            shown
                .matches("GREW by 2,000 bytes to 7,000 bytes in 7 blocks")
                .count(),
            blocks
        );
        let text: Vec<&str> = shown.lines().collect();
        assert!(text.len() <= lines.max(6), "{lines}: {shown}");
        let is_narrow = |line: &&str| line.trim_start_matches("\x1b[?7l").chars().count() <= 80;
        assert!(text.iter().all(is_narrow), "{shown}");
        assert_eq!(shown.matches("12 more calls").count(), blocks);
    }
}

#[test]
fn of_old_blocks_it_is_said_how_long_they_are_held() {
    let live = Live {
        older: Some(Duration::from_millis(1500)),
        ..live_with_places(&["first"], 1)
    };
    let to = Written::default();
    let mut report = report(Format::Table, options(NORMAL, false), &to);
    assert!(report.live(&live, Some(&screen(80, 24))).is_empty());
    let shown = to.writes.lock().unwrap().concat();
    let expected = "\nHOLDS 7,000 bytes in 7 blocks for 1.5 s or longer, ";
    assert!(shown.contains(expected), "{shown}");
}

fn screen(columns: usize, lines: usize) -> Screen {
    Screen {
        columns,
        lines,
        time_of_day: "14:02:10".to_owned(),
        command: "memleak -a 5".to_owned(),
    }
}

/// The writes of a report of four windows, each followed by the running processes.
fn watched(format: Format, options: Options) -> Vec<String> {
    let sink = Written::default();
    let mut report = report(format, options, &sink);
    let mut attached = image();
    attached.from = From::Attach;
    for images in [images(), vec![image()], vec![attached], Vec::new()] {
        assert!(report.window(&window(images)).is_empty());
        assert!(report.live(&live(), Some(&screen(80, 24))).is_empty());
    }
    let summary = Ledger::new(None).finish(Losses::default(), Outcome::Watched);
    assert!(report.summary(&summary).is_empty());
    std::mem::take(&mut sink.writes.lock().unwrap())
}

#[test]
fn windows_and_what_runs_as_tables() {
    insta::assert_snapshot!(watched(Format::Table, options(NORMAL, false)).concat());
}

#[test]
fn windows_and_what_runs_as_json_lines() {
    insta::assert_snapshot!(watched(Format::Json, options(NORMAL, false)).concat());
}

#[test]
fn windows_and_what_runs_as_csv() {
    insta::assert_snapshot!(watched(Format::Csv, options(NORMAL, false)).concat());
}

#[test]
fn a_window_without_notes_has_the_six_columns_of_the_contract() {
    let mut report = table::TableRender::new(options(NORMAL, false));
    let lines = report.window(&window(vec![image()])).unwrap();
    let lines = String::from_utf8(lines).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "[1761153780 - 1761153785] Report Of Memory Allocation Of Process Finished In The Time Window",
            "UID      USER         PID    COMM             TOTAL_ALLOCS_MB MEM_LEAK_MB",
        ]
    );
    assert_eq!(lines.len(), 3);
}

#[test]
fn with_command_lines_every_column_of_a_window_has_its_heading() {
    let options = Options {
        args: true,
        ..options(NORMAL, false)
    };
    let lines = table::TableRender::new(options).window(&window(vec![image()]));
    let lines = String::from_utf8(lines.unwrap()).unwrap();
    let heading = lines.lines().nth(1).unwrap();
    assert!(heading.ends_with("MEM_LEAK_MB NOTE ARGS"), "{lines}");
}

#[test]
fn a_window_has_a_column_for_jobs_and_containers_if_it_has_any() {
    let id = "3f2a9c0d1e4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1";
    let of = |path: &str| {
        let mut image = image();
        image.origin = Some(Origin::of_cgroup(path).into());
        image
    };
    let job = of("/system.slice/slurmstepd.scope/job_1234/step_0/user/task_0");
    let contained = of(&format!("/system.slice/docker-{id}.scope"));
    let machine = of("/machine.slice/systemd-nspawn@debian.service/payload");
    let lines = |images: &[&Image]| {
        let mut table = table::TableRender::new(options(NORMAL, false));
        let images = images.iter().map(|image| (*image).clone()).collect();
        String::from_utf8(table.window(&window(images)).unwrap()).unwrap()
    };
    let plain = lines(&[&image()]);
    assert!(
        !plain.contains("JOB") && !plain.contains("CONTAINER"),
        "{plain}"
    );
    let words = |line: &str| -> Vec<String> {
        let words = line.split_whitespace().skip(6);
        words.map(str::to_owned).collect()
    };
    let only_job = lines(&[&job]);
    let only_job: Vec<_> = only_job.lines().skip(1).map(words).collect();
    assert_eq!(only_job, [["JOB"], ["1234.0"]]);
    let both = lines(&[&job, &contained, &machine, &image()]);
    let both: Vec<_> = both.lines().skip(1).map(words).collect();
    let expected = [
        ["JOB", "CONTAINER"],
        ["1234.0", "-"],
        ["-", "3f2a9c0d1e4b"],
        ["-", "debian"],
        ["-", "-"],
    ];
    assert_eq!(both, expected);
}

#[test]
fn what_runs_has_columns_for_jobs_and_containers_if_it_has_any() {
    let id = "3f2a9c0d1e4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1";
    let job = "/system.slice/slurmstepd.scope/job_1234/step_0/user/task_0".to_owned();
    let contained = format!("/kubepods/burstable/pod1a2b3c4d-5e6f-7081-92a3-b4c5d6e7f809/{id}");
    let of = |paths: &[&String]| {
        let mut live = live();
        for (row, path) in live.rows.iter_mut().zip(paths) {
            row.image.origin = Some(Origin::of_cgroup(path).into());
        }
        live
    };
    let block = |live: &Live| {
        let mut table = table::TableRender::new(options(NORMAL, false));
        String::from_utf8(table.live(live, None).unwrap()).unwrap()
    };
    let shown = |text: &str| {
        let words = ["JOB", "CONTAINER", "1234.0", "3f2a9c0d1e4b"];
        words.map(|word| text.contains(word))
    };
    for (live, expected) in [
        (of(&[]), [false; 4]),
        (of(&[&job]), [true, false, true, false]),
        (of(&[&contained]), [false, true, false, true]),
        (of(&[&job, &contained]), [true; 4]),
    ] {
        let text = block(&live);
        assert_eq!(shown(&text), expected, "{text}");
        // They have room on a usual terminal, where other columns go first.
        let text = drawn(&live, 80, 24);
        assert_eq!(shown(&text), expected, "{text}");
        let rest = ["USER", "PID", "COMM", "LIVE_MB", "+5s_MB"];
        assert!(rest.iter().all(|name| text.contains(name)), "{text}");
    }
    let narrow = drawn(&of(&[&job, &contained]), 70, 24);
    assert_eq!(shown(&narrow), [true, false, true, false], "{narrow}");
}

#[test]
fn a_window_in_which_no_process_ended_has_no_line() {
    let mut exec = image();
    exec.end = End::Exec;
    for images in [vec![], vec![exec]] {
        let lines = table::TableRender::new(options(NORMAL, false)).window(&window(images));
        assert_eq!(lines.unwrap(), b"");
    }
}

#[test]
fn on_a_terminal_the_running_processes_are_replaced_and_windows_stay() {
    let options = Options {
        refresh: true,
        ..options(NORMAL, false)
    };
    let writes = watched(Format::Table, options);
    let [window, live, ..] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert!(!window.contains('\x1b'));
    // Two heading lines, three processes, and the line that says how many more there are.
    let erased = "\x1b[6F\x1b[J";
    assert!(
        live.starts_with(NO_WRAP) && live.ends_with(WRAP),
        "{live:?}"
    );
    assert!(writes[2].starts_with(erased) && writes[2].contains("[1761153780 - "));
    assert!(
        !writes[3].starts_with(erased),
        "already erased for the window"
    );
    // The last window is empty.
    assert!(writes.last().unwrap().starts_with(erased));
}

/// What a terminal of this size shows of the running processes.
fn drawn(live: &Live, columns: usize, lines: usize) -> String {
    let mut table = table::TableRender::new(Options {
        refresh: true,
        ..options(NORMAL, false)
    });
    let drawn = table.live(live, Some(&screen(columns, lines))).unwrap();
    let drawn = String::from_utf8(drawn).unwrap();
    let drawn = drawn
        .strip_prefix(NO_WRAP)
        .unwrap()
        .strip_suffix(WRAP)
        .unwrap();
    let widest = drawn.lines().map(UnicodeWidthStr::width).max().unwrap();
    assert!(widest <= columns, "{widest} of {columns}:\n{drawn}");
    assert!(drawn.lines().count() < lines, "{drawn}");
    drawn.to_owned()
}

#[test]
fn the_running_processes_on_terminals_of_several_sizes() {
    let sizes = [
        (40, 24),
        (52, 24),
        (60, 24),
        (80, 24),
        (100, 24),
        (132, 24),
        (80, 6),
    ];
    let screens = sizes.map(|(columns, lines)| {
        let rule = "-".repeat(columns);
        format!(
            "{columns} x {lines}\n{rule}\n{}",
            drawn(&live(), columns, lines)
        )
    });
    insta::assert_snapshot!(screens.join("\n"));
}

#[test]
fn columns_go_one_after_the_other_as_a_terminal_gets_narrower() {
    let order = [
        "NOTE",
        "TOTAL_ALLOCS_MB",
        "UID",
        "MB/h",
        "AGE",
        "USER",
        "+5s_MB",
    ];
    let mut noted = live();
    noted.rows[0].image.from = From::Attach;
    let mut gone = 0;
    for columns in (38..200).rev() {
        let drawn = drawn(&noted, columns, 24);
        let names = drawn.lines().nth(1).unwrap();
        let there: Vec<bool> = order.iter().map(|name| names.contains(name)).collect();
        let missing = there.iter().filter(|there| !**there).count();
        assert!(there[..missing].iter().all(|there| !there), "{names}");
        assert!(missing >= gone, "{names}");
        gone = missing;
        assert!(names.contains("PID") && names.contains("COMM") && names.contains("LIVE_MB"));
    }
    assert_eq!(gone, order.len());
}

#[test]
fn after_a_resize_the_screen_is_cleared_once() {
    let mut table = table::TableRender::new(Options {
        refresh: true,
        ..options(NORMAL, false)
    });
    let mut draw = |columns| {
        let drawn = table.live(&live(), Some(&screen(columns, 24))).unwrap();
        String::from_utf8(drawn).unwrap()
    };
    // The old lines scroll out, and are not lost.
    let cleared = format!("\x1b[24H{}\x1b[H\x1b[J", "\n".repeat(24));
    assert!(!draw(80).contains(&cleared));
    assert!(draw(60).starts_with(&cleared));
    assert!(draw(60).starts_with("\x1b[6F\x1b[J"));
}

#[test]
fn a_quiet_watch_reports_nothing() {
    let quiet = options(Verbosity::Quiet, false);
    assert!(watched(Format::Table, quiet).is_empty());
    assert!(watched(Format::Json, quiet).is_empty());
}

#[test]
fn documents_are_written_at_the_end_and_a_quiet_one_only_if_the_gate_has_bad_news() {
    let finished = crate::model::finished::samples::finished();
    let mut calm = finished.clone();
    calm.summary.gate = None;
    for (finished, verbosity, is_written) in [
        (&finished, Verbosity::Quiet, true),
        (&calm, Verbosity::Quiet, false),
        (&calm, Verbosity::Normal, true),
    ] {
        let to = Written::default();
        let mut report = report(Format::Collapsed, options(verbosity, false), &to);
        assert!(report.has_documents() && !report.is_unread());
        for image in &finished.images {
            assert!(report.image(image, None).is_empty());
        }
        assert!(report.summary(&finished.summary).is_empty());
        assert!(to.writes.lock().unwrap().is_empty());
        assert!(report.documents(finished).is_empty());
        assert_eq!(to.writes.lock().unwrap().len(), usize::from(is_written));
        assert!(report.is_unread());
    }
}

#[test]
fn processes_with_something_in_common_in_every_format() {
    use crate::model::grouping::{Grouping, Groups};
    let mut groups = Groups::new(Grouping::Node);
    let mut ledger = Ledger::new(None);
    for (number, mut image) in images().into_iter().enumerate() {
        let host = ["n17", "=1+1\x1b"][number % 2].to_owned();
        let origin = Origin {
            host: Some(host),
            job: Some(["=7", "8"][number / 4 % 2].to_owned()),
            rank: (number > 1).then_some(number as u32),
            ..Origin::default()
        };
        image.origin = Some(origin.into());
        groups.image(&image, "file");
        ledger.record(&image);
    }
    let grouped = groups.finish();
    let summary = ledger.finish(Losses::default(), Outcome::Saved);
    let mut shown = String::new();
    for format in [Format::Table, Format::Json, Format::Csv] {
        let to = Written::default();
        let look = Options {
            lost: true,
            ..options(NORMAL, false)
        };
        let mut report = report(format, look, &to);
        assert!(report.groups(&grouped).is_empty());
        assert!(report.summary(&summary).is_empty());
        shown += &to.writes.lock().unwrap().concat();
        shown += "\n";
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn groups_with_long_names_are_in_columns_and_fit_on_eighty_columns() {
    use crate::model::grouping::{Grouping, Groups};
    let long =
        "std::vector<shop::Shelf<int>, std::allocator<shop::Shelf<int> > >::reserve(unsigned long)";
    let mut shown = String::new();
    for (by, verbosity) in [
        (Grouping::Function, Verbosity::Normal),
        (Grouping::File, Verbosity::Normal),
        (Grouping::Function, Verbosity::Verbose),
    ] {
        let mut groups = Groups::new(by);
        for (name, file) in [
            (
                long,
                "/home/alice/checkouts/shop/include/shop/shelves/shelf.hpp",
            ),
            ("倉庫に追加する関数の長い長い長い名前", "src/list.c"),
            ("main", "main.c"),
        ] {
            let frame = NamedFrame {
                function: Some(name.to_owned()),
                file: Some(file.into()),
                ..NamedFrame::default()
            };
            let stack = NamedStack {
                identity: 1,
                frames: vec![Arc::new(frame)],
                end: WalkEnd::Complete,
                guessed: 0,
            };
            let amounts =
                [[1 << 34, 9], [7_050, 3]].map(|[bytes, blocks]| Amount { bytes, blocks });
            groups.stack((1, 0), &stack, amounts, None);
        }
        let to = Written::default();
        let look = Options {
            lost: true,
            ..options(verbosity, false)
        };
        let mut report = report(Format::Table, look, &to);
        assert!(report.groups(&groups.finish()).is_empty());
        let table = to.writes.lock().unwrap().concat();
        let widths = table.lines().map(UnicodeWidthStr::width);
        let fits = widths
            .clone()
            .all(|width| width == widths.clone().next().unwrap() && width <= 80);
        assert_eq!(fits, verbosity == Verbosity::Normal, "{table}");
        shown += &table;
        shown += "\n";
    }
    insta::assert_snapshot!(shown);
}
