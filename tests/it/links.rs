//! The documents: their links lead somewhere, and their command lines are ones that memleak takes.
//!
//! What counts as a command line of memleak: in a block of code, a line; in running text, a piece of inline code. One
//! of its words is `memleak` or a path that ends in `/memleak`, and the word after that is `run`, `doctor` or begins
//! with `-`. Recognised around it:
//! - before it: `$`, `sudo`, `env`, `-u NAME`, `srun`, `exec`, `NAME=value`; any other word is an error;
//! - after it: a comment (`# …`) and whatever follows `|`, `&&`, `;`, `>` or `<` is left out;
//! - a line that ends in a backslash goes on in the next one;
//! - `[OPTIONS]`, `[ARGS]…` and `[--]` of a synopsis are left out;
//! - placeholders such as PID or `[INTERVAL]` get a value ([`PLACEHOLDERS`]), a lone `…` too;
//! - `memleak run` without a command, as it stands in text, gets one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use clap::CommandFactory;
use memleak::cli::{Cli, Stop, parse};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// What stands for a value in a synopsis, and a value for it.
const PLACEHOLDERS: [(&str, &str); 16] = [
    ("PID", "1"),
    ("INTERVAL", "5"),
    ("SECONDS", "60"),
    ("COMMAND", "true"),
    ("SIZE", "1MB"),
    ("FILE", "report"),
    ("NAME", "name"),
    ("UID", "1000"),
    ("GID", "1000"),
    ("GLOB", "a*"),
    ("N", "1"),
    ("PATH", "/a/path"),
    ("SPEC", "./app:alloc=pool_alloc,free=pool_free"),
    ("FORMAT", "json"),
    ("WHEN", "always"),
    ("…", "1"),
];

/// Lines and pieces of inline code that name a command of memleak: fewer than these, and the test looks at the wrong
/// ones.
const COMMANDS: usize = 40;
/// The same for relative links.
const LINKS: usize = 70;
/// The same for options in inline code.
const OPTIONS: usize = 55;

/// What a newcomer reads, at most: lines of README.md.
const README_LINES: usize = 220;

// ---- reading -------------------------------------------------------------------------------------------

/// A document of the tree: what of it is checked, each with its line, from 1.
#[derive(Default)]
struct Document {
    anchors: HashSet<String>,
    links: Vec<(usize, String)>,
    /// Lines of blocks of code.
    lines: Vec<(usize, String)>,
    inline: Vec<(usize, String)>,
}

impl Document {
    fn read(text: &str) -> Self {
        let mut document = Self::default();
        let line_at = |offset: usize| text[..offset].matches('\n').count() + 1;
        let mut heading: Option<String> = None;
        let mut block: Option<(usize, String)> = None;
        let mut seen = HashMap::new();
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = line_at(range.start);
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let heading = heading.take().unwrap_or_default();
                    document.anchors.insert(anchor(&heading, &mut seen));
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((line, dest_url.into_string()));
                }
                Event::Start(Tag::CodeBlock(_)) => block = Some((0, String::new())),
                Event::End(TagEnd::CodeBlock) => {
                    let (first, code) = block.take().unwrap_or_default();
                    document.lines.extend(joined_lines(first, &code));
                }
                Event::Text(text) => {
                    if let Some((first, code)) = &mut block {
                        if code.is_empty() {
                            *first = line;
                        }
                        code.push_str(&text);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    document.inline.push((line, code.into_string()));
                }
                _ => {}
            }
        }
        document
    }
}

/// Lines with their numbers; one that ends in a backslash takes in the next one.
fn joined_lines(first: usize, code: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in code.lines().enumerate() {
        let (line, more) = line
            .strip_suffix('\\')
            .map_or((line, false), |line| (line, true));
        match lines.last_mut() {
            Some((_, before)) if goes_on => before.push_str(line),
            _ => lines.push((first + number, line.to_owned())),
        }
        goes_on = more;
    }
    lines
}

