//! The output that README.md and docs/ show is that of real runs of examples/leak and examples/ci/c. `make docs` writes it,
//! and the picture in README.md, anew. What is shown elsewhere is a line of a snapshot.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::files::copy;
use crate::common::newcomers::run;
use crate::common::{TIMEOUT, machine, root};
use crate::documents::assert_matches;
use crate::links::markdown_below;

const PICTURE: &str = "docs/leak.svg";

/// Between these lines a document has the output of this name.
fn marks(name: &str) -> [String; 2] {
    ["begin", "end"].map(|which| format!("<!-- shown:{name}:{which} -->\n"))
}

/// The pid in the documents, and the seconds in which a window begins and ends.
const PID: &str = "4711";
const WINDOW: &str = "[1761153780 - 1761153785]";

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// ---- runs ------------------------------------------------------------------------------------------------------

/// A directory with the built examples: those of examples/leak, the mended one in `mended/`, and examples/ci/c in `c/`.
struct Examples(TempDir);

impl Examples {
    fn new() -> Self {
        root::require_root();
        let place = TempDir::new().expect("a temporary directory");
        let examples = Self(place);
        for name in ["settings", "list"] {
            let source = format!("{name}.c");
            copy(
                tree().join("examples/leak").join(&source),
                examples.path(&source),
            );
            examples.compile(".", name);
        }
        for directory in ["mended", "c"] {
            fs::create_dir(examples.path(directory)).expect("a directory can be made");
        }
        fs::write(examples.path("mended/settings.c"), mended()).expect("a file can be written");
        examples.compile("mended", "settings");
        for name in ["Makefile", "tidy.c", "messy.c"] {
            copy(
                tree().join("examples/ci/c").join(name),
                examples.path("c").join(name),
            );
        }
        run(in_directory("make", &examples.path("c")).args(["-s", "tidy", "messy"]));
        let suppressions = "leak:^strndup$\nleak:^parse$\nleak:stale\n";
        fs::write(examples.path("ci.supp"), suppressions).expect("a file can be written");
        examples
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn compile(&self, directory: &str, name: &str) {
        let mut compiler = in_directory("cc", &self.path(directory));
        run(compiler.args(["-g", "-o", name]).arg(format!("{name}.c")));
    }

    /// Runs memleak with these words in a directory. Returns what a terminal would show, with the command.
    fn memleak(&self, directory: &str, line: &str) -> (ExitStatus, String) {
        // The words are split by a shell, as a user's are.
        let mut shell = in_directory("sh", &self.path(directory));
        let script = format!("exec {} {line}", env!("CARGO_BIN_EXE_memleak"));
        let output = shell.args(["-c", &script]).output().expect("sh can be run");
        let text =
            [output.stdout, output.stderr].map(|part| String::from_utf8(part).expect("text"));
        let sudo = if line.starts_with("report") {
            ""
        } else {
            "sudo "
        };
        let text = format!("$ {sudo}memleak {line}\n{}", settled(&text.concat()));
        (output.status, text)
    }

    /// The same, of a run that ends with this exit code.
    #[track_caller]
    fn ends_with(&self, code: i32, directory: &str, line: &str) -> String {
        let (status, text) = self.memleak(directory, line);
        assert_eq!(status.code(), Some(code), "{text}");
        text
    }
}

fn in_directory(program: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).stdin(Stdio::null());
    // A make around the tests has its own options, and Cargo libraries for its own programs.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command
}

/// What docs/stacks.md changes in examples/leak/settings.c.
const CHANGES: [[&str; 2]; 3] = [
    [
        "\tstruct setting *setting = malloc(sizeof(*setting));\n\tconst char *sign = strchr(line, '=');\n",
        "\tconst char *sign = strchr(line, '=');\n\tstruct setting *setting = sign ? malloc(sizeof(*setting)) : NULL;\n",
    ],
    ["\tif (!setting || !sign)\n", "\tif (!setting)\n"],
    [
        "\t\tfree(setting);\n",
        "\t\tfree(setting->name);\n\t\tfree(setting);\n",
    ],
];

