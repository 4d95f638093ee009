//! Command names: the patterns that choose processes by them.

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
    /// Whether it excludes the names that it matches.
    pub fn excludes(&self) -> bool {
        self.exclude
    }

    /// The pattern, without a leading `!`.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

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
pub struct CommNames {
    globs: Vec<CommGlob>,
}

impl CommNames {
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

    /// The patterns, in the order in which they were given.
    pub fn globs(&self) -> &[CommGlob] {
        &self.globs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
