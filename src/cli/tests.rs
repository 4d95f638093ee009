use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::kernel::method::{Holds, Method};
use crate::model::commands::CommandOrder;
use crate::model::exit::LeakExit;
use crate::model::grouping::Grouping;
use crate::model::limits::Limits;
use crate::model::metrics::{Label, MetricLabels};
use crate::model::scan::ScanWanted;
use crate::options::stacks::StacksWhen;
use crate::options::switches::Switches;
use crate::options::watch::{DEFAULT_TOP, Filters};
use crate::options::{
    Color, DEFAULT_MAX_ALLOCS, DEFAULT_PLACES, DoctorFormat, WaitAll, parse_wait,
};
use crate::os::identity::UserSpec;
use crate::report::{Format, Verbosity};
use crate::stacks::Generated;
use crate::text::wildcards::Wildcard;

fn words(words: &[&[u8]]) -> Vec<OsString> {
    words
        .iter()
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

fn stop(line: &[&str]) -> Stop {
    let words = std::iter::once("memleak")
        .chain(line.iter().copied())
        .map(OsString::from);
    parse(words).unwrap_err()
}

fn launched(words: impl IntoIterator<Item = OsString>) -> Run {
    match parse(words).unwrap() {
        Task::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

fn watch(line: &[&str]) -> Watch {
    let words = ["memleak"].iter().chain(line).map(OsString::from);
    match parse(words).unwrap() {
        Task::Watch(watch) => watch,
        other => panic!("{other:?}"),
    }
}

fn run(line: &[&str]) -> Run {
    let words = ["memleak", "run"].iter().chain(line).map(OsString::from);
    launched(words)
}

fn wrong(line: &[&str]) -> String {
    let stop = stop(line);
    assert_eq!(stop.code(), 125, "{line:?}");
    let Stop::Wrong(said) = stop else {
        panic!("{line:?} is not wrong: {stop:?}");
    };
    assert!(said.starts_with("memleak: "), "{said}");
    assert!(!said.contains(char::is_control), "{said:?}");
    said
}

#[test]
fn the_command_gets_its_words_byte_for_byte() {
    let given: &[&[u8]] = &[
        b"prog",
        b"-x",
        b"",
        b"\xff\xfe",
        b"--format",
        b"json",
        b"--",
        b"-q",
        b"a b\n",
    ];
    let prefixes: [&[&[u8]]; 4] = [
        &[b"memleak", b"run"],
        &[b"memleak", b"run", b"--"],
        &[b"memleak", b"run", b"-v"],
        &[b"memleak", b"run", b"-v", b"--"],
    ];
    for prefix in prefixes {
        let run = launched(words(&[prefix, given].concat()));
        assert_eq!(run.command, words(given), "{prefix:?}");
        assert_eq!(run.report.format, None);
        assert!(!run.shown.quiet);
    }
}

#[test]
fn after_two_dashes_even_an_option_is_a_command() {
    for command in [&b"-x"[..], b"--help", b"", b"\xff", b"run"] {
        let line = words(&[b"memleak", b"run", b"--", command, b"--", b"--version"]);
        let run = launched(line);
        assert_eq!(run.command, words(&[command, b"--", b"--version"]));
    }
}

#[test]
fn without_options_the_report_is_a_table_and_there_is_no_gate() {
    let run = run(&["true"]);
    assert_eq!(run.report.outputs(), [(Format::Table, None)]);
    assert_eq!(run.shown.verbosity(), Verbosity::Normal);
    assert_eq!(run.shown.color, Color::Auto);
    assert!(run.gate.gate("/".as_ref()).unwrap().is_none());
    assert_eq!(run.gate.leak_exit(), LeakExit::default());
    assert_eq!(run.probing.max_allocs, DEFAULT_MAX_ALLOCS);
    assert_eq!(run.probing.test.switches(), Switches::default());
}

#[test]
fn every_option_reaches_its_value() {
    let run = run(&[
        "-o",
        "out file",
        "--format",
        "json",
        "-v",
        "--color=never",
        "--fail-on-leak",
        "1MB",
        "--fail-on-total-leak=2MiB",
        "--fail-on-lost=1kB",
        "--fail-on-total-lost",
        "2kB",
        "--sort=lost",
        "--gate-comm",
        "app*",
        "--gate-comm",
        "!app_x",
        "--leak-exitcode",
        "7",
        "--leak-exitcode-wins",
        "--allow-drain",
        "--user",
        "alice",
        "--max-allocs",
        "100",
        "--stacks",
        "--suppressions",
        "a.supp",
        "--suppressions=b.supp",
        "--only-stack",
        "shop::*",
        "--gen-suppressions",
        "--no-default-suppressions",
        "--test",
        "without-probe=free",
        "--test=without-probe=calloc",
        "true",
    ]);
    assert_eq!(
        run.report.outputs(),
        [(Format::Json, Some("out file".as_ref()))]
    );
    assert_eq!(run.shown.verbosity(), Verbosity::Verbose);
    assert_eq!(run.shown.color, Color::Never);
    assert_eq!(run.gate.fail_on_leak, Some(1_000_000));
    assert_eq!(run.gate.fail_on_total_leak, Some(2_097_152));
    assert_eq!(run.gate.fail_on_lost, Some(1_000));
    assert_eq!(run.gate.fail_on_total_lost, Some(2_000));
    assert_eq!(run.sort, CommandOrder::Lost);
    assert_eq!(run.gate.gate_comm.len(), 2);
    assert!(run.gate.gate("/".as_ref()).unwrap().is_some());
    assert_eq!(
        run.gate.leak_exit(),
        LeakExit {
            code: 7,
            wins: true
        }
    );
    assert!(run.gate.allow_drain);
    assert_eq!(run.user, Some(UserSpec::Name("alice".to_owned(), None)));
    assert_eq!(run.probing.max_allocs, 100);
    let stacks = &run.stacks;
    assert_eq!(stacks.stacks, StacksWhen::Always);
    assert_eq!(
        stacks.leaks.suppressions,
        ["a.supp", "b.supp"].map(PathBuf::from)
    );
    assert_eq!(stacks.leaks.only_stack, [Wildcard::whole(b"shop::*")]);
    assert!(stacks.leaks.no_default_suppressions);
    assert_eq!(stacks.gen_suppressions, Some(Generated::Valgrind));
    let switches = run.probing.test.switches();
    assert_eq!(switches.without_probe, ["free", "calloc"]);
    assert_eq!(run.command, ["true"]);
}

#[test]
fn a_report_goes_where_its_words_say() {
    type Places<'a> = &'a [(Format, Option<&'a str>)];
    let (table, json, csv) = (Format::Table, Format::Json, Format::Csv);
    let cases: [(&[&str], Places); 14] = [
        (&[], &[(table, None)]),
        (&["--format=csv"], &[(csv, None)]),
        (&["-o", "f"], &[(table, Some("f"))]),
        (&["-o", "f.json"], &[(json, Some("f.json"))]),
        (&["-o", "f.csv"], &[(csv, Some("f.csv"))]),
        (&["-o", "f.txt"], &[(table, Some("f.txt"))]),
        (&["-o", "f", "--format=json"], &[(json, Some("f"))]),
        // The suffix is nearer to the file than --format.
        (&["-o", "f.csv", "--format=json"], &[(csv, Some("f.csv"))]),
        (&["-o", "./a=b"], &[(table, Some("./a=b"))]),
        (&["-o", "json=f"], &[(table, None), (json, Some("f"))]),
        (
            &["-o", "json=f.csv"],
            &[(table, None), (json, Some("f.csv"))],
        ),
        (&["-o", "csv=a=b"], &[(table, None), (csv, Some("a=b"))]),
        (
            &["-o", "a.json", "-o", "b.csv"],
            &[(table, None), (json, Some("a.json")), (csv, Some("b.csv"))],
        ),
        (
            &["--format=csv", "-o", "json=a", "-o", "b"],
            &[(csv, None), (json, Some("a")), (csv, Some("b"))],
        ),
    ];
    for (options, expected) in cases {
        let run = run(&[options, &["true"]].concat());
        let expected: Vec<_> = expected
            .iter()
            .map(|(format, file)| (*format, file.map(Path::new)))
            .collect();
        assert_eq!(run.report.outputs(), expected, "{options:?}");
    }
}

#[test]
fn metrics_are_for_this_machine_unless_an_address_is_given() {
    for (value, address) in [
        ("9464", "127.0.0.1:9464"),
        (":9464", "127.0.0.1:9464"),
        ("localhost:9464", "127.0.0.1:9464"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[::1]:9464", "[::1]:9464"),
    ] {
        let listen = watch(&["-a", "--listen", value]).listen;
        assert_eq!(listen, Some(address.parse().unwrap()), "{value}");
    }
    for value in ["", "host:1", "1.2.3.4", "70000", "::1:9", ":localhost:9"] {
        let said = wrong(&["-a", "--listen", value]);
        assert!(said.contains("an address and a port"), "{value}: {said}");
    }
}

#[test]
fn only_a_file_without_a_heading_is_put_aside() {
    let rotate = |output: &str| watch(&["-a", "--rotate", "10MB", "-o", output]).rotate;
    for output in ["a.json", "json=a", "influx=a"] {
        assert_eq!(rotate(output), Some(10_000_000));
    }
    for line in [
        &["-a", "--rotate", "1MB"][..],
        &["-a", "--rotate", "1MB", "-o", "a.csv"],
    ] {
        let said = wrong(line);
        assert!(said.contains("add -o json=FILE"), "{said}");
    }
}

#[test]
fn labels_of_metrics_are_named_in_any_order_and_once() {
    let labels = |line: &[&str]| watch(line).report.labels();
    assert_eq!(
        labels(&["-a"]),
        MetricLabels::of(&[Label::Comm, Label::User])
    );
    let user = labels(&["-a", "--metrics-labels", "user,user"]);
    assert_eq!(user, MetricLabels::of(&[Label::User]));
    let said = wrong(&["-a", "--metrics-labels", "pid"]);
    assert!(said.contains("comm, user"), "{said}");
}

#[test]
fn options_of_run_may_stand_before_it() {
    for line in [
        &["--fail-on-leak", "1MB", "run", "--", "true", "run"][..],
        &["--fail-on-leak=1MB", "run", "true", "run"],
        &["run", "--fail-on-leak", "1MB", "true", "run"],
    ] {
        let words = ["memleak"].iter().chain(line).map(OsString::from);
        let run = launched(words);
        assert_eq!(run.gate.fail_on_leak, Some(1_000_000));
        assert_eq!(run.command, ["true", "run"]);
    }
    // The first `run` is the name of a file here.
    for line in [
        &["-o", "run", "run", "run"][..],
        &["-qo", "run", "--wait-all", "run", "run"],
        &["-qorun", "run", "run"],
        &["--output=run", "--wait-all=5", "run", "run"],
    ] {
        let words = ["memleak"].iter().chain(line).map(OsString::from);
        let run = launched(words);
        assert_eq!(run.report.output.len(), 1, "{line:?}");
        assert_eq!(run.report.output[0].file, Path::new("run"));
        assert_eq!(run.command, ["run"]);
    }
    let words = ["memleak", "-v", "doctor"].iter().map(OsString::from);
    assert!(matches!(parse(words), Ok(Task::Doctor(_))));
}

#[test]
fn help_never_launches_what_follows() {
    for line in [
        &["help"][..],
        &["help", "run"],
        &["help", "run", "echo"],
        &["help", "doctor"],
    ] {
        let words = ["memleak"].iter().chain(line).map(OsString::from);
        assert!(matches!(parse(words), Err(Stop::Told(_))), "{line:?}");
    }
}

#[test]
fn the_short_help_of_run_fits_on_a_screen_of_forty_lines() {
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    let help = run.term_width(80).render_help().to_string();
    assert!(help.lines().count() <= 40, "{help}");
    assert!(
        help.lines().all(|line| line.chars().count() <= 80),
        "{help}"
    );
    for heading in ["Measure:", "Gate:", "Show:", "Output:"] {
        assert!(help.contains(heading), "{help}");
    }
    insta::assert_snapshot!("run_short_help", help);
}

#[test]
fn if_an_option_is_repeated_the_last_value_counts() {
    let run = run(&[
        "--format",
        "csv",
        "--fail-on-leak",
        "1",
        "-q",
        "-q",
        "--fail-on-leak",
        "2",
        "--format",
        "json",
        "true",
    ]);
    assert_eq!(run.gate.fail_on_leak, Some(2));
    assert_eq!(run.report.format, Some(Format::Json));
    assert_eq!(run.shown.verbosity(), Verbosity::Quiet);
}

#[test]
fn a_wrong_command_line_gives_one_line_that_names_the_wrong_word() {
    for (line, says) in [
        (&[][..], "nothing to do: memleak run -- COMMAND"),
        (
            &["./my_app"],
            "'./my_app' is not something memleak does: to launch a command, write memleak run",
        ),
        (&["--frob"], "'--frob'"),
        (&["run"], "no command"),
        (&["run", "--"], "no command"),
        (&["run", "-q"], "no command"),
        (&["run", "--frob", "true"], "unexpected argument '--frob'"),
        (&["run", "-x", "true"], "unexpected argument '-x'"),
        (
            &["run", "--forma", "json", "true"],
            "did you mean --format?",
        ),
        (&["run", "--format", "xml", "true"], "'xml'"),
        (&["run", "--format", "xml", "true"], "table, json, csv"),
        (
            &["run", "--color", "sometimes", "true"],
            "auto, always, never",
        ),
        (&["run", "-q", "-v", "true"], "cannot be used with"),
        (&["run", "-o", "", "true"], "--output"),
        (
            &["run", "-o", "htm=x", "true"],
            "'htm=x'; the formats are table, json, csv, prometheus, influx, html, collapsed, pprof, dhat, junit, sarif, github, gitlab, markdown (a file of this name is ./htm=x)",
        ),
        (
            &["run", "-o", "json=", "true"],
            "the name of the file is missing after json=",
        ),
        (
            &["runn", "--", "true"],
            "'runn' is not something memleak does: did you mean run?",
        ),
        (&["docter"], "did you mean doctor?"),
        (&["help", "frob"], "'frob' is not something memleak does"),
        (
            &["runn", "--", "x", "-p", "1"],
            "'runn' is not something memleak does: did you mean run?",
        ),
        (
            &["run", "-o", "-", "true"],
            "standard output is /dev/stdout",
        ),
        (
            &["run", "-o", "json", "true"],
            "a format needs a file: json=FILE (a file of this name is ./json)",
        ),
        (
            &["run", "--gate-exe", "app", "--fail-on-leak", "1", "true"],
            "--gate-exe <GLOB>: 'app' can match no path: begin with / or ./",
        ),
        (
            &["run", "--gate-exe", "./**", "true"],
            "--gate-exe changes a gate and there is none",
        ),
        (
            &["run", "--fail-on-leak", "1Q", "true"],
            "--fail-on-leak <SIZE>: '1Q' is not a size",
        ),
        (
            &["run", "--fail-on-lost", "1Q", "true"],
            "--fail-on-lost <SIZE>: '1Q' is not a size",
        ),
        (&["run", "--lost=maybe", "true"], "auto, always, never"),
        (
            &["run", "--sort=size", "true"],
            "leak, lost, allocs, processes",
        ),
        (
            &["run", "--fail-on-leak=-1", "true"],
            "--fail-on-leak <SIZE>: '-1' is not a size",
        ),
        (
            &["run", "--fail-on-total-leak", "99999999TB", "true"],
            "too large",
        ),
        (
            &["run", "--gate-comm", "[", "--fail-on-leak", "1", "true"],
            "--gate-comm <GLOB>: '[' is not a pattern",
        ),
        (
            &["run", "--gate-comm", "sh", "true"],
            "--gate-comm changes a gate and there is none",
        ),
        (
            &["run", "--leak-exitcode", "7", "true"],
            "--leak-exitcode changes a gate",
        ),
        (
            &["run", "--leak-exitcode-wins", "true"],
            "--leak-exitcode-wins changes a gate",
        ),
        (
            &["run", "--leak-exitcode", "0", "--fail-on-leak", "1", "true"],
            "1..=255",
        ),
        (
            &[
                "run",
                "--leak-exitcode",
                "256",
                "--fail-on-leak",
                "1",
                "true",
            ],
            "1..=255",
        ),
        (
            &["run", "--allow-drain", "true"],
            "--allow-drain changes a gate",
        ),
        (
            &["run", "--user", "a\nb:c", "true"],
            r"'a\x0ab:c' names no user",
        ),
        (&["run", "--max-allocs", "0", "true"], "1..=134217728"),
        (
            &["run", "--max-allocs", "134217729", "true"],
            "1..=134217728",
        ),
        (&["run", "--max-allocs", "many", "true"], "'many'"),
        (
            &["run", "--allocator", "./app:alloc=f(length)", "true"],
            "--allocator <SPEC>: 'length' in 'f(length)' is not size, count,",
        ),
        (
            &["run", "--allocator", "./a\npp", "true"],
            r"'./a\x0app' names no function",
        ),
        (
            &["run", "--format", "\x1b[31m\n\nUsage: x", "true"],
            r"\x1b[31m",
        ),
    ] {
        let said = wrong(line);
        assert!(said.contains(says), "{line:?}: {said}");
        let help = if line.first() == Some(&"run") {
            "(see 'memleak run --help')"
        } else {
            "(see 'memleak --help')"
        };
        assert!(said.ends_with(help), "{line:?}: {said}");
    }
}

#[test]
fn wait_all_may_have_a_limit_and_takes_no_word_of_the_command() {
    let seconds = |text| parse_wait(text).unwrap();
    assert_eq!(run(&["true"]).wait_all, None);
    let unlimited = run(&["--wait-all", "2"]);
    assert_eq!(unlimited.wait_all, Some(WaitAll::Unlimited));
    assert_eq!(unlimited.command, words(&[b"2"]));
    assert_eq!(run(&["--wait-all=2", "true"]).wait_all, Some(seconds("2")));
    assert_eq!(seconds("0.5"), WaitAll::AtMost(Duration::from_millis(500)));
    assert_eq!(seconds("0"), WaitAll::AtMost(Duration::ZERO));
    for text in ["", ".", "-1", "+1", "1e3", "inf", "2s", "1.2.3", "\u{661}"] {
        assert!(parse_wait(text).is_err(), "{text:?}");
    }
    assert!(parse_wait(&"9".repeat(400)).is_err());
    assert!(
        wrong(&["run", "--wait-all=2s", "true"])
            .contains("cannot be '2s'; it is a number of seconds")
    );
    assert!(wrong(&["run", "--wait-all=", "true"]).contains("--wait-all"));
}

#[test]
fn what_is_scanned_follows_from_lost_and_the_gates() {
    use crate::options::lost::Lost;

    let limits = |process, total| ScanWanted::Undecided(Limits { process, total });
    for (line, lost, seen, unseen) in [
        (&[][..], Lost::Auto, ScanWanted::Never, ScanWanted::Always),
        (
            &["--lost=auto"],
            Lost::Auto,
            ScanWanted::Never,
            ScanWanted::Always,
        ),
        (
            &["--lost"],
            Lost::Always,
            ScanWanted::Always,
            ScanWanted::Always,
        ),
        (
            &["--lost=never"],
            Lost::Never,
            ScanWanted::Never,
            ScanWanted::Never,
        ),
        (
            &["--fail-on-lost", "1kB"],
            Lost::Auto,
            limits(Some(1000), None),
            ScanWanted::Always,
        ),
        (
            &[
                "--lost=never",
                "--fail-on-lost=0",
                "--fail-on-total-lost=1MB",
            ],
            Lost::Never,
            limits(Some(0), Some(1_000_000)),
            limits(Some(0), Some(1_000_000)),
        ),
        // A gate over leaks needs no scan.
        (
            &["--lost=never", "--fail-on-leak=0"],
            Lost::Never,
            ScanWanted::Never,
            ScanWanted::Never,
        ),
    ] {
        let options = run(&[line, &["true"]].concat());
        assert_eq!(options.lost.lost, lost, "{line:?}");
        assert_eq!(options.scan_wanted(false), seen, "{line:?}");
        assert_eq!(options.scan_wanted(true), unseen, "{line:?}");
        assert_eq!(options.command, ["true"], "{line:?}");
        assert_eq!(options.gate.without_effect(), None, "{line:?}");
    }
    // The processes belong to others, so they are only held if that is asked for.
    assert_eq!(watch(&["-a"]).scan_wanted(), ScanWanted::Never);
    assert_eq!(
        watch(&["-p1", "--lost=auto"]).scan_wanted(),
        ScanWanted::Never
    );
    assert_eq!(watch(&["-p1", "--lost"]).scan_wanted(), ScanWanted::Always);
}

#[test]
fn a_process_is_held_for_two_seconds_unless_another_time_is_given() {
    let timeout = |line: &[&str]| run(&[line, &["true"]].concat()).lost.lost_timeout;
    assert_eq!(timeout(&[]), Duration::from_secs(2));
    assert_eq!(
        timeout(&["--lost-timeout", "0.25"]),
        Duration::from_millis(250)
    );
    assert_eq!(timeout(&["--lost-timeout=3600"]), Duration::from_secs(3600));
    let watched = watch(&["-a", "--lost-timeout=9"]);
    assert_eq!(watched.lost.lost_timeout, Duration::from_secs(9));
    for (time, says) in [
        (
            "0",
            "it is a number of seconds, more than 0 and at most 3600",
        ),
        (
            "3601",
            "it is a number of seconds, more than 0 and at most 3600",
        ),
        ("2s", "it is a number of seconds, as 60 or 0.5"),
    ] {
        let said = wrong(&["run", "--lost-timeout", time, "true"]);
        let says = format!("--lost-timeout <SECONDS> cannot be '{time}'; ") + says;
        assert!(said.contains(&says), "{said}");
    }
}

#[test]
fn every_option_of_watching_reaches_its_value() {
    let one = watch(&["-p", "1234"]);
    assert_eq!((&one.pid[..], one.all), (&[1234][..], false));
    assert_eq!((one.every(), one.interval), (Duration::from_secs(5), None));
    assert_eq!(one.filters, Filters::default());
    assert_eq!(
        (one.top_processes(), one.top_places()),
        (DEFAULT_TOP, DEFAULT_PLACES)
    );
    for line in [&["-p", "1,2", "0.5"][..], &["-p", "1", "-p", "2", "0.5"]] {
        let two = watch(line);
        assert_eq!(two.pid, [1, 2]);
        assert_eq!(two.every(), Duration::from_millis(500));
    }
    for (word, pid) in [("7", Some(7)), ("7.0", None), ("86400", Some(86400))] {
        let interval = watch(&["-p", "1", word]).interval.unwrap();
        assert_eq!(interval.pid, pid, "{word}");
    }
    let all = watch(&[
        "-a",
        "30",
        "--live",
        "--top",
        "3",
        "--uid",
        "1,2",
        "--user-name",
        "root",
        "--comm",
        "a*",
        "--comm",
        "!ab",
        "--cgroup",
        "/x",
        "--min-leak",
        "1kB",
        "--format",
        "json",
        "-o",
        "f",
        "--max-allocs",
        "9",
        "-v",
        "--stacks=auto",
        "--older=1.5",
        "--suppressions=c.supp",
        "--gen-suppressions=lsan",
    ]);
    assert_eq!(all.stacks.stacks, StacksWhen::Auto);
    assert_eq!(all.older, Some(Duration::from_millis(1500)));
    assert_eq!(all.stacks.leaks.suppressions, [PathBuf::from("c.supp")]);
    assert_eq!(all.stacks.gen_suppressions, Some(Generated::Lsan));
    assert!(all.all && all.live && all.shown.verbose);
    assert_eq!((all.every().as_secs(), all.top_processes()), (30, 3));
    assert_eq!(all.filters.uid, [1, 2]);
    assert_eq!(all.filters.user_name, ["root"]);
    assert_eq!(all.filters.comm.len(), 2);
    assert_eq!(all.filters.cgroup, [PathBuf::from("/x")]);
    assert_eq!(all.filters.min_leak, Some(1000));
    assert_eq!(all.probing.max_allocs, 9);
    assert!(watch(&["-p1", "--no-children"]).no_children);
}

#[test]
fn every_option_of_doctor_reaches_its_value() {
    let doctor = |line: &[&str]| {
        let words = ["memleak", "doctor"].iter().chain(line).map(OsString::from);
        match parse(words).unwrap() {
            Task::Doctor(doctor) => doctor,
            other => panic!("{other:?}"),
        }
    };
    let plain = doctor(&[]);
    assert_eq!((&plain.output, plain.format), (&None, DoctorFormat::Table));
    assert!(!plain.shown.quiet && !plain.shown.verbose);
    assert_eq!(plain.test.switches(), Switches::default());
    let line = ["-o", "f", "--format", "json", "-v", "--color=always"];
    let all = doctor(&line);
    assert_eq!(
        (all.output, all.format),
        (Some("f".into()), DoctorFormat::Json)
    );
    assert!(all.shown.verbose && all.shown.color == Color::Always);
    assert!(doctor(&["-q"]).shown.quiet);
    let switches = doctor(&["--test=method=multi", "--test=holds=loader"])
        .test
        .switches();
    assert_eq!(
        (switches.method, switches.holds),
        (Some(Method::Multi), Holds::Loader)
    );
}

#[test]
fn a_wrong_command_line_of_doctor_gives_one_line_too() {
    for (line, says) in [
        (
            &["--format", "csv"][..],
            "--format <FORMAT> cannot be 'csv'; it is one of table, json",
        ),
        (&["now"], "unexpected argument 'now'"),
        (&["-q", "-v"], "cannot be used with"),
        (&["--max-allocs", "1"], "'--max-allocs'"),
    ] {
        let said = wrong(&[&["doctor"], line].concat());
        assert!(said.contains(says), "{line:?}: {said}");
        assert!(said.ends_with("(see 'memleak doctor --help')"), "{said}");
    }
}

#[test]
fn a_wrong_command_line_of_watching_gives_one_line_too() {
    for (line, says) in [
        (&["-q"][..], "nothing to do: memleak run -- COMMAND"),
        (
            &["--uid", "1"],
            "memleak -p PID watches a process, memleak -a every",
        ),
        (&["7"], "nothing to do"),
        (&["-p"], "--pid"),
        (&["-p", "x"], "--pid <PID> cannot be 'x'"),
        (&["-p", "0"], "--pid <PID> cannot be '0'"),
        (&["-p", "1,"], "--pid"),
        (
            &["-p", "1", "2", "5"],
            "unexpected argument '5': after PID there is one INTERVAL; several processes are -p 1,2 or -p 1 -p 2",
        ),
        (&["-p", "1", "-a"], "cannot be used with"),
        (&["-a", "--no-children"], "cannot be used with"),
        (&["-a", "run", "true"], "cannot be used with: --all"),
        (
            &["-a", "soon"],
            "[INTERVAL] cannot be 'soon'; it is a number of seconds",
        ),
        (&["-a", "0"], "0.1 to 86400"),
        (&["-a", "86401"], "0.1 to 86400"),
        (
            &["-p", "1234", "86401"],
            "from 0.1 to 86400; several processes are -p 1,2 or -p 1 -p 2",
        ),
        (
            &["-a", "--comm", "["],
            "--comm <GLOB>: '[' is not a pattern",
        ),
        (
            &["-a", "--min-leak", "1Q"],
            "--min-leak <SIZE>: '1Q' is not a size",
        ),
        (&["-a", "--top", "-1"], "-1"),
        (&["-a", "--fail-on-leak", "1"], "'--fail-on-leak'"),
        (&["-a", "--fail-on-lost", "1"], "'--fail-on-lost'"),
    ] {
        let said = wrong(line);
        assert!(said.contains(says), "{line:?}: {said}");
        assert!(said.ends_with("(see 'memleak --help')"), "{line:?}: {said}");
    }
    let many = ["--cgroup", "/x"].repeat(MAX_CGROUPS + 1);
    let line = [&["-a"][..], &many].concat();
    assert!(wrong(&line).contains("--cgroup can be given 8 times"));
}

#[test]
fn an_option_that_needs_call_stacks_cannot_be_used_without_them() {
    let of_run = ["--suppressions=f", "--only-stack=f", "--gen-suppressions"];
    for option in of_run {
        let said = wrong(&["run", "--stacks=never", option, "true"]);
        let name = option.split('=').next().unwrap();
        let expected = format!("{name} needs call stacks: leave out --stacks=never");
        assert!(said.contains(&expected), "{said}");
    }
    for option in ["--older=7", "--suppressions=f"] {
        let said = wrong(&["-p", "1", "--live", "--stacks=never", option]);
        assert!(
            said.contains("needs call stacks: leave out --stacks=never"),
            "{said}"
        );
    }
}

#[test]
fn only_file_names_may_be_other_than_utf8() {
    let line = words(&[b"memleak", b"run", b"--fail-on-leak", b"\xff", b"true"]);
    assert!(matches!(parse(line), Err(Stop::Wrong(_))));
    let run = launched(words(&[b"memleak", b"run", b"-o", b"\xff", b"true"]));
    let file = PathBuf::from(OsString::from_vec(vec![0xff]));
    assert_eq!(run.report.outputs(), [(Format::Table, Some(&*file))]);
}

#[test]
fn help_and_version_are_printed_and_are_no_errors() {
    for line in [
        &["--help"][..],
        &["-h"],
        &["run", "--help"],
        &["--version"],
        &["run", "-V"],
    ] {
        let stop = stop(line);
        assert_eq!(stop.code(), 0, "{line:?}");
        let Stop::Told(said) = stop else {
            panic!("{line:?}: {stop:?}");
        };
        assert!(said.contains("memleak"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    let Stop::Told(help) = stop(&["run", "--help"]) else {
        panic!("no help");
    };
    insta::assert_snapshot!("run_help", help);
    let Stop::Told(help) = stop(&["doctor", "--help"]) else {
        panic!("no help");
    };
    insta::assert_snapshot!("doctor_help", help);
    let Stop::Told(help) = stop(&["--help"]) else {
        panic!("no help");
    };
    insta::assert_snapshot!("help", help);
}

#[test]
fn the_options_of_clap_do_not_contradict_each_other() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn colour_is_for_terminals_unless_the_user_says_otherwise() {
    for (color, terminal, no_color, wanted) in [
        (Color::Auto, true, false, true),
        (Color::Auto, true, true, false),
        (Color::Auto, false, false, false),
        (Color::Always, false, true, true),
        (Color::Never, true, false, false),
    ] {
        assert_eq!(
            color.wanted(terminal, no_color),
            wanted,
            "{color:?} {terminal} {no_color}"
        );
    }
}

#[test]
fn a_hidden_option_is_never_suggested() {
    for line in [
        &["run", "--tes", "method=multi", "true"][..],
        &["doctor", "--tests"],
        &["-a", "--tset"],
    ] {
        let said = wrong(line);
        assert!(said.contains("unexpected argument"), "{said}");
        assert!(!said.contains("did you mean"), "{said}");
    }
}

#[test]
fn saved_reports_have_files_a_gate_and_something_to_add_up_by() {
    let words = ["memleak", "report", "a.json", "--by", "node", "b.json"];
    let more = ["--fail-on-lost", "1kB", "-o", "leaks.html"];
    let words = words.iter().chain(&more).map(OsString::from);
    let Ok(Task::Report(report)) = parse(words) else {
        panic!("this is a report");
    };
    assert_eq!(report.files, [Path::new("a.json"), Path::new("b.json")]);
    assert_eq!(report.grouping(), Some(Grouping::Node));
    assert_eq!(report.gate.allowed().lost.process, Some(1000));
    assert_eq!(
        report.report.outputs(),
        [(Format::Html, Some(Path::new("leaks.html")))]
    );
    for (words, said) in [
        (&["report"][..], "no files: name those"),
        (&["report", "--by", "moon", "a"], "'moon'"),
        (
            &["report", "--gate-comm", "a", "a.json"],
            "--gate-comm changes a gate and there is none",
        ),
        (&["reprot", "a.json"], "did you mean report?"),
    ] {
        let words = ["memleak"].iter().chain(words).map(OsString::from);
        match parse(words) {
            Err(Stop::Wrong(line)) => assert!(line.contains(said), "{line}"),
            other => panic!("{other:?}"),
        }
    }
}
