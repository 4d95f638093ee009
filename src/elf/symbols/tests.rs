use std::fs::{self, File};
use std::path::Path;

use object::elf::STT_FUNC;

use crate::elf::file::Shape;
use crate::elf::symbols::built::Built;
use crate::elf::symbols::*;
use crate::os::root::Root;

const LIBC: &str = if cfg!(target_arch = "x86_64") {
    "/lib/x86_64-linux-gnu/libc.so.6"
} else {
    "/lib/aarch64-linux-gnu/libc.so.6"
};

/// A library with an allocator's names: exported, hidden and indirect.
const LIBRARY: &str = r#"
    void *malloc(unsigned long n) { return (void *)n; }
    void *again(unsigned long n) __attribute__((alias("malloc")));
    static __attribute__((used)) void free(void *p) { (void)p; }
    __attribute__((used, visibility("hidden"))) void je_malloc(void) {}
    static void *chosen(void) { return malloc; }
    void *calloc(unsigned long n) __attribute__((ifunc("chosen")));
    int realloc = 1;
    void *not_defined(void);
    void *user(void) { return not_defined(); }
"#;

const NAMES: [&str; 7] = [
    "malloc",
    "again",
    "free",
    "je_malloc",
    "calloc",
    "realloc",
    "not_defined",
];

/// The names that were found and their sources, in order.
fn found_in(elf: &ElfFile, companions: Option<Companions>) -> Vec<(&'static str, Source)> {
    let found = find(elf, &Names::new(NAMES), companions).unwrap();
    found
        .functions
        .iter()
        .map(|function| (function.name, function.source))
        .collect()
}

fn found(path: &Path) -> Vec<(&'static str, Source)> {
    let file = File::open(path).unwrap();
    found_in(&ElfFile::open(&file).unwrap(), None)
}

#[test]
fn the_look_up_finds_the_same_functions_as_reading_all_symbols() {
    use object::{Object, ObjectSymbol};
    let names = [
        "malloc",
        "free",
        "cfree",
        "memalign",
        "aligned_alloc",
        "reallocarray",
        "__libc_start_main",
        "pthread_create",
        "memcpy",
        "strlen",
        "errno",
        "stdout",
        "not_there",
    ];
    let bytes = fs::read(LIBC).unwrap();
    let whole = object::File::parse(&*bytes).unwrap();
    let mut expected: Vec<_> = whole
        .dynamic_symbols()
        .filter(|symbol| {
            let object::SymbolFlags::Elf { st_info, .. } = symbol.flags() else {
                return false;
            };
            symbol.is_definition() && st_info.st_type() == STT_FUNC
        })
        .filter(|symbol| names.contains(&symbol.name().unwrap()))
        .map(|symbol| (symbol.name().unwrap(), symbol.address(), symbol.size()))
        .collect();
    expected.sort();
    expected.dedup();
    let elf = ElfFile::in_memory(&*bytes).unwrap();
    let found = find(&elf, &Names::new(names), None).unwrap();
    let mut functions: Vec<_> = found
        .functions
        .iter()
        .map(|function| (function.name, function.address, function.size))
        .collect();
    functions.sort();
    assert_eq!(functions, expected);
    assert!(functions.iter().any(|function| function.0 == "malloc"));
    assert!(exported(&elf, "stdout").is_some() && exported(&elf, "not_there").is_none());
}

#[test]
fn every_kind_of_hash_table_leads_to_the_exported_functions() {
    let built = Built::new();
    let exported = [("malloc", Source::Exported), ("again", Source::Exported)];
    for style in ["gnu", "sysv", "both"] {
        let flag = format!("-Wl,--hash-style={style}");
        let flags = ["-shared", "-fPIC", "-fno-builtin", "-s", &flag];
        let path = built.cc(&format!("{style}.c"), LIBRARY, &flags);
        assert_eq!(found(&path), exported, "{style}");
        // The same without section headers.
        let mut bytes = fs::read(&path).unwrap();
        cut_sections(&mut bytes);
        assert_eq!(
            found_in(&ElfFile::in_memory(&*bytes).unwrap(), None),
            exported
        );
        // The same without any hash table.
        for tag in [object::elf::DT_GNU_HASH, object::elf::DT_HASH] {
            let elf = ElfFile::in_memory(&*bytes).unwrap();
            let dynamic = elf.dynamic();
            let Some(address) = dynamic.get(tag) else {
                continue;
            };
            let entry = [tag.0.to_le_bytes(), address.to_le_bytes()].concat();
            let at = bytes.windows(16).position(|part| part == entry).unwrap();
            bytes[at..at + 8].copy_from_slice(&0x6000_0000_u64.to_le_bytes());
        }
        let mut without = found_in(&ElfFile::in_memory(&*bytes).unwrap(), None);
        without.sort();
        assert_eq!(without, [exported[1], exported[0]], "{style}");
    }
}

/// Removes the section headers, as `sstrip` does.
fn cut_sections(bytes: &mut [u8]) {
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
}

#[test]
fn a_symbol_table_adds_functions_that_are_not_exported() {
    let built = Built::new();
    let path = built.cc("whole.c", LIBRARY, &["-shared", "-fPIC", "-fno-builtin"]);
    let file = File::open(&path).unwrap();
    let elf = ElfFile::open(&file).unwrap();
    let found = find(&elf, &Names::new(NAMES), None).unwrap();
    let mut functions: Vec<_> = found
        .functions
        .iter()
        .map(|function| (function.name, function.local, function.source))
        .collect();
    functions.sort_by_key(|function| function.0);
    assert_eq!(
        functions,
        [
            ("again", false, Source::Exported),
            ("free", true, Source::Symtab),
            ("je_malloc", true, Source::Symtab),
            ("malloc", false, Source::Exported),
        ]
    );
    assert!(found.functions.iter().all(|function| function.size > 0));
}

