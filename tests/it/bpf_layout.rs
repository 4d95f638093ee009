//! Tests the layout of bpf/: includes go down, headers do not include each other in a circle, and no function is
//! declared before its definition. The tests read the sources as text, and need neither root nor eBPF.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The files of bpf/ in rows from the bottom up. A file includes only files of lower rows, not of its own row.
const LEVELS: [&[&str]; 15] = [
    &["core.h", "../inside/layout.h"],
    &["memleak.h"],
    &["maps.bpf.h", "inode.bpf.h", "cookie.bpf.h"],
    &["newer.bpf.h", "older.bpf.h"],
    &["kernels.bpf.h"],
    &[
        "args.bpf.h",
        "blocks.bpf.h",
        "exe.bpf.h",
        "frame.bpf.h",
        "heap_files.bpf.h",
        "inside.bpf.h",
        "labels.bpf.h",
        "loading.bpf.h",
        "lookups.bpf.h",
        "misses.bpf.h",
        "pids.bpf.h",
        "timers.bpf.h",
        "wanted.bpf.h",
    ],
    &[
        "calls.bpf.h",
        "endings.bpf.h",
        "heap.bpf.h",
        "sums.bpf.h",
        "survey.bpf.h",
    ],
    &[
        "holds.bpf.h",
        "join.bpf.h",
        "stack_sums.bpf.h",
        "unwind.bpf.h",
    ],
    &["known_walks.bpf.h"],
    &["stacks.bpf.h"],
    &["counts.bpf.h"],
    &["frees.bpf.h"],
    &[
        "alloc.bpf.h",
        "arrivals.bpf.h",
        "lifecycle.bpf.h",
        "scans.bpf.h",
        "signals.bpf.h",
    ],
    &["again.bpf.h", "probes.bpf.h", "tasks.bpf.h"],
    &[
        "memleak.bpf.c",
        "memleak_old.bpf.c",
        "empty.bpf.c",
        "floor.bpf.c",
    ],
];

type Sources = BTreeMap<String, String>;

fn level(file: &str) -> Option<usize> {
    LEVELS.iter().position(|row| row.contains(&file))
}

/// The files of bpf/ that a source includes.
fn includes(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| {
        let line = line.trim_start().strip_prefix('#')?.trim_start();
        let name = line.strip_prefix("include")?.trim_start();
        name.strip_prefix('"')?.split('"').next()
    })
}

/// Includes that do not go down.
fn wrong_includes(sources: &Sources) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, source) in sources {
        let Some(own) = level(file) else {
            wrong.push(format!("{file} has no level: put it into LEVELS"));
            continue;
        };
        for included in includes(source) {
            if level(included).is_none_or(|level| level >= own) {
                wrong.push(format!("{file} includes {included}, which is not below it"));
            }
        }
    }
    wrong
}

/// The files of a circle of includes, in their order. `None` if there is no circle.
fn circle(sources: &Sources) -> Option<Vec<&str>> {
    let mut without = BTreeSet::new();
    let mut files = sources.keys();
    files.find_map(|file| circle_from(sources, &mut Vec::new(), &mut without, file))
}

/// The same for a circle that can be reached from `file`. Adds the files that reach no circle to `without`.
fn circle_from<'a>(
    sources: &'a Sources,
    path: &mut Vec<&'a str>,
    without: &mut BTreeSet<&'a str>,
    file: &'a str,
) -> Option<Vec<&'a str>> {
    if let Some(start) = path.iter().position(|earlier| *earlier == file) {
        return Some(path[start..].to_vec());
    }
    if without.contains(file) {
        return None;
    }
    path.push(file);
    let mut included = sources
        .get(file)
        .into_iter()
        .flat_map(|source| includes(source));
    let circle = included.find_map(|included| circle_from(sources, path, without, included));
    path.pop();
    without.insert(file);
    circle
}