/// What GitHub calls a heading: lower case, without punctuation, with hyphens for spaces, and a number for the second of
/// that name.
fn anchor(heading: &str, seen: &mut HashMap<String, usize>) -> String {
    let slug: String = heading
        .to_lowercase()
        .chars()
        .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter))
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect();
    let times = seen.entry(slug.clone()).or_default();
    *times += 1;
    match *times {
        1 => slug,
        times => format!("{slug}-{}", times - 1),
    }
}

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Markdown files below a directory of the tree, as paths in the tree.
fn markdown_below(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(tree().join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = Path::new(directory).join(entry.file_name());
        if entry.path().is_dir() {
            found.extend(markdown_below(path.to_str().unwrap()));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

/// All documents, by their paths in the tree.
fn documents() -> BTreeMap<PathBuf, Document> {
    let mut paths = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ]
    .map(PathBuf::from)
    .to_vec();
    paths.extend(markdown_below("docs"));
    paths.extend(markdown_below("examples"));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(tree().join(&path)).unwrap();
        (path, Document::read(&text))
    };
    paths.into_iter().map(read).collect()
}

fn assert_nothing_wrong(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

// ---- links ---------------------------------------------------------------------------------------------

/// Where a relative link of `from` leads, in the tree; `None`: out of it.
fn target(from: &Path, link: &str) -> Option<PathBuf> {
    let mut path = from.parent().unwrap_or(Path::new("")).to_owned();
    for component in Path::new(link).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    Some(path)
}

/// Whether packages have it, in share/doc/memleak and at the same place below it.
fn is_shipped(path: &Path) -> bool {
    let in_tree = path.to_str().unwrap();
    let parent = path.parent().and_then(Path::to_str).unwrap_or_default();
    ["README.md", "CHANGELOG.md", "LICENSE"].contains(&in_tree)
        || ["docs", "examples/slurm"].contains(&parent)
}

/// What is wrong with a link of `from`; `None` where nothing is, or it leads to another site.
fn wrong_link(
    documents: &BTreeMap<PathBuf, Document>,
    from: &Path,
    link: &str,
) -> Option<&'static str> {
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    let path = if path.is_empty() {
        from.to_owned()
    } else {
        let Some(path) = target(from, path) else {
            return Some("leads out of the tree");
        };
        path
    };
    if !tree().join(&path).exists() {
        return Some("leads to no file");
    }
    if is_shipped(from) && !is_shipped(&path) {
        return Some("leads to a file that packages do not have");
    }
    let anchor = anchor?;
    match documents.get(&path) {
        None => Some("has an anchor in what is no document"),
        Some(document) if document.anchors.contains(anchor) => None,
        Some(_) => Some("names no heading there"),
    }
}

fn is_relative(link: &str) -> bool {
    !link.contains("://") && !link.starts_with("mailto:")
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading_of_it() {
    let documents = documents();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, document) in &documents {
        for (line, link) in document.links.iter().filter(|(_, link)| is_relative(link)) {
            checked += 1;
            if let Some(what) = wrong_link(&documents, path, link) {
                wrong.push(format!("{}:{line}: {link} {what}", path.display()));
            }
        }
    }
    assert_nothing_wrong(&wrong);
    assert!(checked >= LINKS, "only {checked} links were found");
}

// ---- command lines -------------------------------------------------------------------------------------

/// A line's words as a shell has them, up to a comment or an operator.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (_, Some(quoted)) if letter == quoted => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            (_, Some(_)) => word.get_or_insert_default().push(letter),
            ('\'' | '"', None) => {
                word.get_or_insert_default();
                quote = Some(letter);
            }
            ('|' | '&' | ';' | '>' | '<', None) => break,
            ('#', None) if word.is_none() => break,
            (_, None) if letter.is_whitespace() => words.extend(word.take()),
            (_, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// memleak's own words in a line of code, and those before them; `None` where it is no command of memleak's.
fn command(line: &str) -> Option<(Vec<String>, Vec<String>)> {
    let mut words = shell_words(line);
    let at = (0..words.len()).find(|&at| {
        let memleak =
            words[at] == "memleak" || words[at].ends_with("/memleak") && !words[at].contains('=');
        let takes = |next: &String| next.starts_with('-') || next == "run" || next == "doctor";
        memleak && words.get(at + 1).is_some_and(takes)
    })?;
    let command = words.split_off(at);
    Some((words, command))
}

/// The first of the words before memleak that is not known to leave its command line alone.
fn unknown_prefix(words: &[String]) -> Option<&String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "$" | "sudo" | "env" | "srun" | "exec" => {}
            "-u" => {
                words.next();
            }
            _ if word.contains('=') => {}
            _ => return Some(word),
        }
    }
    None
}

