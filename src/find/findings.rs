//! Finds a file's allocator functions, and where in each its probe goes. Reads one ELF file. Attaching the probes
//! is left to `kernel`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::elf::file::ElfFile;
use crate::elf::symbols::{self, Companions, FunctionSymbol, Names, Source};
use crate::find::exceptions::{CPP, Exceptions};
use crate::find::exit_frames::{EXIT, ExitFunctions};
use crate::find::functions::{Family, FileTable, Table};
use crate::find::heaps::{self, Marks};
use crate::find::hooks::{self, LoaderHooks};
use crate::find::role::Role;
use crate::find::sites::{self, FoundFunction, ProbeSite};
use crate::lost::Allocators;
use crate::os::root::Root;

/// What a file's symbols say about its allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub sites: Vec<ProbeSite>,
    /// The functions that every C library must define and this file does not.
    pub missing: Vec<&'static str>,
    /// The user's functions that this file should define and does not, each with the description that names
    /// it.
    pub user_missing: Vec<(String, String)>,
    /// Whether the file's functions give out blocks and take them back. A static program need not free.
    allocates: bool,
    /// Whether the file is a static program. A static program never calls a function that it lacks.
    pub is_static: bool,
    /// Whether the file is a static program for which neither a symbol table nor debug data names any function. It
    /// may have an allocator all the same.
    pub stripped: bool,
    /// Whether the file is a dynamic loader.
    pub is_loader: bool,
    /// Where a loader reports what it has mapped, before any code of the mapped files runs.
    pub loader_hooks: LoaderHooks,
    /// Whether the file starts programs, as the C library does.
    pub is_libc: bool,
    /// The offsets in the file of the functions that end a process at once.
    pub exits: Vec<u64>,
    /// By which functions it ends a process.
    pub exit_functions: ExitFunctions,
    /// Where its allocator keeps its blocks.
    pub heap: Allocators,
}

impl Findings {
    /// Whether the file is an allocator. A loader's own allocator (glibc's up to 2.30 exports it) serves only the
    /// loader, until the C library is mapped. musl's loader is the C library.
    pub fn is_allocator(&self) -> bool {
        self.allocates && (!self.is_loader || self.is_libc)
    }

    /// Whether a file with these findings gets probes.
    pub fn is_probed(&self) -> bool {
        self.is_allocator() || !self.loader_hooks.cheap.is_empty()
    }
}

/// The function that identifies a C library. A loader that exports it is a C library.
const START: &str = "__libc_start_main";

/// The functions that end a process at once: everything that ends it otherwise calls one of them. They are one function
/// in glibc and two in musl.
const EXITS: [&str; 2] = ["_exit", "_Exit"];

