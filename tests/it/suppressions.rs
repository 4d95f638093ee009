//! Suppressions against the tools whose syntax they have: valgrind and LeakSanitizer read what memleak makes, and
//! memleak's own list has what the C library and the C++ library keep, as valgrind finds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memleak::report::{runtime_line, suppressed_lines};
use memleak::stacks::{
    FrameText, Generated, LeakKind, LeakKinds, Matcher, StackText, SuppressedSums, Suppressions,
    generate, known,
};
use tempfile::TempDir;

use crate::common::fixtures::compile_with;
use crate::common::loss_records::{LossRecord, valgrind};

fn word(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

fn runtime_memory(name: &str, flags: &[&str]) -> PathBuf {
    let flags = [&["-O1"], flags].concat();
    compile_with("c++", "fixtures/runtime_memory.cc", name, &flags)
}

#[test]
fn what_the_libraries_keep_is_on_memleaks_own_list_and_each_entry_is_needed() {
    let known = known().expect("the list can be read");
    let mut sums = SuppressedSums::new(&known);
    let mut left = Vec::new();
    for (name, flags) in [
        ("runtime_memory", &[][..]),
        (
            "runtime_memory_cxx",
            &["-static-libstdc++", "-static-libgcc"][..],
        ),
    ] {
        let (records, _) = valgrind(&[word(&runtime_memory(name, flags))], &[]);
        assert!(records.len() > 20, "{} leaks in {name}", records.len());
        let mut matcher = Matcher::new(&known);
        for record in &records {
            let found = record.with_stack(|stack| {
                // Without the verdict it is the same.
                let unknown = matcher.find(stack, LeakKind::Unknown);
                let found = matcher.find(stack, record.kind);
                assert_eq!(found, unknown);
                // What is lost is never hidden.
                assert_eq!(matcher.find(stack, LeakKind::Definite), None);
                assert_eq!(matcher.find(stack, LeakKind::Indirect), None);
                found
            });
            match found {
                Some(number) => sums.add(&[(number, record.amount)]),
                // What is not closed or freed is the program's.
                None if record.passes("fopen") || record.passes("__fopen_internal") => {}
                None => {
                    let names = record.frames.iter();
                    let names = names.map(|frame| frame.function.as_deref().unwrap_or("?"));
                    left.push(format!("{name}: {}", names.collect::<Vec<_>>().join(" < ")));
                }
            }
        }
    }
    assert!(left.is_empty(), "\n{}", left.join("\n"));
    let unused = known.list().iter().zip(sums.used());
    let unused = unused.filter(|(_, used)| used.stacks == 0);
    let unused: Vec<_> = unused.map(|(entry, _)| entry.name.as_str()).collect();
    // The loader's file has one of two names.
    assert_eq!(unused, ["dynamic loader"]);
    let line = runtime_line(&sums.uses(&known)).expect("something is kept");
    assert!(line.contains("(libstdc++ pool, "), "{line}");
}

/// The fixture's leaks of 100 and 7 bytes.
const SMALL: [(&str, u64); 2] = [("takes", 100), ("strdup", 7)];

#[test]
fn valgrind_suppresses_by_what_memleak_makes_that_leak_alone() {
    let program = compile_with(
        "c++",
        "fixtures/leaks_in_template.cc",
        "leaks_in_template",
        &["-O1"],
    );
    let (records, _) = valgrind(&[word(&program)], &[]);
    let lost = || (records.iter()).filter(|record| record.kind == LeakKind::Definite);
    let place = TempDir::new().expect("a temporary directory");
    let bytes = |records: &mut dyn Iterator<Item = &LossRecord>| -> u64 {
        records.map(|record| record.amount.bytes).sum()
    };
    assert_eq!(bytes(&mut lost()), 5_107);
    for (function, size) in SMALL {
        let record = lost().find(|record| record.amount.bytes == size);
        let record = record.unwrap_or_else(|| panic!("{function} loses {size} bytes"));
        assert!(record.passes(function), "{function}");
        let kinds = LeakKinds::from(record.kind);
        let text = record.with_stack(|stack| generate(Generated::Valgrind, stack, kinds));
        let text = text.expect("the stack is known");
        let file = place.path().join(format!("{function}.supp"));
        fs::write(&file, &text).expect("it can be written");
        let option = format!("--suppressions={}", file.display());
        for inline in ["--read-inline-info=yes", "--read-inline-info=no"] {
            let (left, used) = valgrind(&[word(&program)], &[&option, inline]);
            let mut left = left.iter();
            let mut left = left
                .by_ref()
                .filter(|record| record.kind == LeakKind::Definite);
            assert_eq!(bytes(&mut left), 5_107 - size, "{text}");
            assert!(used.contains("<count>1</count>"), "{used}");
            assert!(used.contains("leak of "), "{used}");
        }
        // memleak agrees, and finds the other leaks unsuppressed.
        let mut list = Suppressions::default();
        list.add("made.supp", text.as_bytes())
            .expect("it can be read");
        let mut matcher = Matcher::new(&list);
        let mut sums = SuppressedSums::new(&list);
        for record in &records {
            let found = record.with_stack(|stack| matcher.find(stack, record.kind));
            if let Some(number) = found {
                sums.add(&[(number, record.amount)]);
            }
        }
        assert_eq!(sums.sum().amount.bytes, size);
        let lines = suppressed_lines(&sums.uses(&list));
        assert!(lines[1].contains("(made.supp:1)"), "{lines:?}");
    }
}

#[test]
fn leak_sanitizer_suppresses_by_what_memleak_makes() {
    let program = compile_with(
        "c++",
        "fixtures/leaks_in_template.cc",
        "leaks_in_template_lsan",
        &["-O1", "-fsanitize=leak"],
    );
    let place = TempDir::new().expect("a temporary directory");
    let file = place.path().join("made.supp");
    let sanitized = |text: &str| {
        fs::write(&file, text).expect("it can be written");
        let options = format!(
            "suppressions={}:print_suppressions=1:fast_unwind_on_malloc=0",
            file.display()
        );
        let mut command = Command::new(&program);
        let output = command.env("LSAN_OPTIONS", options).output();
        let output = output.expect("the program can be started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = sanitized("");
    assert_eq!(code, Some(23), "{said}");
    assert!(
        said.contains("5107 byte(s) leaked in 12 allocation(s)"),
        "{said}"
    );
    // The names as LeakSanitizer says them.
    let frame = |function, file, module, inlined| FrameText {
        function: Some(function),
        linkage: None,
        file,
        line: Some(1),
        module,
        inlined,
    };
    let source = Some("/src/leaks_in_template.cc");
    let new = frame(
        "operator new[](unsigned long)",
        None,
        "/lib/libstdc++.so.6",
        false,
    );
    let takes = frame("shop::takes(unsigned long)", source, "/app", true);
    let fill = frame(
        "shop::Shelf<char*>::fill(char**, int)",
        source,
        "/app",
        false,
    );
    let main = frame("main", source, "/app", false);
    let strdup = frame("strdup", None, "/lib/libc.so.6", false);
    let copy = frame("shop::copy(char const*)", source, "/app", false);
    let more = frame("loses_more", source, "/app", false);
    for (frames, left) in [
        (&[new, takes, fill, main][..], 5_007),
        (&[new, fill, main], 5_007),
        (&[strdup, copy, main], 5_100),
        (&[more, main], 107),
        (&[main], 0),
    ] {
        let stack = StackText {
            allocator: frame("malloc", None, "/lib/libc.so.6", false),
            frames,
        };
        let text = generate(Generated::Lsan, &stack, LeakKinds::NONE);
        let text = text.expect("the stack is known");
        let (code, said) = sanitized(&text);
        assert!(said.contains("Suppressions used:"), "{text}{said}");
        match left {
            0 => assert_eq!(code, Some(0), "{text}{said}"),
            left => {
                let sum = format!("SUMMARY: LeakSanitizer: {left} byte(s) leaked");
                assert!(said.contains(&sum), "{text}{said}");
            }
        }
    }
    let (code, said) = sanitized("race:f\n");
    assert!(
        code != Some(0) && said.contains("failed to parse suppressions"),
        "{said}"
    );
}

/// What a name or a path is that a pattern with wildcards matches.
fn matched_by(pattern: &str) -> String {
    pattern.replace(['*', '?'], "x")
}

/// The frame that a line of a block describes.
fn frame_of(line: &str) -> FrameText<'_> {
    let (function, module) = match line.split_once(':') {
        Some(("obj", path)) => ("f", path),
        Some(("fun", name)) => (name, "/lib/libsome.so"),
        _ => ("some", "/lib/libsome.so"),
    };
    FrameText {
        function: Some(function),
        linkage: Some(function),
        file: None,
        line: None,
        module,
        inlined: false,
    }
}

/// The lines of each block of a file that is for leaks, without the comments.
fn blocks_for_leaks(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().map(str::trim);
    let lines: Vec<_> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let blocks = lines.split(|line| *line == "}").map(<[_]>::to_vec);
    blocks
        .filter(|block| {
            let tools = block.get(2).and_then(|line| line.split_once(':'));
            tools.is_some_and(|(tools, kind)| tools.contains("Memcheck") && kind == "Leak")
        })
        .collect()
}

/// Fails unless the list has a suppression for each of these blocks, which matches a stack as the block describes it.
#[track_caller]
fn assert_match(list: &Suppressions, blocks: &[Vec<&str>]) {
    assert_eq!(list.list().len(), blocks.len());
    let mut matcher = Matcher::new(list);
    for (number, block) in blocks.iter().enumerate() {
        let texts = block[3..]
            .iter()
            .filter(|line| !line.contains("match-leak-kinds"));
        let texts: Vec<_> = texts.map(|line| matched_by(line)).collect();
        let mut frames: Vec<_> = texts.iter().map(|line| frame_of(line)).collect();
        let malloc = FrameText {
            function: Some("malloc"),
            linkage: Some("malloc"),
            file: None,
            line: None,
            module: "/lib/libc.so.6",
            inlined: false,
        };
        let allocator = match texts[0].as_str() {
            "..." => malloc,
            _ => frames.remove(0),
        };
        // Callers that it does not name.
        frames.push(FrameText {
            function: Some("main"),
            linkage: Some("main"),
            ..malloc
        });
        let stack = StackText {
            allocator,
            frames: &frames,
        };
        let kinds = block[3].split_once("match-leak-kinds:");
        let kind = match kinds {
            Some((_, kinds)) if !kinds.contains("definite") => LeakKind::Reachable,
            _ => LeakKind::Definite,
        };
        let found = matcher.find(&stack, kind);
        // Another one before it may be for all of its stacks.
        assert!(found.is_some_and(|found| found <= number), "{block:?}");
    }
}

/// The files that valgrind's package ships: those of Debian, Python, ncurses and the C library.
#[test]
fn the_suppressions_that_others_ship_are_read_and_match() {
    let mut read = 0;
    for directory in [
        "/usr/libexec/valgrind",
        "/usr/lib/valgrind",
        "/usr/lib64/valgrind",
    ] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("the directory can be listed").path();
            if path.extension().is_none_or(|extension| extension != "supp") {
                continue;
            }
            let bytes = fs::read(&path).expect("it can be read");
            let mut list = Suppressions::default();
            list.add(word(&path), &bytes)
                .unwrap_or_else(|error| panic!("{error}"));
            let text = String::from_utf8_lossy(&bytes);
            assert_match(&list, &blocks_for_leaks(&text));
            read += list.list().len();
        }
    }
    assert!(read > 0, "valgrind is needed: `make install-deps`");
}