/// The source without comments, preprocessor lines and quoted text.
fn code(source: &str) -> String {
    let mut rest = source;
    let mut code = String::new();
    while let Some(at) = rest.find(['/', '"']) {
        code.push_str(&rest[..at]);
        rest = &rest[at..];
        let (opening, closing) = match rest.as_bytes() {
            [b'/', b'*', ..] => ("/*", "*/"),
            [b'/', b'/', ..] => ("//", "\n"),
            [b'"', ..] => ("\"", "\""),
            _ => {
                code.push('/');
                rest = &rest[1..];
                continue;
            }
        };
        let inside = &rest[opening.len()..];
        rest = inside.split_once(closing).map_or("", |(_, after)| after);
        code.push_str(if opening == "//" { "\n" } else { " " });
    }
    code.push_str(rest);
    let mut in_directive = false;
    let lines = code.lines().filter(|line| {
        let is_directive = in_directive || line.trim_start().starts_with('#');
        in_directive = is_directive && line.ends_with('\\');
        !is_directive
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The functions that are declared without a body. Skips the kernel's own functions (`__ksym`), which bpf/ never
/// defines.
fn forward_declarations(source: &str) -> Vec<String> {
    let mut depth = 0;
    let mut statement = String::new();
    let mut found = Vec::new();
    for character in code(source).chars() {
        match character {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                // A function's body ends its statement. The words after a type's body are not needed here.
                if depth == 0 && statement.contains('(') {
                    statement.clear();
                }
            }
            ';' if depth == 0 => {
                let one_line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
                // The parentheses of a type's attribute do not hold parameters.
                let declarator = one_line.split("__attribute__").next().unwrap();
                let is_other = ["SEC(", "__ksym", "=", "typedef"]
                    .iter()
                    .any(|word| one_line.contains(word));
                if declarator.contains('(') && !is_other {
                    found.push(one_line);
                }
                statement.clear();
            }
            _ if depth == 0 => statement.push(character),
            _ => {}
        }
    }
    found
}

/// The maps that are not made where no call stacks are recorded.
fn maps_of_stacks() -> Vec<String> {
    let source = include_str!("../../src/kernel/newer.rs");
    let (_, body) = source
        .split_once("fn leave_out_stacks")
        .expect("it is there");
    let (body, _) = body.split_once("set_autocreate").expect("it is there");
    let names = body.split("&mut maps.").skip(1);
    names
        .map(|name| name.split(',').next().unwrap_or_default().to_owned())
        .collect()
}

/// The global functions that use one of these maps before they look whether stacks are recorded. `all`: they do so in
/// other functions. Linux before 6.8 verifies each global function, also where nobody calls it, and the map may not be
/// there.
fn unguarded(source: &str, maps: &[String], all: bool) -> Vec<String> {
    let code = code(source);
    let functions = code.split("\nSUBPROGRAM ").skip(1);
    let bodies = functions.map(|function| function.split("\n}").next().unwrap_or_default());
    let is_unguarded = |body: &&str| {
        let is_used = |before: &str| maps.iter().any(|map| before.contains(&format!("&{map},")));
        let is_guarded = body.contains("!stacks");
        is_used(body.split("!stacks").next().unwrap_or_default()) || all && !is_guarded
    };
    let names = bodies.filter(is_unguarded);
    names
        .map(|body| body.split('(').next().unwrap_or_default().to_owned())
        .collect()
}

fn sources() -> Sources {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let entries = fs::read_dir(&directory).unwrap();
    // What lies in a process that counts inside is declared beside the code there.
    let layout = "../inside/layout.h";
    let layout = [(
        layout.to_owned(),
        fs::read_to_string(directory.join(layout)).unwrap(),
    )];
    entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .chain(layout)
        .collect()
}

#[test]
fn includes_of_bpf_go_down() {
    let sources = sources();
    assert_eq!(wrong_includes(&sources), [""; 0]);
    let listed: usize = LEVELS.iter().map(|row| row.len()).sum();
    assert_eq!(
        sources.len(),
        listed,
        "LEVELS names a file that is not there, or one twice"
    );
    let all: usize = sources
        .values()
        .map(|source| includes(source).count())
        .sum();
    assert!(all > 50, "only {all} includes were found");
}

#[test]
fn includes_of_bpf_have_no_circle() {
    assert_eq!(circle(&sources()), None);
}

#[test]
fn no_function_of_bpf_is_declared_before_its_definition() {
    for (file, source) in sources() {
        assert_eq!(forward_declarations(&source), [""; 0], "in {file}");
    }
}

#[test]
fn global_functions_use_the_maps_of_stacks_only_where_they_are() {
    let maps = maps_of_stacks();
    assert!(
        maps.len() > 8 && maps.contains(&"layouts".to_owned()),
        "{maps:?}"
    );
    for (file, source) in sources() {
        let all = ["known_walks.bpf.h", "stacks.bpf.h", "unwind.bpf.h"].contains(&&*file);
        assert_eq!(unguarded(&source, &maps, all), [""; 0], "in {file}");
    }
    let source = "\nSUBPROGRAM int f(int a)\n{\n\tg(&layouts, a);\n\tif (!stacks)\n\t\treturn 0;\n}\n\
                  \nSUBPROGRAM int h(int a)\n{\n\tif (!stacks)\n\t\treturn 0;\n\tg(&layouts, a);\n}\n";
    assert_eq!(unguarded(source, &maps, false), ["int f"]);
    assert_eq!(
        unguarded(&source.replace("stacks", "others"), &[], true).len(),
        2
    );
}

fn sources_of<const N: usize>(files: [(&str, &str); N]) -> Sources {
    files
        .map(|(name, source)| (name.to_owned(), source.to_owned()))
        .into()
}

#[test]
fn an_include_that_goes_up_or_sideways_is_found() {
    let up = sources_of([(
        "maps.bpf.h",
        "#include \"core.h\"\n#  include \"join.bpf.h\"\n",
    )]);
    assert_eq!(
        wrong_includes(&up),
        ["maps.bpf.h includes join.bpf.h, which is not below it"]
    );
    let sideways = sources_of([("tasks.bpf.h", "#include \"again.bpf.h\"\n")]);
    assert_eq!(
        wrong_includes(&sideways),
        ["tasks.bpf.h includes again.bpf.h, which is not below it"]
    );
    let new = sources_of([("new.bpf.h", "")]);
    assert_eq!(
        wrong_includes(&new),
        ["new.bpf.h has no level: put it into LEVELS"]
    );
}

#[test]
fn a_circle_of_includes_is_found() {
    let circular = sources_of([
        ("a.bpf.c", "#include \"b.h\"\n"),
        ("b.h", "#include \"c.h\"\n"),
        ("c.h", "#include \"b.h\"\n"),
    ]);
    assert_eq!(circle(&circular), Some(vec!["b.h", "c.h"]));
}

#[test]
fn a_forward_declaration_is_found() {
    let source = r#"
/* Not this one: int comment(void); */
#define NOR_THIS(name) \
	int name(void);
struct x { int (*field)(void); } __attribute__((preserve_access_index));
struct { __uint(type, 1); } map SEC(".maps");
extern int of_the_kernel(void) __ksym __weak;
const volatile int setting = 0;
static __always_inline int first(void) { return second(";"); }
static __always_inline bool second(struct task_struct *task,
				   bool again);
int third(void);
"#;
    let declared = [
        "static __always_inline bool second(struct task_struct *task, bool again)",
        "int third(void)",
    ];
    assert_eq!(forward_declarations(source), declared);
}
