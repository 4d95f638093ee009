//! Rearranges the words of the command line before they are parsed: `memleak help run`, and options before `run`.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// Puts the words into the order that the parser expects. Words that it cannot place stay as they are, and the parser
/// says what is wrong with them.
pub(super) fn in_order(words: Vec<OsString>, memleak: &Command) -> Vec<OsString> {
    match words.get(1) {
        Some(word) if word == "help" => asks_for_help(words),
        _ => mode_first(words, memleak),
    }
}

/// `help [MODE]` asks for the help of a mode.
fn asks_for_help(mut words: Vec<OsString>) -> Vec<OsString> {
    words.remove(1);
    // What follows the mode may be a command, which must not be launched.
    words.truncate(2);
    if words.get(1).is_none_or(|word| word != "--help") {
        words.push("--help".into());
    }
    words
}

/// Moves the options that come before a mode behind it.
fn mode_first(mut words: Vec<OsString>, memleak: &Command) -> Vec<OsString> {
    for mode in memleak.get_subcommands() {
        if let Some(at) = place_of(mode, &words) {
            words[1..=at].rotate_right(1);
            return words;
        }
    }
    words
}

/// Where a mode stands, if only options of that mode stand before it.
fn place_of(mode: &Command, words: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        let word = words.get(at)?;
        if word == mode.get_name() {
            return Some(at);
        }
        at += 1 + usize::from(takes_next(mode, word)?);
    }
}

/// Whether the word after an option is its value. `None`: the word is no option of the mode.
fn takes_next(mode: &Command, word: &OsStr) -> Option<bool> {
    let word = word.as_encoded_bytes();
    let word = String::from_utf8_lossy(word);
    // An option whose value is optional takes it only behind a sign of equality.
    let takes =
        |option: &Arg| option.get_action().takes_values() && !option.is_require_equals_set();
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, _)) => (name, true),
            None => (long, false),
        };
        let option = mode
            .get_arguments()
            .find(|option| option.get_long() == Some(name))?;
        return Some(takes(option) && !value);
    }
    let mut letters = word.strip_prefix('-')?.chars().peekable();
    letters.peek()?;
    while let Some(letter) = letters.next() {
        let option = mode
            .get_arguments()
            .find(|option| option.get_short() == Some(letter))?;
        if takes(option) {
            // The value may follow at once: -oFILE.
            return Some(letters.peek().is_none());
        }
    }
    Some(false)
}
