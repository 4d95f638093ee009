use proptest::prelude::*;

use super::generated::{Generated, generate};
use super::*;

/// A frame of a C function.
fn c(name: &'static str, module: &'static str) -> FrameText<'static> {
    FrameText {
        function: Some(name),
        linkage: Some(name),
        module,
        ..FrameText::default()
    }
}

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
const APP: &str = "/home/a/app";

fn list(text: &str) -> Suppressions {
    let mut list = Suppressions::default();
    list.add("x.supp", text.as_bytes()).unwrap();
    list
}

/// The stack of a leak in C++: `strdup` in an inlined function in `ns::make(int)`.
fn frames() -> Vec<FrameText<'static>> {
    let make = FrameText {
        function: Some("ns::make(int)"),
        linkage: Some("_ZN2ns4makeEi"),
        file: Some("/src/leak.cpp"),
        line: Some(7),
        module: APP,
        inlined: false,
    };
    vec![
        c("strdup", LIBC),
        FrameText {
            function: Some("ns::copy(char const*)"),
            linkage: Some("_ZN2ns4copyEPKc"),
            line: Some(3),
            inlined: true,
            ..make
        },
        make,
        FrameText {
            module: "/lib/libplain.so",
            ..FrameText::default()
        },
        c("main", APP),
        c("__libc_start_main@@GLIBC_2.34", LIBC),
    ]
}

fn matches_as(text: &str, frames: &[FrameText], kind: LeakKind) -> bool {
    let list = list(text);
    let stack = StackText {
        allocator: c("malloc", LIBC),
        frames,
    };
    Matcher::new(&list).find(&stack, kind).is_some()
}

fn matches(text: &str) -> bool {
    matches_as(text, &frames(), LeakKind::Definite)
}

/// A block of valgrind's with these frames.
fn block(frames: &str) -> String {
    let frames: Vec<_> = frames.split(' ').collect();
    format!("{{\nn\nMemcheck:Leak\n{}\n}}", frames.join("\n"))
}

#[test]
fn leak_sanitizers_patterns_are_tried_on_the_function_the_file_and_the_module_of_each_frame() {
    for (pattern, matched) in [
        ("strdup", true),
        ("make", true),
        ("ns::make(int)", true),
        ("^ns::make(int)$", true),
        // LeakSanitizer would need `^ns::make(int)$`.
        ("^ns::make$", true),
        ("make$", true),
        ("Make", false),
        ("^make", false),
        ("^ns::*int", true),
        ("leak.cpp", true),
        ("^leak.cpp", false),
        ("/src/*.cpp$", true),
        ("libplain.so$", true),
        ("libc.so.6", true),
        ("copy", true),
        ("_ZN2ns", false),
        ("malloc", true),
        ("*", true),
        ("nothing", false),
    ] {
        assert_eq!(matches(&format!("leak:{pattern}")), matched, "{pattern}");
    }
    // The path of the allocator's library is none that LeakSanitizer sees.
    let only = [c("main", APP)];
    assert!(!matches_as("leak:libc.so", &only, LeakKind::Definite));
    assert!(matches_as("leak:^malloc$", &only, LeakKind::Definite));
}

