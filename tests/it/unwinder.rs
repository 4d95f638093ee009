//! Tests of the reference for memleak's stacks. The library has the stacks of every fixture as they are known by hand.
//! The comparison with memleak finds each kind of difference. Only one of these tests needs rights
//! and BPF: it runs memleak beside the library.

use std::collections::BTreeMap;
use std::path::Path;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Instant;

use crate::common::counter::{Image, Kind};
use crate::common::expected::cases;
use crate::common::stack_cases::{
    Libgcc, StackCase, check_stack, stack_cases, static_chain, steps,
};
use crate::common::stack_programs::{Amount, stack_programs};
use crate::common::stacks::{
    Comparison, RecordFrame, StackRecord, Why, compare_stacks, deepest, without_operators,
};
use crate::common::unwinder::{Frame, Stack, Sums, Unwound, WalkEnd, decode};
use crate::common::{Counts, Job, Row, code, compare};
use crate::counter::assert_exact;

/// Fails unless a walk that ended so is as good as libgcc's can be.
#[track_caller]
fn assert_walked_to_the_end(images: &[Unwound]) {
    for unwound in images {
        assert_eq!(unwound.unwalked, Sums::default(), "{:?}", unwound.image);
        for stack in &unwound.stacks {
            let good = [WalkEnd::Complete, WalkEnd::NoRules];
            assert!(good.contains(&stack.end), "{stack:?}");
        }
    }
}

/// The sums of all stacks of an image.
fn total(unwound: &Unwound) -> Sums {
    let mut total = unwound.unwalked;
    for stack in &unwound.stacks {
        total += stack.sums;
    }
    total
}

/// Fails unless the stacks of each image add up to what the counter in the same library has.
#[track_caller]
fn assert_adds_up(images: &[Unwound]) {
    for unwound in images {
        let (sums, counts) = (total(unwound), unwound.image.counts);
        let found = (sums.alloc_count, sums.alloc_bytes);
        let expected = (counts.alloc_count, counts.total_allocs_bytes);
        assert_eq!(found, expected, "{:?}", unwound.image);
        if unwound.unwalked == Sums::default() {
            let found = (sums.leaked_blocks, sums.leaked_bytes);
            let expected = (counts.leaked_blocks, counts.leaked_bytes);
            assert_eq!(found, expected, "{:?}", unwound.image);
        }
    }
}

/// Fails unless each site of the case has its stack, as often as it allocates, and no other stack has its size. `end` is
/// the end of walks that have their outermost frame.
#[track_caller]
fn assert_has_its_stacks(case: &StackCase, images: &[Unwound], end: WalkEnd) {
    for site in case.sites {
        let mut calls = 0;
        let stacks = images.iter().flat_map(|unwound| &unwound.stacks);
        for stack in stacks.filter(|s| s.sums.alloc_bytes == site.size * s.sums.alloc_count) {
            let frames = without_operators(&stack.frames);
            let dropped = stack.frames.len() - frames.len();
            let interrupted: Vec<_> = stack.interrupted.iter().map(|n| n - dropped).collect();
            let (up_to, end) = match site.libgcc {
                Libgcc::ToTheEnd => (None, end),
                Libgcc::UpTo(words) => (Some(words), WalkEnd::NoRules),
            };
            assert_eq!(stack.end, end, "{}, {} bytes", case.name, site.size);
            check_stack(site.stack, up_to, frames, Some(&interrupted))
                .unwrap_or_else(|error| panic!("{}, {} bytes: {error}", case.name, site.size));
            calls += stack.sums.alloc_count;
        }
        assert_eq!(calls, site.count, "{}, {} bytes", case.name, site.size);
    }
}

#[test]
fn each_fixture_has_the_stacks_that_are_known_by_hand() {
    let cases = stack_cases();
    assert!(cases.len() >= 19);
    for case in &cases {
        let (images, status, _) = case.job.unwind();
        assert_eq!(code(status), case.code, "{}", case.name);
        assert_walked_to_the_end(&images);
        assert_adds_up(&images);
        assert_has_its_stacks(case, &images, WalkEnd::Complete);
    }
}

/// The walks change nothing in what the fixtures of counts do: forks, execs, threads, signals at any moment.
#[test]
#[ignore = "takes a minute: make test-long"]
fn the_library_counts_every_fixture_exactly_and_each_call_has_a_stack() {
    for case in cases() {
        let began = Instant::now();
        let (images, status, stdout) = case.job.unwind();
        println!("{}: {:.1} s", case.name, began.elapsed().as_secs_f64());
        assert_adds_up(&images);
        let images = images.into_iter().map(|unwound| unwound.image).collect();
        assert_exact(&case, images, status, &stdout);
    }
}