/// The example with these changes, all of which the page shows.
fn mended() -> String {
    let text = |path: &str| fs::read_to_string(tree().join(path)).expect("it can be read");
    let page = text("docs/stacks.md");
    let mut source = text("examples/leak/settings.c");
    for [before, after] in CHANGES {
        for (sign, lines, others) in [('-', before, after), ('+', after, before)] {
            let changed = lines.lines().filter(|line| !others.contains(*line));
            for line in changed {
                let is_shown = |shown: &str| {
                    let shown = shown
                        .strip_prefix("    ")
                        .and_then(|line| line.strip_prefix(sign));
                    shown.is_some_and(|shown| shown.trim() == line.trim())
                };
                assert!(page.lines().any(is_shown), "{sign}{line}");
            }
        }
        assert_eq!(source.matches(before).count(), 1, "{before}");
        source = source.replace(before, after);
    }
    source
}

/// The text with the same pids, times and C library in each run: a libc without its debug file.
fn settled(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_number = |at: usize| {
            words
                .get(at)
                .is_some_and(|word| word.parse::<u32>().is_ok())
        };
        let line = match words[..] {
            ["strndup", _] => "    strndup  libc.so.6".to_owned(),
            [from, "-", to, ..] if from.starts_with('[') && to.ends_with(']') => {
                format!(
                    "{WINDOW}{}",
                    &line[line.find(']').unwrap_or_default() + 1..]
                )
            }
            // The row of a process, and a row of --by.
            [_, _, pid, ..] if is_number(0) && is_number(2) => {
                line.replacen(&format!("{pid:<6}"), &format!("{PID:<6}"), 1)
            }
            [_, _, _, _, _, pid] if is_number(1) && is_number(5) => {
                line.replacen(&format!("{pid:>6}"), &format!("{PID:>6}"), 1)
            }
            _ => line.to_owned(),
        };
        let mut settled = String::new();
        // `name[pid]`
        for (at, part) in line.split('[').enumerate() {
            let pid = part
                .split_once(']')
                .filter(|(pid, _)| pid.parse::<u32>().is_ok());
            match pid {
                Some((_, rest)) if at > 0 => settled += &format!("[{PID}]{rest}"),
                _ if at > 0 => settled += &format!("[{part}"),
                _ => settled += part,
            }
        }
        settled.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

/// The lines from one that begins with the first text up to the next one that begins with the second.
#[track_caller]
fn from_to(text: &str, from: &str, to: &str) -> String {
    let lines = text.lines().skip_while(|line| !line.starts_with(from));
    let lines: Vec<_> = lines.take_while(|line| !line.starts_with(to)).collect();
    assert!(!lines.is_empty(), "{text}");
    lines.join("\n").trim_end().to_owned() + "\n"
}

/// What a memleak that watches prints of one process.
fn watched(examples: &Examples) -> String {
    let _machine = machine::watched();
    let [printed, metrics] = ["printed", "metrics.prom"].map(|name| examples.path(name));
    let mut memleak = in_directory(env!("CARGO_BIN_EXE_memleak"), examples.0.path());
    memleak.args(["-a", "1", "--comm", "settings", "-o"]);
    memleak.arg(format!("prometheus={}", metrics.display()));
    let output = File::create(&printed).expect("a file can be made");
    let mut memleak = memleak.stdout(output).spawn().expect("memleak can be run");
    let began = Instant::now();
    let until = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(began.elapsed() < *TIMEOUT, "memleak hangs");
            thread::sleep(Duration::from_millis(50));
        }
    };
    // The metrics are written when the first interval has ended.
    until(&|| metrics.exists());
    run(&mut in_directory("./settings", examples.0.path()));
    let text = || fs::read_to_string(&printed).expect("it can be read");
    until(&|| text().lines().count() >= 3);
    let pid = Pid::from_raw(memleak.id().cast_signed());
    kill(pid, Signal::SIGTERM).expect("memleak runs");
    let status = memleak.wait().expect("a child can be waited for");
    assert_eq!(status.code(), Some(0));
    format!("$ sudo memleak -a 5 --comm settings\n{}", settled(&text()))
}

