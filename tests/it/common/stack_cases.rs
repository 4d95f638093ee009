//! The fixtures of call stacks (`fixtures/stacks/`), and the stacks that each must have, by the names of functions. The
//! library with libgcc's walks is tested by them, and so is memleak.

use std::path::{Path, PathBuf};

use super::Job;
use super::fixtures::{compile, compile_with};
use super::symbols::names;
use super::unwinder::{Frame, static_flags};

/// A fixture with the stacks that it must have.
pub struct StackCase {
    pub name: &'static str,
    pub job: Job,
    /// The exit code of the fixture.
    pub code: i32,
    pub sites: &'static [Site],
}

/// A place that allocates: the size by which it is known, how often it allocates, and its stack.
///
/// A stack names its functions, the innermost one first. `*` stands for one or more frames of files that are not the
/// fixture's. `name^50` stands for 50 frames of that name. `?` is a frame in code that no file has.
pub struct Site {
    pub size: u64,
    pub count: u64,
    pub stack: &'static str,
    pub libgcc: Libgcc,
}

/// How far libgcc walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libgcc {
    ToTheEnd,
    /// Its rules end after as many of the words of `stack`. An unwinder that also has other rules goes on.
    UpTo(usize),
}

const fn site(size: u64, count: u64, stack: &'static str) -> Site {
    Site {
        size,
        count,
        stack,
        libgcc: Libgcc::ToTheEnd,
    }
}

const fn cut(size: u64, count: u64, stack: &'static str, up_to: usize) -> Site {
    Site {
        size,
        count,
        stack,
        libgcc: Libgcc::UpTo(up_to),
    }
}

const CHAIN: &[Site] = &[
    site(1001, 3, "c b a main * _start"),
    site(1002, 3, "b a main * _start"),
    site(1003, 3, "b a main * _start"),
    site(1004, 3, "a main * _start"),
    site(1005, 300, "c many main * _start"),
];

const FAMILY: &[Site] = &[
    site(2001, 3, "by_malloc main * _start"),
    site(2004, 3, "by_calloc main * _start"),
    site(2005, 3, "by_realloc main * _start"),
    site(2006, 3, "by_moving main * _start"),
    site(2007, 3, "by_reallocarray main * _start"),
    site(2048, 3, "by_aligned_alloc main * _start"),
    site(2009, 3, "by_memalign main * _start"),
    site(2010, 3, "by_posix_memalign main * _start"),
    site(2011, 3, "by_valloc main * _start"),
    site(2012, 3, "by_pvalloc main * _start"),
    site(2014, 3, "* by_strdup main * _start"),
];

const SIGNALS: &[Site] = &[
    site(1101, 3, "allocates handler * on_this_stack main * _start"),
    site(
        1102,
        3,
        "allocates handler * on_alternate_stack main * _start",
    ),
    site(1103, 3, "allocates outer * one_in_another main * _start"),
    site(
        1104,
        3,
        "allocates handler * outer * one_in_another main * _start",
    ),
    site(1105, 3, "allocates on_fault * faults main * _start"),
    site(
        1106,
        3,
        "allocates on_fault * faults_at_once calls_what_faults main * _start",
    ),
];

const THREADS: &[Site] = &[
    site(1201, 4000, "allocates thousand *"),
    site(1202, 3, "allocates single *"),
    site(1203, 3, "allocates at_end *"),
];

const CALLBACKS: &[Site] = &[
    site(1301, 3, "allocates compare * main * _start"),
    site(1302, 3, "allocates search * main * _start"),
    site(1303, 1, "allocates once * main * _start"),
    site(1304, 1, "allocates at_exit * _start"),
    site(1305, 1, "allocates begins * _start"),
    site(1306, 1, "allocates ends * _start"),
];

const CALLERS_IN_TURN: &[Site] = &[
    site(2401, 200, "allocates^11 first main * _start"),
    site(2402, 200, "allocates^11 second main * _start"),
    site(2403, 200, "allocates^11 third main * _start"),
    site(2404, 200, "allocates^11 fourth main * _start"),
    site(2405, 200, "allocates^11 fifth main * _start"),
];

const FRAMES: &[Site] = &[
    site(1401, 3, "allocates by_alloca main * _start"),
    site(1402, 3, "allocates by_array main * _start"),
    site(1403, 3, "allocates aligned main * _start"),
    site(1404, 3, "allocates aligned_to_page main * _start"),
    site(1405, 3, "allocates aligned_and_variable main * _start"),
    site(1406, 3, "allocates large main * _start"),
];

/// The object of an exception stands behind a header of the runtime, of 128 bytes.
const EXCEPTIONS: &[Site] = &[
    site(1501 + 128, 3, "* throws passes catches main * _start"),
    site(
        1502,
        3,
        "allocates _ZN5GuardD1Ev passes catches main * _start",
    ),
    site(1503, 3, "allocates catches main * _start"),
    site(1504, 3, "allocates catches_twice main * _start"),
    site(1505, 3, "by_new main * _start"),
    site(1506, 3, "by_new_array main * _start"),
];

