//! Tests of what a report says of the places where programs leak: what each stack's blocks are, and what people read.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::fixtures::{compile, compile_with, fixture};
use crate::common::group::Group;
use crate::common::switches::switch;
use crate::common::watch::{Waiting, Watch};
use crate::common::{Job, Report, code};

/// What a program never freed of what this function allocated: definite, indirect, possible and reachable.
#[track_caller]
fn kinds(report: &Report, function: &str) -> [(u64, u64); 4] {
    let mut sums = [(0, 0); 4];
    let stacks = report.stacks.iter();
    for stack in stacks.filter(|stack| stack.passes(function)) {
        let kinds = ["definite", "indirect", "possible", "reachable"];
        for (sum, kind) in sums.iter_mut().zip(kinds) {
            let found = stack.kind(kind);
            let (bytes, blocks) = found.unwrap_or_else(|| panic!("no {kind}: {stack:?}"));
            *sum = (sum.0 + bytes, sum.1 + blocks);
        }
    }
    sums
}

#[test]
fn each_stack_says_what_its_blocks_are() {
    // With 4 slots in front of it, the hash table has most of the blocks.
    for table in ["2097152", "64"] {
        let options = ["--stacks", "--lost", "--max-allocs", table];
        let report = Job::fixture("loses_blocks", &[]).options(options).run();
        for (function, expected) in [
            ("list", [(32, 1), (9 * 32, 9), (0, 0), (0, 0)]),
            ("circle", [(40, 1), (80, 2), (0, 0), (0, 0)]),
            ("others", [(700, 2), (0, 0), (264, 2), (0, 0)]),
        ] {
            assert_eq!(kinds(&report, function), expected, "{function} {table}");
        }
        // The stacks add up to what is known of the process.
        let reach = report.only_row().reach.expect("the process was scanned");
        let sums = [
            (reach.definite_bytes, reach.definite_blocks),
            (reach.indirect_bytes, reach.indirect_blocks),
            (reach.possible_bytes, reach.possible_blocks),
            (reach.reachable_bytes, reach.reachable_blocks),
        ];
        assert_eq!(kinds(&report, "main"), sums, "{table}");
    }
}

/// A program that loses 100 bytes in `fill`, 7 in `copy` and 5,000 in `loses_more`.
fn three_leaks() -> Job {
    let program = compile_with(
        "c++",
        "fixtures/leaks_in_template.cc",
        "leaks_in_template",
        &["-O1"],
    );
    Job::new(program, [""; 0])
}

/// A run that also writes a table, and this table.
#[track_caller]
fn with_table(job: &Job) -> (Report, String) {
    let place = TempDir::new().expect("a temporary directory");
    let table = place.path().join("table.txt");
    let output = format!("table={}", table.display());
    let report = job.clone().options(["-o", &output]).run();
    let table = fs::read_to_string(table).expect("memleak has written it");
    (report, table)
}

fn written(place: &TempDir, name: &str, text: &str) -> String {
    let file = place.path().join(name);
    fs::write(&file, text).expect("it can be written");
    file.display().to_string()
}

#[test]
fn the_table_shows_what_was_lost_first_and_what_is_reachable_as_one_line() {
    let (report, table) = with_table(&three_leaks().options(["--stacks", "--lost"]));
    assert_eq!(code(report.status), 0);
    let heads: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("LOST "))
        .collect();
    assert_eq!(
        heads,
        [
            "LOST 5,000 bytes in 1 block",
            "LOST 100 bytes in 10 blocks",
            "LOST 7 bytes in 1 block"
        ],
        "{table}"
    );
    for line in [
        "loses_more  ",
        "shop::copy(char const*)  ",
        "main ",
        "leaks_in_template.cc:33\n",
        "reachable: 72,704 bytes in 1 block (libstdc++ pool)\n",
        "lost in 3 places\n",
    ] {
        assert!(table.contains(line), "{line:?} is missing:\n{table}");
    }
    // What is kept is shown as any other leak where nothing is known of it.
    let options = ["--stacks", "--lost=never", "--no-default-suppressions"];
    let (_, table) = with_table(&three_leaks().options(options));
    assert!(
        table.contains("LEAKED 72,704 bytes in 1 block\n"),
        "{table}"
    );
    assert!(!table.contains("runtime:"), "{table}");
    let (_, table) = with_table(&three_leaks().options(["--stacks", "--lost=never"]));
    let runtime = "\nruntime: 72,704 bytes in 1 block (libstdc++ pool)\n";
    assert!(table.contains(runtime), "{table}");
    assert!(!table.contains("LEAKED 72,704"), "{table}");
}