#[test]
fn a_static_program_has_its_stacks() {
    let case = static_chain(true);
    let directory = tempfile::tempdir().expect("a temporary directory can be created");
    let job = case.job.env("COUNTER_DIR", directory.path());
    let (status, stderr) = job.run_under("env", &[]);
    assert_eq!(code(status), 0, "{stderr}");
    let images = crate::common::unwinder::read(directory.path());
    assert_adds_up(&images);
    // What libc allocates before the program's tables are registered, and libgcc to sort them.
    assert!(images[0].unwalked.alloc_count > 0);
    // `_start` is in a file of the C library whose tables nobody registers.
    let case = static_chain(false);
    assert_has_its_stacks(&case, &images, WalkEnd::NoRules);
}

/// At each instruction the interrupted function and all its callers are right.
#[cfg(target_arch = "x86_64")]
#[test]
fn each_instruction_of_a_function_has_a_whole_stack() {
    let (images, status, stdout) = steps().unwind();
    assert_eq!(code(status), 0);
    let [unwound] = &images[..] else {
        panic!("expected one image: {images:?}")
    };
    assert_walked_to_the_end(&images);
    let mut calls = 0;
    for stack in &unwound.stacks {
        if stack.sums.alloc_bytes != 1181 * stack.sums.alloc_count {
            continue;
        }
        calls += stack.sums.alloc_count;
        assert_eq!(stack.end, WalkEnd::Complete);
        let caller = ["allocate on_step * stepped main * _start"];
        let inner = ["allocate on_step * inner stepped main * _start"];
        // The entries of the procedure linkage table have no symbols.
        let at = stack.interrupted.first().expect("a signal interrupted");
        let without_interrupted: Vec<_> = (0..stack.frames.len())
            .filter(|n| n != at)
            .map(|n| stack.frames[n].clone())
            .collect();
        let found = [&stack.frames, &without_interrupted].map(|frames| {
            caller
                .iter()
                .chain(&inner)
                .any(|wanted| check_stack(wanted, None, frames, None).is_ok())
        });
        assert!(found.contains(&true), "{:?}", stack.frames);
    }
    assert_eq!(calls.to_string(), stdout.trim());
    assert!(calls > 100, "{calls} steps");
}

/// memleak's probes change neither the counts nor the walks. A return probe on the library would end each walk.
#[test]
fn memleak_counts_the_same_beside_the_library_and_leaves_its_walks_whole() {
    for name in ["family", "signals", "exceptions"] {
        let cases = stack_cases();
        let case = cases.iter().find(|case| case.name == name).expect("a case");
        let job = case.job.clone().options(["--stacks=never"]);
        let (report, images) = job.run_unwound();
        report.assert_complete();
        assert!(report.stacks.is_empty(), "nobody asked for stacks");
        let counted: Vec<_> = images.iter().map(|u| u.image.clone()).collect();
        assert_eq!(compare(&report.rows, &counted), Ok(()), "{name}");
        assert_walked_to_the_end(&images);
        assert_adds_up(&images);
        assert_has_its_stacks(case, &images, WalkEnd::Complete);
    }
}

/// Runs programs, and prints what each does.
fn walk_programs(amount: Amount) {
    let programs = stack_programs(amount);
    assert!(programs.len() >= 8);
    for program in programs {
        let began = Instant::now();
        let (images, status, _) = program.job.unwind();
        let took = began.elapsed().as_secs_f64();
        assert_eq!(code(status), 0, "{}", program.name);
        assert_walked_to_the_end(&images);
        assert_adds_up(&images);
        let calls: u64 = images
            .iter()
            .map(|unwound| total(unwound).alloc_count)
            .sum();
        let stacks: usize = images.iter().map(|unwound| unwound.stacks.len()).sum();
        let deepest = images.iter().map(|u| deepest(&u.stacks)).max();
        println!(
            "{}: {} images, {calls} allocations at {stacks} stacks, the deepest {}, {took:.1} s",
            program.name,
            images.len(),
            deepest.unwrap_or(0)
        );
        assert!(
            calls >= program.at_least,
            "{}: {calls} allocations",
            program.name
        );
    }
}

#[test]
fn programs_have_whole_stacks() {
    walk_programs(Amount::Little);
}

#[test]
#[ignore = "takes a minute: make test-long"]
fn programs_that_do_much_have_whole_stacks() {
    walk_programs(Amount::Much);
}

// ---- the comparison ----------------------------------------------------------------------------------

const LIBRARY: &str = "/nowhere/unwinder.so";

fn frame(offset: u64) -> Frame {
    Frame {
        module: Some(Path::new("/nowhere/program").into()),
        offset,
    }
}

fn sums() -> Sums {
    Sums {
        alloc_count: 3,
        alloc_bytes: 30,
        leaked_blocks: 1,
        leaked_bytes: 10,
    }
}