const VFORKS: &[Site] = &[
    site(1601, 3, "allocates by_vfork main * _start"),
    site(1602, 3, "allocates by_fork main * _start"),
    site(1603, 3, "allocates main * _start"),
    site(1604, 3, "allocates in_clone *"),
];

/// glibc's function below a coroutine's has no rules.
const COROUTINES: &[Site] = &[
    cut(1701, 10, "allocates first *", 3),
    cut(1702, 10, "allocates second *", 3),
    site(1703, 10, "allocates main * _start"),
];

const LIBRARIES_AT_ONE_ADDRESS: &[Site] = &[
    site(1801, 10, "first enter visit main * _start"),
    site(1802, 10, "second enter visit main * _start"),
];

const CODE_BY_HAND: &[Site] = &[
    cut(1901, 3, "allocates pass through main * _start", 2),
    cut(1902, 3, "allocates ? through main * _start", 2),
    site(1903, 3, "allocates pass through main * _start"),
];

const TAIL_CALLS: &[Site] = &[
    site(1111, 3, "fourth first main * _start"),
    site(1112, 3, "calls_fifth main * _start"),
];

const LAZY_BINDING: &[Site] = &[
    site(1121, 1, "resolver * calls main * _start"),
    site(1122, 3, "allocates calls main * _start"),
];

const COLD_PARTS: &[Site] = &[
    site(1141, 3, "rare split.cold main * _start"),
    site(1142, 1, "leaves ends_in_call main * _start"),
];

const DEBUG_TABLES: &[Site] = &[
    cut(1151, 3, "b a main * _start", 1),
    cut(1152, 3, "a main * _start", 1),
];

const FRAME_POINTERS: &[Site] = &[
    cut(1161, 3, "b a main * _start", 1),
    cut(1162, 3, "a main * _start", 1),
];

const ASSEMBLY: &[Site] = &[
    site(1171, 3, "allocates cfa_in_rbx main * _start"),
    site(1172, 3, "allocates cfa_in_r10 main * _start"),
    site(1173, 3, "allocates cfa_in_slot needs_rbp main * _start"),
    site(1174, 3, "allocates rbp_is_no_frame needs_rbp main * _start"),
    site(1175, 3, "allocates states main * _start"),
    site(1176, 3, "allocates rbp_in_slot needs_rbp main * _start"),
    site(1177, 3, "allocates return_in_register main * _start"),
    site(
        1178,
        3,
        "allocates rbp_by_expression needs_rbp main * _start",
    ),
];

/// In a static program the C library is the program's own. Its functions stand for themselves.
const STATIC_CHAIN: &[Site] = &[
    site(
        1001,
        3,
        "c b a main __libc_start_call_main __libc_start_main _start",
    ),
    site(
        1005,
        300,
        "c many main __libc_start_call_main __libc_start_main _start",
    ),
];

fn source(name: &str) -> String {
    format!("fixtures/stacks/{name}.c")
}

fn program(name: &str, flags: &[&str]) -> PathBuf {
    let flags: Vec<_> = ["-O1"].iter().chain(flags).copied().collect();
    compile(&source(name), &format!("stacks_{name}"), &flags)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in target/ is text")
}

/// Compiles library.c with the name of the function that allocates, the bytes, and the size of its frame.
fn library(name: &str, size: u64, frame: u64) -> PathBuf {
    let defines = [
        format!("-DNAME={name}"),
        format!("-DSIZE={size}"),
        format!("-DFRAME={frame}"),
    ];
    let mut flags = vec!["-O1", "-fPIC", "-shared"];
    flags.extend(defines.iter().map(String::as_str));
    compile(&source("library"), &format!("stacks_{name}.so"), &flags)
}

fn simple(name: &'static str, sites: &'static [Site]) -> StackCase {
    StackCase {
        name,
        job: Job::new::<&str>(program(name, &[]), []),
        code: 0,
        sites,
    }
}

fn with(name: &'static str, arguments: &[&str], sites: &'static [Site]) -> StackCase {
    StackCase {
        job: Job::new(program(name, &[]), arguments),
        ..simple(name, sites)
    }
}

fn exceptions() -> StackCase {
    let source = "fixtures/stacks/exceptions.cc";
    let program = compile_with("c++", source, "stacks_exceptions", &["-O1"]);
    StackCase {
        name: "exceptions",
        job: Job::new::<&str>(program, []),
        code: 0,
        sites: EXCEPTIONS,
    }
}

fn libraries_at_one_address() -> StackCase {
    let first = library("first", 1801, 24);
    let second = library("second", 1802, 4000);
    with(
        "libraries_at_one_address",
        &[text(&first), text(&second)],
        LIBRARIES_AT_ONE_ADDRESS,
    )
}

fn code_by_hand() -> StackCase {
    let library = library("second", 1802, 4000);
    with("code_by_hand", &[text(&library)], CODE_BY_HAND)
}

