//! What the names of 1,000 addresses in a file cost: the time for the first look, with the debug information still
//! unread, and for other 1,000 addresses; and the most memory that the process took.
//!
//! `cargo bench --bench names` looks at the C library. With `-- FILE…` it looks at other files. Files are in the page
//! cache. Each file is looked at by a process of its own.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memleak::elf::file::ElfFile;
use memleak::os::root::Root;
use memleak::stacks::module::Module;
use memleak::stacks::symbols::{FrameName, Symbolizer};

const ADDRESSES: usize = 1000;

/// Tells the process that it looks at one file.
const ONE: &str = "--one-file";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == ONE) {
        look(Path::new(&arguments[at + 1]));
        return;
    }
    // `cargo test --benches` also starts this program, without --bench. It has no tests.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let mut files: Vec<PathBuf> = arguments.iter().map(PathBuf::from).collect();
    files.retain(|path| path.is_file());
    if files.is_empty() {
        files.extend(common::c_library());
    }
    println!("  first  others    again  named  inlined  lines    peak  file   (ms, MB)");
    for file in files {
        let own = std::env::current_exe().expect("the path of this program");
        let status = Command::new(own).arg(ONE).arg(file).status();
        assert!(status.expect("this program can be started").success());
    }
}

fn look(path: &Path) {
    let file = File::open(path).expect("the file can be opened");
    let elf = ElfFile::open(&file).expect("it is an ELF file");
    let text = elf.section_named(".text").expect("it has code");
    let step = text.size / (2 * ADDRESSES as u64);
    let addresses = |first: u64| -> Vec<u64> {
        let spread = (0..ADDRESSES as u64).map(|n| text.address + (2 * n + first) * step);
        spread.collect()
    };
    let seen_as = path.to_string_lossy();
    let root = Rc::new(Root::ours());
    let module = Module::new(0, &file, seen_as.as_bytes(), root).expect("it has a status");
    let before = peak();
    let mut symbolizer = Symbolizer::default();
    let mut timed = |addresses: &[u64]| -> (f64, Vec<Vec<FrameName>>) {
        let began = Instant::now();
        let names = symbolizer.name(&module, addresses, began + Duration::from_secs(60));
        (began.elapsed().as_secs_f64() * 1e3, names)
    };
    let (first, names) = timed(&addresses(0));
    let (others, _) = timed(&addresses(1));
    let (again, _) = timed(&addresses(0));
    let count = |is: &dyn Fn(&[FrameName]) -> bool| names.iter().filter(|names| is(names)).count();
    println!(
        "{first:7.1} {others:7.1} {again:8.2} {:6} {:8} {:6} {:7.1}  {}",
        count(&|names| !names.is_empty()),
        count(&|names| names.len() > 1),
        count(&|names| names.iter().any(|named| named.line.is_some())),
        (peak() - before) as f64 / 1e3,
        path.display(),
    );
    if symbolizer.left_out() != &Default::default() {
        println!("        left out: {:?}", symbolizer.left_out());
    }
}

/// The most memory that this process had, in kB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the status can be read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).expect("a number")
}
