//! The notation for an allocator's functions, as in `posix_memalign(out, align, size)`, and for the allocators that a
//! user names (`--allocator`). Turns text into plain values. Looking into an allocator's file is left to `findings`.

use std::fmt;
use std::path::{Path, PathBuf};

use glob::Pattern;
use serde::Deserialize;

use crate::text::escape;

/// The BPF programs can read this many arguments. The calling convention passes them in registers.
const MAX_ARGUMENTS: usize = 5;

/// What a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Returns a new block, or stores its address where `out` points.
    Alloc,
    /// As [`Verb::Alloc`], and may leave by an exception: C++'s operator new.
    New,
    /// As [`Verb::New`], but its declaration says that no exception leaves it.
    NewNothrow,
    /// Replaces a block by one of another size. If that fails, the block stays.
    Realloc,
    /// As [`Verb::Realloc`], and may leave by an exception.
    Renew,
    /// As [`Verb::Realloc`], but a failure frees the block (`reallocf`).
    Reallocf,
    /// Changes a block's size without moving the block, and returns the new size (`xallocx`).
    Resize,
    /// Takes a block back.
    Free,
    /// As [`Verb::Free`], and may jump back to its own entry.
    FreeAgain,
    /// As [`Verb::Free`], but until the function returns, its calls of other allocators are part of its own work.
    FreeScope,
    /// As [`Verb::FreeScope`], and may leave by an exception.
    FreeScopeThrows,
    /// Allocates nothing. It is called once in every image that uses the file.
    Start,
    /// Not a function, but the place where a copy of the C library that counts by itself tells where it keeps its counters.
    Inside,
    /// Not a function, but a place where a function that may throw returns.
    Return,
    /// Not a function, but a place where a function that may throw goes to code that was not followed.
    Left,
    /// May throw, and not all places where the function returns can be probed: they are unknown, or its first probe is on
    /// a jump that leaves it.
    Unfollowed,
}

/// What a function does, and which of its arguments mean what. Arguments count from 1. 0 means that the function has
/// no such argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    pub verb: Verb,
    /// The size of the block, in bytes.
    pub size: u8,
    /// The number by which the size is multiplied.
    pub count: u8,
    /// The block that is freed or replaced.
    pub block: u8,
    /// A pointer to where the new block's address is stored.
    pub out: u8,
}

impl Action {
    /// A verb without arguments.
    pub const fn bare(verb: Verb) -> Self {
        Action {
            verb,
            size: 0,
            count: 0,
            block: 0,
            out: 0,
        }
    }
}

/// A function of an allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub symbol: String,
    pub action: Action,
}

/// A program's own allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// The file that has it.
    pub file: FilePattern,
    pub functions: Vec<Function>,
    /// The allocator's name in messages.
    pub given_as: String,
}

/// Which file is meant: a path, or a pattern for the file's name. A text without a slash is a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilePattern {
    Path(PathBuf),
    Name(Pattern),
}

/// The value of `--allocator`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    One(Allocator),
    /// A TOML file that describes any number of allocators.
    File(PathBuf),
}

/// What is wrong with a description. The message is one line and quotes the wrong part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error(
        "'{0}' names no function: write PATH:alloc=SYMBOL,free=SYMBOL, or the name of a .toml file"
    )]
    NoFunction(String),
    #[error("'{0}' is not alloc, new, realloc or free")]
    Verb(String),
    #[error("'{0}' is no file: write its path, or a pattern for its name")]
    File(String),
    #[error("'{0}' is no symbol{hint}", hint = demangled(.0))]
    Symbol(String),
    #[error("'{0}': the list of arguments does not end with ')'")]
    Unclosed(String),
    #[error("'{argument}' in '{function}' is not size, count, block, out, align or _")]
    Argument { function: String, argument: String },
    #[error("'{function}' has {argument} twice")]
    Twice { function: String, argument: String },
    #[error("'{function}': {argument} is not among the first {MAX_ARGUMENTS} arguments")]
    TooFar { function: String, argument: String },
    #[error("'{function}': {verb} takes {wants}")]
    Lacks {
        function: String,
        verb: Verb,
        wants: &'static str,
    },
    #[error("'{0}' allocates nothing: name an alloc, new or realloc function too")]
    NothingAllocates(String),
    #[error("{0}")]
    Toml(String),
}

/// A hint for a symbol that looks like a demangled C++ or Rust name.
fn demangled(symbol: &str) -> &'static str {
    if symbol.contains("::") {
        ": write it as nm prints it, as _ZN4Pool5allocEm"
    } else {
        ""
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Alloc => "alloc",
            Verb::New | Verb::NewNothrow => "new",
            Verb::Realloc | Verb::Renew => "realloc",
            Verb::Reallocf => "reallocf",
            Verb::Resize => "resize",
            Verb::Free | Verb::FreeAgain | Verb::FreeScope | Verb::FreeScopeThrows => "free",
            Verb::Start => "start",
            Verb::Inside => "inside",
            Verb::Return => "return",
            Verb::Left => "left",
            Verb::Unfollowed => "unfollowed",
        })
    }
}

