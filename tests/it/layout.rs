//! Tests the layout of src/: imports go down, files do not import each other in a circle, files have a limited length,
//! and each type has a name of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms (directories and main.rs) of src/, from the top floor down. A room imports only rooms of the floors below.
const FLOORS: [&[&str]; 10] = [
    &["main"],
    &["cli", "doctor"],
    &["session"],
    &["options"],
    &["saved"],
    &["report", "kernel"],
    &["find", "stacks", "inside"],
    &["elf", "launch", "lost"],
    &["model", "os"],
    &["text", "code"],
];

/// The most lines of code that a file may have, without its tests.
const MOST_LINES: usize = 600;

/// A source file: its path below src/, its code without the tests, and the paths that it imports.
struct Source {
    path: String,
    lines: usize,
    imports: BTreeSet<String>,
    /// The first words of its `use` lines. In a `mod.rs`, these may be files beside it.
    uses: BTreeSet<String>,
    /// The names of the types that it defines.
    types: Vec<String>,
}

impl Source {
    fn new(path: String, text: &str) -> Self {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: Vec<&str> = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let own = format!(
            "{}::",
            if path == "main.rs" {
                "memleak"
            } else {
                "crate"
            }
        );
        let first_word = |text: &str| {
            let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
            text[..end.unwrap_or(text.len())].to_owned()
        };
        let uses = code.iter().filter_map(|line| {
            let used = line.trim_start_matches("pub ").strip_prefix("use ")?;
            Some(first_word(used))
        });
        let types = code.iter().filter_map(|line| {
            let line = line
                .trim_start_matches("pub(super) ")
                .trim_start_matches("pub ");
            let kinds = ["struct ", "enum ", "trait ", "type "];
            let name = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
            Some(first_word(name))
        });
        Source {
            path,
            lines: code.len(),
            imports: imports(&code.join("\n"), &own),
            uses: uses.collect(),
            types: types.collect(),
        }
    }

    /// The room that the file is in.
    fn room(&self) -> &str {
        let end = self.path.find(['/', '.']).expect("a path of a source file");
        &self.path[..end]
    }
}

/// The paths below the crate's root that a file names, in `use` lines and elsewhere.
fn imports(code: &str, own: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(own) {
        let rest = &code[at + own.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"_:".contains(c));
        let path = rest[..end.unwrap_or(rest.len())].trim_end_matches(':');
        if rest[path.len()..].starts_with("::{") || (path.is_empty() && rest.starts_with('{')) {
            let group = &rest[rest.find('{').expect("the group has a brace")..];
            expand(path, group, &mut found);
        } else {
            found.insert(path.to_owned());
        }
    }
    found
}

/// Adds the paths of a group in braces, such as `{self, a, b::{c, d}}`.
fn expand(prefix: &str, group: &str, found: &mut BTreeSet<String>) {
    let mut depth = 0;
    let mut item = String::new();
    for c in group.chars() {
        match c {
            '{' if depth == 0 => depth = 1,
            '{' => {
                depth += 1;
                item.push(c);
            }
            '}' if depth > 1 => {
                depth -= 1;
                item.push(c);
            }
            ',' | '}' if depth == 1 => {
                let part = item.trim();
                let joined = match prefix {
                    "" => part.to_owned(),
                    _ => format!("{prefix}::{part}"),
                };
                match joined.split_once("::{") {
                    Some((prefix, group)) => expand(prefix, &format!("{{{group}"), found),
                    None if part.is_empty() => {}
                    None => {
                        found.insert(joined.trim_end_matches("::self").to_owned());
                    }
                }
                item.clear();
                if c == '}' {
                    return;
                }
            }
            _ => item.push(c),
        }
    }
}

/// The file that an import names: the longest leading part of its path that is a file.
fn file_of<'a>(import: &str, files: &BTreeMap<String, &'a Source>) -> Option<&'a Source> {
    let mut path = import;
    loop {
        let file = path.replace("::", "/");
        let found = files
            .get(&format!("{file}.rs"))
            .or_else(|| files.get(&format!("{file}/mod.rs")));
        match (found, path.rfind("::")) {
            (Some(found), _) => return Some(found),
            (None, Some(end)) => path = &path[..end],
            (None, None) => return None,
        }
    }
}

/// The faults in the layout of a tree of sources.
fn faults(sources: &[Source]) -> Vec<String> {
    let files: BTreeMap<String, &Source> = sources
        .iter()
        .map(|source| (source.path.clone(), source))
        .collect();
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let mut faults = Vec::new();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        if floor(source.room()).is_none() {
            faults.push(format!("{} is in no room of the table", source.path));
        }
        if source.lines > MOST_LINES {
            faults.push(format!("{} has {} lines", source.path, source.lines));
        }
        for import in &source.imports {
            let Some(target) = file_of(import, &files) else {
                continue;
            };
            if target.path == source.path {
                continue;
            }
            if !edges.entry(&source.path).or_default().insert(&target.path) {
                continue;
            }
            if source.room() != target.room() && floor(source.room()) >= floor(target.room()) {
                let (from, to) = (&source.path, &target.path);
                faults.push(format!("{from} imports {to}, which is not below it"));
            }
        }
    }
    for source in sources {
        let Some(directory) = source.path.strip_suffix("mod.rs") else {
            continue;
        };
        for used in &source.uses {
            for file in [
                format!("{directory}{used}.rs"),
                format!("{directory}{used}/mod.rs"),
            ] {
                if let Some(target) = files.get(&file) {
                    edges.entry(&source.path).or_default().insert(&target.path);
                }
            }
        }
    }
    faults.extend(circles(&edges));
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    for source in sources {
        for name in &source.types {
            if let Some(other) = types.insert(name, &source.path) {
                faults.push(format!(
                    "{name} is a type in {other} and in {}",
                    source.path
                ));
            }
        }
    }
    faults
}

