//! Where blocks were lost, by memleak's stacks and by valgrind's loss records: the same functions lost the same bytes.

use std::collections::BTreeMap;

use memleak::model::reach::Amount;
use memleak::stacks::LeakKind;

use crate::common::fixtures::{compile_with, fixture};
use crate::common::loss_records::{LossRecord, valgrind};
use crate::common::root::require_root;
use crate::common::stacks::StackRecord;
use crate::common::{Job, code};

/// What was lost by stacks with these functions, the innermost first: bytes and blocks that nothing points to, and those
/// to which only lost ones point. Then the bytes that are lost with the first ones.
type LostBy = BTreeMap<Vec<String>, [(u64, u64); 3]>;

/// Which amounts are of blocks that the stacks themselves allocated.
const OWN: usize = 2;

fn add(sums: &mut LostBy, functions: Vec<String>, kind: usize, bytes: u64, blocks: u64) {
    if blocks > 0 {
        let sum = &mut sums.entry(functions).or_default()[kind];
        *sum = (sum.0 + bytes, sum.1 + blocks);
    }
}

/// The functions of a stack as far as both sides have the same: without those of the allocator, and without those below
/// `main`. A function without a name is its file's.
fn functions<'a>(frames: impl Iterator<Item = (Option<&'a str>, &'a str)>) -> Vec<String> {
    let mut functions: Vec<String> = Vec::new();
    for (function, file) in frames {
        let file = file.rsplit('/').next().unwrap_or_default();
        let name = function.map_or_else(|| format!("[{file}]"), str::to_owned);
        if functions.is_empty() && name.starts_with("operator new") {
            continue;
        }
        if ["__libc_start_call_main", "(below main)"].contains(&name.as_str()) {
            break;
        }
        let is_main = name == "main";
        functions.push(name);
        if is_main {
            break;
        }
    }
    functions
}

fn of_valgrind(records: &[LossRecord]) -> LostBy {
    let mut sums = LostBy::new();
    for record in records {
        let kind = match record.kind {
            LeakKind::Definite => 0,
            LeakKind::Indirect => 1,
            _ => continue,
        };
        let frames = record.frames.iter().skip(1);
        let functions = functions(frames.map(|f| (f.function.as_deref(), f.module.as_str())));
        let Amount { bytes, blocks } = record.amount;
        // valgrind does not say how many blocks are lost with others.
        let owned = u64::from(record.owned_bytes > 0);
        add(&mut sums, functions.clone(), OWN, record.owned_bytes, owned);
        add(&mut sums, functions, kind, bytes, blocks);
    }
    sums
}

fn of_memleak(stacks: &[StackRecord]) -> LostBy {
    let mut sums = LostBy::new();
    for stack in stacks {
        let frames = stack.frames.iter().filter(|frame| !frame.inlined);
        let functions = functions(frames.map(|frame| {
            let module = frame.module.as_ref().and_then(|module| module.to_str());
            (frame.function.as_deref(), module.unwrap_or_default())
        }));
        for (number, kind) in ["definite", "indirect"].into_iter().enumerate() {
            let (bytes, blocks) = stack.kind(kind).expect("the process was scanned");
            add(&mut sums, functions.clone(), number, bytes, blocks);
        }
        let (bytes, blocks) = stack.kind("owned").expect("the process was scanned");
        add(&mut sums, functions, OWN, bytes, u64::from(blocks > 0));
    }
    sums
}

#[test]
fn the_functions_that_lost_blocks_are_those_of_valgrinds_loss_records() {
    require_root();
    let shop = "fixtures/leaks_in_template.cc";
    let shop = compile_with("c++", shop, "leaks_in_template", &["-O1"]);
    let path = |path: std::path::PathBuf| path.display().to_string();
    for (command, bytes) in [
        (vec![path(fixture("loses_blocks"))], 1_140),
        (vec![path(shop)], 5_107),
        (vec![path(fixture("frees_what_points"))], 6_564),
        (
            vec!["/usr/bin/tr".to_owned(), "a".to_owned(), "b".to_owned()],
            1,
        ),
        (
            vec![
                "/usr/bin/dpkg-query".to_owned(),
                "-l".to_owned(),
                "dpkg".to_owned(),
            ],
            1,
        ),
    ] {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let options = ["--demangle=yes", "--read-inline-info=no"];
        let (records, _) = valgrind(&words, &options);
        let theirs = of_valgrind(&records);
        let job = Job::new(&command[0], &command[1..]).options(["--stacks", "--lost"]);
        let report = job.run();
        assert_eq!(code(report.status), 0, "{}", report.stderr);
        let ours = of_memleak(&report.stacks);
        assert_eq!(ours, theirs, "{command:?}");
        let own = ours.values().flat_map(|sums| &sums[..OWN]);
        let lost: u64 = own.map(|(bytes, _)| bytes).sum();
        assert!(lost >= bytes, "{command:?} has lost {lost} bytes");
    }
}
