//! The output that README.md and docs/stacks.md show is that of a real run of examples/leak. `make docs` writes it, and the
//! picture in README.md, anew.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::files::copy;
use crate::common::newcomers::run;
use crate::common::{Job, code};
use crate::documents::assert_matches;

const COMMAND: &str = "sudo memleak run --fail-on-lost 0 -- ./settings";

const PICTURE: &str = "docs/leak.svg";

/// Between these lines a document has the output.
const BEGIN: &str = "<!-- shown:begin -->\n";
const END: &str = "<!-- shown:end -->\n";

/// What the command prints. The pid is always the same, and the C library is as without its debug file.
fn shown() -> String {
    let place = TempDir::new().expect("a temporary directory");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/leak/settings.c");
    copy(source, place.path().join("settings.c"));
    let mut compiler = Command::new("cc");
    run(compiler
        .current_dir(place.path())
        .args(["-g", "-o", "settings", "settings.c"]));
    let job = Job::new::<&str>("./settings", []).in_directory(place.path());
    let (status, table) = job.run_under(
        env!("CARGO_BIN_EXE_memleak"),
        &["run", "--fail-on-lost", "0", "--"],
    );
    assert_eq!(code(status), 23, "{table}");
    let row = table.lines().find(|line| line.contains(" settings "));
    let pid = row
        .and_then(|row| row.split_whitespace().nth(2))
        .expect("a row");
    let table = table
        .replace(&format!("{pid:<6}"), &format!("{:<6}", "4711"))
        .replace(&format!("[{pid}]"), "[4711]");
    let lines = table.lines().map(|line| match line.trim_start() {
        text if text.starts_with("strndup ") => "    strndup  libc.so.6".to_owned(),
        _ => line.trim_end().to_owned(),
    });
    lines.map(|line| line + "\n").collect()
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

/// The document with this text between the marks.
fn with_shown(document: &str, text: &str) -> String {
    let (before, rest) = document.split_once(BEGIN).expect("the first mark");
    let (_, after) = rest.split_once(END).expect("the second mark");
    let lines = text.lines().map(|line| match line {
        "" => "\n".to_owned(),
        line => format!("    {line}\n"),
    });
    let lines: String = lines.collect();
    format!("{before}{BEGIN}\n{lines}\n{END}{after}")
}

#[test]
fn the_output_in_the_documents_is_that_of_the_example() {
    let text = format!("$ {COMMAND}\n305\n{}", shown());
    assert_matches(PICTURE, picture(&text).as_bytes());
    for name in ["README.md", "docs/stacks.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let document = fs::read_to_string(path).expect("the document can be read");
        assert_matches(name, with_shown(&document, &text).as_bytes());
    }
}