/// The files in or above a circle of imports. They remain after files without imports are removed repeatedly.
fn circles(edges: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<String> {
    let mut left = edges.clone();
    loop {
        let names: BTreeSet<&str> = left.keys().copied().collect();
        for targets in left.values_mut() {
            targets.retain(|target| names.contains(target));
        }
        let before = left.len();
        left.retain(|_, targets| !targets.is_empty());
        if left.len() == before {
            break;
        }
    }
    left.iter()
        .map(|(file, targets)| format!("{file} is in or above a circle: it imports {targets:?}"))
        .collect()
}

fn sources(directory: &Path, root: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let is_test = ["tests.rs", "built.rs", "samples.rs"].contains(&name.as_str());
        if path.is_dir() {
            sources(&path, root, found);
        } else if name.ends_with(".rs") && name != "lib.rs" && !is_test {
            let below = path.strip_prefix(root).unwrap().to_str().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            found.push(Source::new(below.to_owned(), &text));
        }
    }
}

#[test]
fn imports_go_down_without_a_circle_and_no_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &root, &mut found);
    assert!(found.len() > 60, "only {} files were found", found.len());
    let imports: usize = found.iter().map(|source| source.imports.len()).sum();
    assert!(imports > 300, "only {imports} imports were found");
    let faults = faults(&found);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn an_import_that_goes_up_is_a_fault() {
    let faults_of = |files: &[(&str, &str)]| {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source::new((*path).to_owned(), text))
            .collect();
        faults(&sources)
    };
    let kernel = ("kernel/load.rs", "pub fn load() {}");
    let upward = ("os/maps.rs", "use crate::kernel::load::{self, load};");
    assert_eq!(
        faults_of(&[kernel, upward]),
        ["os/maps.rs imports kernel/load.rs, which is not below it"]
    );
    let beside = ("report/table.rs", "fn f() { crate::kernel::load::load() }");
    assert_eq!(faults_of(&[kernel, beside]).len(), 1);
    let downward = ("session/run.rs", "use crate::{kernel::load, os::maps};");
    assert!(faults_of(&[kernel, downward]).is_empty());
    let circle = [
        ("kernel/a.rs", "use crate::kernel::b::B;"),
        ("kernel/b.rs", "use crate::kernel::a::A;"),
    ];
    assert_eq!(faults_of(&circle).len(), 2);
    let through_mod = [
        ("kernel/mod.rs", "mod a;\npub use a::A;\npub fn f() {}"),
        ("kernel/a.rs", "use crate::kernel::f;"),
    ];
    assert_eq!(faults_of(&through_mod).len(), 2);
    let twice = [
        ("os/a.rs", "pub struct Entry;"),
        ("os/b.rs", "enum Entry {}"),
    ];
    assert_eq!(
        faults_of(&twice),
        ["Entry is a type in os/a.rs and in os/b.rs"]
    );
    let commented = (
        "os/maps.rs",
        "/// See [`crate::kernel::load`].\n#[cfg(test)]\nuse crate::kernel::load;",
    );
    assert!(faults_of(&[kernel, commented]).is_empty());
    let long = "let x = 0;\n".repeat(MOST_LINES + 1);
    assert_eq!(faults_of(&[("os/maps.rs", &long)]).len(), 1);
    assert_eq!(faults_of(&[("attic/x.rs", "")]).len(), 1);
}

/// Which of the names are not in backquotes in the part of the overview below this heading.
fn unnamed(overview: &str, heading: &str, names: &[String]) -> Vec<String> {
    let (_, part) = overview.split_once(heading).expect("the heading");
    let part = part.split("\n###").next().unwrap_or_default();
    let is_missing = |name: &&String| !part.contains(&format!("`{name}`"));
    names.iter().filter(is_missing).cloned().collect()
}

#[test]
fn architecture_names_each_room_and_each_file_of_the_kernel_and_of_bpf() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let overview = fs::read_to_string(tree.join("ARCHITECTURE.md")).unwrap();
    let names = |directory: &str, ending: &str| {
        let entries = fs::read_dir(tree.join(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter_map(|name| Some(name.strip_suffix(ending)?.to_owned()));
        names.filter(|name| name != "mod").collect::<Vec<_>>()
    };
    let rooms: Vec<_> = names("src", "")
        .into_iter()
        .map(|name| match name.ends_with(".rs") {
            true => name,
            false => name + "/",
        })
        .collect();
    let kernel = names("src/kernel", ".rs");
    let bpf = names("bpf", "");
    assert!(rooms.len() > 15 && kernel.len() > 40 && bpf.len() > 40);
    for (heading, names) in [
        ("\n### src/\n", rooms),
        ("\n### src/kernel/\n", kernel),
        ("\n### bpf/\n", bpf),
    ] {
        let missing = unnamed(&overview, heading, &names);
        assert_eq!(missing, Vec::<String>::new(), "below{heading}");
    }
    let gone = ["attic".to_owned()];
    assert_eq!(unnamed(&overview, "\n### src/\n", &gone), gone);
}
