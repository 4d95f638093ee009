//! Tests of counts that take minutes. `make test-long` runs them, and WRITE=1 puts their output into tests/long.txt.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::allocators::operators_are_counted;
use crate::common::Job;
use crate::common::expected::{End, Expected, assert_counted, counts, ends};
use crate::common::newcomers::Place;
use crate::endings::{deaths, deaths_by_others, killed_while_it_holds, lost, moving_pointers};
use crate::ends::{assert_killed_at_any_moment, assert_starts_leave_nothing};
use crate::endurance::Endurance;
use crate::hostile::short_processes_in_flat_memory;
use crate::launch::assert_exit_code;
use crate::older::others_are_counted_by_older_programs;
use crate::released::eight_go_with_memleak;
use crate::stacks::{compilers_have_all_their_stacks, programs_at_work_have_the_stacks_of_libgcc};

/// The variable that names the release build of memleak.
const RELEASE: &str = "MEMLEAK_RELEASE";

/// The limit for held processes to go if memleak is killed.
const GONE: Duration = Duration::from_millis(50);

/// Runs `run` and prints how long it took.
pub fn timed(what: &str, run: impl FnOnce()) {
    let began = Instant::now();
    run();
    println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
}

/// Runs a process that forks so often.
#[track_caller]
pub fn forks_are_exact(forks: u64, options: &[&str]) {
    let job = Job::fixture("fork_storm", &[&forks.to_string()]).options(options);
    let report = job.run();
    report.assert_complete();
    let mut found: Vec<_> = report.rows.iter().map(Expected::of).collect();
    let child = |c: u64| ends(0, End::Exit(0), counts(1000 + c % 100, 2, 1, c % 100, 1));
    let parent = ends(0, End::Exit(0), counts(1, 1, 0, 1, 1));
    let mut expected: Vec<_> = (0..forks).map(child).chain([parent]).collect();
    found.sort();
    expected.sort();
    assert!(found == expected, "{} rows", found.len());
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn all_256_exit_codes_are_passed_on() {
    let next = AtomicU32::new(0);
    let take_turns = || {
        while let Ok(code) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
            assert_exit_code(code);
        }
    };
    timed("256 exit codes", || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(take_turns);
            }
        });
    });
    assert!(next.into_inner() >= 256);
}

