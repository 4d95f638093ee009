//! Processes whose memory is hard to read at their ends, or made so: nothing is touched that is not there, nothing waits
//! for such a process, and the next one is still judged. Who may read what is tested in `rights`.
//!
//! `fixtures/resists_reading.c` loses a block of 1000 bytes, keeps one of 500, and ends with exit code 3.

use std::time::{Duration, Instant};

use crate::common::fixtures::compile;
use crate::common::group::Group;
use crate::common::side_by_side::side_by_side;
use crate::common::{Job, Report, Row, code, fixture};
use crate::endings::lost;

/// Much longer than any of these runs takes, and much shorter than one that waits for its process.
const PATIENCE: Duration = Duration::from_secs(40);

/// The fixture's lost block.
const LOST: (u64, u64) = (1000, 1);

/// Runs the fixture, and then a process that is not hard to read. Fails if that is not judged.
#[track_caller]
fn resists(how: &str) -> Report {
    let [resists, ends] = ["resists_reading", "ends"].map(fixture);
    let script = format!("{} {how}; {} return 3", resists.display(), ends.display());
    let began = Instant::now();
    let report = Job::shell(&script).options(["--lost=always"]).run();
    assert!(began.elapsed() < PATIENCE, "{how}: {:?}", began.elapsed());
    assert_eq!(code(report.status), 3, "{how}: {}", report.stderr);
    assert_eq!(lost(row(&report, "ends")), Ok(LOST), "after {how}");
    report
}

/// The row of the first process of this name.
#[track_caller]
fn row<'a>(report: &'a Report, comm: &str) -> &'a Row {
    let found = report.rows.iter().find(|row| row.comm == comm);
    found.unwrap_or_else(|| panic!("no row of {comm}: {:#?}", report.rows))
}

/// Fails unless it is known that the process lost its block and kept the other one.
#[track_caller]
fn assert_judged(row: &Row, how: &str) {
    assert_eq!(lost(row), Ok(LOST), "{how}");
    let reach = row.reach.as_ref().expect("it is known");
    assert!(reach.reachable_bytes >= 500, "{how}: {reach:?}");
}

#[test]
fn root_reads_what_hides_from_its_user() {
    for how in ["hidden", "sealed"] {
        assert_judged(row(&resists(how), "resists_reading"), how);
    }
}

#[test]
fn memory_that_nobody_has_touched_stays_untouched() {
    assert_judged(row(&resists("sparse"), "resists_reading"), "sparse");
    let report = resists("shared");
    assert_eq!(report.stdout, "untouched 0\n");
    let rows = report.rows.iter();
    let mut child =
        rows.filter(|row| row.comm == "resists_reading" && row.counts.leaked_blocks > 0);
    assert_judged(child.next().expect("a row of the child"), "shared");
}

#[test]
fn a_program_with_an_address_sanitizer_is_read() {
    let source = "fixtures/resists_reading.c";
    let flags = ["-O1", "-fsanitize=address"];
    let program = compile(source, "resists_reading.sanitized", &flags);
    let program = program.to_str().expect("a path of ours");
    // The sanitizer maps some twenty terabytes.
    let report = Job::new(program, ["plain"])
        .options(["--lost=always"])
        .run();
    assert_eq!(code(report.status), 3, "{}", report.stderr);
    assert_judged(report.only_row(), "sanitized");
}

#[test]
fn pages_that_only_their_process_could_fill_are_not_touched() {
    assert_judged(row(&resists("faulting"), "resists_reading"), "faulting");
    // Nor are those that only a file system could fill.
    let report = resists("served");
    assert_eq!(report.stdout, "");
    let mut ended = report
        .rows
        .iter()
        .filter(|row| row.comm == "resists_reading");
    assert!(ended.any(|row| lost(row) == Ok(LOST)), "{:#?}", report.rows);
}