/// A word of a synopsis as somebody would type it; `None`: not at all.
fn typed(word: &str) -> Option<String> {
    if ["[OPTIONS]", "[ARGS]…", "[ARGS]...", "[ARGS]", "[--]"].contains(&word) {
        return None;
    }
    let value = |word: &str| {
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        let (_, value) = PLACEHOLDERS.iter().find(|(name, _)| *name == bare)?;
        Some((*value).to_owned())
    };
    // As --wait-all=SECONDS and --wait-all[=SECONDS].
    if let Some((option, name)) = word.split_once('=')
        && let Some(value) = value(name)
    {
        return Some(format!("{}={value}", option.trim_end_matches('[')));
    }
    Some(value(word).unwrap_or_else(|| word.to_owned()))
}

/// What memleak's own parser says against its words; `None`: nothing.
fn wrong_command(words: &[String]) -> Option<String> {
    let words: Vec<_> = words.iter().filter_map(|word| typed(word)).collect();
    let refused = |words: &[String]| match parse(words.iter().map(OsString::from)) {
        Ok(_) | Err(Stop::Told(_)) => None,
        Err(Stop::Wrong(what)) => Some(what),
    };
    let what = refused(&words)?;
    if words[1] != "run" || words.iter().any(|word| word == "--") {
        return Some(what);
    }
    let with_command = [words.as_slice(), &["--".to_owned(), "true".to_owned()]].concat();
    refused(&with_command)
}

/// What is wrong with a line of code; the first value says whether it is a command line of memleak's at all.
fn wrong_line(line: &str) -> (bool, Option<String>) {
    let Some((before, words)) = command(line) else {
        return (false, None);
    };
    if let Some(word) = unknown_prefix(&before) {
        return (
            true,
            Some(format!("'{word}' is not known before a command")),
        );
    }
    (true, wrong_command(&words))
}

#[test]
fn memleak_takes_every_command_line_of_the_documents() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, document) in &documents() {
        for (number, line) in document.lines.iter().chain(&document.inline) {
            let (is_command, what) = wrong_line(line);
            checked += usize::from(is_command);
            if let Some(what) = what {
                wrong.push(format!("{}:{number}: {line}: {what}", path.display()));
            }
        }
    }
    assert_nothing_wrong(&wrong);
    assert!(checked >= COMMANDS, "only {checked} commands were found");
}

/// The long options that memleak has: hidden ones, or those that it shows.
fn options(hidden: bool) -> HashSet<String> {
    let mut memleak = Cli::command();
    memleak.build();
    let modes = memleak
        .get_subcommands()
        .flat_map(|mode| mode.get_arguments());
    let options = memleak.get_arguments().chain(modes);
    let options = options.filter(|option| option.is_hide_set() == hidden);
    let names = options.filter_map(|option| option.get_long());
    names.map(|name| format!("--{name}")).collect()
}

/// The pages for users, which name options of memleak and of nothing else.
fn is_for_users(path: &Path) -> bool {
    path == Path::new("README.md") || path.parent() == Some(Path::new("docs"))
}