/// All outputs, by their names.
fn outputs() -> Vec<(&'static str, String)> {
    let examples = Examples::new();
    let leak = examples.ends_with(23, ".", "run --fail-on-lost 0 -- ./settings");
    let mended = examples.ends_with(0, "mended", "run --fail-on-lost 0 -- ./settings");
    let gate = "run -q --fail-on-lost 0 --gate-exe './**' -- make -s check";
    let gate = examples.ends_with(23, "c", gate);
    let sums = examples.ends_with(0, ".", "run --lost --stacks=never -- ./list");
    let owner = examples.ends_with(0, ".", "run --lost -- ./list");
    let unjudged =
        "run -q --fail-on-lost 0 --gate-comm 'app*' -- sh -c './settings; ./settings; exit'";
    let unjudged = examples.ends_with(125, ".", unjudged);
    let (status, killed) =
        examples.memleak(".", "run -q --fail-on-lost 0 -- sh -c 'kill -KILL $$'");
    assert_eq!(status.signal(), Some(9), "{killed}");
    let before = "run -q -o json=baseline.json -- make -s check TESTS=tidy";
    examples.ends_with(0, "c", before);
    let new = "run --baseline baseline.json --fail-on-lost 0 --gate-exe './**' -- make -s check";
    let new = examples.ends_with(23, "c", new);
    let suppressed = "run --suppressions ci.supp --fail-on-lost 0 -- ./settings";
    let suppressed = examples.ends_with(0, ".", suppressed);
    examples.ends_with(0, ".", "run -q -o json=one.json -- ./settings");
    examples.ends_with(0, ".", "run -q -o json=two.json -- ./list");
    let groups = examples.ends_with(0, ".", "report --by comm one.json two.json");
    let (groups, _) = groups.split_once("\n\n").expect("an empty line");
    let verdict = |text: &str| from_to(text, "memleak: gate", "memleak: largest");
    vec![
        ("leak", leak),
        (
            "mended",
            from_to(&mended, "memleak: 1 process", "memleak: browse"),
        ),
        ("gate", gate),
        ("sums", sums),
        ("owner", from_to(&owner, "LOST ", "reachable")),
        ("unjudged", verdict(&unjudged)),
        ("killed", verdict(&killed)),
        ("baseline", from_to(&new, "baseline: ", "memleak: ")),
        (
            "suppressed",
            from_to(&suppressed, "suppressed: ", "memleak: "),
        ),
        ("groups", format!("{groups}\n")),
        ("watch", watched(&examples)),
    ]
}

/// The text as it is printed on a terminal.
fn picture(text: &str) -> String {
    const LINE: usize = 18;
    const LEFT: usize = 16;
    let escaped = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let longest = text.lines().map(|line| line.chars().count()).max();
    let (width, height) = (
        2 * LEFT + longest.unwrap_or(0) * 42 / 5,
        (text.lines().count() + 2) * LINE,
    );
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\">\n\
         <title>memleak names the lines that lose memory, and fails the job</title>\n\
         <style>\n\
         text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, \"DejaVu Sans Mono\", monospace; \
         fill: #d4d4d4; white-space: pre }}\n\
         .prompt {{ fill: #6a9955 }} .lost {{ fill: #e5c07b; font-weight: bold }} \
         .failed {{ fill: #f07178; font-weight: bold }} .line {{ fill: #61afef }}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1e1e1e\"/>\n"
    );
    for (at, line) in text.lines().enumerate() {
        let class = match line {
            _ if line.starts_with("$ ") => " class=\"prompt\"",
            _ if line.starts_with("LOST ") => " class=\"lost\"",
            _ if line.starts_with("memleak: gate failed") => " class=\"failed\"",
            _ => "",
        };
        let call = line.rsplit_once("  ").filter(|_| line.starts_with("    "));
        let line = match call {
            Some((call, place)) => format!(
                "{}  <tspan class=\"line\">{}</tspan>",
                escaped(call),
                escaped(place)
            ),
            None => escaped(line),
        };
        if !line.is_empty() {
            let y = (at + 2) * LINE;
            picture.push_str(&format!(
                "<text x=\"{LEFT}\" y=\"{y}\" xml:space=\"preserve\"{class}>{line}</text>\n"
            ));
        }
    }
    picture + "</svg>\n"
}

