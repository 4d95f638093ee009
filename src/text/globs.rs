//! Command names: the patterns that choose processes by them.

use std::collections::HashMap;
use std::str::FromStr;

use glob::Pattern;
use thiserror::Error;

use crate::text::escape;

/// The longest command name that the kernel keeps, in bytes (`TASK_COMM_LEN` less its NUL).
const COMM_MAX: usize = 15;

/// A pattern of command names, as `--gate-comm` and `--comm` take it: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`, and a
/// leading `!` to exclude what matches. A name that is not UTF-8 is matched as JSON shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommGlob {
    exclude: bool,
    pattern: Pattern,
}

impl CommGlob {
    fn matches(&self, comm: &[u8]) -> bool {
        self.pattern.matches(&escape::text(comm))
    }
}

/// Why a text is not a pattern of command names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GlobError {
    #[error(
        "the pattern is empty: write a command name, * and ? in it if need be, ! before it to exclude"
    )]
    Empty,
    #[error(
        "'{}' is not a pattern ({reason}): * and ? are wildcards, [abc] is one of a, b and c",
        escape::escaped(.glob.as_bytes())
    )]
    Invalid { glob: String, reason: &'static str },
    #[error(
        "'{}' can match no process: the kernel keeps {COMM_MAX} bytes of a command name; try '{}'",
        escape::escaped(.glob.as_bytes()),
        escape::escaped(.shorter.as_bytes())
    )]
    TooLong { glob: String, shorter: String },
}

impl FromStr for CommGlob {
    type Err = GlobError;

    fn from_str(glob: &str) -> Result<Self, GlobError> {
        let (exclude, wanted) = match glob.strip_prefix('!') {
            Some(wanted) => (true, wanted),
            None => (false, glob),
        };
        if wanted.is_empty() {
            return Err(GlobError::Empty);
        }
        let pattern = Pattern::new(wanted).map_err(|error| GlobError::Invalid {
            glob: glob.to_owned(),
            reason: error.msg,
        })?;
        // A gate that waits for a name that cannot be would pass for ever. Patterns with brackets or
        // with the escapes of a name that is not UTF-8 are longer than what they match: not judged.
        let shortest = wanted.bytes().filter(|byte| *byte != b'*').count();
        if shortest > COMM_MAX && !wanted.contains(['[', '\\', '?']) {
            let whole = (0..=COMM_MAX)
                .rev()
                .find(|end| wanted.is_char_boundary(*end));
            let kept = &wanted[..whole.unwrap_or(0)];
            let bang = if exclude { "!" } else { "" };
            return Err(GlobError::TooLong {
                glob: glob.to_owned(),
                shorter: format!("{bang}{}*", kept.trim_end_matches('*')),
            });
        }
        Ok(Self { exclude, pattern })
    }
}

/// A choice of command names: those that one of the including patterns matches (all, if there is none),
/// without those that an excluding one matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    globs: Vec<CommGlob>,
}

impl Names {
    pub fn new(globs: Vec<CommGlob>) -> Self {
        Self { globs }
    }

    /// Whether a command name is among them.
    pub fn choose(&self, comm: &[u8]) -> bool {
        let mut including = self.globs.iter().filter(|glob| !glob.exclude).peekable();
        let mut excluding = self.globs.iter().filter(|glob| glob.exclude);
        let included = including.peek().is_none() || including.any(|glob| glob.matches(comm));
        included && !excluding.any(|glob| glob.matches(comm))
    }

    /// The same choice as a table that the kernel can follow, of names in ASCII; others are all chosen by it.
    /// `None` where everything is chosen, or there is too much for a table.
    pub fn automaton(&self) -> Option<NameAutomaton> {
        if self.globs.is_empty() {
            return None;
        }
        Places::of(&self.globs)?.automaton()
    }
}

/// For each state and each byte the state that follows, from state 0 on. The end of a name, a NUL, leads
/// to 1 where the name is chosen, else to 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameAutomaton {
    next: Vec<u8>,
}

/// As many states as the kernel's table has (`NAME_STATES`).
const STATES: usize = 128;
const BYTES: usize = 256;

impl NameAutomaton {
    /// The table, state by state.
    pub fn as_bytes(&self) -> &[u8] {
        &self.next
    }
}

