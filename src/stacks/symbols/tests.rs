use super::*;
use crate::os::memory_file::file_of;
use crate::os::root::Root;
use crate::stacks::identity::without_suffixes;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Functions inlined into each other, in a namespace, and in a part of a function that is rarely run.
const CPP: &str = r#"#include <cstdlib>
#include <vector>
volatile long total;
namespace inner {
struct Node { int *data; Node(int n); };
__attribute__((always_inline)) inline int *make(int n) {
    int *p = (int *)malloc(n * sizeof(int));
    if (!p) abort();
    p[0] = n;
    return p;
}
__attribute__((always_inline)) inline Node::Node(int n) : data(make(n)) { total += n; }
}
__attribute__((noinline)) int *build(int n) {
    inner::Node node(n);
    total += node.data[0];
    return node.data;
}
static __attribute__((noinline)) long sum(const std::vector<long> &of) {
    long all = 0;
    for (long one : of) all += one * total;
    return all;
}
static __attribute__((noinline)) long local(int n) {
    struct Local {
        static __attribute__((noinline)) long run(int n) { return total += n; }
    };
    auto again = [](int n) __attribute__((noinline)) { return total *= n; };
    return Local::run(n) + again(n + 1);
}
int main(int argc, char **argv) {
    std::vector<long> numbers;
    for (int i = 0; i < argc + 3; i++) numbers.push_back(*build(i + 1));
    return sum(numbers) == local(argc);
}
"#;

const C: &str = r#"#include <stdlib.h>
volatile long total;
static inline __attribute__((always_inline)) void *twice(long n) { total += n; return malloc(2 * n); }
__attribute__((noinline)) void *leak(long n) {
    void *p = twice(n);
    total += (long)p;
    return p;
}
static __attribute__((noinline)) void hidden(long n) { total += n * 3; leak(n); total++; }
int main(int argc, char **argv) { hidden(argc); leak(2); total++; return 0; }
"#;

const RUST: &str = r#"use std::hint::black_box;
#[inline(always)]
fn make(n: usize) -> Vec<u64> { vec![black_box(7); n] }
#[inline(never)]
fn outer(n: usize) -> usize { let made = make(n); black_box(&made); let len = made.len(); std::mem::forget(made); len }
fn main() { let n = outer(black_box(3)); println!("{n}"); }
"#;

fn run(directory: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

/// A directory with the sources.
fn sources() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("a.cc", CPP), ("a.c", C), ("a.rs", RUST)] {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn module(path: &Path) -> Module {
    module_in(path, path.to_str().unwrap(), Root::ours())
}

fn module_in(path: &Path, seen_as: &str, root: Root) -> Module {
    let file = File::open(path).unwrap();
    Module::new(0, &file, seen_as.as_bytes(), Rc::new(root)).unwrap()
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn names(module: &Module, addresses: &[u64]) -> Vec<Vec<FrameName>> {
    Symbolizer::default().name(module, addresses, later())
}

/// Where a function begins, as `nm` tells it.
fn address_of(path: &Path, name: &str) -> u64 {
    let output = Command::new("nm").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.split(' ').next_back() == Some(name));
    let line = line.unwrap_or_else(|| panic!("{name} is in {text}"));
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}

/// Where the code of a file is.
fn text_of(path: &Path) -> std::ops::Range<u64> {
    let file = File::open(path).unwrap();
    let elf = ElfFile::open(&file).unwrap();
    let text = elf.section_named(".text").unwrap();
    text.address..text.address + text.size
}

/// A frame as `addr2line` shows it: function, file and line.
type Shown = (String, String);

/// What `addr2line` of binutils says of addresses.
fn addr2line(path: &Path, addresses: &[u64]) -> Vec<Vec<Shown>> {
    let list: String = addresses.iter().map(|at| format!("{at:#x}\n")).collect();
    let mut child = Command::new("addr2line")
        .args(["-a", "-f", "-i", "-C", "-e"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, list.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found: Vec<Vec<Shown>> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            found.push(Vec::new());
            continue;
        }
        let place = lines.next().unwrap();
        let place = place.split(" (discriminator").next().unwrap();
        found
            .last_mut()
            .unwrap()
            .push((line.to_owned(), place.to_owned()));
    }
    assert_eq!(found.len(), addresses.len());
    found
}

/// What memleak says of an address, in the same form.
fn shown(names: &[FrameName]) -> Vec<Shown> {
    let frame = |named: &FrameName| {
        let place = match (&named.file, named.line) {
            (Some(file), Some(line)) => format!("{}:{line}", file.display()),
            _ => "??:?".to_owned(),
        };
        (named.function.clone(), place)
    };
    names.iter().map(frame).collect()
}

/// The functions of a file that have a size, as `nm` tells them.
fn sized(path: &Path) -> Vec<std::ops::Range<u64>> {
    let output = Command::new("nm").arg("-S").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let number = |word: Option<&str>| u64::from_str_radix(word?, 16).ok();
        let (start, size) = (number(words.next())?, number(words.next())?);
        words
            .next()?
            .eq_ignore_ascii_case("t")
            .then_some(start..start + size)
    });
    numbers.collect()
}