/// Looks for the functions of a table in an open ELF file. `path` is the file's path below `root`, as the processes
/// that map the file see it. It is used in messages, and to find debug data that was split off the file.
///
/// # Errors
/// The file is not an ELF file for this machine ([`Unreadable`] names its class), or is damaged.
///
/// [`Unreadable`]: crate::elf::file::Unreadable
pub fn find_sites(file: &File, path: &Path, root: &Root, table: &Table) -> Result<Findings> {
    let elf = ElfFile::open(file).with_context(|| format!("cannot read {}", path.display()))?;
    let role = Role::of(&elf);
    let is_static = role == Role::Program && !elf.has_interpreter();
    let table = table.for_file(path, file);
    let names = Names::new(
        table
            .symbols()
            .chain([hooks::DEBUG_STATE, START, CPP, EXIT])
            .chain(EXITS)
            .chain(heaps::MARKS),
    );
    // A library's users find its functions by its exported symbols. A program's own functions need no exported names.
    let companions = (role == Role::Program).then_some(Companions { root, path });
    let found = symbols::find(&elf, &names, companions)
        .with_context(|| format!("cannot read the symbols of {}", path.display()))?;
    let exported = |name| {
        let mut functions = found.functions.iter();
        let exported =
            functions.find(|found| found.source == Source::Exported && found.name == name);
        exported.map(|function| function.address)
    };
    let debug_state = exported(hooks::DEBUG_STATE);
    // A static program has much of a loader in itself, and may export it.
    let is_loader = role == Role::Library
        && (debug_state.is_some() || symbols::exported(&elf, "_rtld_global").is_some());
    let is_libc = exported(START).is_some();
    let ends = |function: &&FunctionSymbol| {
        let is_own = is_static || (is_libc && function.source == Source::Exported);
        EXITS.contains(&function.name) && is_own
    };
    let ends = found.functions.iter().filter(ends);
    let at_once: Vec<u64> = ends.map(|function| function.address).collect();
    let exits = at_once.iter();
    let exits = exits.filter_map(|&address| hooks::offset_of(&elf, address));
    let exits: BTreeSet<u64> = exits.collect();
    let orderly = found.functions.iter();
    let orderly = orderly.filter(|function| function.name == EXIT && !function.local);
    let orderly = orderly.map(|function| function.address).collect();
    let functions = by_address(&found.functions, is_static, role, &table);
    let rows = functions.values().map(|found| &found.row);
    let mut families = rows.clone().map(|row| row.family);
    let named_by_user = families.any(|family| matches!(family, Family::User(_)));
    let has_malloc = rows
        .clone()
        .any(|row| row.family == Family::Prefix("") && row.name == "malloc");
    let allocates = named_by_user || sites::is_allocator(rows.clone()) || (is_static && has_malloc);
    let names = found.functions.iter().map(|function| function.name);
    let marks: Vec<_> = names.filter(|name| heaps::MARKS.contains(name)).collect();
    let marks = Marks {
        found: &marks,
        is_libc,
        is_static,
        has_malloc,
        named_by_user,
    };
    let missing = table.missing(rows.clone());
    let user_missing = table.user_missing(rows);
    let cpp = found.functions.iter().filter(|found| found.name == CPP);
    let exceptions = Exceptions::new(&elf, cpp.map(|found| found.address).collect());
    Ok(Findings {
        sites: sites::place(&elf, path, role, is_libc, functions, &table, &exceptions)?,
        missing,
        user_missing,
        allocates,
        is_static,
        stripped: is_static && !found.has_functions,
        is_loader,
        loader_hooks: match is_loader {
            true => hooks::loader_hooks(&elf, debug_state),
            false => LoaderHooks::default(),
        },
        is_libc,
        exits: exits.into_iter().collect(),
        exit_functions: ExitFunctions { orderly, at_once },
        heap: heaps::kind(&marks),
    })
}

