//! Debug information and symbols that are made to take much time or memory: small files that stand for much.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use memleak::elf::file::ElfFile;
use memleak::os::{memory_file, root::Root};
use memleak::stacks::module::Module;
use memleak::stacks::symbols::Symbolizer;

use crate::{HELD, MOST, inputs};

/// The first address of the code.
const CODE: u64 = 0x1000;
/// Bytes of code.
const SIZE: u64 = 0x1000;

/// A section: its name, type, flags and content.
type Part<'a> = (&'a str, u32, u64, Vec<u8>);

const PROGBITS: u32 = 1;
const STRTAB: u32 = 3;
const SYMTAB: u32 = 2;
const COMPRESSED: u64 = 1 << 11;

/// An ELF file with these sections. The section behind a symbol table has its names.
fn elf(parts: &[Part]) -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    };
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend(3_u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    let mut names = vec![0];
    let mut headers = vec![[0_u64; 8]];
    let mut content = Vec::new();
    let start = 64 + 56;
    let mut all: Vec<Part> = parts.to_vec();
    all.push((".names", STRTAB, 0, Vec::new()));
    let last = all.len() - 1;
    for (at, (name, kind, flags, part)) in all.into_iter().enumerate() {
        let name_at = names.len() as u64;
        names.extend(name.as_bytes());
        names.push(0);
        let part = if at == last { names.clone() } else { part };
        let offset = (start + content.len()) as u64;
        let (link, entry) = if kind == SYMTAB {
            (at as u64 + 2, 24)
        } else {
            (0, 0)
        };
        let size = part.len() as u64;
        headers.push([
            name_at | u64::from(kind) << 32,
            flags,
            0,
            offset,
            size,
            link,
            1,
            entry,
        ]);
        content.extend(part);
    }
    for word in [0, 64, (start + content.len()) as u64] {
        bytes.extend(u64::to_le_bytes(word));
    }
    bytes.extend([0; 4]);
    for half in [
        64,
        56,
        1,
        64,
        headers.len() as u16,
        headers.len() as u16 - 1,
    ] {
        bytes.extend(half.to_le_bytes());
    }
    // One segment of code.
    for word in [1 | 5 << 32, 0, CODE, CODE, SIZE, SIZE, 1] {
        bytes.extend(u64::to_le_bytes(word));
    }
    bytes.extend(content);
    bytes.extend(headers.iter().flatten().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// A unit of version 4: the header, and these entries.
fn unit(entries: &[u8]) -> Vec<u8> {
    let mut bytes = (entries.len() as u32 + 7).to_le_bytes().to_vec();
    bytes.extend([4, 0, 0, 0, 0, 0, 8]);
    bytes.extend(entries);
    bytes
}

/// 1: a compilation unit with its addresses, its line program and its name. 2: a function with ranges. 3: an inlined function with
/// ranges and an origin, which has children. 4: a function with an origin.
const ABBREVIATIONS: &[u8] = &[
    1, 0x11, 1, 0x11, 1, 0x12, 7, 0x10, 0x17, 3, 8, 0, 0, //
    2, 0x2e, 1, 0x55, 0x17, 0, 0, //
    3, 0x1d, 1, 0x55, 0x17, 0x31, 0x13, 0, 0, //
    4, 0x2e, 0, 0x11, 1, 0x12, 7, 0x31, 0x13, 0, 0, 0,
];

/// The entry of a unit with all of the code.
fn root() -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend(CODE.to_le_bytes());
    bytes.extend(SIZE.to_le_bytes());
    bytes.extend(b"\0\0\0\0unit\0");
    bytes
}

/// A list of ranges that has the code many times.
fn ranges(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(SIZE.to_le_bytes());
    }
    bytes.extend([0; 16]);
    bytes
}

fn with_info(info: Vec<u8>, more: &[Part]) -> Vec<u8> {
    let mut parts: Vec<Part> = vec![
        (".debug_info", PROGBITS, 0, info),
        (".debug_abbrev", PROGBITS, 0, ABBREVIATIONS.to_vec()),
    ];
    parts.extend_from_slice(more);
    elf(&parts)
}