/// A word as errors quote it, without line breaks and escape sequences.
fn quoted(word: &str) -> String {
    escape::escaped(word.as_bytes())
}

/// Reads `SYMBOL` or `SYMBOL(size, block, …)`. An argument's word says what the argument means. `_` and `align` mark
/// arguments that memleak does not read. Without a list, the arguments are those of malloc, realloc or free.
///
/// # Errors
/// See [`SpecError`].
pub fn function(verb: Verb, text: &str) -> Result<Function, SpecError> {
    let text = text.trim();
    let (symbol, arguments) = match text.split_once('(') {
        None => (text, None),
        Some((symbol, rest)) => {
            let list = rest
                .strip_suffix(')')
                .ok_or_else(|| SpecError::Unclosed(quoted(text)))?;
            (symbol.trim_end(), Some(list))
        }
    };
    let is_symbol = |byte: u8| byte.is_ascii_alphanumeric() || b"_.$@".contains(&byte);
    if symbol.is_empty() || !symbol.bytes().all(is_symbol) {
        return Err(SpecError::Symbol(quoted(symbol)));
    }
    let replaces = matches!(
        verb,
        Verb::Realloc | Verb::Renew | Verb::Reallocf | Verb::Resize
    );
    let frees = matches!(verb, Verb::Free | Verb::FreeScope | Verb::FreeScopeThrows);
    let arguments = arguments.unwrap_or(match verb {
        _ if replaces => "block, size",
        _ if frees => "block",
        Verb::Start => "",
        _ => "size",
    });
    let mut action = Action::bare(verb);
    for (argument, number) in arguments.split(',').map(str::trim).zip(1_usize..) {
        let place = match argument {
            "size" => &mut action.size,
            "count" => &mut action.count,
            "block" => &mut action.block,
            "out" => &mut action.out,
            "_" | "align" => continue,
            "" if arguments.trim().is_empty() => continue,
            _ => {
                return Err(SpecError::Argument {
                    function: quoted(text),
                    argument: quoted(argument),
                });
            }
        };
        if *place != 0 {
            return Err(SpecError::Twice {
                function: quoted(text),
                argument: quoted(argument),
            });
        }
        if number > MAX_ARGUMENTS {
            return Err(SpecError::TooFar {
                function: quoted(text),
                argument: quoted(argument),
            });
        }
        *place = number as u8;
    }
    let has = |argument: u8| argument != 0;
    let (complete, wants) = if frees {
        let only = !has(action.size) && !has(action.count) && !has(action.out);
        (has(action.block) && only, "a block, and nothing else")
    } else if replaces {
        let complete = has(action.block) && has(action.size) && !has(action.out);
        (complete, "a block and a size, and may take a count")
    } else if verb == Verb::Start {
        (true, "")
    } else {
        (
            has(action.size) && !has(action.block),
            "a size, and may take a count and an out",
        )
    };
    if !complete {
        return Err(SpecError::Lacks {
            function: quoted(text),
            verb,
            wants,
        });
    }
    Ok(Function {
        symbol: symbol.to_owned(),
        action,
    })
}

/// A function that the user names. A function whose name is mangled, as in C++ or Rust, may leave by an exception. The
/// frees that a free itself calls are part of that free.
fn named(verb: &str, text: &str) -> Result<Function, SpecError> {
    let text = text.trim();
    let throws = text.starts_with("_Z") || text.starts_with("_R");
    let verb = match (verb.trim(), throws) {
        ("alloc", false) => Verb::Alloc,
        ("alloc", true) | ("new", _) => Verb::New,
        ("realloc", false) => Verb::Realloc,
        ("realloc", true) => Verb::Renew,
        ("free", false) => Verb::FreeScope,
        ("free", true) => Verb::FreeScopeThrows,
        (other, _) => return Err(SpecError::Verb(quoted(other))),
    };
    function(verb, text)
}