/// A program that contains the C library's allocator when it is linked statically.
const PROGRAM: &str = "#include <stdlib.h>
    int main(void) { free(malloc(1)); return 0; }";

fn is_found(elf: &ElfFile, companions: Option<Companions>) -> (Option<Source>, bool) {
    let found = find(elf, &Names::new(["malloc"]), companions).unwrap();
    let source = found.functions.first().map(|function| function.source);
    (source, found.has_functions)
}

#[test]
fn a_stripped_static_program_has_no_functions() {
    let built = Built::new();
    for (name, flag, shape) in [
        ("fixed", "-static", Shape::Static),
        ("pie", "-static-pie", Shape::StaticPie),
    ] {
        let path = built.cc(&format!("{name}.c"), PROGRAM, &[flag]);
        let root = Root::ours();
        let companions = Companions {
            root: &root,
            path: &path,
        };
        let file = File::open(&path).unwrap();
        let elf = ElfFile::open(&file).unwrap();
        assert_eq!(elf.shape(), shape);
        assert_eq!(
            is_found(&elf, Some(companions)),
            (Some(Source::Symtab), true)
        );
        built.run("strip", [&path]);
        let file = File::open(&path).unwrap();
        let elf = ElfFile::open(&file).unwrap();
        assert_eq!(is_found(&elf, Some(companions)), (None, false), "{name}");
        assert_eq!(elf.shape(), shape);
    }
}

#[test]
fn shapes_of_dynamic_files_are_told_apart() {
    let shape = |path: &str| {
        let file = File::open(path).unwrap();
        ElfFile::open(&file).unwrap().shape()
    };
    assert_eq!(shape("/bin/sh"), Shape::Dynamic);
    let built = Built::new();
    let library = built.cc("library.c", LIBRARY, &["-shared", "-fPIC", "-fno-builtin"]);
    assert_eq!(shape(library.to_str().unwrap()), Shape::Library);
}

/// Packs a program's symbols into `.gnu_debugdata`, and strips it, as Fedora's find-debuginfo does.
const PACK: &str = "
    nm whole --format=posix --defined-only | awk '$2 ~ /[TtWw]/ {print $1}' | sort > keep
    objcopy --only-keep-debug whole debug
    objcopy -S --remove-section .gdb_index --remove-section .comment --keep-symbols=keep debug mini
    xz mini
    cp whole packed
    strip packed
    objcopy --add-section .gnu_debugdata=mini.xz packed";

#[test]
fn packed_symbols_are_found() {
    let built = Built::new();
    built.cc("whole.c", PROGRAM, &["-static"]);
    built.run("sh", ["-ec", PACK]);
    let (packed, whole) = (built.path("packed"), built.path("whole"));
    let root = Root::ours();
    let companions = Companions {
        root: &root,
        path: &packed,
    };
    let file = File::open(&packed).unwrap();
    let elf = ElfFile::open(&file).unwrap();
    assert_eq!(
        is_found(&elf, Some(companions)),
        (Some(Source::DebugData), true)
    );
    // Without companions the packed symbols are not read.
    assert_eq!(is_found(&elf, None).0, None);
    let address = |path: &Path| {
        let file = File::open(path).unwrap();
        let elf = ElfFile::open(&file).unwrap();
        let found = find(&elf, &Names::new(["free"]), Some(companions)).unwrap();
        found.functions[0].address
    };
    assert_eq!(address(&packed), address(&whole));
}

#[test]
fn a_debug_file_of_the_same_build_is_found_below_the_root() {
    let built = Built::new();
    let flags = ["-static", "-Wl,--build-id=0xabcdef0123456789"];
    built.cc("whole.c", PROGRAM, &flags);
    let script = "
        objcopy --only-keep-debug whole whole.debug
        strip -o stripped whole
        objcopy --add-gnu-debuglink=whole.debug stripped
        mkdir -p usr/lib/debug/.build-id/ab bin/.debug usr/lib/debug/bin";
    built.run("sh", ["-ec", script]);
    let path = built.path("stripped");
    let root = Root::at(built.0.path()).unwrap();
    let companions = Companions {
        root: &root,
        path: Path::new("/bin/stripped"),
    };
    let file = File::open(&path).unwrap();
    let elf = ElfFile::open(&file).unwrap();
    assert_eq!(is_found(&elf, Some(companions)), (None, false));
    for place in [
        "usr/lib/debug/.build-id/ab/cdef0123456789.debug",
        "bin/whole.debug",
        "bin/.debug/whole.debug",
        "usr/lib/debug/bin/whole.debug",
    ] {
        let place = built.path(place);
        fs::copy(built.path("whole.debug"), &place).unwrap();
        assert_eq!(
            is_found(&elf, Some(companions)),
            (Some(Source::DebugFile), true),
            "{}",
            place.display()
        );
        // A debug file of another build is not taken.
        let mut bytes = fs::read(&place).unwrap();
        let id = [0xab, 0xcd, 0xef, 0x01, 0x23];
        let at = bytes.windows(5).position(|part| part == id).unwrap();
        bytes[at] = 0;
        fs::write(&place, bytes).unwrap();
        assert_eq!(is_found(&elf, Some(companions)).0, None);
        fs::remove_file(&place).unwrap();
    }
}
