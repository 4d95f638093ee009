//! The fields of the records, as they are in JSON. Fields that are not used are not read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use crate::report::{LossesObject, ReachObject};

#[derive(Deserialize)]
pub(super) struct Header<'a> {
    #[serde(borrow)]
    pub schema: Cow<'a, str>,
    #[serde(borrow)]
    pub r#type: Cow<'a, str>,
}

#[derive(Deserialize)]
pub(super) struct ProcessFields<'a> {
    pub pid: u32,
    pub ppid: u32,
    pub uid: u32,
    #[serde(borrow)]
    pub user: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub comm: Cow<'a, str>,
    #[serde(borrow)]
    pub exe: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub args: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    pub labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(default)]
    pub args_cut: bool,
    pub image: u32,
    #[serde(borrow)]
    pub end: Cow<'a, str>,
    pub exit_code: Option<u8>,
    pub signal: Option<u8>,
    #[serde(borrow)]
    pub from: Cow<'a, str>,
    pub start_time: f64,
    pub end_time: f64,
    pub total_allocs_bytes: u64,
    pub alloc_count: u64,
    pub free_count: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    #[serde(default)]
    pub reach: Option<ReachObject>,
    #[serde(borrow, default)]
    pub reach_unknown: Option<Cow<'a, str>>,
    #[serde(default)]
    pub growth_bytes: Option<i64>,
    pub peak_live_bytes: Option<u64>,
    pub failed_allocs: u64,
    pub unknown_frees: u64,
    #[serde(borrow)]
    pub allocators: Vec<Cow<'a, str>>,
    /// Reports of versions that had only probes do not have it.
    #[serde(borrow, default)]
    pub counted_by: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub uncovered: Option<Cow<'a, str>>,
    pub losses: LossesObject,
    #[serde(borrow, default)]
    pub stack_unknown: Option<StackUnknownFields<'a>>,
    #[serde(borrow, default)]
    pub host: Option<Word<'a>>,
    #[serde(borrow, default)]
    pub job: Option<Word<'a>>,
    #[serde(borrow, default)]
    pub step: Option<Word<'a>>,
    pub rank: Option<u32>,
    #[serde(borrow, default)]
    pub container: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub pod: Option<Cow<'a, str>>,
}

/// What is not known of call stacks. It is there if they were recorded.
#[derive(Deserialize)]
pub(super) struct StackUnknownFields<'a> {
    pub alloc_bytes: u64,
    pub alloc_count: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    #[serde(borrow)]
    pub walks: BTreeMap<Cow<'a, str>, u64>,
}

/// A text, or a number that stands for one.
pub(super) enum Word<'a> {
    Number(u64),
    Text(Cow<'a, str>),
}

/// An untagged enum would try one after the other, and write an error for each text.
impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor)
    }
}

struct WordVisitor;

impl<'de> Visitor<'de> for WordVisitor {
    type Value = Word<'de>;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text or a number")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Word::Number(number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Word::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Word::Text(Cow::Owned(text.to_owned())))
    }
}

impl From<Word<'_>> for String {
    fn from(word: Word<'_>) -> Self {
        match word {
            Word::Number(number) => number.to_string(),
            Word::Text(text) => text.into_owned(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct StackFields<'a> {
    pub pid: u32,
    pub image: u32,
    #[serde(borrow)]
    pub stack: Cow<'a, str>,
    pub alloc_bytes: u64,
    pub alloc_count: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    #[serde(default)]
    pub growth_bytes: Option<i64>,
    #[serde(default)]
    pub definite_bytes: Option<u64>,
    #[serde(default)]
    pub definite_blocks: Option<u64>,
    #[serde(default)]
    pub indirect_bytes: Option<u64>,
    #[serde(default)]
    pub indirect_blocks: Option<u64>,
    #[serde(default)]
    pub owned_bytes: Option<u64>,
    #[serde(default)]
    pub owned_blocks: Option<u64>,
    #[serde(default)]
    pub possible_bytes: Option<u64>,
    #[serde(default)]
    pub possible_blocks: Option<u64>,
    #[serde(default)]
    pub reachable_bytes: Option<u64>,
    #[serde(default)]
    pub reachable_blocks: Option<u64>,
    #[serde(borrow)]
    pub walk: Cow<'a, str>,
    #[serde(default)]
    pub guessed: u16,
    #[serde(borrow)]
    pub frames: Vec<FrameFields<'a>>,
}

#[derive(Deserialize)]
pub(super) struct FrameFields<'a> {
    #[serde(borrow)]
    pub function: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub linkage: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub module: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub build_id: Option<Cow<'a, str>>,
    pub offset: u64,
    #[serde(borrow)]
    pub file: Option<Cow<'a, str>>,
    pub line: Option<u32>,
    pub inlined: bool,
}

#[derive(Deserialize)]
pub(super) struct SummaryFields<'a> {
    #[serde(borrow)]
    pub outcome: Option<Cow<'a, str>>,
    pub code: Option<u8>,
    pub signal: Option<u8>,
    #[serde(default)]
    pub core: bool,
    pub losses: LossesObject,
}
