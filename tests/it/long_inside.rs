//! Tests of `--probes=inside` that take minutes. `make test-long` runs them, as those in `long.rs`.

use crate::common::expected::{counts, printed_if_counted};
use crate::common::{Job, compare_inside};
use crate::hostile::fork_bomb;
use crate::inside::{INSIDE, assert_both_count_the_same, assert_killed};
use crate::long::{forks_are_exact, timed};

fn compared(job: Job) -> Job {
    job.options([INSIDE.to_owned(), compare_inside()])
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_hundred_thousand_processes_are_exact_inside() {
    timed("100,000 forks", || forks_are_exact(100_000, &[INSIDE]));
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn a_fork_bomb_is_exact_inside() {
    timed("ten fork bombs", || {
        for _ in 0..10 {
            fork_bomb(&[INSIDE]);
        }
    });
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn threads_that_trade_blocks_for_a_minute_are_exact_inside() {
    let mut blocks = 0;
    timed(
        "a minute of four threads that free each other's blocks",
        || {
            let job = Job::fixture("threads_trade_blocks", &["60000"]).options([INSIDE]);
            let report = job.run();
            report.assert_complete();
            let said: Vec<u64> = report
                .stdout
                .split_whitespace()
                .map(|word| word.parse().unwrap())
                .collect();
            let own = counts(said[1], said[0], said[0], 0, 0).threads(4, 4);
            assert_eq!(report.only_row().counts, own);
            blocks = said[0];
        },
    );
    println!("{blocks} blocks");
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_thousand_killed_processes_lose_at_most_the_call_in_flight_inside() {
    let mut in_flight = 0;
    timed("1,000 kills", || in_flight = assert_killed(1000));
    println!("{in_flight} of them in the middle of a call");
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn sixteen_thousand_signals_are_exact_inside() {
    let mut amid = 0;
    timed("16,016 signals", || {
        for _ in 0..8 {
            for by in ["timer stack", "thread altstack"] {
                let name = format!("handler_mallocs {by}");
                let printed = printed_if_counted(&name, &[INSIDE.to_owned()]);
                let mut numbers = printed.split_whitespace().map(|word| word.parse::<u64>());
                amid += numbers.next_back().expect("it says three numbers").unwrap();
            }
        }
    });
    println!("{amid} of them in the middle of a call");
    // The loop does little else.
    assert!(amid > 4000, "{amid}");
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn nine_hundred_threads_at_once_are_exact_inside() {
    const SCRIPT: &str = "
import threading
threading.stack_size(65536)
barrier = threading.Barrier(900)
def run():
    kept = [bytes(n) for n in range(500, 700)]
    barrier.wait()
threads = [threading.Thread(target=run) for _ in range(900)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
";
    timed("900 threads", || {
        let job = Job::new("python3", ["-c", SCRIPT]).env("PYTHONMALLOC", "malloc");
        let report = compared(job).run();
        assert_both_count_the_same(&report);
        let most = report.rows.iter().map(|row| row.counts.alloc_count).max();
        assert!(most > Some(900 * 200), "{most:?}");
    });
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn perl_and_cc1_are_exact_inside_in_fifty_runs_each() {
    let perl = r#"my %h; $h{$_} = [1 .. $_ % 7] for 1 .. 3000; print scalar keys %h"#;
    let c = "#include <stdio.h>\nint main(void) { return printf(\"%d\", 3); }";
    let compile = format!("printf '%s\\n' '{c}' | gcc -O2 -x c -c -o /dev/null -");
    timed("50 runs of perl and of gcc with cc1", || {
        for _ in 0..50 {
            let job = Job::new("perl", ["-e", perl]);
            assert_both_count_the_same(&compared(job).run());
            let report = compared(Job::shell(&compile)).run();
            assert_both_count_the_same(&report);
            assert!(report.rows.iter().any(|row| row.comm == "cc1"));
        }
    });
}
