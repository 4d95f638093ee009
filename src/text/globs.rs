//! Patterns of command names, by which processes are chosen.

use std::str::FromStr;

use glob::Pattern;
use thiserror::Error;

use crate::text::escape;

/// The longest command name that the kernel keeps, in bytes (`TASK_COMM_LEN` less its NUL).
const COMM_MAX: usize = 15;

/// A pattern of command names for `--gate-comm` and `--comm`: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`. A leading `!`
/// excludes the names that match. A name that is not UTF-8 is matched in the form that JSON shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommGlob {
    exclude: bool,
    pattern: Pattern,
}

impl CommGlob {
    /// Whether the pattern excludes the names that match it.
    pub fn excludes(&self) -> bool {
        self.exclude
    }

    /// The pattern, without a leading `!`.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// Whether a command name matches the pattern without its `!`.
    pub fn matches(&self, comm: &[u8]) -> bool {
        self.pattern.matches(&escape::text(comm))
    }
}

/// Why a text is not a pattern of command names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GlobError {
    #[error(
        "the pattern is empty: write a command name; * and ? are wildcards, a leading ! excludes"
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
        // A gate over a name that no process can have would always pass. Patterns with brackets, or with the escapes of
        // a name that is not UTF-8, are longer than the names that match them. Their length is not checked.
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

/// A choice of command names: all names that match an including pattern (every name, if there is no such pattern),
/// except those that match an excluding pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommNames {
    globs: Vec<CommGlob>,
}

impl CommNames {
    pub fn new(globs: Vec<CommGlob>) -> Self {
        Self { globs }
    }

    /// Whether a command name is chosen.
    pub fn choose(&self, comm: &[u8]) -> bool {
        let mut including = self.globs.iter().filter(|glob| !glob.exclude).peekable();
        let mut excluding = self.globs.iter().filter(|glob| glob.exclude);
        let included = including.peek().is_none() || including.any(|glob| glob.matches(comm));
        included && !excluding.any(|glob| glob.matches(comm))
    }

    /// The patterns, in the order of the command line.
    pub fn globs(&self) -> &[CommGlob] {
        &self.globs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_can_match_no_command_name_is_refused_with_a_shorter_one() {
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
        // The shorter pattern is cut between characters.
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
