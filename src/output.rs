//! Where the report goes: the file that `-o` names, or standard error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// An open destination.
pub struct Output {
    pub writer: Box<dyn Write + Send>,
    /// Whether it is a terminal, so that colour may be of use.
    pub terminal: bool,
    /// What messages call it.
    pub name: String,
    /// Whether it is memleak's standard error.
    pub is_stderr: bool,
}

/// Opens the file that `-o` names, or standard error.
///
/// # Errors
/// The name's `%` parts make no sense, or the file cannot be created.
pub fn open(file: Option<&Path>) -> Result<Output> {
    let Some(pattern) = file else {
        let stderr = io::stderr();
        return Ok(Output {
            terminal: stderr.is_terminal(),
            writer: Box::new(stderr),
            name: "standard error".to_owned(),
            is_stderr: true,
        });
    };
    let path = expand(pattern, |name| std::env::var_os(name))?;
    let file = File::create(&path)
        .with_context(|| format!("cannot open {} for the report (-o)", path.display()))?;
    Ok(Output {
        terminal: file.is_terminal(),
        writer: Box::new(file),
        name: path.display().to_string(),
        is_stderr: false,
    })
}

/// Puts in what the `%` parts of a file name stand for: `%p` memleak's pid, `%h` the host's name, `%q{VAR}` an
/// environment variable, `%%` a percent sign.
fn expand(pattern: &Path, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<PathBuf> {
    let mut out = Vec::new();
    let mut rest = pattern.as_os_str().as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        out.extend(&rest[..at]);
        rest = &rest[at + 1..];
        let used = match rest {
            [b'%', ..] => {
                out.push(b'%');
                1
            }
            [b'p', ..] => {
                out.extend(std::process::id().to_string().bytes());
                1
            }
            [b'h', ..] => {
                let host =
                    nix::unistd::gethostname().context("cannot tell the host's name for %h")?;
                out.extend(host.as_bytes());
                1
            }
            [b'q', b'{', name @ ..] => {
                let Some(end) = name.iter().position(|&byte| byte == b'}') else {
                    bail!("-o {}: %q{{ has no closing brace", pattern.display());
                };
                let name = OsStr::from_bytes(&name[..end]);
                let Some(value) = variable(name) else {
                    bail!(
                        "-o {}: the environment variable {} is not set",
                        pattern.display(),
                        name.display()
                    );
                };
                out.extend(value.as_bytes());
                end + 3
            }
            _ => bail!(
                "-o {}: after % comes p (pid), h (host), q{{VAR}} (an environment variable) or another %",
                pattern.display()
            ),
        };
        rest = &rest[used..];
    }
    out.extend(rest);
    Ok(PathBuf::from(OsString::from_vec(out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str) -> Result<String> {
        let job = |name: &OsStr| (name == "JOB").then(|| OsString::from("42"));
        Ok(expand(Path::new(pattern), job)?.display().to_string())
    }

    #[test]
    fn a_plain_name_stays() {
        assert_eq!(expanded("dir/report.json").unwrap(), "dir/report.json");
    }

    #[test]
    fn percent_parts_are_put_in() {
        let pid = std::process::id();
        assert_eq!(
            expanded("%q{JOB}.%p-100%%").unwrap(),
            format!("42.{pid}-100%")
        );
        assert!(!expanded("%h").unwrap().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (pattern, word) in [
            ("%x", "after %"),
            ("a%", "after %"),
            ("%q{A", "brace"),
            ("%q{A}", "not set"),
        ] {
            let said = expanded(pattern).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}