/// Reads the value of `--allocator`: `PATH:alloc=FUNCTION,free=FUNCTION,…`, or the name of a TOML file.
///
/// # Errors
/// See [`SpecError`].
pub fn parse(text: &str) -> Result<Spec, SpecError> {
    // A path may contain colons. The colon before the first function is the first one with a verb behind it.
    let colon = text.match_indices(':').find(|&(at, _)| {
        let rest = &text[at + 1..];
        let verb = rest.split_once('=').map_or("", |(verb, _)| verb);
        !verb.is_empty() && verb.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    let Some((at, _)) = colon else {
        let is_toml = text.len() > ".toml".len() && text.ends_with(".toml");
        return match is_toml {
            true => Ok(Spec::File(PathBuf::from(text))),
            false => Err(SpecError::NoFunction(quoted(text))),
        };
    };
    let mut functions = Vec::new();
    for part in split_functions(&text[at + 1..]) {
        let (verb, function) = part
            .split_once('=')
            .ok_or_else(|| SpecError::Verb(quoted(part.trim())))?;
        functions.push(named(verb, function)?);
    }
    allocator(&text[..at], functions, text.to_owned()).map(Spec::One)
}

/// Splits at the commas outside the lists of arguments.
fn split_functions(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// An allocator in a file, with its functions. `given_as` is the allocator's name in messages.
fn allocator(
    file: &str,
    functions: Vec<Function>,
    given_as: String,
) -> Result<Allocator, SpecError> {
    let wrong = || SpecError::File(quoted(file));
    let pattern = if file.is_empty() || file.ends_with('/') {
        return Err(wrong());
    } else if file.contains('/') {
        FilePattern::Path(PathBuf::from(file))
    } else {
        FilePattern::Name(Pattern::new(file).map_err(|_| wrong())?)
    };
    let allocates = |function: &Function| function.action.size != 0;
    if !functions.iter().any(allocates) {
        return Err(SpecError::NothingAllocates(quoted(&given_as)));
    }
    Ok(Allocator {
        file: pattern,
        functions,
        given_as,
    })
}

/// The content of the file in `--allocator FILE.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    allocator: Vec<AllocatorEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllocatorEntry {
    file: String,
    #[serde(default)]
    alloc: Vec<String>,
    #[serde(default)]
    new: Vec<String>,
    #[serde(default)]
    realloc: Vec<String>,
    #[serde(default)]
    free: Vec<String>,
}

/// Reads a description in TOML: tables `[[allocator]]` with `file`, `alloc`, `new`, `realloc` and `free`.
/// `name` is the file's name in messages.
///
/// # Errors
/// The text is not TOML, has an unknown word, or has a [`SpecError`] in one of its functions.
pub fn parse_toml(text: &str, name: &Path) -> Result<Vec<Allocator>, SpecError> {
    let document: Document = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        // The parser's message quotes words of the file, so they are escaped.
        let message = escape::line(&error.message().lines().collect::<Vec<_>>().join(" "));
        SpecError::Toml(match line {
            Some(line) => format!("line {line}: {message}"),
            None => message,
        })
    })?;
    if document.allocator.is_empty() {
        return Err(SpecError::Toml("it has no [[allocator]]".to_owned()));
    }
    let entries = document.allocator.into_iter();
    entries
        .map(|entry| {
            let lists = [
                ("alloc", entry.alloc),
                ("new", entry.new),
                ("realloc", entry.realloc),
                ("free", entry.free),
            ];
            let functions = lists
                .iter()
                .flat_map(|(verb, list)| list.iter().map(move |text| named(verb, text)))
                .collect::<Result<_, _>>()?;
            let given_as = format!("{}: {}", name.display(), entry.file);
            allocator(&entry.file, functions, given_as)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Allocator {
        match parse(text).unwrap() {
            Spec::One(allocator) => allocator,
            Spec::File(file) => panic!("a file: {}", file.display()),
        }
    }

    fn arguments(verb: Verb, text: &str) -> [u8; 4] {
        let Action {
            size,
            count,
            block,
            out,
            ..
        } = function(verb, text).unwrap().action;
        [size, count, block, out]
    }

    #[test]
    fn an_arguments_word_says_what_the_argument_means() {
        assert_eq!(arguments(Verb::Alloc, "calloc(count, size)"), [2, 1, 0, 0]);
        assert_eq!(
            arguments(Verb::Alloc, " posix_memalign ( out , align,size ) ".trim()),
            [3, 0, 0, 1]
        );
        assert_eq!(
            arguments(Verb::Realloc, "reallocarray(block, count, size)"),
            [3, 2, 1, 0]
        );
        assert_eq!(arguments(Verb::Free, "free(_, block)"), [0, 0, 2, 0]);
    }

    #[test]
    fn a_function_without_a_list_has_the_c_librarys_arguments() {
        assert_eq!(arguments(Verb::Alloc, "f"), [1, 0, 0, 0]);
        assert_eq!(arguments(Verb::New, "f"), [1, 0, 0, 0]);
        assert_eq!(arguments(Verb::Realloc, "f"), [2, 0, 1, 0]);
        assert_eq!(arguments(Verb::Free, "f"), [0, 0, 1, 0]);
    }

    #[test]
    fn an_allocator_is_a_file_and_its_functions() {
        let allocator =
            one("./app:alloc=my_alloc(_, size),free=my_free(_, block),realloc=my_realloc");
        assert_eq!(allocator.file, FilePattern::Path("./app".into()));
        let verbs: Vec<_> = allocator
            .functions
            .iter()
            .map(|function| (&*function.symbol, function.action.verb))
            .collect();
        assert_eq!(
            verbs,
            [
                ("my_alloc", Verb::Alloc),
                ("my_free", Verb::FreeScope),
                ("my_realloc", Verb::Realloc)
            ]
        );
    }

    #[test]
    fn a_name_without_a_slash_is_a_pattern_and_a_path_may_have_colons() {
        let FilePattern::Name(pattern) = one("lib*.so.1:alloc=f,free=g").file else {
            panic!("a path");
        };
        assert!(pattern.matches("libpool.so.1"));
        assert_eq!(
            one("/a:b/c=d:alloc=f").file,
            FilePattern::Path("/a:b/c=d".into())
        );
    }

    #[test]
    fn mangled_functions_may_throw_and_others_only_if_named_new() {
        let verbs = |text| {
            one(text)
                .functions
                .iter()
                .map(|f| f.action.verb)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            verbs(
                "./app:alloc=_ZN4Pool5allocEm(_, size),free=_ZN4Pool4freeEPv(_, block),realloc=_Zr"
            ),
            [Verb::New, Verb::FreeScopeThrows, Verb::Renew]
        );
        assert_eq!(verbs("./app:new=pool_new"), [Verb::New]);
    }

    #[test]
    fn an_error_names_the_wrong_part_in_one_line() {
        for (text, says) in [
            ("./app", "'./app' names no function"),
            ("", "'' names no function"),
            (".toml", "names no function"),
            ("./app:alloc", "'./app:alloc' names no function"),
            (
                "./app:malloc=f",
                "'malloc' is not alloc, new, realloc or free",
            ),
            ("./app:alloc=f,g", "'g' is not alloc"),
            ("./app:alloc=", "'' is no symbol"),
            (
                "./app:alloc=Pool::alloc",
                "'Pool::alloc' is no symbol: write it as nm prints it",
            ),
            (
                "./app:alloc=f(size",
                "'f(size': the list of arguments does not end with ')'",
            ),
            (
                "./app:alloc=f(length)",
                "'length' in 'f(length)' is not size,",
            ),
            (
                "./app:alloc=f(size, size)",
                "'f(size, size)' has size twice",
            ),
            (
                "./app:alloc=f(_,_,_,_,_,size)",
                "size is not among the first 5",
            ),
            ("./app:alloc=f(count)", "'f(count)': alloc takes a size"),
            ("./app:alloc=f(size,),free=g", "'' in 'f(size,)'"),
            ("./app:free=f(size)", "'f(size)': free takes a block"),
            (
                "./app:realloc=f(size)",
                "'f(size)': realloc takes a block and a size",
            ),
            ("./app:free=f", "allocates nothing"),
            (":alloc=f", "'' is no file"),
            ("dir/:alloc=f", "'dir/' is no file"),
            ("[:alloc=f", "'[' is no file"),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains(says), "{text}: {said}");
            assert!(!said.contains('\n'), "{text}: {said}");
        }
    }

    #[test]
    fn a_toml_file_gives_the_same_allocators() {
        assert_eq!(parse("pools.toml"), Ok(Spec::File("pools.toml".into())));
        let text = r#"
            [[allocator]]
            file = "./app"
            alloc = ["my_alloc(_, size)"]
            realloc = ["my_realloc(_, block, size)"]
            free = ["my_free(_, block)"]

            [[allocator]]
            file = "libpool.so*"
            new = ["pool_new"]
        "#;
        let found = parse_toml(text, Path::new("pools.toml")).unwrap();
        let spec = one(
            "./app:alloc=my_alloc(_, size),realloc=my_realloc(_, block, size),free=my_free(_, block)",
        );
        assert_eq!(found[0].functions, spec.functions);
        assert_eq!(found[0].file, spec.file);
        assert_eq!(found[1].functions[0].action.verb, Verb::New);
    }

    #[test]
    fn an_error_in_a_toml_file_is_named_in_one_line() {
        for (text, says) in [
            ("", "no [[allocator]]"),
            ("[[allocator]]\nalloc = [\"f\"]", "missing field `file`"),
            (
                "\n[[allocator]]\nfile = \"a\"\nfrob = 1",
                "line 4: unknown field `frob`",
            ),
            (
                "[[allocator]]\nfile = \"a\"\nalloc = \"f\"",
                "line 3: invalid type",
            ),
            (
                "[[allocator]]\nfile = \"a\"\nalloc = [\"f(x)\"]",
                "'x' in 'f(x)'",
            ),
            ("[[", "line 1"),
        ] {
            let said = parse_toml(text, Path::new("x.toml"))
                .unwrap_err()
                .to_string();
            assert!(said.contains(says), "{text}: {said}");
            assert!(!said.contains('\n'), "{text}: {said}");
        }
    }
}