/// Compares what memleak says of each `step`th byte of a file's code with what `addr2line` says. Returns the number of
/// addresses that both know, and of those the ones with inlined functions and the ones with lines.
fn compare(path: &Path, step: usize) -> [usize; 3] {
    let addresses: Vec<u64> = text_of(path).step_by(step).collect();
    let ours = names(&module(path), &addresses);
    let theirs = addr2line(path, &addresses);
    let functions = sized(path);
    let mut counts = [0; 3];
    for ((ours, mut theirs), address) in ours.iter().zip(theirs).zip(addresses) {
        // addr2line calls what lies between functions by the name of the function before.
        if ours.is_empty() && !functions.iter().any(|function| function.contains(&address)) {
            continue;
        }
        let shown = shown(ours);
        // Rust's library has functions of the same code at one address, with one of their names each.
        if let (Some(frame), Some(own)) = (theirs.last_mut(), shown.last())
            && path.ends_with("rust")
            && !own.0.starts_with("a::")
        {
            frame.0.clone_from(&own.0);
        }
        for (frame, own) in theirs.iter_mut().zip(&shown) {
            // The name of the object file, from the symbol table, is no source file.
            if frame.1.ends_with(":?") {
                frame.1 = "??:?".to_owned();
            }
            let name = frame.0.split(" [clone ").next().unwrap();
            frame.0 = without_suffixes(name).to_owned();
            // After link-time optimisation, addr2line takes the first file of the list for the unit's own.
            frame.1 = frame.1.replace("<artificial>", "a.cc");
            // For functions of one file, addr2line takes the name in the source, which has no parameters. Of a few
            // names of templates, our demangler understands only the beginning.
            let no_parameters = own.0.split('(').next() == Some(&frame.0);
            if no_parameters || (own.0.starts_with("std::") && frame.0.contains(&own.0)) {
                frame.0.clone_from(&own.0);
            }
        }
        assert_eq!(shown, theirs, "{} {address:#x}", path.display());
        counts[0] += 1;
        counts[1] += usize::from(ours.len() > 1);
        counts[2] += usize::from(ours[0].line.is_some());
    }
    counts
}

#[test]
fn programs_get_the_names_that_addr2line_gives() {
    let directory = sources();
    run(
        directory.path(),
        // addr2line of binutils 2.40 does not read the ranges that clang++ writes in version 5.
        "g++ -O2 -g -o cc a.cc; gcc -O2 -g -gdwarf-4 -o c4 a.c; gcc -O2 -g -o c5 a.c; \
         gcc -O2 -g -gz -o packed a.c; g++ -O2 -g -flto -o lto a.cc; rustc -O -g -o rust a.rs; \
         clang -O2 -g -o clang a.c; clang -O2 -g -gdwarf-4 -o clang4 a.c; \
         clang++ -O2 -g -gdwarf-4 -o clangcc a.cc",
    );
    for (name, step, least) in [
        ("c4", 1, [300, 20, 140]),
        ("c5", 1, [300, 20, 140]),
        ("packed", 1, [300, 20, 140]),
        ("clang", 1, [300, 10, 80]),
        ("clang4", 1, [300, 10, 80]),
        ("cc", 1, [900, 400, 700]),
        ("clangcc", 1, [700, 250, 400]),
        ("lto", 1, [700, 300, 500]),
        ("rust", 97, [2000, 500, 1000]),
    ] {
        let counts = compare(&directory.path().join(name), step);
        let enough = counts
            .iter()
            .zip(least)
            .all(|(&count, least)| count >= least);
        assert!(enough, "{name}: {counts:?}");
    }
}

