//! Lost or still reachable: memleak's verdicts against valgrind's, on the programs of tests/valgrind/programs.txt
//! (`make test-valgrind`). And tests of the comparison itself, with a memleak that only repeats what valgrind said.

mod fake;
mod list;
pub mod runs;
mod scratch;
pub mod verdict;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use list::Program;
use runs::Valgrind;
use scratch::Scratch;
use verdict::{Compared, Judged, Outcome, compare, failures, loses, row, table};

use crate::common::root::require_root;

/// How many programs of the whole list must have lost blocks. Half of these must be real work.
const LOSING: usize = 60;

/// The number of programs that run at a time: JOBS, or 2.
fn jobs() -> usize {
    let jobs = std::env::var("JOBS").map(|text| text.parse().expect("JOBS is a number"));
    jobs.unwrap_or(2)
}

/// Calls `work` for each program, on several threads, and returns the results in the list's order.
fn each<T: Send>(programs: &[Program], work: impl Fn(&Program) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs() {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(program) = programs.get(number) else {
                        break;
                    };
                    let result = work(program);
                    results
                        .lock()
                        .expect("no thread failed")
                        .push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread failed");
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Runs each program under valgrind and under memleak.
fn compare_all(
    valgrind: &Valgrind,
    scratch: &Scratch,
    programs: &[Program],
    memleak: &Path,
) -> Vec<Compared> {
    each(programs, |program| {
        let theirs = valgrind.judge(scratch, program).0;
        let ours = runs::judge(memleak, scratch, program).unwrap_or_else(|error| {
            println!("{error}");
            Judged {
                processes: vec![Err("no_report".to_owned()); theirs.processes.len()],
                ..theirs.clone()
            }
        });
        Compared {
            name: program.name.clone(),
            valgrind: theirs,
            memleak: ours,
        }
    })
}

fn memleak() -> PathBuf {
    std::env::var_os("MEMLEAK").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_memleak")),
        PathBuf::from,
    )
}

/// The programs that PROGRAMS selects from the list PROGRAM_LIST: `all`, names, or without it the sample.
fn chosen() -> Vec<Program> {
    let list = std::env::var("PROGRAM_LIST");
    let programs = list::programs(list.as_deref().unwrap_or("programs.txt"));
    let text = std::env::var("PROGRAMS").unwrap_or_default();
    let names: Vec<_> = text.split_whitespace().collect();
    let chosen: Vec<_> = programs
        .into_iter()
        .filter(|program| match &names[..] {
            [] => program.sample,
            ["all"] => true,
            names => names.contains(&program.name.as_str()),
        })
        .collect();
    assert!(!chosen.is_empty(), "no program has such a name: {text}");
    chosen
}

/// Whether the programs are all of programs.txt.
fn is_whole_list() -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    is("PROGRAMS", "all") && is("PROGRAM_LIST", "programs.txt")
}

/// Whether stored verdicts of valgrind are used.
fn reuse() -> bool {
    std::env::var_os("FRESH").is_none()
}

#[test]
fn lost_blocks_are_those_of_valgrind() {
    require_root();
    let programs = chosen();
    let scratch = Scratch::new(&programs);
    let valgrind = Valgrind::new("first", reuse());
    let compared = compare_all(&valgrind, &scratch, &programs, &memleak());
    println!("{}", table(&compared));
    let losing: Vec<_> = programs
        .iter()
        .zip(&compared)
        .filter(|(_, one)| one.loses())
        .collect();
    let at_work = losing
        .iter()
        .filter(|(program, _)| !program.is_fixture())
        .count();
    println!(
        "{} had lost blocks, {at_work} of them real work",
        losing.len()
    );
    let mut failures = failures(&compared, &list::differences());
    // Equal sums show little where nothing was lost.
    if is_whole_list() && (losing.len() < LOSING || at_work < LOSING / 2) {
        failures.push(format!("fewer than {LOSING}, or half of these"));
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Prints a table of what valgrind says, without memleak. Fails if what is lost differs between two runs of a program.
#[test]
#[ignore = "takes minutes: scripts/test-valgrind.sh --check-list"]
fn valgrind_says_the_same_twice() {
    require_root();
    let programs = chosen();
    let scratch = Scratch::new(&programs);
    let first = Valgrind::new("first", reuse());
    let again = Valgrind::new("again", reuse());
    let runs: Vec<(Judged, f64)> = each(&programs, |program| {
        let (judged, seconds) = first.judge(&scratch, program);
        println!("{} took {seconds:.1} s", program.name);
        for (number, reached) in judged.processes.iter().enumerate() {
            print!(
                "{}",
                row(&program.name, &number.to_string(), "valgrind", reached)
            );
        }
        (judged, seconds)
    });
    let repeated: Vec<Judged> = each(&programs, |program| again.judge(&scratch, program).0);
    let mut differ = Vec::new();
    for ((program, (judged, _)), repeated) in programs.iter().zip(&runs).zip(&repeated) {
        if compare(judged, repeated) != Outcome::Equal {
            differ.push(format!("{}: {judged:?}, then {repeated:?}", program.name));
        }
    }
    println!(
        "{} programs, {} of them with lost blocks; valgrind took {:.0} s",
        programs.len(),
        runs.iter().filter(|(judged, _)| loses(judged)).count(),
        runs.iter().map(|(_, seconds)| seconds).sum::<f64>()
    );
    assert!(differ.is_empty(), "\n{}", differ.join("\n"));
}