#[test]
fn valgrinds_frames_are_compared_from_the_allocator_on() {
    for (frames, matched) in [
        ("fun:malloc", true),
        ("fun:malloc fun:strdup", true),
        ("fun:strdup", false),
        ("fun:calloc fun:strdup", false),
        (
            "fun:*alloc fun:str?up fun:_ZN2ns4copyEPKc fun:_ZN2ns4makeEi",
            true,
        ),
        // Without inlined functions, or with their short names.
        ("fun:malloc fun:strdup fun:_ZN2ns4makeEi", true),
        ("fun:malloc fun:strdup fun:copy fun:_ZN2ns4makeEi", true),
        ("fun:malloc fun:strdup fun:make", false),
        // Names are mangled.
        ("... fun:ns::make(int)", false),
        ("... fun:_ZN2ns*", true),
        ("... fun:main", true),
        ("... fun:main fun:(below*", true),
        // Versions make no difference.
        ("... fun:__libc_start_main", true),
        ("... fun:__libc_start_main@@GLIBC_2.2.5", true),
        ("... fun:__libc_start_ma*@*", true),
        ("fun:malloc fun:strdup@@GLIBC*", true),
        ("... fun:*@GLIBC_9", false),
        ("fun:malloc ... fun:main ...", true),
        ("... fun:main ... fun:_ZN2ns4makeEi", false),
        ("... fun:_ZN2ns4makeEi ... fun:main", true),
        (
            "fun:malloc fun:strdup ... obj:/lib/libplain.so fun:main",
            true,
        ),
        ("... fun:??? fun:main", true),
        ("... fun:_Z* obj:*", true),
        ("obj:*/libc.so.6 obj:*/libc.so.6", true),
        ("obj:*/vgpreload_memcheck-amd64-linux.so fun:strdup", true),
        ("fun:malloc obj:*/vgpreload_memcheck*", false),
        ("... src:leak.cpp:7", true),
        ("... src:leak.cpp:8", false),
        ("... src:/src/*.cpp", true),
        ("... src:*.c", false),
    ] {
        // A name with a blank is one word here.
        let text = block(frames).replace("(below*", "(below main)");
        assert_eq!(matches(&text), matched, "{frames}");
    }
}

#[test]
fn what_operator_new_asks_of_malloc_begins_with_the_operator() {
    let new = FrameText {
        function: Some("operator new(unsigned long)"),
        linkage: Some("_Znwm"),
        module: "/lib/libstdc++.so.6",
        ..FrameText::default()
    };
    let news = FrameText {
        function: Some("operator new[](unsigned long)"),
        linkage: Some("_Znam"),
        ..new
    };
    let frames = [new, news, c("main", APP)];
    for (text, matched) in [
        ("fun:_Znam fun:main", true),
        ("fun:malloc fun:_Znwm fun:_Znam fun:main", true),
        ("fun:_Znwm fun:_Znam", false),
        ("obj:*/vgpreload_memcheck-amd64-linux.so fun:main", true),
        ("fun:malloc fun:main", false),
    ] {
        assert_eq!(
            matches_as(&block(text), &frames, LeakKind::Definite),
            matched,
            "{text}"
        );
    }
    let text = generated(Generated::Valgrind, &frames, LeakKinds::NONE).unwrap();
    assert!(text.ends_with("   fun:_Znam\n   fun:main\n}\n"), "{text}");
    // A stack that ends there stays as it is.
    let text = generated(Generated::Valgrind, &frames[..1], LeakKinds::NONE).unwrap();
    assert!(text.ends_with("   fun:malloc\n   fun:_Znwm\n}\n"), "{text}");
}

#[test]
fn kinds_are_those_of_the_suppression() {
    let text = |kinds: &str| format!("{{\nn\nMemcheck:Leak\nmatch-leak-kinds: {kinds}\nfun:*\n}}");
    for (kinds, kind, matched) in [
        ("definite", LeakKind::Definite, true),
        ("definite", LeakKind::Indirect, false),
        ("possible,reachable", LeakKind::Reachable, true),
        (
            "definite,indirect,possible,reachable",
            LeakKind::Unknown,
            false,
        ),
        ("all", LeakKind::Unknown, true),
        ("none", LeakKind::Definite, false),
    ] {
        assert_eq!(
            matches_as(&text(kinds), &frames(), kind),
            matched,
            "{kinds} {kind:?}"
        );
    }
    for kind in [LeakKind::Unknown, LeakKind::Reachable] {
        assert!(matches_as("leak:main", &frames(), kind));
        assert!(matches_as(&block("fun:malloc"), &frames(), kind));
    }
}

#[test]
fn an_unknown_stack_is_never_suppressed() {
    for text in [
        "leak:*",
        "leak:malloc",
        &block("fun:*"),
        &block("...\nfun:malloc"),
    ] {
        assert!(!matches_as(text, &[], LeakKind::Definite), "{text}");
    }
}

