//! The lists of programs, tests/valgrind/programs.txt and own.txt, and the list of known differences,
//! tests/valgrind/differences.txt.

use std::collections::BTreeSet;
use std::fs;

use crate::common::probes;

/// A program that is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    pub name: String,
    /// Variables for the environment, and then a simple command of a shell.
    pub line: String,
    /// Whether its children are compared, too.
    pub tree: bool,
    /// Whether it is one of the sample that `make test` compares.
    pub sample: bool,
}

impl Program {
    /// Whether it was written to lose or to keep a block. The others are real work.
    pub fn is_fixture(&self) -> bool {
        self.line.contains("$built/")
    }

    /// The same with dynamic fixtures instead of static ones.
    pub fn dynamic(&self) -> Self {
        Self {
            line: self.line.replace(".static ", " "),
            ..self.clone()
        }
    }
}

/// A difference that is known, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub name: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// memleak calls fewer bytes and blocks lost than valgrind, by these numbers.
    Lower { bytes: u64, blocks: u64 },
    /// The same, by these numbers at the most. It depends on the environment, such as the length of a path.
    Varies { bytes: u64, blocks: u64 },
    /// memleak does not know, for the reason that its report has under this word.
    Unknown(String),
}

fn read(file: &str) -> String {
    let path = format!("{}/tests/valgrind/{file}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines that are not comments, each with its number, joined where a backslash ends one.
fn rows(text: &str) -> Vec<(usize, String)> {
    let mut rows = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        if open.is_none() && (line.trim().is_empty() || line.starts_with('#')) {
            continue;
        }
        let (number, mut whole) = open.take().unwrap_or((number, String::new()));
        whole.push_str(line.trim());
        if let Some(more) = whole.strip_suffix('\\') {
            open = Some((number, more.to_owned()));
        } else {
            rows.push((number, whole));
        }
    }
    assert!(open.is_none(), "the last line ends with a backslash");
    rows
}

fn words(line: &str, count: usize) -> Option<(Vec<&str>, &str)> {
    let mut rest = line;
    let mut words = Vec::new();
    for _ in 0..count {
        let (word, after) = rest.split_once(char::is_whitespace)?;
        words.push(word);
        rest = after.trim_start();
    }
    (!rest.is_empty()).then_some((words, rest))
}

/// The programs of a list, in its order. Fails if a line is not understood, if a name occurs twice, or if a program is
/// left out without a reason.
pub fn programs(list: &str) -> Vec<Program> {
    parse_programs(list, &read(list))
}

pub fn parse_programs(list: &str, text: &str) -> Vec<Program> {
    let mut programs = Vec::new();
    let mut names = BTreeSet::new();
    for (number, line) in rows(text) {
        let Some((found, rest)) = words(&line, 2) else {
            panic!("{list}:{number}: a line has a kind, a name and a command or a reason");
        };
        let [kind, name] = found[..] else {
            unreachable!("two words were asked for")
        };
        assert!(
            names.insert(name.to_owned()),
            "{list}:{number}: {name} is there twice"
        );
        if kind == "out" {
            continue;
        }
        assert!(
            ["run", "tree", "sample"].contains(&kind),
            "{list}:{number}: {kind} is none of run, tree, sample, out"
        );
        programs.push(Program {
            name: name.to_owned(),
            line: rest.to_owned(),
            tree: kind == "tree",
            sample: kind == "sample",
        });
    }
    programs
}

/// The known differences.
pub fn differences() -> Vec<Known> {
    parse_differences(&read("differences.txt"), probes::are_inside())
}

/// `inside`: the lines for `--probes=inside` count, too, and in place of the others on the same program.
pub fn parse_differences(text: &str, inside: bool) -> Vec<Known> {
    let row = |(number, line): (usize, String)| {
        let (is_inside, line) = match line.strip_prefix("inside ") {
            Some(line) => (true, line.to_owned()),
            None => (false, line),
        };
        let known = match line.split_whitespace().next() {
            Some(kind @ ("lower" | "varies")) => words(&line, 4).and_then(|(words, _)| {
                let [bytes, blocks] = [words[2], words[3]].map(|number| number.parse().ok());
                let (bytes, blocks) = (bytes?, blocks?);
                Some(Known {
                    name: words[1].to_owned(),
                    what: match kind {
                        "lower" => What::Lower { bytes, blocks },
                        _ => What::Varies { bytes, blocks },
                    },
                })
            }),
            Some("unknown") => words(&line, 3).map(|(words, _)| Known {
                name: words[1].to_owned(),
                what: What::Unknown(words[2].to_owned()),
            }),
            _ => None,
        };
        let known = known.unwrap_or_else(|| {
            panic!(
                "differences.txt:{number}: a line is `lower NAME BYTES BLOCKS REASON` or `unknown NAME WORD REASON`"
            )
        });
        (is_inside, known)
    };
    let (own, others): (Vec<_>, Vec<_>) = rows(text).into_iter().map(row).partition(|row| row.0);
    let own: Vec<_> = own.into_iter().map(|row| row.1).collect();
    let mut others: Vec<_> = others.into_iter().map(|row| row.1).collect();
    if inside {
        others.retain(|other| own.iter().all(|own| own.name != other.name));
        others.extend(own);
    }
    others
}