/// What stands at one place in a pattern.
#[derive(Clone, Debug)]
enum Token {
    One(Box<[bool; BYTES]>),
    Any,
    End { exclude: bool },
}

/// All patterns, one behind the other. A set of places, to be reached at one time, is a bit each.
struct Places {
    tokens: Vec<Token>,
    start: u64,
    includes: bool,
}

impl Places {
    fn of(globs: &[CommGlob]) -> Option<Self> {
        let mut places = Places {
            tokens: Vec::new(),
            start: 0,
            includes: globs.iter().any(|glob| !glob.exclude),
        };
        for glob in globs {
            let start = places.tokens.len();
            places.tokens.extend(tokens(glob.pattern.as_str())?);
            places.tokens.push(Token::End {
                exclude: glob.exclude,
            });
            if places.tokens.len() > u64::BITS as usize {
                return None;
            }
            places.start |= places.reached(start);
        }
        Some(places)
    }

    /// A place, and those behind it that are reached without a byte.
    fn reached(&self, place: usize) -> u64 {
        let mut set = 1 << place;
        for (at, token) in self.tokens.iter().enumerate().skip(place) {
            if !matches!(token, Token::Any) {
                break;
            }
            set |= 1 << (at + 1);
        }
        set
    }

    fn after(&self, set: u64, byte: u8) -> u64 {
        let mut next = 0;
        for (at, token) in self.tokens.iter().enumerate() {
            if set >> at & 1 == 0 {
                continue;
            }
            match token {
                Token::One(bytes) if bytes[usize::from(byte)] => next |= self.reached(at + 1),
                Token::Any => next |= self.reached(at),
                Token::One(_) | Token::End { .. } => {}
            }
        }
        next
    }

    fn chosen(&self, set: u64) -> bool {
        let at_end = |which| {
            let mut tokens = self.tokens.iter().enumerate();
            tokens.any(|(at, token)| {
                set >> at & 1 == 1 && matches!(token, Token::End { exclude } if *exclude == which)
            })
        };
        (!self.includes || at_end(false)) && !at_end(true)
    }

    /// Every set of places that some name leads to is a state.
    fn automaton(&self) -> Option<NameAutomaton> {
        /// Where a byte leads that is no ASCII: to the name being chosen.
        const OTHER: u8 = 1;
        let mut next = vec![0; STATES * BYTES];
        next[usize::from(OTHER) * BYTES..][..BYTES].fill(OTHER);
        let mut numbers = HashMap::from([(self.start, 0_u8)]);
        let mut states = vec![Some(self.start), None];
        let mut at = 0;
        while let Some(state) = states.get(at).copied() {
            let row = at * BYTES;
            at += 1;
            let Some(set) = state else {
                continue;
            };
            next[row] = u8::from(self.chosen(set));
            for byte in 1..=u8::MAX {
                next[row + usize::from(byte)] = if byte.is_ascii() {
                    let after = self.after(set, byte);
                    match numbers.get(&after) {
                        Some(number) => *number,
                        None => {
                            let number = u8::try_from(states.len()).ok()?;
                            if states.len() == STATES {
                                return None;
                            }
                            numbers.insert(after, number);
                            states.push(Some(after));
                            number
                        }
                    }
                } else {
                    OTHER
                };
            }
        }
        Some(NameAutomaton { next })
    }
}

/// The tokens of a pattern that the `glob` crate has accepted, as it reads them. `None` for one that is not
/// ASCII.
fn tokens(pattern: &str) -> Option<Vec<Token>> {
    // `**` means directories.
    if !pattern.is_ascii() || pattern.contains("**") {
        return None;
    }
    let bytes = pattern.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        tokens.push(match byte {
            b'*' => Token::Any,
            b'?' => one(|_| true),
            b'[' => {
                let not = bytes.get(at) == Some(&b'!');
                at += usize::from(not);
                // What comes first is in the set, even if it is `]`.
                let end = at + 1 + bytes.get(at + 1..)?.iter().position(|&byte| byte == b']')?;
                let set = &bytes[at..end];
                at = end + 1;
                one(|byte| in_set(set, byte) != not)
            }
            byte => one(|other| other == byte),
        });
    }
    Some(tokens)
}