#[test]
fn fewer_or_more_places_are_shown_where_that_is_asked_for() {
    let heads = |options: &[&str]| {
        let job = three_leaks().options(["--stacks", "--lost"]);
        let (report, table) = with_table(&job.options(options));
        (table.matches("\nLOST ").count(), table, report.stacks.len())
    };
    let (count, table, all) = heads(&["--top", "1"]);
    assert_eq!(count, 1, "{table}");
    assert!(table.contains("\n2 more places: --top 4\n"), "{table}");
    for (glob, expected) in [
        ("loses_more", 1),
        ("shop::*", 2),
        ("shop::copy", 1),
        ("*/leaks_in_template", 3),
        ("leaks_in_template", 3),
        ("nothing", 0),
    ] {
        let (count, table, stacks) = heads(&["--only-stack", glob]);
        assert_eq!(count, expected, "{glob}: {table}");
        assert!(stacks >= expected && stacks < all, "{glob}: {stacks}");
    }
}

#[test]
fn what_is_suppressed_counts_for_no_gate_and_is_said() {
    let place = TempDir::new().expect("a temporary directory");
    let text = "leak:^shop::copy\nleak:stale\n{\nlarge\nMemcheck:Leak\nmatch-leak-kinds: definite\n\
                fun:malloc\nfun:loses_more\nfun:main\n}\n";
    let file = written(&place, "ci.supp", text);
    let options = ["--lost", "--fail-on-lost", "100", "--suppressions", &file];
    let (report, table) = with_table(&three_leaks().options(options));
    assert_eq!(code(report.status), 0, "{table}");
    let large = format!("    5,000 bytes in 1 block at 1 place: large ({file}:3)\n");
    let stale = format!("1 suppression unused: leak:stale ({file}:2)\n");
    for line in [
        "suppressed: 5,007 bytes in 2 blocks at 2 places, by 2 of 3 suppressions\n",
        &large,
        &stale,
        "gate passed: none of 1 process lost more than 100 bytes (5007 bytes are suppressed)",
    ] {
        assert!(table.contains(line), "{line:?} is missing:\n{table}");
    }
    assert_eq!(table.matches("\nLOST ").count(), 1, "{table}");
    let by = |function| {
        let mut stacks = report.stacks.iter();
        let stack = stacks
            .find(|stack| stack.passes(function))
            .expect("a stack");
        (
            stack.others["suppressed_by"].clone(),
            stack
                .others
                .get("suppressed_bytes")
                .and_then(serde_json::Value::as_u64),
        )
    };
    assert_eq!(by("loses_more"), ("large".into(), Some(5_000)));
    assert_eq!(
        by("shop::copy(char const*)"),
        ("leak:^shop::copy".into(), Some(7))
    );
    assert_eq!(
        by("shop::Shelf<char*>::fill(char**, int)"),
        (serde_json::Value::Null, None)
    );

    // One byte less is too much, and the sums are those of any run.
    let options = ["--lost", "--fail-on-lost", "99", "--suppressions", &file];
    let failed = three_leaks().options(options).run();
    assert_eq!(code(failed.status), 23);
    let lost = "1 of 1 process lost more than 99 bytes";
    assert!(failed.stderr.contains(lost), "{}", failed.stderr);
    let at = "largest leak: takes at ";
    assert!(failed.stderr.contains(at), "{}", failed.stderr);
    assert!(
        failed.stderr.contains("leaks_in_template.cc:11, 100 bytes"),
        "{}",
        failed.stderr
    );
    assert_eq!(failed.only_row().counts.leaked_bytes, 5_107 + 72_704);

    // A gate of what was never freed.
    let options = [
        "--lost=never",
        "--fail-on-total-leak",
        "77811",
        "--suppressions",
        &file,
    ];
    assert_eq!(code(three_leaks().options(options).run().status), 0);
    let options = [
        "--lost=never",
        "--fail-on-total-leak",
        "77803",
        "--suppressions",
        &file,
    ];
    // Without a scan, only a suppression for all kinds matches: 7 bytes.
    let (report, table) = with_table(&three_leaks().options(options));
    assert_eq!(code(report.status), 23, "{table}");
    let options = [
        "--lost=never",
        "--fail-on-total-leak",
        "77804",
        "--suppressions",
        &file,
    ];
    assert_eq!(code(three_leaks().options(options).run().status), 0);
}