#[test]
#[ignore = "takes 20 minutes: make test-long"]
fn memleaks_memory_stays_what_it_is_for_twenty_minutes() {
    let memleak = env::var_os(RELEASE).expect("scripts/test-long.sh names a release build");
    Endurance {
        memleak: Path::new(&memleak),
        // Every process of the machine, as a service has it.
        options: &[],
        seconds: 1200,
        rate: 100,
        most_growth_kb: 4096,
    }
    .assert_flat();
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn the_stacks_of_programs_at_work_are_those_of_libgcc() {
    timed(
        "programs at work",
        programs_at_work_have_the_stacks_of_libgcc,
    );
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn five_hundred_compilers_have_all_their_stacks() {
    timed("500 compilers", || compilers_have_all_their_stacks(500));
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn operators_are_counted_by_every_method_with_every_library() {
    timed("operators", operators_are_counted);
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn the_other_fixtures_are_counted_by_the_programs_for_older_kernels() {
    timed("older programs", others_are_counted_by_older_programs);
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn a_realloc_raced_by_other_threads_loses_no_block_in_ten_runs() {
    timed("ten runs of realloc_raced", || {
        for _ in 0..10 {
            assert_counted("realloc_raced", &[]);
        }
    });
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn all_rows_of_ten_thousand_forks_are_exact() {
    timed("10,000 forks", || forks_are_exact(10_000, &[]));
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn forty_thousand_short_processes_leave_a_row_each_in_flat_memory() {
    // Pids are used again during the run: there are 32,768 by default.
    timed("40,000 short processes", || {
        short_processes_in_flat_memory(40_000);
    });
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn three_hundred_starts_in_a_row_leave_no_breakpoint() {
    timed("300 starts in a row", || assert_starts_leave_nothing(300));
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn a_memleak_that_is_killed_at_any_of_150_moments_leaves_nothing_for_long() {
    timed("150 kills", || assert_killed_at_any_moment(150));
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn pointers_that_move_all_the_time_are_found_in_two_hundred_runs() {
    timed("200 runs of moves_pointers", || moving_pointers(200));
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn a_memleak_that_is_killed_at_any_of_200_moments_of_a_hold_lets_the_process_go() {
    let mut longest = Duration::ZERO;
    timed("200 kills during a hold", || {
        longest = killed_while_it_holds(200);
    });
    println!("the longest time until the process was gone: {longest:?}");
    assert!(longest < GONE, "{longest:?}");
}

#[test]
#[ignore = "takes half a minute: make test-long"]
fn eight_processes_that_are_held_at_their_ends_go_with_memleak_in_fifty_milliseconds() {
    let longest = (0..10).map(|_| eight_go_with_memleak()).max();
    let longest = longest.expect("ten runs");
    println!("the longest time until eight processes were gone: {longest:?}");
    assert!(longest < GONE, "{longest:?}");
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn of_a_thousand_deaths_of_a_kind_the_same_is_said() {
    let (term, abort) = (libc::SIGTERM, "abort 0");
    let held = [
        format!("raise {term}"),
        "pipe 0".to_owned(),
        abort.to_owned(),
        format!("threads 3 {abort}"),
        "fault 0".to_owned(),
        "return 0".to_owned(),
    ];
    // Some of these can be held now and then.
    let not_held = [
        format!("threads 3 raise {term}"),
        format!("later {term}"),
        format!("raise {}", libc::SIGKILL),
        "real 5 wait 0".to_owned(),
    ];
    timed("1,000 times `kill`", || deaths_by_others(100, 10));
    let held = held.map(|how| (how, Ok((1000, 1))));
    let not_held = not_held.map(|how| (how, Err("signal".to_owned())));
    for (how, expected) in held.iter().chain(&not_held) {
        timed(&format!("1,000 times `{how}`"), || {
            deaths(how, 10, expected)
        });
    }
}

/// Each answers requests, and ends in order. Children inherit blocks that only their parents may lose.
#[test]
#[ignore = "needs nginx and gunicorn: make test-long"]
fn servers_that_fork_their_workers_lose_nothing_when_they_end() {
    let place = Place::new();
    let configuration = "daemon off; worker_processes 2; pid pid; error_log stderr;
        events { worker_connections 64; }
        http {
            access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            server { listen unix:nginx.socket; root .; }
        }";
    let application = "kept = [str(i) for i in range(1000)]\n\
                       def app(environ, start):\n\
                       \x20   start('200 OK', [('Content-Type', 'text/plain')])\n\
                       \x20   return [kept[7].encode()]\n";
    for (file, text) in [("nginx.conf", configuration), ("app.py", application)] {
        fs::write(place.path(file), text).expect("the test owns the directory");
    }
    let script = "ask() {
            until [ -S $1.socket ]; do sleep 0.1; done
            for i in 1 2 3 4; do curl -sS --unix-socket $1.socket http://x/$2 || exit 9; done
            sleep 1; kill -$3 $!; wait $! || exit 8
        }
        cd \"$0\" || exit 7
        nginx -p \"$0\" -c nginx.conf & ask nginx app.py QUIT
        gunicorn -w 2 -b unix:gunicorn.socket app:app & ask gunicorn '' TERM";
    let directory = place.path("");
    let words = [OsStr::new("-c"), OsStr::new(script), directory.as_os_str()];
    let report = Job::new("sh", words).options(["--lost=always"]).run();
    assert_eq!(report.status.code(), Some(0), "{}", report.stderr);
    for server in ["nginx", "gunicorn"] {
        let rows = report.rows.iter().filter(|row| row.comm == server);
        let found: Vec<_> = rows.filter(|row| row.end == "exited").map(lost).collect();
        assert_eq!(found, vec![Ok((0, 0)); 3], "{server}");
    }
}