fn stack(offsets: &[u64], end: WalkEnd) -> Stack {
    Stack {
        frames: offsets.iter().copied().map(frame).collect(),
        interrupted: Vec::new(),
        end,
        sums: sums(),
    }
}

fn truth(stacks: &[Stack]) -> Unwound {
    Unwound {
        image: Image {
            pid: 7,
            kind: Kind::Exec,
            start: 1,
            comm: "x".to_string(),
            exe: "/x".into(),
            counts: Counts::default(),
        },
        stacks: stacks.to_vec(),
        unwalked: Sums::default(),
        build_ids: [(Arc::from(Path::new("/nowhere/program")), "abcd".to_string())].into(),
    }
}

fn record(modules_and_offsets: &[(&str, u64)], walk: &str) -> StackRecord {
    let frames = modules_and_offsets
        .iter()
        .map(|&(module, offset)| RecordFrame {
            function: None,
            module: Some(module.into()),
            build_id: None,
            offset,
            inlined: false,
        });
    let sums = sums();
    StackRecord {
        pid: 7,
        image: 0,
        alloc_bytes: sums.alloc_bytes,
        alloc_count: sums.alloc_count,
        leaked_bytes: sums.leaked_bytes,
        leaked_blocks: sums.leaked_blocks,
        walk: walk.to_string(),
        others: BTreeMap::new(),
        frames: frames.collect(),
    }
}

/// A record as memleak has it for these offsets in the program: the library's frame is the innermost one.
fn at(offsets: &[u64], walk: &str) -> StackRecord {
    let program = offsets.iter().map(|&offset| ("/nowhere/program", offset));
    let frames: Vec<_> = [(LIBRARY, 1)].into_iter().chain(program).collect();
    record(&frames, walk)
}

fn row() -> Row {
    let line = serde_json::json!({
        "pid": 7, "ppid": 1, "uid": 0, "comm": "x", "exe": null, "image": 0, "end": "exited",
        "exit_code": 0, "signal": null, "from": "start", "start_time": 0.0, "end_time": 1.0,
        "total_allocs_bytes": 30, "alloc_count": 3, "free_count": 2, "leaked_bytes": 10,
        "leaked_blocks": 1, "failed_allocs": 0, "unknown_frees": 0, "peak_live_bytes": null,
        "allocators": ["/lib/libc.so.6"], "complete": true, "losses": {},
    });
    serde_json::from_value(line).expect("the line is a row")
}

fn compared(records: &[StackRecord], stacks: &[Stack]) -> Comparison {
    compare_stacks(&[row()], records, &[truth(stacks)], Path::new(LIBRARY))
}

#[track_caller]
fn assert_differs(records: &[StackRecord], stacks: &[Stack], what: &str) {
    let comparison = compared(records, stacks);
    assert!(
        comparison.differences.iter().any(|d| d.what.contains(what)),
        "no {what:?} in {comparison}"
    );
}

#[test]
fn equal_stacks_are_equal_without_the_library_and_inlined_frames() {
    let mut inlined = at(&[5, 6], "complete");
    inlined.frames.insert(
        1,
        RecordFrame {
            inlined: true,
            ..inlined.frames[1].clone()
        },
    );
    let records = [inlined, at(&[5, 7], "complete")];
    let stacks = [
        stack(&[5, 6], WalkEnd::Complete),
        stack(&[5, 7], WalkEnd::Complete),
    ];
    let comparison = compared(&records, &stacks);
    comparison.assert_equal(6, &[]);
    assert_eq!((comparison.stacks, comparison.partly.len()), (2, 0));
}

#[test]
fn the_comparison_finds_a_difference_in_each_sum() {
    let changes: [fn(&mut StackRecord) -> &mut u64; 4] = [
        |r| &mut r.alloc_count,
        |r| &mut r.alloc_bytes,
        |r| &mut r.leaked_blocks,
        |r| &mut r.leaked_bytes,
    ];
    for change in changes {
        let mut record = at(&[5, 6], "complete");
        *change(&mut record) += 1;
        let stacks = [stack(&[5, 6], WalkEnd::Complete)];
        assert_differs(&[record], &stacks, "(+1)");
    }
}

#[test]
fn the_comparison_finds_a_stack_that_one_side_lacks_or_has_otherwise() {
    let both = [at(&[5, 6], "complete"), at(&[5, 7], "complete")];
    let theirs = [
        stack(&[5, 6], WalkEnd::Complete),
        stack(&[5, 7], WalkEnd::Complete),
    ];
    assert_differs(&both[..1], &theirs, "memleak lacks");
    assert_differs(&both, &theirs[..1], "the truth lacks");
    // One frame is missing, one too many, one at another address, two exchanged, and another module.
    for other in [&[5][..], &[5, 6, 8], &[5, 9], &[6, 5]] {
        assert_differs(&[at(other, "complete")], &theirs[..1], "memleak lacks");
        assert_differs(&[at(other, "complete")], &theirs[..1], "the truth lacks");
    }
    let moved = record(
        &[("/nowhere/other", 5), ("/nowhere/program", 6)],
        "complete",
    );
    assert_differs(&[moved], &theirs[..1], "memleak lacks");
}