#[test]
fn a_clean_run_says_that_no_suppression_matched() {
    let place = TempDir::new().expect("a temporary directory");
    let file = written(&place, "ci.supp", "leak:gone\n");
    let job = Job::fixture("frees_all", &[]);
    let (report, table) = with_table(&job.options(["--suppressions", &file]));
    assert_eq!(code(report.status), 0);
    let nothing = "\nsuppressed: nothing, none of 1 suppression matched\n";
    assert!(table.contains(nothing), "{table}");
}

#[test]
fn an_unknown_stack_is_never_suppressed_and_leaves_a_gate_unknown() {
    let place = TempDir::new().expect("a temporary directory");
    let file = written(&place, "all.supp", "leak:*\n");
    let job = |options: &[&str]| {
        // The table has no room for the stacks of perl.
        let perl = Job::new("perl", ["-e", "my %h; $h{$_} = [1..3] for 1..200"]);
        let perl = perl.options(["--lost=never", "--fail-on-leak", "0"]);
        perl.options(options).run()
    };
    let small = switch("stack-table", "16");
    let few = job(&["--suppressions", &file, &small]);
    assert_eq!(code(few.status), 125, "{}", few.stderr);
    let why = "cannot be told (stack unknown, maybe suppressed: 1)";
    assert!(few.stderr.contains(why), "{}", few.stderr);
    assert_eq!(code(job(&["--suppressions", &file]).status), 0);
    // Nothing is asked of the stacks.
    assert_eq!(code(job(&["--stacks", &small]).status), 23);
}