// ---- documents -------------------------------------------------------------------------------------------------

/// The document with this text between the marks of this name, as code. `None` if it has no such marks.
fn with_shown(document: &str, name: &str, text: &str) -> Option<String> {
    let [begin, end] = marks(name);
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end).expect("the second mark");
    let lines = text.lines().map(|line| match line {
        "" => "\n".to_owned(),
        line => format!("    {line}\n"),
    });
    let lines: String = lines.collect();
    Some(format!("{before}{begin}{lines}{end}{after}"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = markdown_below("docs");
    pages.push("README.md".into());
    pages
}

#[test]
fn the_outputs_in_the_documents_are_those_of_the_examples() {
    let outputs = outputs();
    let (_, leak) = &outputs[0];
    assert_matches(PICTURE, picture(leak).as_bytes());
    let mut unused: BTreeSet<_> = outputs.iter().map(|(name, _)| *name).collect();
    for page in pages() {
        let text = fs::read_to_string(tree().join(&page)).expect("the document can be read");
        let mut wanted = text.clone();
        for (name, output) in &outputs {
            if let Some(with) = with_shown(&wanted, name, output) {
                wanted = with;
                unused.remove(name);
            }
        }
        let marked = wanted.matches("<!-- shown:").count();
        let known = outputs.iter().map(|(name, _)| marks(name));
        let known = known.flatten().filter(|mark| wanted.contains(mark)).count();
        assert_eq!(marked, known, "{}: a mark of no output", page.display());
        assert_matches(page.to_str().expect("text"), wanted.as_bytes());
    }
    assert!(unused.is_empty(), "no document has {unused:?}");
}

/// How lines of memleak's output begin, as far as pages show them.
const BEGINNINGS: [&str; 13] = [
    "memleak: ",
    "LOST ",
    "LEAKED ",
    "GREW ",
    "HOLDS ",
    "UID ",
    "COMMAND ",
    "COMM ",
    "lost: ",
    "reachable: ",
    "suppressed: ",
    "baseline: ",
    "new: ",
];

/// A line without its numbers and without more than one space between words.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut before = ' ';
    for letter in line.trim().chars() {
        let letter = if letter.is_ascii_digit() { '0' } else { letter };
        let is_number = |letter: char| letter == '0' || letter == ',' || letter == '.';
        let again = letter == ' ' && before == ' ' || before == '0' && is_number(letter);
        if !again {
            shape.push(letter);
            before = letter;
        }
    }
    shape
}

/// The lines of memleak's output in a document that are not between marks.
fn unmarked(document: &str) -> Vec<&str> {
    let mut is_marked = false;
    let mut found = Vec::new();
    for line in document.lines() {
        if line.starts_with("<!-- shown:") {
            is_marked = line.ends_with(":begin -->");
        }
        let Some(code) = line.strip_prefix("    ").filter(|_| !is_marked) else {
            continue;
        };
        let code = code.trim_start();
        if BEGINNINGS
            .iter()
            .any(|beginning| code.starts_with(beginning))
        {
            found.push(code);
        }
    }
    found
}

/// Tests that have outputs in their text. Documents may show these, with names of their own.
const TESTS: [&str; 2] = ["tests/it/leak_places.rs", "src/session/greeting.rs"];