/// The reader waits for a page that was there when it looked. Only its own process, and memleak's verdicts meanwhile,
/// are delayed by that.
#[test]
fn pages_that_go_away_while_they_are_read_delay_nobody_for_long() {
    let [resists, ends] = ["resists_reading", "ends"].map(fixture);
    let ends = ends.display();
    // Others end while the reader waits, and after that.
    let script = format!(
        "{} vanishing 400 & sleep 1.5; {ends} return 0; wait; sleep 1; exec {ends} return 3",
        resists.display()
    );
    let began = Instant::now();
    let report = Job::shell(&script)
        .options(["--lost=always", "--lost-timeout=1"])
        .run();
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(code(report.status), 3, "{}", report.stderr);
    let mut rows = report.rows.iter().filter(|row| row.comm == "ends");
    let last = rows.next_back().expect("rows of the others");
    assert_eq!(lost(last), Ok(LOST));
    let rows = report.rows.iter();
    for row in rows.filter(|row| row.comm == "resists_reading") {
        // The page may have gone before memleak looked.
        let lost = lost(row);
        let known = [Ok(LOST), Ok((0, 0)), Err("too_long".to_owned())];
        assert!(known.contains(&lost), "{lost:?}");
    }
}

#[test]
fn tens_of_thousands_of_mappings_are_read() {
    let how = "mapped 60000";
    assert_judged(row(&resists(how), "resists_reading"), how);
}

#[test]
fn neither_spinning_threads_nor_an_end_over_and_over_keep_the_reader() {
    side_by_side(["spinning 8", "again"], |how| {
        assert_judged(row(&resists(how), "resists_reading"), how);
    });
}

#[test]
fn a_circle_of_a_hundred_thousand_blocks_is_lost() {
    let report = resists("circles 100000");
    let circle = (1000 + 24 * 100_000, 100_001);
    assert_eq!(lost(row(&report, "resists_reading")), Ok(circle));
}

#[test]
fn headers_of_the_heap_that_lie_do_not_make_a_kept_block_lost() {
    let report = resists("lying 100");
    let reach = row(&report, "resists_reading").reach.as_ref();
    let reach = reach.expect("it is known");
    assert!(reach.reachable_bytes >= 500, "{reach:?}");
    let all = reach.definite_blocks + reach.indirect_blocks;
    assert!(all <= 101, "{reach:?}");
}

#[test]
fn a_process_that_is_too_large_to_copy_is_not_copied() {
    let bytes = "500000000";
    let narrow = Group::limited(
        "memory",
        ("memory.limit_in_bytes", bytes),
        ("memory.max", bytes),
    );
    let enter = Group::enter(&narrow.path);
    let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
    let [resists, ends] = ["resists_reading", "ends"].map(fixture);
    let script = format!(
        "{} large 250; {} return 3",
        resists.display(),
        ends.display()
    );
    let report = Job::shell(&script)
        .options(["--lost=always"])
        .under(&enter)
        .run();
    assert_eq!(code(report.status), 3, "{}", report.stderr);
    let too_large = lost(row(&report, "resists_reading"));
    assert_eq!(too_large, Err("memory".to_owned()));
    assert_eq!(lost(row(&report, "ends")), Ok(LOST));
}

#[test]
fn a_limit_of_real_time_does_not_kill_memleak() {
    let program = fixture("resists_reading");
    let report = Job::new(&program, ["large", "300"])
        .options(["--lost=always"])
        .under(&["prlimit", "--rttime=1000:1000"])
        .run();
    assert_eq!(code(report.status), 3, "{}", report.stderr);
    assert_judged(report.only_row(), "limited");
}

#[test]
fn the_blocks_of_a_process_stay_until_they_were_judged() {
    // Each of them has a quarter of the table. So the table is swept while the lists of the others are still to be read.
    let program = fixture("resists_reading");
    let script = format!(
        "for i in 1 2 3; do {} circles 100000 & done; wait; sleep 1",
        program.display()
    );
    let options = ["--lost=always", "--lost-timeout=30", "--max-allocs=400000"];
    let report = Job::shell(&script).options(options).run();
    let rows = report.rows.iter().filter(|row| row.comm != "sh");
    let verdicts: Vec<_> = rows.filter(|row| row.comm != "sleep").map(lost).collect();
    assert_eq!(verdicts, vec![Ok((2_401_000, 100_001)); 3]);
}