#[test]
fn suppressions_that_cannot_be_read_keep_the_command_from_starting() {
    let place = TempDir::new().expect("a temporary directory");
    let touched = place.path().join("touched");
    let damaged = written(&place, "damaged.supp", "leak:fine\nrace:not this\n");
    let missing = place.path().join("missing.supp").display().to_string();
    for (file, said) in [
        (&damaged, format!("{damaged}:2: ")),
        (
            &missing,
            format!("cannot read the suppressions of {missing}: No such file"),
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(["run", "--suppressions", file, "--", "touch"])
            .arg(&touched)
            .output()
            .expect("memleak can be started");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert!(stderr.contains(&said), "{stderr}");
        assert!(!touched.exists());
    }
}

#[test]
fn a_generated_suppression_matches_the_leak_that_it_was_made_of() {
    let place = TempDir::new().expect("a temporary directory");
    for (option, begin) in [
        ("--gen-suppressions", "{\n"),
        ("--gen-suppressions=lsan", "# leak of "),
    ] {
        let (_, table) = with_table(&three_leaks().options(["--lost", option]));
        let at = table.find(&format!("\n{begin}")).expect("there is one");
        let end = table.rfind("\nmemleak: ").expect("the closing line");
        let end = table[..end].rfind("\nmemleak: ").unwrap_or(end);
        let file = written(&place, "made.supp", &table[at..end]);
        let options = ["--lost", "--fail-on-lost", "0", "--suppressions", &file];
        let (report, table) = with_table(&three_leaks().options(options));
        assert_eq!(code(report.status), 0, "{table}");
        assert!(table.contains("by 3 of 3 suppressions\n"), "{table}");
    }
}

#[test]
fn a_leak_without_call_stacks_says_how_to_see_them() {
    let hint = "memleak: where: --stacks   gate: --fail-on-lost 0\n";
    let (_, table) = with_table(&three_leaks().options(["--lost", "--stacks=never"]));
    assert!(table.ends_with(hint), "{table}");
    let (_, table) = with_table(&three_leaks().options(["--lost", "--stacks"]));
    assert!(
        table.ends_with("memleak: browse: -o html=leaks.html   gate: --fail-on-lost 0\n"),
        "{table}"
    );
    let place = TempDir::new().expect("a temporary directory");
    let page = format!("html={}", place.path().join("leaks").display());
    let (_, table) = with_table(&three_leaks().options(["--lost", "--stacks", "-o", &page]));
    assert!(!table.contains("browse:"), "{table}");
    // What is only reachable is not worth a hint, and what was freed is not.
    for job in [Job::new("true", [""; 0]), Job::fixture("frees_all", &[])] {
        let (_, table) = with_table(&job.options(["--lost", "--stacks=never"]));
        assert!(!table.contains("where:"), "{table}");
    }
}

#[test]
fn a_program_that_nobody_can_open_any_more_has_names() {
    let place = TempDir::new().expect("a temporary directory");
    let leaks = fixture("loses_blocks");
    let copy = || {
        let copy = place.path().join("copy");
        fs::copy(&leaks, &copy).expect("it can be copied");
        copy
    };
    let own_mounts = "mount -t tmpfs none \"$0\" && cp \"$1\" \"$0/app\" && exec \"$0/app\"";
    let hidden = place.path().join("hidden");
    fs::create_dir(&hidden).expect("it can be made");
    let in_namespace: [&OsStr; 7] = [
        "-m".as_ref(),
        "--propagation=private".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        own_mounts.as_ref(),
        hidden.as_os_str(),
        leaks.as_os_str(),
    ];
    for (what, job) in [
        ("memfd", Job::new(fixture("executes_from_memory"), [&leaks])),
        (
            "unlinked",
            Job::new(fixture("executes_what_is_unlinked"), [copy()]),
        ),
        (
            "in another mount namespace",
            Job::new("unshare", in_namespace),
        ),
    ] {
        let report = job.options(["--stacks"]).run();
        assert_eq!(code(report.status), 0, "{what}: {}", report.stderr);
        for function in ["list", "circle", "main"] {
            let mut stacks = report.stacks.iter();
            let leaked = stacks.any(|stack| stack.leaked_blocks > 0 && stack.passes(function));
            assert!(leaked, "{what}, {function}: {:#?}", report.stacks);
        }
    }
}

#[test]
fn where_stacks_cannot_be_recorded_always_is_an_error_and_auto_says_so() {
    let ran = |option: &str| {
        let older = switch("method", "separate");
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(["run", &older, option, "--", "true"])
            .output();
        let output = output.expect("memleak can be started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (status, said) = ran("--stacks=always");
    assert_eq!(status, Some(125), "{said}");
    let words = ["cannot unwind call stacks", "--stacks=never"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    for (option, is_said) in [("-v", true), ("--stacks=auto", false)] {
        let (status, said) = ran(option);
        assert_eq!(status, Some(0), "{said}");
        let line = "memleak: no call stacks are recorded: this kernel cannot unwind them\n";
        assert_eq!(said.contains(line), is_said, "{said}");
    }
}

/// Lets a process grow by 2,000 bytes, by 1,000 and end, under a memleak that shows it after each step. Returns its pid,
/// the report, and what the table has.
#[track_caller]
fn watched_while_it_grows(options: &[&str]) -> (u32, Report, String) {
    let watch = |pid: u32, output: &[&str]| Watch::pid(pid, &[output, options].concat());
    grows_under(watch, Watch::wait)
}

/// The same, under any memleak that has these options, too.
#[track_caller]
fn grows_under(
    watch: impl FnOnce(u32, &[&str]) -> Watch,
    end: impl FnOnce(Watch) -> Report,
) -> (u32, Report, String) {
    let place = TempDir::new().expect("a temporary directory");
    let table = place.path().join("table.txt");
    let output = format!("table={}", table.display());
    let mut grows = Waiting::fixture("grows_by_line", &["1000"]);
    let pid = grows.pid();
    let watch = watch(pid, &["-o", &output]);
    for (view, asked) in [(1, 2), (2, 1)] {
        for _ in 0..asked {
            assert_eq!(grows.ask(), "more\n");
        }
        watch.signal(Signal::SIGUSR1);
        watch.until(|rows| rows.len() >= view);
    }
    grows.finish();
    let report = end(watch);
    let table = fs::read_to_string(table).expect("memleak has written it");
    (pid, report, table)
}

#[test]
fn a_watch_shows_where_a_process_grows_and_where_it_has_leaked() {
    let (pid, report, table) = watched_while_it_grows(&["--stacks"]);
    assert_grows_and_leaks(pid, &report, &table);
}

/// `-a` shows it as `-p` does. The other processes of the machine are left out here.
#[test]
fn a_watch_of_the_machine_shows_where_a_process_grows() {
    let group = Group::new();
    let watch = |pid: u32, output: &[&str]| {
        fs::write(group.path.join("cgroup.procs"), pid.to_string())
            .expect("a process can enter the group");
        let only = format!("--cgroup={}", group.path.display());
        Watch::all(&[output, &["--live", "--stacks", &only]].concat())
    };
    let (pid, report, table) = grows_under(watch, Watch::stop);
    assert_grows_and_leaks(pid, &report, &table);
}

#[track_caller]
fn assert_grows_and_leaks(pid: u32, report: &Report, table: &str) {
    for lines in [
        format!("\nHOLDS 2,000 bytes in 2 blocks, grows_by_line[{pid}]\n    main  "),
        format!(
            "\nGREW by 1,000 bytes to 3,000 bytes in 3 blocks, grows_by_line[{pid}]\n    main  "
        ),
        "\nLEAKED 3,000 bytes in 3 blocks\n    main  ".to_owned(),
    ] {
        assert!(table.contains(&lines), "{lines:?} is missing:\n{table}");
    }
    let of_main = report.stacks.iter().filter(|stack| stack.passes("main"));
    let found = of_main.map(|stack| {
        let growth = stack.others.get("growth_bytes");
        (
            stack.leaked_bytes,
            growth.and_then(serde_json::Value::as_i64),
        )
    });
    let expected = [(2_000, Some(0)), (3_000, Some(1_000)), (3_000, None)];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn a_watch_shows_who_holds_blocks_for_long() {
    const OLD: Duration = Duration::from_secs(4);
    let place = TempDir::new().expect("a temporary directory");
    let table = place.path().join("table.txt");
    let output = format!("table={}", table.display());
    let mut grows = Waiting::fixture("grows_by_line", &["1000"]);
    let pid = grows.pid();
    let options = ["-o", &output, "--live", "--older=4"];
    let watch = Watch::pid(pid, &options);
    assert_eq!(grows.ask(), "more\n");
    assert_eq!(grows.ask(), "more\n");
    watch.signal(Signal::SIGUSR1);
    watch.until(|rows| !rows.is_empty());
    // Times of blocks have eighths of seconds.
    sleep(OLD + Duration::from_millis(500));
    assert_eq!(grows.ask(), "more\n");
    watch.signal(Signal::SIGUSR1);
    watch.until(|rows| rows.len() >= 2);
    grows.finish();
    let report = watch.wait();
    let table = fs::read_to_string(table).expect("memleak has written it");
    let held: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("HOLDS "))
        .collect();
    let expected = format!("HOLDS 2,000 bytes in 2 blocks for 4 s or longer, grows_by_line[{pid}]");
    assert_eq!(held, [expected], "{table}");
    let live = report.stacks.iter();
    let old = live.filter_map(|stack| Some((stack.others.get("older_seconds")?, stack)));
    let old: Vec<_> = old
        .map(|(older, stack)| (older.as_f64(), stack.leaked_bytes, stack.leaked_blocks))
        .collect();
    assert_eq!(old, [(Some(OLD.as_secs_f64()), 2_000, 2)]);
    // At the end, blocks of any age have leaked.
    let last = report.rows.last().expect("a row");
    assert_eq!(last.counts.leaked_bytes, 3_000);
}

#[test]
fn a_watch_says_at_its_end_what_was_suppressed() {
    let place = TempDir::new().expect("a temporary directory");
    let file = written(&place, "ci.supp", "leak:^main$\n");
    let (_, report, table) = watched_while_it_grows(&["--suppressions", &file]);
    assert!(!table.contains("LEAKED"), "{table}");
    let said = "memleak: suppressed: 3,000 bytes in 3 blocks at 1 place, by 1 of 1 suppression\n";
    assert!(report.stderr.contains(said), "{}", report.stderr);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn code_that_was_made_at_run_time_has_the_names_of_its_perf_map() {
    let program = compile("fixtures/stacks/generated_code.c", "generated_code", &[]);
    let (report, table) = with_table(&Job::new(program, [""; 0]).options(["--stacks"]));
    let map = format!("/tmp/perf-{}.map", report.only_row().pid);
    fs::remove_file(map).expect("the fixture has written it");
    assert_eq!(code(report.status), 0);
    let mut stacks = report.stacks.iter();
    let stack = stacks
        .find(|stack| stack.leaked_bytes == 1_911)
        .expect("its stack");
    let functions = stack
        .frames
        .iter()
        .filter_map(|frame| frame.function.as_deref());
    let functions: Vec<_> = functions.take(4).collect();
    let made = "Made:~looper /app/loop.js:3";
    assert_eq!(functions, ["allocates", made, "runs", "main"]);
    assert!(table.contains(&format!("\n    {made}\n")), "{table}");
}
