//! What valgrind says about each leak of a program: its loss records.

use std::fs;
use std::process::{Command, Output};

use memleak::model::reach::Amount;
use memleak::stacks::{FrameText, LeakKind, StackText};
use tempfile::TempDir;

use super::fixtures::compiled_in;
use super::unprobed::Unprobed;

/// A frame as valgrind's XML has it. Names are mangled.
pub struct LossFrame {
    pub at: String,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub module: String,
}

/// A loss record of valgrind.
pub struct LossRecord {
    pub kind: LeakKind,
    pub amount: Amount,
    /// The bytes that are lost with these, and have records of their own.
    pub owned_bytes: u64,
    /// The first is the allocator.
    pub frames: Vec<LossFrame>,
}

impl LossRecord {
    pub fn frames(&self) -> Vec<FrameText<'_>> {
        let next = self.frames.iter().skip(1).map(|frame| &frame.at);
        let next = next.map(Some).chain([None]);
        let frames = self.frames.iter().zip(next);
        let frames = frames.map(|(frame, next)| FrameText {
            function: frame.function.as_deref(),
            linkage: frame.function.as_deref(),
            file: frame.file.as_deref(),
            line: frame.line,
            module: &frame.module,
            // All functions of one place but the outermost are inlined.
            inlined: next == Some(&frame.at),
        });
        frames.collect()
    }

    /// Calls `work` with the stack.
    pub fn with_stack<T>(&self, work: impl FnOnce(&StackText) -> T) -> T {
        let frames = self.frames();
        work(&StackText {
            allocator: frames[0],
            frames: &frames[1..],
        })
    }

    pub fn passes(&self, function: &str) -> bool {
        let mut frames = self.frames.iter();
        frames.any(|frame| frame.function.as_deref() == Some(function))
    }
}

/// The texts of all elements of a name.
fn elements<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(&start).skip(1);
    let parts = parts.filter_map(|part| part.split(&end).next());
    parts.collect()
}

/// What valgrind says about each leak of a program, and in its summary. `command` is the program with its arguments.
pub fn valgrind(command: &[&str], options: &[&str]) -> (Vec<LossRecord>, String) {
    let unprobed = Unprobed::with([compiled_in("libstdc++.so.6")]);
    let place = TempDir::new().expect("a temporary directory");
    let xml = place.path().join("out.xml");
    let file = format!("--xml-file={}", xml.display());
    let mut words = vec![
        "valgrind",
        "--leak-check=full",
        "--show-leak-kinds=all",
        "--num-callers=40",
        "--demangle=no",
        // What the libraries keep is not freed at the end, and not hidden.
        "--run-libc-freeres=no",
        "--run-cxx-freeres=no",
        "--default-suppressions=no",
        "--xml=yes",
        &file,
    ];
    words.extend(options);
    words.extend(command);
    let mut command = Command::new("unshare");
    command.args(unprobed.words(&words));
    let output = run(&mut command);
    assert!(output.status.success(), "{output:?}");
    let xml = fs::read_to_string(xml).expect("valgrind has written it");
    let text = |xml: &str, name: &str| {
        let text = elements(xml, name).first()?.replace("&lt;", "<");
        Some(text.replace("&gt;", ">").replace("&amp;", "&"))
    };
    let records = elements(&xml, "error");
    let records = records.into_iter().map(|error| {
        let kind = match elements(error, "kind")[0] {
            "Leak_DefinitelyLost" => LeakKind::Definite,
            "Leak_IndirectlyLost" => LeakKind::Indirect,
            "Leak_PossiblyLost" => LeakKind::Possible,
            "Leak_StillReachable" => LeakKind::Reachable,
            other => panic!("{other}"),
        };
        let number = |name| elements(error, name)[0].parse().expect("a number");
        // The bytes of a record include those that are lost through it, which have records of their own.
        let said = elements(error, "text")[0];
        let direct = said.split_once(" direct,").and_then(|(before, _)| {
            let digits = before.rsplit('(').next()?.replace(',', "");
            Some(digits.parse().expect("a number"))
        });
        let frames = elements(error, "frame").into_iter().map(|frame| LossFrame {
            at: text(frame, "ip").expect("a frame has an address"),
            function: text(frame, "fn"),
            file: text(frame, "file"),
            line: text(frame, "line").map(|line| line.parse().expect("a number")),
            module: text(frame, "obj").unwrap_or_default(),
        });
        let bytes = number("leakedbytes");
        let direct = direct.unwrap_or(bytes);
        LossRecord {
            kind,
            amount: Amount {
                bytes: direct,
                blocks: number("leakedblocks"),
            },
            owned_bytes: bytes - direct,
            frames: frames.collect(),
        }
    });
    let records = records.collect();
    let used = elements(&xml, "suppcounts").join("");
    (records, used)
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; see `make install-deps`"))
}