fn lazy_binding() -> StackCase {
    let flags = ["-O1", "-fPIC", "-shared"];
    let library = compile(&source("lazy_library"), "libstacks_lazy.so", &flags);
    let directory = library.parent().expect("it is in target/");
    let flags = [
        format!("-L{}", text(directory)),
        format!("-Wl,-rpath,{}", text(directory)),
        "-Wl,--no-as-needed".to_string(),
        "-lstacks_lazy".to_string(),
    ];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    StackCase {
        name: "lazy_binding",
        job: Job::new::<&str>(program("lazy_binding", &flags), []),
        code: 0,
        sites: LAZY_BINDING,
    }
}

fn recursions() -> [StackCase; 3] {
    const SITES: [&[Site]; 3] = [
        &[site(1131, 3, "recurses^45 main * _start")],
        &[site(1131, 3, "recurses^300 main * _start")],
        &[site(1131, 3, "recurses^600 main * _start")],
    ];
    let [few, some, many] = SITES;
    [
        with("recursion", &["45"], few),
        with("recursion", &["300"], some),
        with("recursion", &["600"], many),
    ]
}

/// All cases of a dynamic program. `steps` is not among them, because its stacks are not named one by one.
pub fn stack_cases() -> Vec<StackCase> {
    let mut cases = vec![
        simple("chain", CHAIN),
        simple("family", FAMILY),
        simple("signals", SIGNALS),
        simple("threads", THREADS),
        simple("callbacks", CALLBACKS),
        simple("callers_in_turn", CALLERS_IN_TURN),
        simple("frames", FRAMES),
        exceptions(),
        simple("vforks", VFORKS),
        simple("coroutines", COROUTINES),
        libraries_at_one_address(),
        code_by_hand(),
        simple("tail_calls", TAIL_CALLS),
        lazy_binding(),
        simple("cold_parts", COLD_PARTS),
        simple("debug_tables", DEBUG_TABLES),
        simple("frame_pointers", FRAME_POINTERS),
    ];
    cases.extend(recursions());
    if cfg!(target_arch = "x86_64") {
        cases.push(simple("assembly", ASSEMBLY));
    }
    cases
}

/// `chain` as a static program, with the library linked in or without it.
pub fn static_chain(with_library: bool) -> StackCase {
    let (name, flags) = match with_library {
        true => ("stacks_static_unwound", static_flags()),
        false => ("stacks_static", vec!["-static".to_string()]),
    };
    let flags: Vec<_> = flags.iter().map(String::as_str).chain(["-O1"]).collect();
    StackCase {
        name: "static chain",
        job: Job::new::<&str>(compile(&source("chain"), name, &flags), []),
        code: 0,
        sites: STATIC_CHAIN,
    }
}

/// The program `all_the_time`.
pub fn all_the_time() -> PathBuf {
    program("all_the_time", &[])
}

/// The program `steps`, which steps through code.
pub fn steps() -> Job {
    Job::new::<&str>(program("steps", &[]), [])
}

/// The words of a stack that a site expects, with `name^50` written out.
fn words(stack: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in stack.split_whitespace() {
        let (name, times) = word.split_once('^').unwrap_or((word, "1"));
        let times = times.parse().expect("a number of frames");
        words.extend(std::iter::repeat_n(name, times));
    }
    words
}

/// Whether a file is one of the fixtures' own.
fn is_own(frame: &Frame) -> bool {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("built");
    let built = super::unwinder::canonical(&built);
    frame.module.as_ref().is_some_and(|m| m.starts_with(&built))
}

/// Compares frames with the first `up_to` words of a site's stack, or with all of them. `interrupted` are the indices of
/// the frames that a signal interrupted. If they are not known, both addresses are tried.
pub fn check_stack(
    stack: &str,
    up_to: Option<usize>,
    frames: &[Frame],
    interrupted: Option<&[usize]>,
) -> Result<(), String> {
    let words = words(stack);
    let words = &words[..up_to.unwrap_or(words.len())];
    let found: Vec<_> = frames
        .iter()
        .enumerate()
        .map(|(n, frame)| of_frame(frame, interrupted.map(|at| at.contains(&n))))
        .collect();
    let mut rest = &found[..];
    for &word in words {
        let foreign = rest.iter().take_while(|names| names[0] == "*").count();
        let length = match rest.first() {
            _ if word == "*" => foreign,
            Some(names) if names.iter().any(|name| name == word) => 1,
            _ => 0,
        };
        if length == 0 {
            return Err(format!("expected {words:?}, found {found:?}"));
        }
        rest = &rest[length..];
    }
    match rest {
        [] => Ok(()),
        _ => Err(format!("expected {words:?}, found more: {found:?}")),
    }
}

/// The names of a frame as a site writes them.
fn of_frame(frame: &Frame, interrupted: Option<bool>) -> Vec<String> {
    if frame.module.is_none() {
        return vec!["?".to_string()];
    }
    if !is_own(frame) {
        return vec!["*".to_string()];
    }
    let mut found = match interrupted {
        Some(interrupted) => names(frame, interrupted),
        None => [names(frame, false), names(frame, true)].concat(),
    };
    if found.is_empty() {
        found.push(format!("{frame:?}"));
    }
    found
}