/// The functions that the table names, by address.
fn by_address(
    functions: &[FunctionSymbol],
    is_static: bool,
    role: Role,
    table: &FileTable<'_>,
) -> BTreeMap<u64, FoundFunction> {
    let mut found: BTreeMap<u64, (usize, FoundFunction)> = BTreeMap::new();
    for function in functions {
        let Some((row, rank)) = table.find(function.name) else {
            continue;
        };
        // In a static program the linker makes hidden functions local. In other files a local function with a common
        // name is the file's own, not the C library's.
        let local =
            function.local || (role == Role::Library && function.source != Source::Exported);
        if local && !is_static && !row.may_be_local() {
            continue;
        }
        // Of several names at one address, the name whose row comes first counts.
        if (found.get(&function.address)).is_none_or(|(other, _)| rank < *other) {
            let named = FoundFunction {
                row: row.clone(),
                symbol: function.name.to_owned(),
                size: function.size,
            };
            found.insert(function.address, (rank, named));
        }
    }
    let named = found.into_iter();
    named
        .map(|(address, (_, found))| (address, found))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::file::{Class, Unreadable};
    use crate::find::functions::ProbeProgram;
    use crate::find::notation::{self, Spec, Verb};
    use std::fs;

    fn findings(path: &Path) -> Result<Findings> {
        find_sites(
            &File::open(path)?,
            path,
            &Root::ours(),
            &Table::new(Vec::new()).unwrap(),
        )
    }

    /// A library with these functions.
    fn library(directory: &Path, names: &[&str]) -> Findings {
        let path = directory.join("library");
        let source: String = names
            .iter()
            .map(|name| format!("void {name}(void) {{}}\n"))
            .collect();
        let source_path = directory.join("library.c");
        fs::write(&source_path, source).unwrap();
        let output = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-o"])
            .args([&path, &source_path])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        findings(&path).unwrap()
    }

    #[test]
    fn a_loader_is_an_allocator_only_if_it_is_the_c_library() {
        let directory = tempfile::tempdir().unwrap();
        let library = |names: &[&str]| library(directory.path(), names);
        assert!(library(&["malloc", "free"]).is_allocator());
        // As glibc's loaders until 2.30.
        for mark in ["_dl_debug_state", "_rtld_global"] {
            let loader = library(&["malloc", "free", mark]);
            assert!(loader.is_loader && !loader.is_allocator(), "{mark}");
        }
        // As musl's loader.
        let loader = library(&["malloc", "free", "_dl_debug_state", START]);
        assert!(loader.is_loader && loader.is_libc && loader.is_allocator());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_loaders_of_this_system_are_recognised() {
        let glibc = findings(Path::new("/lib64/ld-linux-x86-64.so.2")).unwrap();
        assert!(glibc.is_loader && !glibc.is_allocator());
        let musl = findings(Path::new("/lib/ld-musl-x86_64.so.1")).unwrap();
        assert!(musl.is_loader && musl.is_allocator());
    }

    /// The library's other functions allocate as a program does.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_allocator_is_a_small_part_of_a_c_library() {
        for path in [
            "/lib64/libc.so.6",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib/ld-musl-x86_64.so.1",
        ] {
            let path = Path::new(path);
            if !path.exists() && path.ends_with("libc.so.6") {
                // A system has it in one of these directories.
                continue;
            }
            let sites = findings(path).unwrap().sites;
            let of_allocator = sites
                .iter()
                .filter(|site| site.row.action.verb != Verb::Start);
            let parts: BTreeSet<_> = of_allocator
                .map(|site| {
                    assert!(
                        site.own_before <= site.text_before && site.own_after <= site.text_after
                    );
                    (
                        site.file_offset - site.own_before,
                        site.file_offset + site.own_after,
                    )
                })
                .collect();
            let [(start, end)] = parts.into_iter().collect::<Vec<_>>()[..] else {
                panic!("the functions have one part: {}", path.display());
            };
            let text = sites[0].text_before + sites[0].text_after;
            assert!((end - start) * 10 < text, "{} of {text}", end - start);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_file_full_of_calls_is_examined_within_ten_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("library");
        let script = r#"
            for name in malloc calloc realloc free memalign aligned_alloc posix_memalign valloc; do
                printf '.globl %s; .type %s,@function\n%s:\n.rept 3000\ncall 1f\n1:\n.endr\nret\n' \
                    je_$name je_$name je_$name
            done | cc -shared -nostdlib -x assembler -o "$0" -"#;
        let made = std::process::Command::new("sh")
            .args(["-ec", script])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let began = std::time::Instant::now();
        let found = findings(&path).unwrap();
        assert!(found.is_allocator() && found.sites.len() == 8);
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    /// The functions of the program that have a return probe. The program is made of these C++ sources, each with the
    /// compiler's flags for it. It names its functions `new_...`.
    #[cfg(target_arch = "x86_64")]
    fn with_return_probe(flags: &[&str], parts: [(&str, &str); 2]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let output = std::process::Command::new("c++")
                .arg("-std=gnu++17")
                .args(arguments)
                .current_dir(directory.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        for (name, (flags, source)) in ["a", "b"].into_iter().zip(parts) {
            fs::write(directory.path().join(format!("{name}.cc")), source).unwrap();
            let arguments: Vec<&str> = flags.split_whitespace().collect();
            let file = format!("{name}.cc");
            run(&[&["-c", "-O2", &file], &arguments[..]].concat());
        }
        run(&[&["-o", "program", "a.o", "b.o"], flags].concat());
        let names: Vec<&str> = parts
            .iter()
            .flat_map(|(_, source)| source.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .filter(|word| word.starts_with("new_"))
            .collect();
        let spec = format!("program:new={},free=gives_back", names.join(",new="));
        let Spec::One(own) = notation::parse(&spec).unwrap() else {
            panic!("{spec}");
        };
        let path = directory.path().join("program");
        let table = Table::new(vec![own]).unwrap();
        let found = find_sites(&File::open(&path).unwrap(), &path, &Root::ours(), &table).unwrap();
        let mut probed: Vec<String> = found
            .sites
            .into_iter()
            .filter(|site| site.row.action.program() == ProbeProgram::EntryReturn)
            .map(|site| site.symbol)
            .collect();
        probed.retain(|symbol| symbol.starts_with("new_") || symbol.starts_with("_Zn"));
        probed.sort_unstable();
        probed
    }

    /// Functions of which an exception leaves some, and their caller.
    #[cfg(target_arch = "x86_64")]
    const WITH_TABLES: &str = r#"
        extern "C" {
        extern void *(*volatile any)(unsigned long);
        extern int state;
        void more();
        void *new_calls(unsigned long n) { void *p = any(n); more(); return p; }
        void *new_calls_nothing(unsigned long n) { return reinterpret_cast<void *>(n * state); }
        void *new_ends(unsigned long n) noexcept { void *p = any(n); more(); return p; }
        void *new_catches_all(unsigned long n) noexcept { try { return any(n); } catch (...) { more(); return 0; } }
        void *new_catches_one(unsigned long n) { try { return any(n); } catch (int) { more(); return 0; } }
        void *new_handler_throws(unsigned long n) { try { return any(n); } catch (...) { more(); return 0; } }
        void *new_rethrows(unsigned long n) { try { return any(n); } catch (...) { more(); throw; } }
        void *new_throws(unsigned long n) { if (n) throw 1; return 0; }
        void gives_back(void *p) { if (p) state++; }
        int main() { new_throws(state); }
        }"#;

    /// Functions for which the unwinder has no table.
    #[cfg(target_arch = "x86_64")]
    const WITHOUT_TABLES: &str = r#"
        extern "C" {
        void *bare(unsigned long n) { return reinterpret_cast<void *>(n); }
        void *(*volatile any)(unsigned long) = bare;
        void *(*changed)(unsigned long) = bare;
        int state;
        void more() { state++; }
        void *new_calls(unsigned long n);
        void *new_bare_calls(unsigned long n) { void *p = any(n); more(); return p; }
        void *new_bare_jumps(unsigned long n) { return any(n); }
        void *new_bare_jumps_to_what_is_set(unsigned long n) { return changed(n); }
        void *new_bare_jumps_to_bare(unsigned long n) { if (n) return bare(n); return 0; }
        void *new_bare_jumps_to_one_that_throws(unsigned long n) { return new_calls(n + 1); }
        void *new_bare_switch(unsigned long n) {
            switch (state) {
            case 0: any(1); any(n); break;
            case 1: any(n); more(); break;
            case 2: any(3); state = 4; break;
            case 3: more(); any(2); break;
            case 4: state = 7; break;
            case 5: any(9); more(); more(); break;
            }
            void *p = any(n);
            more();
            return p;
        }
        }
        namespace std { struct nothrow_t; enum class align_val_t : unsigned long {}; }
        void *operator new(unsigned long n) { return any(n); }
        void *operator new(unsigned long n, const std::nothrow_t &) noexcept { return any(n); }
        void *operator new(unsigned long n, std::align_val_t, const std::nothrow_t &) noexcept {
            return reinterpret_cast<void *>(n); }
        "#;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_function_has_a_return_probe_if_no_exception_leaves_it() {
        let expected = [
            "_ZnwmRKSt9nothrow_t",
            "_ZnwmSt11align_val_tRKSt9nothrow_t",
            "new_bare_calls",
            "new_bare_jumps_to_bare",
            "new_calls_nothing",
            "new_catches_all",
            "new_ends",
        ];
        let bare = "-fno-exceptions -fno-asynchronous-unwind-tables -fno-inline -fno-ipa-icf";
        for flags in [&[][..], &["-no-pie"], &["-static"], &["-static-pie"]] {
            for more in ["", " -fcf-protection"] {
                let flags_of = |part: &str| format!("-fPIE {part} {more}");
                let parts = [
                    (&*flags_of(""), WITH_TABLES),
                    (&*flags_of(bare), WITHOUT_TABLES),
                ];
                assert_eq!(
                    with_return_probe(flags, parts),
                    expected,
                    "{flags:?} {more}"
                );
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_jump_is_followed_only_if_the_program_cannot_change_its_pointer() {
        let source = r#"
            void *own(unsigned long n) { return (void *)(n + 1); }
            __asm__(".section .data.rel.ro, \"aw\"; .p2align 3; fixed: .quad own; .previous");
            extern void *(*const fixed)(unsigned long) __attribute__((visibility("hidden")));
            void *(*changed)(unsigned long) = own;
            void *new_fixed(unsigned long n) { return fixed(n); }
            void *new_changed(unsigned long n) { return changed(n); }
            int main(void) { return 0; }"#;
        let directory = tempfile::tempdir().unwrap();
        let (path, text) = (
            directory.path().join("program"),
            directory.path().join("program.c"),
        );
        fs::write(&text, source).unwrap();
        let spec = "program:new=new_fixed,new=new_changed";
        for flags in [&["-pie"][..], &["-no-pie"], &["-static"], &["-static-pie"]] {
            let output = std::process::Command::new("cc")
                .args(["-O2", "-fno-builtin", "-o"])
                .args([&path, &text])
                .args(flags)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let Spec::One(own) = notation::parse(spec).unwrap() else {
                panic!("{spec}");
            };
            let table = Table::new(vec![own]).unwrap();
            let file = File::open(&path).unwrap();
            let found = find_sites(&file, &path, &Root::ours(), &table).unwrap();
            let verbs = |symbol: &str| -> Vec<Verb> {
                let sites = found.sites.iter().filter(|site| site.symbol == symbol);
                sites.map(|site| site.row.action.verb).collect()
            };
            // No call is in the code behind the fixed pointer, so no exception leaves it.
            assert_eq!(verbs("new_fixed"), [Verb::Alloc], "{flags:?}");
            // The jump is the function's first instruction.
            assert_eq!(verbs("new_changed"), [Verb::Unfollowed], "{flags:?}");
        }
    }

    #[test]
    fn a_static_program_without_symbols_is_stripped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let script = "echo 'int main(void) { return 0; }' | cc -static -x c -o $0 -";
        let sh = |script: &str| {
            let status = std::process::Command::new("sh")
                .args(["-ec", script])
                .arg(&path)
                .status();
            assert!(status.unwrap().success());
        };
        sh(script);
        let whole = findings(&path).unwrap();
        assert!(whole.is_static && !whole.stripped && whole.is_allocator());
        sh("strip $0");
        let stripped = findings(&path).unwrap();
        assert!(stripped.is_static && stripped.stripped && !stripped.is_allocator());
    }

    #[test]
    fn the_error_tells_the_class_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
        bytes.resize(52, 0);
        for (bytes, expected) in [(&bytes[..], Class::Bits32), (b"#!/bin/sh", Class::NotElf)] {
            fs::write(&path, bytes).unwrap();
            let error = findings(&path).unwrap_err();
            let class = match error.downcast_ref::<Unreadable>() {
                Some(Unreadable::Class(class)) => *class,
                other => panic!("{other:?}"),
            };
            assert_eq!(class, expected);
        }
    }
}