/// The inputs and their names.
pub fn nasty() -> Vec<(&'static str, Vec<u8>)> {
    let many_ranges = [(".debug_ranges", PROGBITS, 0, ranges(20_000))];
    let one_range = [(".debug_ranges", PROGBITS, 0, ranges(1))];
    let functions = [root(), [2, 0, 0, 0, 0].repeat(50_000)].concat();
    let nested = [
        root(),
        vec![2, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 11, 0, 0, 0].repeat(50_000),
    ]
    .concat();
    let mut circle = root();
    let itself = 11 + circle.len() as u32;
    circle.push(4);
    circle.extend(CODE.to_le_bytes());
    circle.extend(SIZE.to_le_bytes());
    circle.extend(itself.to_le_bytes());

    // Version 5, with a list of files that each take one byte.
    let mut lines = Vec::new();
    lines.extend([1, 1, 1, 0xfb, 14, 1, 1, 1, 0x0f, 1, 0, 1, 1, 0x0f]);
    lines.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    let header = |mut rest: Vec<u8>, length: usize| {
        rest.resize(length, 0);
        let mut bytes = (length as u32 + 8).to_le_bytes().to_vec();
        bytes.extend([5, 0, 8, 0]);
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend(rest);
        bytes
    };
    let of_lines = |length| [(".debug_line", PROGBITS, 0, header(lines.clone(), length))];

    // Each unit has the same table of 200,000 abbreviations.
    let mut abbreviations = Vec::new();
    for code in 1..200_000_u32 {
        abbreviations.extend([
            code as u8 & 0x7f | 0x80,
            (code >> 7) as u8 & 0x7f | 0x80,
            (code >> 14) as u8,
        ]);
        abbreviations.extend([0x11, 0, 0, 0]);
    }
    let units = unit(&[1]).repeat(20_000);

    // Symbols that each have all of the code.
    let mut symbols = Vec::new();
    for _ in 0..300_000 {
        symbols.extend([1, 0, 0, 0, 0x12, 0, 1, 0]);
        symbols.extend(CODE.to_le_bytes());
        symbols.extend(SIZE.to_le_bytes());
    }

    let packed = |claimed: u64, zeros: usize| {
        let mut bytes = [1_u32.to_le_bytes(), [0; 4]].concat();
        bytes.extend(claimed.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(miniz_oxide::deflate::compress_to_vec_zlib(
            &vec![0; zeros],
            6,
        ));
        elf(&[(".debug_info", PROGBITS, COMPRESSED, bytes)])
    };
    vec![
        (
            "ranges for each function",
            with_info(unit(&functions), &many_ranges),
        ),
        (
            "functions inlined in each other",
            with_info(unit(&nested), &one_range),
        ),
        (
            "a function that is its own origin",
            with_info(unit(&circle), &[]),
        ),
        (
            "source files without an end",
            with_info(unit(&root()), &of_lines(250 << 10)),
        ),
        (
            "source files in a long header",
            with_info(unit(&root()), &of_lines(8 << 20)),
        ),
        (
            "abbreviations for each unit",
            elf(&[
                (".debug_info", PROGBITS, 0, units),
                (".debug_abbrev", PROGBITS, 0, abbreviations),
            ]),
        ),
        (
            "symbols at one place",
            elf(&[
                (".symtab", SYMTAB, 0, symbols),
                (".strtab", STRTAB, 0, b"\0name\0".to_vec()),
            ]),
        ),
        ("a packed section of terabytes", packed(1 << 42, 1 << 20)),
        (
            "a packed section longer than it says",
            packed(1 << 10, 100 << 20),
        ),
        ("a packed section of nothing", packed(30 << 20, 30 << 20)),
    ]
}

/// What such a file says is understood, so that the inputs above reach what they are made for.
#[test]
fn the_files_are_read_as_debug_information() {
    let _alone = crate::alone();
    let symbols = [
        [1, 0, 0, 0, 0x12, 0, 1, 0],
        CODE.to_le_bytes(),
        SIZE.to_le_bytes(),
    ]
    .concat();
    let inlined = [
        root(),
        vec![2, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 11, 0, 0, 0].repeat(3),
    ]
    .concat();
    let more = [
        (".debug_ranges", PROGBITS, 0, ranges(1)),
        (".symtab", SYMTAB, 0, symbols),
        (".strtab", STRTAB, 0, b"\0name\0".to_vec()),
    ];
    let bytes = with_info(unit(&inlined), &more);
    let file = memory_file::file_of(c"file", &bytes).unwrap();
    let module = Module::new(0, &file, b"/file", Rc::new(Root::ours())).unwrap();
    let later = Instant::now() + Duration::from_secs(60);
    let names = Symbolizer::default().name(&module, &[CODE, CODE + SIZE], later);
    let linkages: Vec<_> = names[0].iter().map(|named| &named.linkage).collect();
    // The origin of what is inlined is the unit's entry.
    assert_eq!(linkages, ["unit", "unit", "unit", "name"]);
    assert!(names[1].is_empty());
}

#[test]
fn damaged_debug_information_is_read_in_bounded_time_and_memory() {
    const SOURCE: &str = "volatile long total;
        static inline __attribute__((always_inline)) long twice(long n) { total += n; return 2 * n; }
        __attribute__((noinline)) long work(long n) { return twice(n) + twice(total); }
        void _start(void) { total = work(work(3)); for (;;) ; }";
    let _alone = crate::alone();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.c"), SOURCE).unwrap();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let built = std::process::Command::new("gcc")
            .args([
                "-O2",
                "-g",
                version,
                "-nostdlib",
                "-static",
                "-o",
                "a",
                "a.c",
            ])
            .current_dir(directory.path())
            .status();
        assert!(built.unwrap().success());
        let mut bytes = std::fs::read(directory.path().join("a")).unwrap();
        let elf = ElfFile::in_memory(bytes.clone()).unwrap();
        let sections = [
            ".debug_info",
            ".debug_abbrev",
            ".debug_line",
            ".debug_str",
            ".symtab",
        ];
        let found = sections.iter().filter_map(|name| elf.section_named(name));
        let places: Vec<usize> = found
            .flat_map(|section| section.range().start as usize..section.range().end as usize)
            .collect();
        assert!(places.len() > 1000, "{}", places.len());
        MOST.store(HELD.load(Relaxed), Relaxed);
        let before = MOST.load(Relaxed);
        let mut state = 1_u64;
        for _ in 0..500 {
            let mut changed = Vec::new();
            for _ in 0..3 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = places[(state >> 33) as usize % places.len()];
                changed.push((at, bytes[at]));
                bytes[at] = match state >> 62 {
                    0 => 0,
                    1 => 0xff,
                    _ => (state >> 20) as u8,
                };
            }
            let began = Instant::now();
            inputs::symbols(&bytes);
            assert!(began.elapsed() < Duration::from_secs(5));
            for (at, byte) in changed.into_iter().rev() {
                bytes[at] = byte;
            }
        }
        let most = MOST.load(Relaxed) - before;
        assert!(most < 64 << 20, "{most}");
    }
}
