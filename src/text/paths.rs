//! Patterns of executables' paths, by which processes are chosen.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use glob::{MatchOptions, Pattern};
use thiserror::Error;

use crate::text::escape;

/// `*` and `?` match no `/`, so that `/usr/bin/*` means that directory alone. `**` matches any directories.
const BY_PARTS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// A pattern of paths for `--gate-exe`: `/usr/bin/*`, `./**`, `**/app`. A leading `!` excludes the paths that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathGlob {
    exclude: bool,
    /// Without a leading `!`.
    text: String,
}

/// Why a text is not a pattern of paths.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PathGlobError {
    #[error("the pattern is empty: write a path; * and ? are wildcards, a leading ! excludes")]
    Empty,
    #[error(
        "'{}' is not a pattern ({reason}): * and ? match within a name, ** as a whole name matches directories",
        escape::escaped(.glob.as_bytes())
    )]
    Invalid { glob: String, reason: &'static str },
    #[error(
        "'{}' can match no path: begin with / or ./ (the current directory), without . and .. after that, or try '{}'",
        escape::escaped(.glob.as_bytes()),
        escape::escaped(.better.as_bytes())
    )]
    Unmatchable { glob: String, better: String },
}

impl FromStr for PathGlob {
    type Err = PathGlobError;

    fn from_str(glob: &str) -> Result<Self, PathGlobError> {
        let (exclude, text) = match glob.strip_prefix('!') {
            Some(text) => (true, text),
            None => (false, glob),
        };
        if text.is_empty() {
            return Err(PathGlobError::Empty);
        }
        Pattern::new(text).map_err(|error| PathGlobError::Invalid {
            glob: glob.to_owned(),
            reason: error.msg,
        })?;
        let begins = ["/", "./", "**/"]
            .iter()
            .find(|way| text.starts_with(**way));
        let parts = begins.map(|way| text[way.len()..].split('/'));
        let is_plain = |part: &str| !matches!(part, "" | "." | "..");
        if !parts.is_some_and(|mut parts| parts.all(is_plain)) {
            let bang = if exclude { "!" } else { "" };
            let name = text.rsplit('/').find(|part| is_plain(part) && *part != "~");
            return Err(PathGlobError::Unmatchable {
                glob: glob.to_owned(),
                better: format!("{bang}**/{}", name.unwrap_or("*")),
            });
        }
        Ok(Self {
            exclude,
            text: text.to_owned(),
        })
    }
}

/// A choice of paths: all that match an including pattern (every path, if there is no such pattern), except those that
/// match an excluding pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExePaths {
    including: Vec<ExePattern>,
    excluding: Vec<ExePattern>,
}

/// A pattern of [`ExePaths`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExePattern {
    pattern: Pattern,
    /// As the user wrote it.
    pub given: String,
}

impl ExePattern {
    /// Whether a path matches. A path may contain `..`; it is also matched without it.
    pub fn matches(&self, path: &Path) -> bool {
        let text = |path: &Path| escape::text(path.as_os_str().as_bytes()).into_owned();
        self.pattern.matches_with(&text(path), BY_PARTS)
            || self
                .pattern
                .matches_with(&text(&without_parents(path)), BY_PARTS)
    }
}

impl ExePaths {
    /// `directory` is what `./` in a pattern means.
    ///
    /// # Errors
    /// A pattern does not parse. That does not happen to a parsed [`PathGlob`].
    pub fn new(globs: &[PathGlob], directory: &Path) -> Result<Self, glob::PatternError> {
        let here = escape::text(directory.as_os_str().as_bytes());
        let here = Pattern::escape(here.trim_end_matches('/'));
        let mut paths = Self::default();
        for glob in globs {
            let text = match glob.text.strip_prefix("./") {
                Some(below) => format!("{here}/{below}"),
                None => glob.text.clone(),
            };
            let pattern = ExePattern {
                pattern: Pattern::new(&text)?,
                given: glob.text.clone(),
            };
            match glob.exclude {
                true => paths.excluding.push(pattern),
                false => paths.including.push(pattern),
            }
        }
        Ok(paths)
    }

