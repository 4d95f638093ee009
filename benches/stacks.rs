//! What a report of many call stacks takes: 13,000 stacks of 20 frames in the C library, by each of which 200 processes
//! leaked. The time of one core to name the stacks of all processes, and to write them as JSON.
//!
//! `cargo bench --bench stacks`. Other counts: `-- STACKS PROCESSES`.

mod common;

use std::cell::RefCell;
use std::fs::{self, File};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memleak::elf::file::ElfFile;
use memleak::model::reach::Amount;
use memleak::model::stack::{CallStack, CodePlace, Frame, StackShare, WalkEnd};
use memleak::report::destination::Output;
use memleak::report::{Format, Options, Report, StackRow};
use memleak::stacks::code_files::CodeFiles;
use memleak::stacks::namer::Namer;

const FRAMES: usize = 20;

fn main() {
    // `cargo test --benches` also starts this program, without --bench. It has no tests.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let numbers = arguments.iter().filter_map(|text| text.parse().ok());
    let numbers: Vec<usize> = numbers.collect();
    let stacks = numbers.first().copied().unwrap_or(13_000);
    let processes = numbers.get(1).copied().unwrap_or(200);
    let path = common::c_library().expect("this program has mapped the C library");
    let file = File::open(&path).expect("the file can be opened");
    let files = Rc::new(RefCell::new(CodeFiles::default()));
    files.borrow_mut().add(&path, &file, None);
    let shares = shares(&file, stacks);
    let mut namer = Namer::new(files);
    let began = cpu_time();
    let all = shares.iter().map(|share| &*share.stack);
    namer.look_up(all, Instant::now() + Duration::from_secs(60));
    println!("looking up: {:.2} s", (cpu_time() - began).as_secs_f64());
    let null = File::create("/dev/null").expect("/dev/null can be written");
    let mut report = Report::default();
    let output = Output::new("/dev/null", Box::new(null));
    report.add(Format::Json, Options::default(), output);
    let (mut naming, mut writing) = (Duration::ZERO, Duration::ZERO);
    for pid in 1..=processes {
        let began = cpu_time();
        let named: Vec<_> = shares
            .iter()
            .map(|share| namer.name(&share.stack))
            .collect();
        naming += cpu_time() - began;
        let began = cpu_time();
        for (share, stack) in shares.iter().zip(&named) {
            let unwritten = report.stack(&StackRow {
                pid: u32::try_from(pid).expect("a pid"),
                image: 0,
                share,
                stack,
                suppressed_by: None,
                suppressed: Amount::default(),
                kept: Amount::default(),
            });
            assert!(unwritten.is_empty());
        }
        writing += cpu_time() - began;
    }
    let lines = stacks * processes;
    for (what, took) in [("naming", naming), ("writing", writing)] {
        let each = took.as_secs_f64() / lines as f64 * 1e6;
        println!(
            "{what} {lines} stacks: {:.2} s, {each:.2} µs each",
            took.as_secs_f64()
        );
    }
    println!("the most memory: {} MB", peak() / 1000);
}

/// What this thread has used of a core.
fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("Linux has this clock").into()
}

/// Stacks whose frames are spread over the file's code.
fn shares(file: &File, stacks: usize) -> Vec<StackShare> {
    let elf = ElfFile::open(file).expect("it is an ELF file");
    let text = elf.section_named(".text").expect("it has code");
    let frame = |number: usize| Frame {
        place: CodePlace::File {
            module: 1,
            offset: text.address + (number as u64 * 8_191) % text.size,
        },
        interrupted: false,
    };
    let share = |number| StackShare {
        stack: Arc::new(CallStack {
            frames: (0..FRAMES).map(|depth| frame(number * 3 + depth)).collect(),
            end: WalkEnd::Complete,
            guessed: 0,
        }),
        alloc_bytes: 7_200,
        alloc_count: 100,
        leaked_bytes: 72,
        leaked_blocks: 1,
        reached: None,
    };
    (0..stacks).map(share).collect()
}

/// The most memory that this process had, in kB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the status can be read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).expect("a number")
}