#[test]
fn the_first_suppression_that_matches_counts() {
    let text = [
        &block("fun:calloc"),
        "leak:nothing",
        &block("fun:malloc"),
        "leak:main",
        "leak:make",
    ];
    let list = list(&text.join("\n"));
    let mut matcher = Matcher::new(&list);
    let frames = frames();
    let found = |matcher: &mut Matcher, frames: &[FrameText]| {
        let stack = StackText {
            allocator: c("malloc", LIBC),
            frames,
        };
        matcher.find(&stack, LeakKind::Definite)
    };
    assert_eq!(found(&mut matcher, &frames), Some(2));
    let list = self::list("leak:main\nleak:make");
    let mut matcher = Matcher::new(&list);
    for _ in 0..2 {
        assert_eq!(found(&mut matcher, &frames), Some(0));
        assert_eq!(found(&mut matcher, &frames[..3]), Some(1));
        assert_eq!(found(&mut matcher, &frames[..2]), None);
    }
}

#[test]
fn nothing_is_added_of_a_file_with_an_error() {
    let mut list = list("leak:a");
    let error = list.add("b.supp", b"leak:b\nfoo").unwrap_err();
    assert!(error.to_string().starts_with("b.supp:2: 'foo'"), "{error}");
    assert_eq!(list.list().len(), 1);
}

#[test]
fn many_suppressions_on_deep_stacks_take_no_long_time() {
    let mut text = String::new();
    for n in 0..500 {
        text.push_str(&format!("leak:function_{n}_x\n"));
        text.push_str(&block(&format!(
            "fun:malloc ... fun:f{n}* ... fun:g*{n} ... fun:main fun:h"
        )));
        text.push('\n');
    }
    let list = list(&text);
    let mut matcher = Matcher::new(&list);
    let began = std::time::Instant::now();
    for n in 0..2 {
        let names: Vec<String> = (0..512).map(|at| format!("f{at}_{n}")).collect();
        let frames = names.iter().map(|name| FrameText {
            function: Some(name),
            module: APP,
            ..FrameText::default()
        });
        let frames: Vec<_> = frames.collect();
        let stack = StackText {
            allocator: c("malloc", LIBC),
            frames: &frames,
        };
        assert_eq!(matcher.find(&stack, LeakKind::Definite), None);
    }
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

// ---- what is generated ---------------------------------------------------------------------------------

fn generated(syntax: Generated, frames: &[FrameText], kinds: LeakKinds) -> Option<String> {
    let stack = StackText {
        allocator: c("malloc", LIBC),
        frames,
    };
    generate(syntax, &stack, kinds)
}

#[test]
fn a_suppression_for_valgrind_names_the_whole_stack_down_to_main() {
    let kinds = LeakKinds::from(LeakKind::Definite) | LeakKind::Indirect.into();
    assert_eq!(
        generated(Generated::Valgrind, &frames(), kinds).unwrap(),
        "{
   leak of malloc in ns::copy(char const*), leak.cpp:3
   Memcheck:Leak
   match-leak-kinds: definite,indirect
   fun:malloc
   fun:strdup*
   ...
   fun:_ZN2ns4makeEi
   obj:/lib/libplain.so
   fun:main
}
"
    );
    let deep: Vec<_> = (0..100).map(|_| c("f", APP)).collect();
    let text = generated(Generated::Valgrind, &deep, LeakKinds::NONE).unwrap();
    assert_eq!(text.matches("fun:").count(), 24);
    assert!(!text.contains("match-leak-kinds"), "{text}");
}

#[test]
fn a_suppression_for_leak_sanitizer_names_the_innermost_function_of_the_program() {
    let text = generated(Generated::Lsan, &frames()[..3], LeakKinds::NONE).unwrap();
    assert!(text.ends_with("\nleak:^ns::make(\n"), "{text}");
    assert!(
        text.starts_with("# leak of malloc in ns::copy(char const*), leak.cpp:3\n#    strdup\n"),
        "{text}"
    );
    assert!(!text.contains("hides"), "{text}");
    let text = generated(Generated::Lsan, &frames()[4..], LeakKinds::NONE).unwrap();
    assert!(text.contains("every leak below main"), "{text}");
    assert!(text.ends_with("\nleak:^main$\n"), "{text}");
    let runtime = [c("_ZSt4find", "/lib/libstdc++.so.6"), c("work", APP)];
    let text = generated(Generated::Lsan, &runtime, LeakKinds::NONE).unwrap();
    assert!(text.ends_with("\nleak:^work$\n"), "{text}");
    let text = generated(Generated::Lsan, &frames()[3..4], LeakKinds::NONE).unwrap();
    assert!(text.ends_with("\nleak:^/lib/libplain.so$\n"), "{text}");
}