    /// Whether a file is chosen. `paths` are its paths; it is enough if a pattern matches one of them. `None`: it depends
    /// on the path, and none is known.
    pub fn choose(&self, paths: &[&Path]) -> Option<bool> {
        if self.is_everything() {
            return Some(true);
        }
        if paths.is_empty() {
            return None;
        }
        let matches = |patterns: &[ExePattern]| {
            let any = |glob: &ExePattern| paths.iter().any(|path| glob.matches(path));
            patterns.iter().any(any)
        };
        let included = self.including.is_empty() || matches(&self.including);
        Some(included && !matches(&self.excluding))
    }

    /// The patterns of which one must match.
    pub fn including(&self) -> &[ExePattern] {
        &self.including
    }

    /// Whether every path is chosen.
    pub fn is_everything(&self) -> bool {
        self.including.is_empty() && self.excluding.is_empty()
    }
}

/// The path with each `..` and the name before it removed. If that name is a symbolic link, the result is another file.
fn without_parents(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chooses(globs: &[&str], path: &str) -> Option<bool> {
        let globs: Vec<PathGlob> = globs.iter().map(|glob| glob.parse().unwrap()).collect();
        let paths = ExePaths::new(&globs, Path::new("/home/a[1]/src")).unwrap();
        match path {
            "" => paths.choose(&[]),
            path => paths.choose(&[Path::new(path)]),
        }
    }

    #[test]
    fn a_path_is_chosen_by_its_parts() {
        for (globs, path, chosen) in [
            (&[][..], "/bin/sh", Some(true)),
            (&[], "", Some(true)),
            (&["/usr/bin/*"], "/usr/bin/tar", Some(true)),
            (&["/usr/bin/*"], "/usr/bin/x/tar", Some(false)),
            (&["/usr/**"], "/usr/bin/x/tar", Some(true)),
            (&["**/tar"], "/usr/bin/tar", Some(true)),
            (&["**/tar"], "/usr/bin/star", Some(false)),
            (&["./**"], "/home/a[1]/src/t/app", Some(true)),
            (&["./**"], "/home/a[1]/src/app", Some(true)),
            (&["./**"], "/home/a1/src/app", Some(false)),
            (&["./*"], "/home/a[1]/src/t/app", Some(false)),
            (&["./*"], "/home/a[1]/src/b/../app", Some(true)),
            (&["!/usr/**"], "/usr/bin/gcc", Some(false)),
            (&["!/usr/**"], "/opt/app", Some(true)),
            (
                &["./**", "!**/conftest"],
                "/home/a[1]/src/conftest",
                Some(false),
            ),
            (&["./**"], "", None),
            (&["!./**"], "", None),
        ] {
            assert_eq!(chooses(globs, path), chosen, "{globs:?} {path}");
        }
    }

    #[test]
    fn the_root_directory_as_the_current_one_is_no_empty_name() {
        let globs = ["./bin/*".parse().unwrap()];
        let paths = ExePaths::new(&globs, Path::new("/")).unwrap();
        assert_eq!(paths.choose(&[Path::new("/bin/sh")]), Some(true));
    }

    #[test]
    fn a_pattern_that_can_match_no_path_is_refused() {
        let error = |glob: &str| glob.parse::<PathGlob>().unwrap_err().to_string();
        assert_eq!(
            error("app"),
            "'app' can match no path: begin with / or ./ (the current directory), without . and .. after that, or try \
             '**/app'"
        );
        assert!(error("!bin/app").ends_with("try '!**/app'"));
        for glob in [
            "./",
            "/",
            "./../x/leak",
            "/tmp/./leak",
            "//tmp/**",
            "/tmp//x",
            "!/usr//**",
            "../x",
            ".",
        ] {
            assert!(error(glob).contains("can match no path"), "{glob}");
        }
        assert!(error("~/x/leak").ends_with("try '**/leak'"));
        assert!(error("/a[").starts_with("'/a[' is not a pattern ("));
        assert!(error("/a**").starts_with("'/a**' is not a pattern ("));
        for glob in ["", "!"] {
            assert_eq!(glob.parse::<PathGlob>(), Err(PathGlobError::Empty));
        }
    }
}
