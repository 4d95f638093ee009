//! The words of JSON, and what they stand for.

use std::borrow::Cow;

use crate::model::image::{CountedBy, Uncovered};
use crate::model::reach::ReachUnknown;
use crate::model::stack::WalkEnd;
use crate::report::{counted_by_names, uncovered_name, walk_name};

pub(super) fn reach_unknown(word: &str) -> Option<ReachUnknown> {
    ReachUnknown::ALL.into_iter().find(|why| why.word() == word)
}

pub(super) fn uncovered(word: &str) -> Option<Uncovered> {
    Uncovered::ALL
        .into_iter()
        .find(|why| uncovered_name(*why) == word)
}

pub(super) fn counted_by(words: &[Cow<'_, str>]) -> Option<CountedBy> {
    if words.is_empty() {
        return Some(CountedBy::default());
    }
    CountedBy::ALL
        .into_iter()
        .find(|by| counted_by_names(*by) == words)
}

pub(super) fn walk_end(word: &str) -> Option<WalkEnd> {
    WalkEnd::ALL.into_iter().find(|end| walk_name(*end) == word)
}