#[test]
fn the_pages_for_users_name_the_options_that_there_are_and_all_of_them() {
    let there = options(false);
    let mut named = HashSet::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, document) in documents().iter().filter(|(path, _)| is_for_users(path)) {
        for (line, code) in &document.inline {
            for word in code.split_whitespace().take_while(|word| *word != "--") {
                let name = word.split(['=', '[', ',']).next().unwrap_or_default();
                if !name.starts_with("--") || !code.starts_with('-') {
                    continue;
                }
                checked += 1;
                if there.contains(name) {
                    named.insert(name.to_owned());
                } else {
                    wrong.push(format!("{}:{line}: there is no {name}", path.display()));
                }
            }
        }
    }
    // Whoever reads of these has found them.
    named.extend(["--help", "--version", "--pid", "--all"].map(str::to_owned));
    let unnamed = there.difference(&named);
    wrong.extend(unnamed.map(|name| format!("README.md and docs/ say nothing of {name}")));
    assert_nothing_wrong(&wrong);
    assert!(checked >= OPTIONS, "only {checked} options were found");
}

// ---- the rest ------------------------------------------------------------------------------------------

#[test]
fn a_newcomer_can_read_readme_in_two_minutes() {
    let readme = fs::read_to_string(tree().join("README.md")).unwrap();
    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines");
}

/// Tests of tests: what is wrong is found.
#[test]
fn broken_links_and_bad_command_lines_are_found() {
    let text = "# One `--two`: three\n\n# Again\n\n# Again\n\n[a](#again-1) [b](b.md#x)\n\n\
                ```\nsudo memleak run --no-such \\\n  -- true\n```\n\nAnd `memleak\n-p PID`.\n";
    let document = Document::read(text);
    let anchors = ["one---two-three", "again", "again-1"].map(str::to_owned);
    assert_eq!(document.anchors, HashSet::from(anchors));
    let links = [(7, "#again-1"), (7, "b.md#x")].map(|(line, link)| (line, link.to_owned()));
    assert_eq!(document.links, links);
    let line = "sudo memleak run --no-such   -- true";
    assert_eq!(document.lines, [(10, line.to_owned())]);
    let inline = [(1, "--two"), (14, "memleak -p PID")];
    assert_eq!(
        document.inline,
        inline.map(|(line, code)| (line, code.to_owned()))
    );

    let from = Path::new("docs/limits.md");
    let documents = BTreeMap::from([
        (from.to_owned(), document),
        (PathBuf::from("README.md"), Document::default()),
    ]);
    for (link, what) in [
        ("#again-1", None),
        ("#again-2", Some("names no heading there")),
        ("../README.md", None),
        ("../README.md#limits", Some("names no heading there")),
        ("../READYOU.md", Some("leads to no file")),
        ("../../README.md", Some("leads out of the tree")),
        ("/README.md", Some("leads out of the tree")),
        (
            "../CONTRIBUTING.md",
            Some("leads to a file that packages do not have"),
        ),
        (
            "../LICENSE#terms",
            Some("has an anchor in what is no document"),
        ),
    ] {
        assert_eq!(wrong_link(&documents, from, link), what, "{link}");
    }

    for line in [
        "$ sudo env -u SUDO_UID A=b memleak run -o … # a comment",
        "sudo memleak -p PID [INTERVAL]    # -p 1,2",
        "srun /usr/bin/memleak run --wait-all[=SECONDS] -- COMMAND [ARGS]…",
        "memleak run --allocator './app:alloc=a(_, size)' -- ./app | less --no-such",
        "memleak run",
        "memleak --help",
    ] {
        assert_eq!(wrong_line(line), (true, None), "{line}");
    }
    for line in [
        "memleak run --no-such -- true",
        "memleak run --no-such",
        "memleak run --fail-on-leak 1XB -- true",
        "memleak -p NAME",
        "memleak doctor --live",
        "memleak run --gate-comm a -- true",
        "nice memleak run -- true",
    ] {
        let (is_command, what) = wrong_line(line);
        assert!(is_command && what.is_some(), "{line}");
    }
    for line in [
        "install -m 750 target/release/memleak /usr/local/bin/",
        "MEMLEAK=/usr/bin/memleak",
        "memleak-task.sh run",
    ] {
        assert_eq!(wrong_line(line), (false, None), "{line}");
    }
}
