//! Files that are cut off or changed at any place. Whatever such a file contains, memleak reads it in bounded time and
//! with little memory.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use memleak::elf::file::ElfFile;
use memleak::elf::frames::CallFrame;
use memleak::elf::symbols::{self, Companions, Names};
use memleak::elf::unwind::UnwindTable;
use memleak::find::findings::find_sites;
use memleak::find::functions::Table;
use memleak::find::hooks;
use memleak::os::root::Root;
use memleak::stacks::file_rules::FileRules;
use tempfile::TempDir;

use crate::inputs::assert_in_order;
use crate::{LONGEST, alone};

/// The longest block that may be allocated: a table of section headers.
const ENOUGH: usize = 8 << 20;

/// The longest block that unpacking may allocate: its dictionary.
const ENOUGH_TO_UNPACK: usize = 65 << 20;

/// The time that one call of `look` may take, in a build that is not optimised.
const LONG: Duration = Duration::from_secs(2);

fn names() -> Names<'static> {
    Names::new([
        "malloc",
        "calloc",
        "realloc",
        "free",
        "posix_memalign",
        "_rjem_malloc",
        "je_free",
        "_Znwm",
    ])
}

fn table() -> Table {
    Table::new(Vec::new()).unwrap()
}

/// Reads the file with every function that reads such files.
fn look(bytes: &[u8], names: &Names) {
    let began = Instant::now();
    if let Ok(elf) = ElfFile::in_memory(bytes) {
        let root = Root::ours();
        let companions = Companions {
            root: &root,
            path: Path::new("/nowhere/file"),
        };
        let _ = symbols::find(&elf, names, Some(companions));
        let _ = hooks::loader_hooks(
            &elf,
            memleak::elf::symbols::exported(&elf, hooks::DEBUG_STATE),
        );
        let _ = symbols::exported(&elf, "_rtld_global");
        let _ = (elf.shape(), elf.interpreter(), elf.build_id());
        let _ = UnwindTable::read(&elf);
        assert_in_order(&FileRules::read(&elf), bytes.len());
        let starts = elf.segments().iter().map(|segment| segment.address + 64);
        let _ = CallFrame::of(&elf, &starts.collect::<Vec<_>>());
    }
    let took = began.elapsed();
    assert!(took < LONG, "reading took {took:?}");
}

/// Pseudo-random numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// The parts whose values the reader relies on: headers, dynamic section, hash tables, notes, tables for
/// exceptions.
fn believed(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let elf = ElfFile::in_memory(bytes).unwrap();
    let sections = usize::from_le_bytes(bytes[40..48].try_into().unwrap());
    let mut places = vec![
        0..64 + 56 * elf.segments().len(),
        sections..sections + 64 * elf.sections().len(),
    ];
    for name in [
        ".dynamic",
        ".gnu.hash",
        ".hash",
        ".note.stapsdt",
        ".note.gnu.build-id",
        ".gnu_debuglink",
        ".gnu_debugdata",
        ".shstrtab",
        ".eh_frame_hdr",
        ".eh_frame",
        ".debug_frame",
        ".gcc_except_table",
    ] {
        if let Some(section) = elf.section_named(name) {
            let range = section.range();
            places.push(range.start as usize..range.end.min(range.start + 4096) as usize);
        }
    }
    places.retain(|place| place.end <= bytes.len() && !place.is_empty());
    places
}

fn has_section(bytes: &[u8], name: &str) -> bool {
    ElfFile::in_memory(bytes).is_ok_and(|elf| elf.section_named(name).is_some())
}

/// Changes one to four bytes, reads the file, and restores the bytes. Repeats this `rounds` times.
fn flip(mut bytes: Vec<u8>, rounds: usize) {
    let names = names();
    let places = believed(&bytes);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        let mut changed = Vec::new();
        for _ in 0..=numbers.below(4) {
            let place = &places[numbers.below(places.len())];
            let at = place.start + numbers.below(place.len());
            changed.push((at, bytes[at]));
            bytes[at] = match numbers.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ 1 << numbers.below(8),
                _ => numbers.below(256) as u8,
            };
        }
        look(&bytes, &names);
        for (at, was) in changed.into_iter().rev() {
            bytes[at] = was;
        }
    }
}

fn run(directory: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn a_damaged_file_is_read_in_bounded_time_and_memory() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    run(
        directory.path(),
        r#"
        echo 'void *malloc(unsigned long n) { return 0; } void free(void *p) {}' > small.c
        cc -shared -fPIC -fno-builtin -nostdlib -Wl,--hash-style=both -Wl,--build-id -o small small.c
        cc -g -fno-asynchronous-unwind-tables -shared -fPIC -fno-builtin -nostdlib -o debug_frame small.c
        objcopy --only-keep-debug small debug
        xz -k debug
        objcopy -S --add-section .gnu_debugdata=debug.xz small packed
        echo 'int main(void) { return 0; }' > main.c
        cc -static -o static main.c"#,
    );
    let small = fs::read(path("small")).unwrap();
    let packed = fs::read(path("packed")).unwrap();
    let libc = fs::read("/proc/self/maps")
        .map(|maps| String::from_utf8_lossy(&maps).into_owned())
        .unwrap();
    let libc = libc
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"))
        .expect("the tests run with glibc");
    let libc = fs::read(libc).unwrap();
    let whole = fs::read(path("static")).unwrap();
    let names = names();

    LONGEST.store(0, Relaxed);
    for length in 0..small.len() {
        look(&small[..length], &names);
    }
    let cut = path("cut");
    for length in (0..small.len()).step_by(97) {
        fs::write(&cut, &small[..length]).unwrap();
        let file = fs::File::open(&cut).unwrap();
        let _ = find_sites(&file, &cut, &Root::ours(), &table());
    }
    flip(small, 1500);
    let debug_frame = fs::read(path("debug_frame")).unwrap();
    assert!(has_section(&debug_frame, ".debug_frame"));
    flip(debug_frame, 700);
    flip(libc, 600);
    flip(whole, 30);
    assert!(LONGEST.load(Relaxed) <= ENOUGH, "{LONGEST:?}");

    flip(packed.clone(), 500);
    for length in (0..packed.len()).step_by(29) {
        look(&packed[..length], &names);
    }
    let longest = LONGEST.load(Relaxed);
    assert!(longest <= ENOUGH_TO_UNPACK, "{longest}");

    // A sparse file with tables of terabytes.
    LONGEST.store(0, Relaxed);
    let mut sparse = whole_with_endless_tables(&fs::read(path("small")).unwrap());
    let huge = path("huge");
    let mut file = fs::File::create(&huge).unwrap();
    file.write_all(&sparse).unwrap();
    file.set_len(1 << 42).unwrap();
    sparse.clear();
    let began = Instant::now();
    let file = fs::File::open(&huge).unwrap();
    let _ = find_sites(&file, &huge, &Root::ours(), &table());
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    assert!(LONGEST.load(Relaxed) <= ENOUGH, "{LONGEST:?}");
}

/// The file with a size of 2^41 bytes for every section.
fn whole_with_endless_tables(small: &[u8]) -> Vec<u8> {
    let mut bytes = small.to_vec();
    let elf = ElfFile::in_memory(small).unwrap();
    let start = usize::from_le_bytes(small[40..48].try_into().unwrap());
    for index in 0..elf.sections().len() {
        let at = start + index * 64 + 32;
        bytes[at..at + 8].copy_from_slice(&(1_u64 << 41).to_le_bytes());
    }
    bytes
}