fn one(is: impl Fn(u8) -> bool) -> Token {
    let mut bytes = Box::new([false; BYTES]);
    for byte in 0..=u8::MAX {
        bytes[usize::from(byte)] = is(byte);
    }
    Token::One(bytes)
}

/// Whether a byte is in `a-cx`.
fn in_set(mut set: &[u8], byte: u8) -> bool {
    while let Some((&first, rest)) = set.split_first() {
        match rest {
            [b'-', last, rest @ ..] => {
                if (first..=*last).contains(&byte) {
                    return true;
                }
                set = rest;
            }
            _ => {
                if first == byte {
                    return true;
                }
                set = rest;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(globs: &[&str]) -> Names {
        Names::new(globs.iter().map(|glob| glob.parse().unwrap()).collect())
    }

    /// As the kernel reads the table.
    fn follows(automaton: &NameAutomaton, comm: &[u8]) -> bool {
        let mut state = 0;
        for &byte in comm.iter().chain(&[0]) {
            state = usize::from(automaton.next[state * BYTES + usize::from(byte)]);
        }
        state == 1
    }

    #[test]
    fn a_pattern_that_can_match_no_command_name_is_refused_with_one_that_can() {
        let error = |glob: &str| glob.parse::<CommGlob>().unwrap_err().to_string();
        assert!("fifteen_bytes__".parse::<CommGlob>().is_ok());
        assert!("*fifteen_bytes__*".parse::<CommGlob>().is_ok());
        assert!("[a-zA-Z0-9_][a-zA-Z0-9_]*".parse::<CommGlob>().is_ok());
        assert_eq!(
            error("my_very_long_program"),
            "'my_very_long_program' can match no process: the kernel keeps 15 bytes of a command name; \
             try 'my_very_long_pr*'"
        );
        assert!(error("!my_very_long_program").ends_with("try '!my_very_long_pr*'"));
        // Cut before a character, never within one.
        assert!(error("fourteen_bytesüü").ends_with("try 'fourteen_bytes*'"));
        for glob in ["", "!"] {
            assert_eq!(glob.parse::<CommGlob>(), Err(GlobError::Empty));
        }
        for glob in ["[", "a***", "a**b", "![z"] {
            assert!(
                error(glob).starts_with(&format!("'{glob}' is not a pattern (")),
                "{glob}"
            );
        }
    }

    #[test]
    fn the_kernel_never_leaves_a_name_out_that_is_not_ascii() {
        let automaton = names(&["a*", "![x-z]*"]).automaton().unwrap();
        assert!(follows(&automaton, b"ab"));
        assert!(!follows(&automaton, b"b"));
        assert!(!follows(&automaton, b"xa"));
        assert!(follows(&automaton, "b\u{e4}".as_bytes()));
        assert!(follows(&automaton, b"\xff"));
        assert!(follows(&automaton, "x\u{e4}z".as_bytes()));
    }

    #[test]
    fn what_a_table_cannot_say_is_left_to_who_reads_the_names() {
        assert_eq!(Names::default().automaton(), None);
        assert_eq!(names(&["\u{e4}*"]).automaton(), None);
        assert_eq!(names(&["**"]).automaton(), None);
        let long = ["abcdefghijklmno"; 5];
        assert_eq!(names(&long).automaton(), None);
        assert!(names(&long[..4]).automaton().is_some());
        let many = ["*a???????????", "*b???????????"];
        assert_eq!(names(&many).automaton(), None, "too many states");
    }

    proptest! {
        #[test]
        fn the_table_chooses_as_the_patterns_do(
            globs in prop::collection::vec("!?(([ab?*-]|\\[!?[]abc-]{1,3}\\])){1,4}", 1..4),
            comms in prop::collection::vec("[abc!\\[\\]-]{0,15}", 0..40),
        ) {
            let globs: Vec<CommGlob> = globs.iter().filter_map(|glob| glob.parse().ok()).collect();
            let names = Names::new(globs);
            if let Some(automaton) = names.automaton() {
                for comm in &comms {
                    prop_assert_eq!(
                        follows(&automaton, comm.as_bytes()),
                        names.choose(comm.as_bytes()),
                        "{:?}", comm
                    );
                }
            }
        }
    }
}
