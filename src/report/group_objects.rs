//! What `--by` adds up, as lines of JSON and of CSV.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use crate::model::commands::Worst;
use crate::model::grouping::{Group, Grouped, JobRank};
use crate::model::spread::{PartSpread, Spread};
use crate::report::render::SCHEMA;
use crate::report::words::{grouping_name, lost};

/// The line of the sum of all.
const ALL: &str = "all";

/// A line of JSON.
#[derive(Serialize)]
pub(super) struct GroupLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    by: String,
    /// `None`: those for which there was no room, or all.
    name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<Cow<'a, str>>,
    processes: u64,
    total_allocs_bytes: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    lost_bytes: Option<u64>,
    worst_pid: Option<u32>,
    worst_host: Option<Cow<'a, str>>,
    worst_bytes: Option<u64>,
    worst_lost_pid: Option<u32>,
    worst_lost_host: Option<Cow<'a, str>>,
    worst_lost_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<PartsObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<PartsObject<'a>>,
}

impl<'a> GroupLine<'a> {
    /// The groups, and last the sum of all. `text`: how a name is written.
    pub(super) fn all(
        grouped: &'a Grouped,
        text: impl Fn(&'a [u8]) -> Cow<'a, str> + Copy,
    ) -> impl Iterator<Item = Self> {
        let by = grouping_name(grouped.by);
        let groups = grouped.groups.iter();
        let groups = groups.map(move |group| Self::new("group", by.clone(), group, text));
        let all = grouped.all.iter();
        groups.chain(all.map(move |all| Self::new("total", ALL.to_owned(), all, text)))
    }

    fn new(
        r#type: &'static str,
        by: String,
        group: &'a Group,
        text: impl Fn(&'a [u8]) -> Cow<'a, str>,
    ) -> Self {
        let text_of = |name: &'a str| text(name.as_bytes());
        let sums = &group.sums;
        let lost_bytes = lost(&sums.lost).map(|lost| lost.bytes);
        let [worst, worst_lost] = [&sums.worst, &sums.worst_lost].map(Option::as_ref);
        let host = |worst: &'a Worst| worst.host.as_deref().map(text_of);
        let rank = |rank: &'a JobRank| {
            let job = rank.job.as_deref().map(text_of);
            (rank.rank.to_string().into(), job)
        };
        let node = |node: &'a Arc<str>| (text_of(node), None);
        let is_lost_known = lost_bytes.is_some();
        let ranks = group.ranks.as_ref();
        let nodes = group.nodes.as_ref();
        Self {
            schema: SCHEMA,
            r#type,
            by,
            name: sums.comm.as_deref().map(&text),
            job: group.job.as_deref().map(text_of),
            processes: sums.processes,
            total_allocs_bytes: sums.total_allocs_bytes,
            leaked_bytes: sums.leaked_bytes,
            leaked_blocks: sums.leaked_blocks,
            lost_bytes,
            worst_pid: worst.map(|worst| worst.pid),
            worst_host: worst.and_then(host),
            worst_bytes: worst.map(|worst| worst.bytes),
            worst_lost_pid: worst_lost.map(|worst| worst.pid),
            worst_lost_host: worst_lost.and_then(host),
            worst_lost_bytes: worst_lost.map(|worst| worst.bytes),
            ranks: ranks.map(|ranks| PartsObject::new(ranks, is_lost_known, rank)),
            nodes: nodes.map(|nodes| PartsObject::new(nodes, is_lost_known, node)),
        }
    }
}

/// How something is spread over ranks or over nodes.
#[derive(Serialize)]
struct PartsObject<'a> {
    count: u64,
    leaked: SpreadObject<'a>,
    lost: Option<SpreadObject<'a>>,
}

#[derive(Default, Serialize)]
struct SpreadObject<'a> {
    min_bytes: Option<u64>,
    median_bytes: Option<u64>,
    max_bytes: Option<u64>,
    worst: Option<Cow<'a, str>>,
    /// The job of the worst rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<Cow<'a, str>>,
}

/// A name, and the job of a rank.
type PartName<'a> = (Cow<'a, str>, Option<Cow<'a, str>>);

impl<'a> PartsObject<'a> {
    fn new<K>(
        parts: &'a PartSpread<K>,
        is_lost_known: bool,
        name: impl Fn(&'a K) -> PartName<'a>,
    ) -> Self {
        let spread = |Spread { least, max, worst }: &'a Spread<K>| {
            let (worst, job) = worst.as_ref().map(&name).unzip();
            SpreadObject {
                min_bytes: least.map(|(min, _)| min),
                median_bytes: least.map(|(_, median)| median),
                max_bytes: Some(*max),
                worst,
                job: job.flatten(),
            }
        };
        Self {
            count: parts.parts,
            leaked: spread(&parts.leaked),
            lost: is_lost_known.then(|| spread(&parts.lost)),
        }
    }
}

