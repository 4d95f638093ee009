//! The words of JSON, and what they stand for.

use crate::model::image::Uncovered;
use crate::model::reach::ReachUnknown;
use crate::model::stack::WalkEnd;
use crate::report::{uncovered_name, walk_name};

pub(super) fn reach_unknown(word: &str) -> Option<ReachUnknown> {
    ReachUnknown::ALL.into_iter().find(|why| why.word() == word)
}

pub(super) fn uncovered(word: &str) -> Option<Uncovered> {
    Uncovered::ALL
        .into_iter()
        .find(|why| uncovered_name(*why) == word)
}

pub(super) fn walk_end(word: &str) -> Option<WalkEnd> {
    WalkEnd::ALL.into_iter().find(|end| walk_name(*end) == word)
}