/// The names of a function, one byte behind its beginning.
fn at(module: &Module, address: u64) -> Vec<FrameName> {
    names(module, &[address + 1]).remove(0)
}

fn linkages(names: &[FrameName]) -> Vec<&str> {
    names.iter().map(|named| named.linkage.as_str()).collect()
}

/// A file stripped as distributions do it: its debug file, and the symbols of its local functions in the file itself.
const SPLIT: &str = "gcc -O2 -g -Wl,--build-id -o whole a.c; \
    nm -D whole --format=posix --defined-only | awk '{ print $1 }' | sort > exported; \
    nm whole --format=posix --defined-only | awk '$2 == \"T\" || $2 == \"t\" { print $1 }' | sort > all; \
    comm -13 exported all > local; \
    objcopy --only-keep-debug whole whole.debug; \
    objcopy -S --remove-section .gdb_index --remove-section .comment --keep-symbols=local whole.debug mini; \
    xz -k mini; \
    strip -o plain whole; \
    objcopy --add-section .gnu_debugdata=mini.xz plain packed; \
    objcopy --add-gnu-debuglink=whole.debug plain linked";

#[test]
fn symbols_packed_into_a_stripped_file_are_in_the_file() {
    let directory = sources();
    run(directory.path(), SPLIT);
    let path = |name: &str| directory.path().join(name);
    let hidden = address_of(&path("whole"), "hidden");
    assert!(at(&module(&path("plain")), hidden).is_empty());
    let named = at(&module(&path("packed")), hidden);
    assert_eq!(linkages(&named), ["hidden"]);
    assert!(named[0].in_file && named[0].line.is_none());
}

#[test]
fn a_debug_file_beside_the_file_adds_names_and_lines() {
    let directory = sources();
    run(directory.path(), SPLIT);
    let path = |name: &str| directory.path().join(name);
    let hidden = address_of(&path("whole"), "hidden");
    let leak = address_of(&path("whole"), "leak");
    let linked = module(&path("linked"));
    let named = at(&linked, hidden);
    assert_eq!((linkages(&named), named[0].line), (vec!["hidden"], Some(9)));
    assert!(!named[0].in_file, "it is only in the debug file");
    let everywhere: Vec<u64> = (leak..leak + 40).collect();
    let inlined = |module: &Module| {
        let names = names(module, &everywhere);
        names
            .iter()
            .filter(|names| linkages(names) == ["twice", "leak"])
            .count()
    };
    assert!(inlined(&linked) > 5);
    assert_eq!(inlined(&linked), inlined(&module(&path("whole"))));
    // Only the build ID tells whether it is the debug file of this build.
    run(
        directory.path(),
        "sed -i s/3/4/ a.c; gcc -O2 -g -Wl,--build-id -o other a.c; cp other whole.debug",
    );
    assert!(at(&module(&path("linked")), hidden).is_empty());
}

#[test]
fn without_a_build_id_the_checksum_tells_the_debug_file() {
    let directory = sources();
    run(
        directory.path(),
        &SPLIT.replace("-Wl,--build-id", "-Wl,--build-id=none"),
    );
    let path = |name: &str| directory.path().join(name);
    let hidden = address_of(&path("whole"), "hidden");
    assert_eq!(linkages(&at(&module(&path("linked")), hidden)), ["hidden"]);
    run(directory.path(), "printf x >> whole.debug");
    assert!(at(&module(&path("linked")), hidden).is_empty());
}