/// Whether a test has the line, but for `memleak:` at its beginning and a name at its end.
fn is_tested(tests: &str, line: &str) -> bool {
    let unnamed = line.rfind(", ").map(|at| &line[..at + 1]);
    let whole = line.strip_prefix("memleak: ");
    let pieces = unnamed.into_iter().chain(whole);
    pieces
        .into_iter()
        .any(|piece| tests.contains(&shape(piece)))
}

#[test]
fn an_output_without_marks_is_one_of_a_snapshot() {
    let snapshots = snapshots(&tree().join("src"));
    let expected: BTreeSet<_> = snapshots.lines().map(shape).collect();
    assert!(expected.len() > 500, "only {} lines", expected.len());
    let tests = TESTS.map(|path| fs::read_to_string(tree().join(path)).expect("it can be read"));
    let tests = shape(&tests.concat());
    let mut checked = 0;
    let mut unknown = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(tree().join(&page)).expect("the document can be read");
        for line in unmarked(&text) {
            checked += 1;
            if !expected.contains(&shape(line)) && !is_tested(&tests, line) {
                unknown.push(format!("{}: {line}", page.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(checked >= 4, "only {checked} lines were found");
}

/// The names of fields in a text of JSON, which may be cut.
fn fields(json: &str) -> BTreeSet<&str> {
    let ends = json.match_indices("\":").map(|(at, _)| &json[..at]);
    ends.filter_map(|text| text.rsplit('"').next()).collect()
}

/// The text of the snapshots below a directory.
fn snapshots(directory: &Path) -> String {
    let mut found = String::new();
    for entry in fs::read_dir(directory).expect("the directory can be read") {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            found += &snapshots(&path);
        } else if path.extension().is_some_and(|ending| ending == "snap") {
            found += &fs::read_to_string(&path).expect("the snapshot can be read");
        }
    }
    found
}

#[test]
fn the_fields_in_shown_json_are_those_of_snapshots_and_of_a_run() {
    let examples = Examples::new();
    examples.ends_with(0, ".", "run -q --lost -o json=list.json -- ./list");
    let report = fs::read_to_string(examples.path("list.json"));
    let text = snapshots(&tree().join("src")) + &report.expect("the report can be read");
    let known = fields(&text);
    let mut checked = 0;
    for page in ["docs/formats.md", "docs/doctor.md"] {
        let text = fs::read_to_string(tree().join(page)).expect("the page can be read");
        // An object goes over several lines, of which the later ones are indented further.
        for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
            let is_json = line.starts_with('{') || line.starts_with(" ");
            let shown = fields(line);
            if !is_json || shown.is_empty() {
                continue;
            }
            checked += shown.len();
            let unknown: Vec<_> = shown.difference(&known).collect();
            assert!(unknown.is_empty(), "{page}: {unknown:?}");
        }
    }
    assert!(checked > 60, "only {checked} fields were found");
    assert_eq!(
        fields(r#"{"a":1,"b_c":{"d":"#),
        BTreeSet::from(["a", "b_c", "d"])
    );
}

#[test]
fn an_output_of_no_run_is_found() {
    let [begin, end] = marks("a");
    let text =
        format!("memleak: x\n\n    memleak: 1,5 MB\n{begin}    LOST 1\n{end}    LOST 2\n    ls\n");
    assert_eq!(unmarked(&text), ["memleak: 1,5 MB", "LOST 2"]);
    assert_eq!(shape(" a  1,024.5 b7 "), "a 0 b0");
    assert!(is_tested("GREW by 0 bytes, a", "GREW by 17 bytes, b[3]"));
    assert!(!is_tested("GREW by 0 bytes, a", "GREW by 17 blocks, b[3]"));
    let with = with_shown(&text, "a", "new\n\nend\n").expect("the marks");
    assert!(
        with.contains(&format!("{begin}    new\n\n    end\n{end}    LOST 2")),
        "{with}"
    );
    assert_eq!(with_shown(&text, "b", ""), None);
}