/// What such files have in projects that use both tools: comments of all kinds, other tools' errors, tabs, carriage
/// returns, patterns of paths and templates, and no newline at the end.
#[test]
fn the_forms_of_suppressions_in_projects_are_read_and_match() {
    let lsan = "\
        # Third parties\r\n\
        #### keep sorted\n\
        \n\
        leak:libfontconfig\r\n\
        leak:third_party/icu/\n\
        leak:^_dl_init$\n\
        leak:base::internal::*Holder<*>::Create\n\
        leak:*Registry::instance\n\
        leak:src/plugin_*.cc";
    let mut list = Suppressions::default();
    list.add("lsan.supp", lsan.as_bytes())
        .expect("it can be read");
    assert_eq!(list.list().len(), 6);
    let frame = |function, file, module| FrameText {
        function: Some(function),
        linkage: None,
        file,
        line: Some(7),
        module,
        inlined: false,
    };
    let malloc = frame("malloc", None, "/lib/libc.so.6");
    let main = frame("main", Some("/home/a/src/main.cc"), "/home/a/app");
    let mut matcher = Matcher::new(&list);
    for (number, inner) in [
        frame("FcInit", None, "/usr/lib/libfontconfig.so.1.12.0"),
        frame(
            "ucol_open",
            Some("../third_party/icu/ucol.cpp"),
            "/home/a/app",
        ),
        frame("_dl_init", None, "/lib/ld-linux-x86-64.so.2"),
        frame(
            "base::internal::MapHolder<int, char*>::Create(int)",
            None,
            "/home/a/app",
        ),
        frame("v1::TypeRegistry::instance()", None, "/home/a/app"),
        frame("load", Some("/home/a/src/plugin_x.cc"), "/home/a/app"),
    ]
    .into_iter()
    .enumerate()
    {
        let frames = [inner, main];
        let stack = StackText {
            allocator: malloc,
            frames: &frames,
        };
        assert_eq!(
            matcher.find(&stack, LeakKind::Unknown),
            Some(number),
            "{inner:?}"
        );
    }
    let stack = StackText {
        allocator: malloc,
        frames: &[main],
    };
    assert_eq!(matcher.find(&stack, LeakKind::Definite), None);

    let valgrind = "\
        # What the loader keeps\n\
        {\n\
        \t<insert_a_suppression_name_here>\n\
        \tMemcheck:Leak\n\
        \tmatch-leak-kinds: reachable,definite\n\
        \tfun:*alloc\n\
        \t...\n\
        \tfun:_dl_open\n\
        }\n\
        {\r\n\
           a condition\r\n\
           Memcheck:Cond\r\n\
           fun:strlen\r\n\
        }\r\n\
        {\n\
           a race\n\
           Helgrind:Race\n\
           obj:*/libgomp.so*\n\
        }\n\
        ###{\n\
        ###   put aside\n\
        ###   Memcheck:Leak\n\
        ###   fun:main\n\
        ###}\n\
        {\n\
           a call\n\
           Memcheck:Param\n\
           writev(vector[...])\n\
           fun:writev\n\
        }\n\
        {\r\n\
           a pool of two tools\r\n\
           Addrcheck,Memcheck:Leak\r\n\
           fun:_Znwm\r\n\
           # as the compiler inlines it\r\n\
           fun:_ZN4pool*\r\n\
           obj:/usr/lib*/libpool.so*\r\n\
        }";
    let mut list = Suppressions::default();
    list.add("valgrind.supp", valgrind.as_bytes())
        .expect("it can be read");
    let blocks = blocks_for_leaks(valgrind);
    assert_eq!(blocks.len(), 2);
    assert_match(&list, &blocks);
}
