//! Tests the documents: each link leads to a file and a heading, and memleak accepts each of its command lines.
//!
//! A command line of memleak is a line of a code block, or a piece of inline code. One of its words is `memleak` or a
//! path that ends in `/memleak`. The next word is `run`, `doctor`, `report` or begins with `-`. The test reads a command line by
//! these rules:
//! - The words before memleak may be `$`, `sudo`, `env`, `-u NAME`, `srun`, `exec`, `timeout … SECONDS` and
//!   `NAME=value`. Any other word is an error.
//! - The test ignores a comment (`# …`) and the text after `|`, `&&`, `;`, `>` or `<`.
//! - A line that ends in a backslash continues in the next line.
//! - The test ignores `[OPTIONS]`, `[ARGS]…` and `[--]` of a synopsis.
//! - Placeholders such as PID or `[INTERVAL]`, and a lone `…`, get a value ([`PLACEHOLDERS`]).
//! - `memleak run` without a command, as it occurs in text, gets a command.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use clap::CommandFactory;
use memleak::cli::{Cli, Stop, parse};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// The placeholders of a synopsis, each with a value.
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

/// The least number of command lines of memleak in the documents. If the test finds fewer, it looks in the wrong
/// places.
const COMMANDS: usize = 40;
/// The least number of relative links in the documents.
const LINKS: usize = 70;
/// The least number of options in inline code.
const OPTIONS: usize = 55;

/// The most lines that README.md may have: a newcomer reads all of it.
const README_LINES: usize = 200;

// ---- reading -------------------------------------------------------------------------------------------

/// The checked parts of a document, each with its line number, from 1.
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

/// The lines with their numbers. A line that ends in a backslash is joined with the next one.
fn joined_lines(first: usize, code: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut continues = false;
    for (number, line) in code.lines().enumerate() {
        let (line, more) = line
            .strip_suffix('\\')
            .map_or((line, false), |line| (line, true));
        match lines.last_mut() {
            Some((_, before)) if continues => before.push_str(line),
            _ => lines.push((first + number, line.to_owned())),
        }
        continues = more;
    }
    lines
}

/// The anchor that GitHub gives to a heading: in lower case, without punctuation, and with hyphens for spaces. The
/// second heading with the same text gets a number.
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
pub fn markdown_below(directory: &str) -> Vec<PathBuf> {
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

/// The path in the tree that a relative link of `from` leads to. `None` if it leads out of the tree.
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

/// Whether packages contain the file, at the same path below share/doc/memleak.
fn is_shipped(path: &Path) -> bool {
    let in_tree = path.to_str().unwrap();
    let parent = path.parent().and_then(Path::to_str).unwrap_or_default();
    ["README.md", "CHANGELOG.md", "LICENSE"].contains(&in_tree)
        || ["docs", "examples/slurm"].contains(&parent)
}

/// The error in a relative link of `from`. `None` if the link is correct.
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
        None => Some("has an anchor in a file that is no document"),
        Some(document) if document.anchors.contains(anchor) => None,
        Some(_) => Some("names no heading there"),
    }
}

fn is_relative(link: &str) -> bool {
    !link.contains("://") && !link.starts_with("mailto:")
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let documents = documents();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, document) in &documents {
        for (line, link) in document.links.iter().filter(|(_, link)| is_relative(link)) {
            checked += 1;
            if let Some(error) = wrong_link(&documents, path, link) {
                wrong.push(format!("{}:{line}: {link} {error}", path.display()));
            }
        }
    }
    assert_nothing_wrong(&wrong);
    assert!(checked >= LINKS, "only {checked} links were found");
}

// ---- command lines -------------------------------------------------------------------------------------

/// A line's words as a shell splits them, up to a comment or an operator.
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

/// The words before memleak in a line of code, and memleak's own words. `None` if the line is no command line of
/// memleak.
fn command(line: &str) -> Option<(Vec<String>, Vec<String>)> {
    let mut words = shell_words(line);
    let at = (0..words.len()).find(|&at| {
        let memleak =
            words[at] == "memleak" || words[at].ends_with("/memleak") && !words[at].contains('=');
        let takes =
            |next: &String| next.starts_with('-') || ["run", "doctor", "report"].contains(&&**next);
        memleak && words.get(at + 1).is_some_and(takes)
    })?;
    let command = words.split_off(at);
    Some((words, command))
}

/// The first word before memleak that the rules above do not allow.
fn unknown_prefix(words: &[String]) -> Option<&String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "$" | "sudo" | "env" | "srun" | "exec" => {}
            "-u" => {
                words.next();
            }
            // Its options, and the seconds.
            "timeout" => {
                words.find(|word| word.parse::<u32>().is_ok());
            }
            _ if word.contains('=') => {}
            _ => return Some(word),
        }
    }
    None
}

