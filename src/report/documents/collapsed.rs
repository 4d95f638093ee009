//! Collapsed stacks, as flame graphs are made of: a line for each call stack, from the process to the innermost function,
//! and behind it the bytes that were never freed. `flamegraph.pl`, inferno and speedscope read it.

use std::collections::BTreeMap;

use crate::model::finished::Finished;
use crate::report::documents::rows::{ProfileRow, STACK_UNKNOWN, function, missing_callers, rows};

/// Makes the document. A call stack by which nothing leaked has no line.
pub(in crate::report) fn collapsed(finished: &Finished) -> Vec<u8> {
    // Different stacks may have the same names.
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let has_stacks = !finished.sites.is_empty();
    for row in rows(finished) {
        if row.leaked.bytes > 0 {
            let sum = lines.entry(names(&row, has_stacks)).or_default();
            *sum = sum.saturating_add(row.leaked.bytes);
        }
    }
    let lines = lines
        .iter()
        .map(|(names, bytes)| format!("{names} {bytes}\n"));
    lines.collect::<String>().into_bytes()
}

/// The process and the functions, the outermost first.
fn names(row: &ProfileRow, has_stacks: bool) -> String {
    let mut names = vec![row.process()];
    match row.stack {
        Some(stack) => {
            names.extend(missing_callers(stack).map(str::to_owned));
            names.extend(stack.frames().rev().map(function));
        }
        None if has_stacks => names.push(STACK_UNKNOWN.to_owned()),
        None => {}
    }
    // A semicolon would divide the name.
    let names: Vec<_> = names.iter().map(|name| name.replace(';', ":")).collect();
    names.join(";")
}