#[test]
fn what_cannot_be_told_from_other_leaks_has_no_suppression() {
    let nameless = [FrameText::default(); 3];
    for syntax in [Generated::Valgrind, Generated::Lsan] {
        assert_eq!(generated(syntax, &nameless, LeakKinds::NONE), None);
        assert_eq!(generated(syntax, &[], LeakKinds::NONE), None);
    }
}

/// Names as programs have them, and names that are hard to write.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z_]{1,8}",
        2 => "[a-z]{1,3}::[a-z]{1,3}\\([a-z*&, ]{0,8}\\)( const)?",
        1 => "(void )?[a-z]{1,3}<[a-z*, ]{1,5}>\\([a-z*]{0,3}\\)",
        1 => "[(){}<>:*?^$#a \t\n\r.é]{0,6}",
        1 => any::<String>(),
    ]
}

type Drawn = (
    Option<String>,
    Option<String>,
    Option<(String, u32)>,
    String,
    bool,
);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    let module = prop_oneof![
        3 => "/[a-z]{1,4}/lib[a-z]{1,3}\\.so",
        1 => Just(String::new()),
        1 => Just(LIBC.to_owned()),
        1 => name(),
    ];
    let file = prop::option::of((name(), any::<u32>()));
    let names = (prop::option::of(name()), prop::option::of(name()));
    let frame = (names, file, module, prop::bool::weighted(0.2));
    let frame = frame.prop_map(|((function, linkage), file, module, inlined)| {
        (function, linkage, file, module, inlined)
    });
    prop::collection::vec(frame, 0..40)
}

fn as_frames(drawn: &[Drawn]) -> Vec<FrameText<'_>> {
    let frames = drawn.iter();
    let frames = frames.map(|(function, linkage, file, module, inlined)| FrameText {
        function: function.as_deref(),
        linkage: linkage.as_deref(),
        file: file.as_ref().map(|(file, _)| file.as_str()),
        line: file.as_ref().map(|(_, line)| *line),
        module,
        inlined: *inlined,
    });
    frames.collect()
}

proptest! {
    #[test]
    fn what_is_generated_matches_the_stack_that_it_was_made_of(drawn in drawn(), number in 0..4_usize) {
        let frames = as_frames(&drawn);
        let kind = LeakKind::KNOWN[number].0;
        for syntax in [Generated::Valgrind, Generated::Lsan] {
            match generated(syntax, &frames, kind.into()) {
                Some(text) => {
                    prop_assert!(text.lines().count() <= 24 + 5, "{}", text);
                    prop_assert_eq!(list(&text).list().len(), 1, "{}", text);
                    prop_assert!(matches_as(&text, &frames, kind), "{:?}\n{}", frames, text);
                    let inner = &frames[..0];
                    prop_assert!(!matches_as(&text, inner, kind));
                }
                None => {
                    let is_known = |frame: &FrameText| {
                        let names = [frame.function, frame.linkage, Some(frame.module)];
                        let known = names.iter().flatten().any(|name| !name.is_empty());
                        known && !(frame.inlined && syntax == Generated::Valgrind)
                    };
                    prop_assert!(!frames.iter().take(22).any(is_known), "{:?}", frames);
                }
            }
        }
    }

    #[test]
    fn any_suppressions_are_tried_on_any_stack_without_a_panic(
        drawn in drawn(), frames in prop::collection::vec("(fun|obj|src):[a-z*?.]{0,4}|\\.\\.\\.", 1..8), leak in "[a-z*^$]{1,5}"
    ) {
        let text = format!("leak:{leak}\n{{\nn\nMemcheck:Leak\n{}\n}}", frames.join("\n"));
        let mut list = Suppressions::default();
        if list.add("x", text.as_bytes()).is_ok() {
            matches_as(&text, &as_frames(&drawn), LeakKind::Unknown);
        }
    }
}