/// A word of a synopsis as a user would type it. `None` if a user would not type it.
fn typed(word: &str) -> Option<String> {
    if ["[OPTIONS]", "[ARGS]…", "[ARGS]...", "[ARGS]", "[--]"].contains(&word) {
        return None;
    }
    let value = |word: &str| {
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        let (_, value) = PLACEHOLDERS.iter().find(|(name, _)| *name == bare)?;
        Some((*value).to_owned())
    };
    // Examples are --wait-all=SECONDS and --wait-all[=SECONDS].
    if let Some((option, name)) = word.split_once('=')
        && let Some(value) = value(name)
    {
        return Some(format!("{}={value}", option.trim_end_matches('[')));
    }
    Some(value(word).unwrap_or_else(|| word.to_owned()))
}

/// The error that memleak's own parser reports for its words. `None` if the parser accepts them.
fn wrong_command(words: &[String]) -> Option<String> {
    let words: Vec<_> = words.iter().filter_map(|word| typed(word)).collect();
    let refused = |words: &[String]| match parse(words.iter().map(OsString::from)) {
        Ok(_) | Err(Stop::Told(_)) => None,
        Err(Stop::Wrong(error)) => Some(error),
    };
    let error = refused(&words)?;
    if words[1] != "run" || words.iter().any(|word| word == "--") {
        return Some(error);
    }
    let with_command = [words.as_slice(), &["--".to_owned(), "true".to_owned()]].concat();
    refused(&with_command)
}

/// Checks a line of code. Returns whether it is a command line of memleak, and the error in it.
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
fn memleak_accepts_every_command_line_of_the_documents() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, document) in &documents() {
        for (number, line) in document.lines.iter().chain(&document.inline) {
            let (is_command, error) = wrong_line(line);
            checked += usize::from(is_command);
            if let Some(error) = error {
                wrong.push(format!("{}:{number}: {line}: {error}", path.display()));
            }
        }
    }
    assert_nothing_wrong(&wrong);
    assert!(checked >= COMMANDS, "only {checked} commands were found");
}

/// The long options of memleak: either the hidden ones, or those that its help shows.
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

/// Whether a document is a page for users. These pages name only options of memleak.
fn is_for_users(path: &Path) -> bool {
    path == Path::new("README.md") || path.parent() == Some(Path::new("docs"))
}

#[test]
fn the_pages_for_users_name_every_option_and_no_other() {
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
    // The pages need not name these options.
    named.extend(["--help", "--version", "--pid", "--all"].map(str::to_owned));
    let unnamed = there.difference(&named);
    wrong.extend(unnamed.map(|name| format!("README.md and docs/ do not name {name}")));
    assert_nothing_wrong(&wrong);
    assert!(checked >= OPTIONS, "only {checked} options were found");
}

// ---- README and the pages ---------------------------------------------------------------------------------

#[test]
fn a_newcomer_can_read_readme_in_two_minutes() {
    let readme = fs::read_to_string(tree().join("README.md")).unwrap();
    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines");
    // A few limits, a small table of costs, and one table of options. The rest is in docs/.
    let limits = part(&readme, "Limits");
    assert_eq!(limits.matches("\n- ").count(), 6, "{limits}");
    // The heading and the rule are two of the rows.
    let costs = part(&readme, "What it costs").matches("\n| ").count() - 1;
    assert!((1..=6).contains(&costs), "{costs} rows");
    assert_eq!(readme.matches("\n| option |").count(), 1);
}

/// The part of a document below a heading of the second level.
fn part<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, part) = document
        .split_once(&format!("\n## {heading}\n"))
        .expect("the heading");
    part.split("\n## ").next().unwrap_or_default()
}

/// How the first paragraph of a page begins.
const READERS: [&str; 2] = ["For ", "This page is for "];

#[test]
fn each_page_is_in_its_index_and_says_for_whom_it_is() {
    let mut checked = 0;
    for directory in ["docs", "docs/design"] {
        let read = |name: &str| fs::read_to_string(tree().join(directory).join(name)).unwrap();
        let index = Document::read(&read("README.md"));
        for entry in fs::read_dir(tree().join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".md") {
                continue;
            }
            checked += 1;
            let text = read(&name);
            let first = text.split("\n\n").nth(1).unwrap_or_default();
            let is_for = READERS.iter().any(|words| first.starts_with(words));
            assert!(is_for, "{directory}/{name}: {first}");
            let is_listed = index.links.iter().any(|(_, link)| *link == name);
            assert!(name == "README.md" || is_listed, "{directory}/{name}");
        }
    }
    assert!(checked > 40, "only {checked} pages were found");
}

// ---- tests of the tests -----------------------------------------------------------------------------------

/// Tests the checks above: they find each error.
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
    for (link, error) in [
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
            Some("has an anchor in a file that is no document"),
        ),
    ] {
        assert_eq!(wrong_link(&documents, from, link), error, "{link}");
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
        let (is_command, error) = wrong_line(line);
        assert!(is_command && error.is_some(), "{line}");
    }
    for line in [
        "install -m 750 target/release/memleak /usr/local/bin/",
        "MEMLEAK=/usr/bin/memleak",
        "memleak-task.sh run",
    ] {
        assert_eq!(wrong_line(line), (false, None), "{line}");
    }
}
