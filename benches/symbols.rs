//! How long memleak searches a file for an allocator, for each file of some directories. A process may be held
//! stopped during that search.
//!
//! `cargo bench --bench symbols` searches the system's libraries, its programs, and the files that a python3
//! with many modules maps. With `-- DIRECTORY…` it searches programs elsewhere. Files are in the page cache.
//! Each time is the median of five and includes opening the file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memleak::elf::file::{Class, ElfFile, Unreadable};
use memleak::find::findings::find_sites;
use memleak::find::functions::Table;
use memleak::os::root::Root;

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const PROGRAMS: &str = "/usr/bin";
const PYTHON: &str =
    "import ssl, json, ctypes, decimal, hashlib, lzma, bz2, sqlite3, socket, asyncio
try: import numpy
except ImportError: pass
print(open('/proc/self/maps').read())";

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    // `cargo test --benches` also starts this program, without --bench. It has no tests.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let directories: Vec<_> = arguments.iter().filter(|path| path.is_dir()).collect();
    println!("files                            count  median     max (µs)");
    for directory in &directories {
        measure(&directory.display().to_string(), in_directory(directory));
    }
    if directories.is_empty() {
        measure(LIBRARIES, in_directory(Path::new(LIBRARIES)));
        measure(PROGRAMS, in_directory(Path::new(PROGRAMS)));
        measure("mapped by python3", mapped_by_python());
    }
}

fn measure(what: &str, files: Vec<PathBuf>) {
    let table = Table::new(Vec::new()).expect("the table can be read");
    let mut times: Vec<(Duration, PathBuf)> = files
        .into_iter()
        .filter(|path| is_native(path))
        .filter_map(|path| Some((time(&path, &table)?, path)))
        .collect();
    times.sort();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let Some((longest, _)) = times.last() else {
        println!("{what:32} none");
        return;
    };
    let median = times[times.len() / 2].0;
    println!(
        "{what:32} {:5} {:7.1} {:7.1}",
        times.len(),
        micros(median),
        micros(*longest)
    );
    for (time, path) in times.iter().rev().take(4) {
        let size = path.metadata().map_or(0, |metadata| metadata.len()) >> 10;
        println!("    {:8.1}  {} ({size} KiB)", micros(*time), path.display());
    }
}

fn time(path: &Path, table: &Table) -> Option<Duration> {
    let root = Root::ours();
    let mut times = [Duration::ZERO; 5];
    // The first search brings the file into the page cache and does not count.
    for round in 0..=times.len() {
        let began = Instant::now();
        let file = File::open(path).ok()?;
        let findings = find_sites(&file, path, &root, table);
        let time = began.elapsed();
        if let Err(error) = findings {
            println!("{}: {error:#}", path.display());
            return None;
        }
        if let Some(of_round) = round.checked_sub(1) {
            times[of_round] = time;
        }
    }
    times.sort();
    Some(times[times.len() / 2])
}

fn is_native(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    !matches!(
        ElfFile::open(&file),
        Err(Unreadable::Class(
            Class::NotElf | Class::Bits32 | Class::OtherMachine
        ))
    )
}

/// The files in a directory, each once, without those in its subdirectories.
fn in_directory(directory: &Path) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            let Ok(metadata) = path.metadata() else {
                return false;
            };
            let new = metadata.is_file() && !seen.contains(&metadata.ino());
            seen.push(metadata.ino());
            new
        })
        .collect()
}

fn mapped_by_python() -> Vec<PathBuf> {
    let Ok(output) = Command::new("python3").args(["-c", PYTHON]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files: Vec<PathBuf> = text
        .lines()
        .filter(|line| line.contains("r-xp"))
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .filter(|path| path.starts_with("/") && path.extension() != Some(OsStr::new("vdso")))
        .collect();
    files.sort();
    files.dedup();
    files
}