#[test]
fn debug_files_are_looked_for_below_the_root_of_the_process() {
    let directory = sources();
    run(
        directory.path(),
        &format!(
            "{SPLIT}; id=$(readelf -n whole | awk '/Build ID/ {{ print $3 }}'); \
             first=$(echo $id | cut -c 1-2); rest=$(echo $id | cut -c 3-); \
             mkdir -p root/usr/lib/debug/.build-id/$first root/bin; cp plain root/bin/; \
             mv whole.debug root/usr/lib/debug/.build-id/$first/$rest.debug"
        ),
    );
    let hidden = address_of(&directory.path().join("whole"), "hidden");
    let inside = directory.path().join("root/bin/plain");
    assert!(at(&module(&inside), hidden).is_empty());
    let root = || Root::at(&directory.path().join("root")).unwrap();
    let named = at(&module_in(&inside, "/bin/plain", root()), hidden);
    assert_eq!((linkages(&named), named[0].line), (vec!["hidden"], Some(9)));
    // Neither a link out of the root nor a FIFO is opened.
    let ids = directory.path().join("root/usr/lib/debug/.build-id");
    let first = fs::read_dir(ids).unwrap().next().unwrap().unwrap().path();
    let debug = fs::read_dir(first).unwrap().next().unwrap().unwrap().path();
    let outside = directory.path().join("outside");
    fs::rename(&debug, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &debug).unwrap();
    assert!(at(&module_in(&inside, "/bin/plain", root()), hidden).is_empty());
    fs::remove_file(&debug).unwrap();
    nix::unistd::mkfifo(&debug, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(at(&module_in(&inside, "/bin/plain", root()), hidden).is_empty());
}

#[test]
fn several_debug_files_may_share_one() {
    let directory = sources();
    run(
        directory.path(),
        "for n in 1 2; do g++ -O2 -g -gdwarf-4 -Wl,--build-id -DN=$n -o $n a.cc; cp $n whole$n; done; \
         dwz -m shared -M shared 1 2; readelf -SW 1 | grep -q gnu_debugaltlink",
    );
    let path = directory.path().join("1");
    let whole = module(&directory.path().join("whole1"));
    let addresses: Vec<u64> = text_of(&path).collect();
    let ours = names(&module(&path), &addresses);
    assert!(ours.iter().any(|names| names.len() > 2));
    for (ours, whole) in ours.iter().zip(names(&whole, &addresses)) {
        assert_eq!(ours, &whole);
    }
}

#[test]
fn a_file_without_a_name_keeps_its_symbols() {
    let directory = sources();
    run(directory.path(), "gcc -O2 -g -o a a.c");
    let path = directory.path().join("a");
    let hidden = address_of(&path, "hidden");
    let deleted = module_in(&path, "/nowhere/a (deleted)", Root::ours());
    let memory = file_of(c"code", &fs::read(&path).unwrap()).unwrap();
    let memory = Module::new(1, &memory, b"/memfd:code (deleted)", Rc::new(Root::ours())).unwrap();
    fs::remove_file(&path).unwrap();
    for module in [deleted, memory] {
        assert_eq!(linkages(&at(&module, hidden)), ["hidden"]);
        assert_eq!(at(&module, hidden)[0].line, Some(9));
    }
}

#[test]
fn a_name_of_the_file_itself_wins_over_one_in_its_debug_file() {
    let directory = sources();
    run(
        directory.path(),
        "echo '__attribute__((noinline)) int __work(int n) { return n * 3; } \
         extern __typeof(__work) work __attribute__((alias(\"__work\"))); \
         int __other(int n) { return __work(n) + 1; }' > lib.c; \
         gcc -O2 -g -shared -fPIC -Wl,--build-id -o lib.so lib.c; \
         objcopy --only-keep-debug lib.so lib.debug; strip -o plain.so lib.so; \
         objcopy --add-gnu-debuglink=lib.debug plain.so linked.so",
    );
    let path = |name: &str| directory.path().join(name);
    let work = address_of(&path("lib.so"), "work");
    for name in ["lib.so", "plain.so", "linked.so"] {
        let named = at(&module(&path(name)), work);
        assert_eq!(linkages(&named), ["work"], "{name}");
        assert!(named[0].in_file);
        assert_eq!(named[0].line.is_some(), name != "plain.so");
    }
}

#[test]
fn after_the_deadline_names_come_from_symbols_only() {
    let directory = sources();
    run(directory.path(), "gcc -O2 -g -o a a.c");
    let module = module(&directory.path().join("a"));
    let hidden = address_of(&directory.path().join("a"), "hidden");
    let mut symbolizer = Symbolizer::default();
    let late = symbolizer.name(&module, &[hidden, hidden + 1], Instant::now());
    assert_eq!(linkages(&late[1]), ["hidden"]);
    assert_eq!(late[1][0].line, None);
    assert_eq!(symbolizer.left_out().late, 2);
    // What was late is looked up again.
    let now = symbolizer.name(&module, &[hidden], later());
    assert_eq!(now[0][0].line, Some(9));
    assert_eq!(symbolizer.left_out().late, 2);
}

#[test]
fn debug_information_that_does_not_fit_is_named() {
    let directory = sources();
    run(
        directory.path(),
        "gcc -O2 -g -gz -o packed a.c; gcc -O2 -g -o plain a.c; cp packed again",
    );
    let limits = |memory| SymbolLimits { memory, files: 2 };
    let path = |name: &str| directory.path().join(name);
    let hidden = address_of(&path("packed"), "hidden");
    let mut small = Symbolizer::new(limits(BASE + 100));
    let packed = module(&path("packed"));
    let named = small.name(&packed, &[hidden], later());
    assert_eq!(
        (linkages(&named[0]), named[0][0].line),
        (vec!["hidden"], None)
    );
    let left_out = small.left_out();
    assert_eq!(left_out.too_large.len(), 1);
    assert_eq!(left_out.too_large[0].0, path("packed"));
    assert!(left_out.too_large[0].1 > 100);
    // What is not compressed is read in pieces.
    let file = File::open(path("plain")).unwrap();
    let plain = path("plain");
    let plain = Module::new(
        1,
        &file,
        plain.to_str().unwrap().as_bytes(),
        Rc::new(Root::ours()),
    )
    .unwrap();
    assert_eq!(small.name(&plain, &[hidden], later())[0][0].line, Some(9));
    // Files are dropped when there are too many, and are read again.
    let mut two = Symbolizer::new(limits(2 * BASE + (64 << 10)));
    for number in 0..6 {
        let path = path(["packed", "plain", "again"][number % 3]);
        let file = File::open(&path).unwrap();
        let name = path.to_str().unwrap().as_bytes();
        let module = Module::new(number as u32, &file, name, Rc::new(Root::ours())).unwrap();
        assert_eq!(two.name(&module, &[hidden], later())[0][0].line, Some(9));
        assert!(two.open.len() <= 2);
    }
    assert_eq!(two.left_out(), &LeftOut::default());
}

#[test]
fn a_file_that_is_another_one_by_now_gives_no_names() {
    let directory = sources();
    run(directory.path(), "gcc -O2 -g -o a a.c");
    let path = directory.path().join("a");
    let hidden = address_of(&path, "hidden");
    let module = module(&path);
    fs::copy("/bin/sh", &path).unwrap();
    let mut symbolizer = Symbolizer::default();
    assert!(symbolizer.name(&module, &[hidden], later())[0].is_empty());
    assert_eq!(symbolizer.left_out().unreadable, 1);
}

#[test]
fn a_file_that_is_cut_off_anywhere_costs_names_only() {
    let directory = sources();
    run(directory.path(), "gcc -O2 -g -o a a.c");
    let path = directory.path().join("a");
    let bytes = fs::read(&path).unwrap();
    let text: Vec<u64> = text_of(&path).step_by(9).collect();
    let whole = names(&module(&path), &text);
    let mut fewer = 0;
    for length in (0..bytes.len()).step_by(211) {
        let cut = file_of(c"cut", &bytes[..length]).unwrap();
        let module = Module::new(0, &cut, b"/cut", Rc::new(Root::ours())).unwrap();
        let mut symbolizer = Symbolizer::default();
        let found = symbolizer.name(&module, &text, later());
        fewer += usize::from(found != whole);
        assert_eq!(symbolizer.left_out().failed, 0);
    }
    assert!(fewer > 20);
    // The sections' content, without section headers that tell where it is, or the other way round.
    let at = usize::from_le_bytes(bytes[40..48].try_into().unwrap());
    for (start, end) in [(64, at), (at, bytes.len())] {
        for step in [3, 64, 1021] {
            let mut bytes = bytes.clone();
            bytes[start..end]
                .iter_mut()
                .step_by(step)
                .for_each(|byte| *byte ^= 0x5a);
            let damaged = file_of(c"damaged", &bytes).unwrap();
            let module = Module::new(0, &damaged, b"/damaged", Rc::new(Root::ours())).unwrap();
            let mut symbolizer = Symbolizer::default();
            symbolizer.name(&module, &text, later());
            assert_eq!(symbolizer.left_out().failed, 0);
        }
    }
}
