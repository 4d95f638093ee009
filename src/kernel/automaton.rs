//! The patterns of command names as a table that the BPF programs can follow.

use std::collections::HashMap;

use crate::text::globs::{CommGlob, CommNames};

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
    /// The same choice as `names` makes, for names in ASCII; it chooses all other names. `None` where `names`
    /// chooses everything, or where the table has no room for its patterns.
    pub fn of(names: &CommNames) -> Option<Self> {
        if names.globs().is_empty() {
            return None;
        }
        Places::of(names.globs())?.automaton()
    }

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
            includes: globs.iter().any(|glob| !glob.excludes()),
        };
        for glob in globs {
            let start = places.tokens.len();
            places.tokens.extend(tokens(glob.pattern())?);
            places.tokens.push(Token::End {
                exclude: glob.excludes(),
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

    fn names(globs: &[&str]) -> CommNames {
        CommNames::new(globs.iter().map(|glob| glob.parse().unwrap()).collect())
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
    fn the_kernel_never_leaves_a_name_out_that_is_not_ascii() {
        let automaton = NameAutomaton::of(&names(&["a*", "![x-z]*"])).unwrap();
        assert!(follows(&automaton, b"ab"));
        assert!(!follows(&automaton, b"b"));
        assert!(!follows(&automaton, b"xa"));
        assert!(follows(&automaton, "b\u{e4}".as_bytes()));
        assert!(follows(&automaton, b"\xff"));
        assert!(follows(&automaton, "x\u{e4}z".as_bytes()));
    }

    #[test]
    fn what_a_table_cannot_say_is_left_to_who_reads_the_names() {
        assert_eq!(NameAutomaton::of(&CommNames::default()), None);
        assert_eq!(NameAutomaton::of(&names(&["\u{e4}*"])), None);
        assert_eq!(NameAutomaton::of(&names(&["**"])), None);
        let long = ["abcdefghijklmno"; 5];
        assert_eq!(NameAutomaton::of(&names(&long)), None);
        assert!(NameAutomaton::of(&names(&long[..4])).is_some());
        let many = ["*a???????????", "*b???????????"];
        assert_eq!(NameAutomaton::of(&names(&many)), None, "too many states");
    }

    proptest! {
        #[test]
        fn the_table_chooses_as_the_patterns_do(
            globs in prop::collection::vec("!?(([ab?*-]|\\[!?[]abc-]{1,3}\\])){1,4}", 1..4),
            comms in prop::collection::vec("[abc!\\[\\]-]{0,15}", 0..40),
        ) {
            let globs: Vec<CommGlob> = globs.iter().filter_map(|glob| glob.parse().ok()).collect();
            let names = CommNames::new(globs);
            if let Some(automaton) = NameAutomaton::of(&names) {
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
