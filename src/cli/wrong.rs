//! Describes in one line what is wrong with a command line. `cli` adds the program's name and the hint at `--help`.

use std::error::Error;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::find::notation::SpecError;
use crate::os::identity::UserSpecError;
use crate::text::escape;
use crate::text::globs::GlobError;
use crate::text::paths::PathGlobError;
use crate::text::units::SizeError;

/// How several processes are named.
const SEVERAL: &str = "several processes are -p 1,2 or -p 1 -p 2";

/// What is wrong with a first word that is none of the `modes`: what memleak can be told to do.
pub(super) fn no_such_mode(word: &str, modes: &[&str]) -> String {
    let similar = modes
        .iter()
        .find(|mode| strsim::damerau_levenshtein(mode, word) <= 2);
    let remedy = match similar {
        Some(mode) => format!("did you mean {mode}?"),
        None => "to launch a command, write memleak run -- COMMAND".to_owned(),
    };
    let word = escape::escaped(word.as_bytes());
    format!("'{word}' is not something memleak does: {remedy}")
}

/// Puts clap's error, which has several lines, into one line.
///
/// `watches`: the command line has -p or -a. `hidden`: options that must not be suggested.
pub(super) fn what_is_wrong(error: &clap::Error, watches: bool, hidden: &[String]) -> String {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(escape::escaped(word.as_bytes())),
        _ => None,
    };
    // memleak's own errors contain the value already, with control characters escaped.
    if let Some(source) = error.source()
        && (source.is::<SizeError>()
            || source.is::<GlobError>()
            || source.is::<PathGlobError>()
            || source.is::<UserSpecError>()
            || source.is::<SpecError>())
        && let Some(option) = word(ContextKind::InvalidArg)
    {
        return format!("{option}: {source}");
    }
    match error.kind() {
        // clap may take a word after the interval for a subcommand.
        ErrorKind::ArgumentConflict | ErrorKind::UnknownArgument if watches => {
            let number = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg]
                .into_iter()
                .filter_map(word)
                .find(|word| word.parse::<u32>().is_ok());
            if let Some(number) = number {
                return format!(
                    "unexpected argument '{number}': after PID there is one INTERVAL; {SEVERAL}"
                );
            }
        }
        ErrorKind::MissingRequiredArgument => {
            if format!("{:?}", error.get(ContextKind::InvalidArg)).contains("FILE") {
                return "no files: name those that -o json=FILE has written, as in memleak report a.json b.json"
                    .to_owned();
            }
            return "no command: write it after the options, as in memleak run -- ./my_app"
                .to_owned();
        }
        // These errors quote a word of the user, which may contain line breaks and escape sequences.
        ErrorKind::UnknownArgument => {
            if let Some(option) = word(ContextKind::InvalidArg) {
                let similar = word(ContextKind::SuggestedArg)
                    .filter(|similar| !hidden.contains(similar))
                    .map_or_else(String::new, |similar| format!("; did you mean {similar}?"));
                return format!("unexpected argument '{option}'{similar}");
            }
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = word(ContextKind::InvalidValue).filter(|value| !value.is_empty());
            if let (Some(option), Some(value)) = (word(ContextKind::InvalidArg), value) {
                let why = match (error.get(ContextKind::ValidValue), error.source()) {
                    (Some(ContextValue::Strings(valid)), _) => {
                        format!("; it is one of {}", valid.join(", "))
                    }
                    (_, Some(source)) => {
                        format!("; {}", escape::escaped(source.to_string().as_bytes()))
                    }
                    (_, None) => String::new(),
                };
                // Most pids are too large for an interval.
                let pids = match option == "[INTERVAL]" && value.parse::<u32>().is_ok_and(|n| n > 0)
                {
                    true => format!("; {SEVERAL}"),
                    false => String::new(),
                };
                return format!("{option} cannot be '{value}'{why}{pids}");
            }
        }
        _ => {}
    }
    let paragraphs = error.to_string();
    let said = paragraphs.strip_prefix("error: ").unwrap_or(&paragraphs);
    let first = said.split("\n\n").next().unwrap_or(said);
    let line: Vec<&str> = first.lines().map(str::trim).collect();
    escape::escaped(line.join(" ").as_bytes())
}