#[test]
fn the_comparison_finds_another_build_id_and_another_image() {
    let theirs = [stack(&[5, 6], WalkEnd::Complete)];
    let mut other = at(&[5, 6], "complete");
    other.frames[1].build_id = Some("abce".to_string());
    assert_differs(&[other.clone()], &theirs, "build-id");
    other.frames[1].build_id = Some("abcd".to_string());
    compared(&[other.clone()], &theirs).assert_equal(3, &[]);
    other.image = 1;
    assert_differs(&[other], &theirs, "an image that the truth lacks");
    let none = compare_stacks(&[], &[], &[truth(&theirs)], Path::new(LIBRARY));
    assert!(none.differences[0].what.contains("0 images"), "{none}");
}

#[test]
fn stacks_that_one_side_cannot_walk_on_are_equal_only_as_far_as_both_go() {
    // libgcc stopped for lack of rules. memleak went on, in two ways.
    let records = [at(&[5, 6], "guessed"), at(&[5, 7], "complete")];
    let mut stopped = stack(&[5], WalkEnd::NoRules);
    stopped.sums += sums();
    let comparison = compared(&records, &[stopped.clone()]);
    assert!(comparison.differences.is_empty(), "{comparison}");
    assert_eq!(comparison.partly[&Why::NoRules].alloc_count, 6);
    assert_eq!(comparison.equal, Sums::default());
    assert_differs(&records[..1], &[stopped.clone()], "NoRules: alloc_count");
    stopped.end = WalkEnd::Complete;
    assert_differs(&records, &[stopped.clone()], "memleak lacks");
    stopped.end = WalkEnd::Probed;
    assert_eq!(
        compared(&records, &[stopped]).partly[&Why::Probed].alloc_count,
        6
    );

    // memleak stopped, and says so.
    let theirs = [stack(&[5, 6, 7], WalkEnd::Complete)];
    let comparison = compared(&[at(&[5, 6], "too_deep")], &theirs);
    assert!(comparison.differences.is_empty(), "{comparison}");
    assert_eq!(comparison.partly[&Why::CutShort].alloc_count, 3);
    assert_differs(&[at(&[5, 6], "complete")], &theirs, "memleak lacks");
    assert_differs(&[at(&[5, 8], "too_deep")], &theirs, "the truth lacks");
}

#[test]
fn the_calls_of_libgcc_itself_are_compared_as_a_sum() {
    let by_libgcc = record(&[("/nowhere/libgcc_s.so.1", 5), (LIBRARY, 6)], "complete");
    assert_differs(from_ref(&by_libgcc), &[], "OfLibgcc");
    let mut unwalked = truth(&[]);
    unwalked.unwalked = Sums {
        leaked_blocks: 0,
        leaked_bytes: 0,
        ..sums()
    };
    let compare = |records: &[StackRecord]| {
        compare_stacks(&[row()], records, &[unwalked.clone()], Path::new(LIBRARY))
    };
    let comparison = compare(from_ref(&by_libgcc));
    assert!(comparison.differences.is_empty(), "{comparison}");
    assert_eq!(comparison.partly[&Why::OfLibgcc].alloc_count, 3);
    assert!(!compare(&[]).differences.is_empty());
}

#[test]
fn the_reader_refuses_what_is_no_file_of_stacks() {
    let image = truth(&[]).image;
    let read = |bytes: &[u8]| decode(&mut &*bytes, image.clone());
    assert!(read(&[]).is_err());
    assert_eq!(read(&[0; 48]).unwrap_err(), "the file is not finished");
    // `used` is behind the file's end.
    let mut header = 0x3164_6e69_776e_756d_u64.to_ne_bytes().to_vec();
    header.extend((1_u64 << 20).to_ne_bytes());
    header.resize(48, 0);
    assert!(read(&header).unwrap_err().contains("ends before"));
    // A call had no place.
    header[16] = 1;
    assert!(read(&header).unwrap_err().contains("too small for 1 calls"));
}

#[test]
fn a_program_that_is_killed_leaves_its_stacks() {
    let script = "python3 -c 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'; echo done";
    let (images, _, stdout) = Job::shell(script).unwind();
    assert_eq!(stdout, "done\n");
    assert_adds_up(&images);
    let largest = images.iter().map(|u| total(u).alloc_count).max();
    assert!(largest > Some(300), "{largest:?} allocations");
}