/// A row of CSV. The header consists of the names of these fields, in this order.
#[derive(Serialize)]
pub(super) struct GroupRow<'a> {
    by: String,
    name: Option<Cow<'a, str>>,
    processes: u64,
    total_allocs_bytes: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    lost_bytes: Option<u64>,
    worst_pid: Option<u32>,
    worst_bytes: Option<u64>,
    worst_host: Option<Cow<'a, str>>,
    worst_lost_pid: Option<u32>,
    worst_lost_bytes: Option<u64>,
    worst_lost_host: Option<Cow<'a, str>>,
    job: Option<Cow<'a, str>>,
    ranks_count: Option<u64>,
    ranks_leaked_min_bytes: Option<u64>,
    ranks_leaked_median_bytes: Option<u64>,
    ranks_leaked_max_bytes: Option<u64>,
    ranks_leaked_worst: Option<Cow<'a, str>>,
    ranks_leaked_job: Option<Cow<'a, str>>,
    ranks_lost_min_bytes: Option<u64>,
    ranks_lost_median_bytes: Option<u64>,
    ranks_lost_max_bytes: Option<u64>,
    ranks_lost_worst: Option<Cow<'a, str>>,
    ranks_lost_job: Option<Cow<'a, str>>,
    nodes_count: Option<u64>,
    nodes_leaked_min_bytes: Option<u64>,
    nodes_leaked_median_bytes: Option<u64>,
    nodes_leaked_max_bytes: Option<u64>,
    nodes_leaked_worst: Option<Cow<'a, str>>,
    nodes_lost_min_bytes: Option<u64>,
    nodes_lost_median_bytes: Option<u64>,
    nodes_lost_max_bytes: Option<u64>,
    nodes_lost_worst: Option<Cow<'a, str>>,
}

impl<'a> From<GroupLine<'a>> for GroupRow<'a> {
    fn from(line: GroupLine<'a>) -> Self {
        let (ranks_count, ranks_leaked, ranks_lost) = flat(line.ranks);
        let (nodes_count, nodes_leaked, nodes_lost) = flat(line.nodes);
        Self {
            by: line.by,
            name: line.name,
            processes: line.processes,
            total_allocs_bytes: line.total_allocs_bytes,
            leaked_bytes: line.leaked_bytes,
            leaked_blocks: line.leaked_blocks,
            lost_bytes: line.lost_bytes,
            worst_pid: line.worst_pid,
            worst_bytes: line.worst_bytes,
            worst_host: line.worst_host,
            worst_lost_pid: line.worst_lost_pid,
            worst_lost_bytes: line.worst_lost_bytes,
            worst_lost_host: line.worst_lost_host,
            job: line.job,
            ranks_count,
            ranks_leaked_min_bytes: ranks_leaked.min_bytes,
            ranks_leaked_median_bytes: ranks_leaked.median_bytes,
            ranks_leaked_max_bytes: ranks_leaked.max_bytes,
            ranks_leaked_worst: ranks_leaked.worst,
            ranks_leaked_job: ranks_leaked.job,
            ranks_lost_min_bytes: ranks_lost.min_bytes,
            ranks_lost_median_bytes: ranks_lost.median_bytes,
            ranks_lost_max_bytes: ranks_lost.max_bytes,
            ranks_lost_worst: ranks_lost.worst,
            ranks_lost_job: ranks_lost.job,
            nodes_count,
            nodes_leaked_min_bytes: nodes_leaked.min_bytes,
            nodes_leaked_median_bytes: nodes_leaked.median_bytes,
            nodes_leaked_max_bytes: nodes_leaked.max_bytes,
            nodes_leaked_worst: nodes_leaked.worst,
            nodes_lost_min_bytes: nodes_lost.min_bytes,
            nodes_lost_median_bytes: nodes_lost.median_bytes,
            nodes_lost_max_bytes: nodes_lost.max_bytes,
            nodes_lost_worst: nodes_lost.worst,
        }
    }
}

/// How many parts there are, and their spreads. What is not known is empty.
fn flat(parts: Option<PartsObject<'_>>) -> (Option<u64>, SpreadObject<'_>, SpreadObject<'_>) {
    match parts {
        Some(parts) => (
            Some(parts.count),
            parts.leaked,
            parts.lost.unwrap_or_default(),
        ),
        None => Default::default(),
    }
}
