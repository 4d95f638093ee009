//! What `--by` adds up, as lines of JSON and of CSV.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use crate::model::commands::Worst;
use crate::model::grouping::{Group, Grouped, JobRank};
use crate::model::spread::{PartSpread, Spread};
use crate::report::render::SCHEMA;
use crate::report::words::{grouping_name, lost};
use crate::text::escape;

/// All of a group that is no spread.
struct GroupFigures<'a> {
    by: String,
    name: Option<&'a [u8]>,
    job: Option<&'a str>,
    lost_bytes: Option<u64>,
    worst: Option<&'a Worst>,
    worst_lost: Option<&'a Worst>,
}

/// The line of the sum of all.
const ALL: &str = "all";

/// The groups, and last the sum of all.
fn groups<'a>(grouped: &'a Grouped) -> impl Iterator<Item = (GroupFigures<'a>, &'a Group)> {
    let by = grouping_name(grouped.by);
    let groups = grouped.groups.iter().map(move |group| (by.clone(), group));
    let all = grouped.all.iter().map(|all| (ALL.to_owned(), all));
    groups.chain(all).map(|(by, group)| {
        let sums = &group.sums;
        let figures = GroupFigures {
            by,
            name: sums.comm.as_deref(),
            job: group.job.as_deref(),
            lost_bytes: lost(&sums.lost).map(|lost| lost.bytes),
            worst: sums.worst.as_ref(),
            worst_lost: sums.worst_lost.as_ref(),
        };
        (figures, group)
    })
}

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
    /// The lines of groups have the type `group`, and that of their sum has the type `total`.
    pub(super) fn all(grouped: &'a Grouped) -> impl Iterator<Item = Self> {
        groups(grouped).map(|(figures, group)| {
            let host = |worst: Option<&'a Worst>| worst?.host.as_deref().map(text);
            let is_lost_known = figures.lost_bytes.is_some();
            let sums = &group.sums;
            Self {
                schema: SCHEMA,
                r#type: if figures.by == ALL { "total" } else { "group" },
                name: figures.name.map(escape::text),
                job: figures.job.map(text),
                by: figures.by,
                processes: sums.processes,
                total_allocs_bytes: sums.total_allocs_bytes,
                leaked_bytes: sums.leaked_bytes,
                leaked_blocks: sums.leaked_blocks,
                lost_bytes: figures.lost_bytes,
                worst_pid: figures.worst.map(|worst| worst.pid),
                worst_host: host(figures.worst),
                worst_bytes: figures.worst.map(|worst| worst.bytes),
                worst_lost_pid: figures.worst_lost.map(|worst| worst.pid),
                worst_lost_host: host(figures.worst_lost),
                worst_lost_bytes: figures.worst_lost.map(|worst| worst.bytes),
                ranks: (group.ranks.as_ref())
                    .map(|ranks| PartsObject::new(ranks, is_lost_known, rank)),
                nodes: (group.nodes.as_ref())
                    .map(|nodes| PartsObject::new(nodes, is_lost_known, |node| (text(node), None))),
            }
        })
    }
}

/// How something is spread over ranks or over nodes.
#[derive(Serialize)]
struct PartsObject<'a> {
    count: u64,
    leaked: SpreadObject<'a>,
    lost: Option<SpreadObject<'a>>,
}

#[derive(Serialize)]
struct SpreadObject<'a> {
    min_bytes: Option<u64>,
    median_bytes: Option<u64>,
    max_bytes: u64,
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
                max_bytes: *max,
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

fn rank(rank: &JobRank) -> PartName<'_> {
    (rank.rank.to_string().into(), rank.job.as_deref().map(text))
}

fn text(text: &str) -> Cow<'_, str> {
    escape::text(text.as_bytes())
}

/// A row of CSV. The header consists of the names of these fields, in this order.
#[derive(Serialize)]
pub(super) struct GroupRow {
    by: String,
    name: Option<String>,
    processes: u64,
    total_allocs_bytes: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    lost_bytes: Option<u64>,
    worst_pid: Option<u32>,
    worst_bytes: Option<u64>,
    worst_host: Option<String>,
    worst_lost_pid: Option<u32>,
    worst_lost_bytes: Option<u64>,
    worst_lost_host: Option<String>,
    job: Option<String>,
    ranks_count: Option<u64>,
    ranks_leaked_min_bytes: Option<u64>,
    ranks_leaked_median_bytes: Option<u64>,
    ranks_leaked_max_bytes: Option<u64>,
    ranks_leaked_worst: Option<String>,
    ranks_leaked_job: Option<String>,
    ranks_lost_min_bytes: Option<u64>,
    ranks_lost_median_bytes: Option<u64>,
    ranks_lost_max_bytes: Option<u64>,
    ranks_lost_worst: Option<String>,
    ranks_lost_job: Option<String>,
    nodes_count: Option<u64>,
    nodes_leaked_min_bytes: Option<u64>,
    nodes_leaked_median_bytes: Option<u64>,
    nodes_leaked_max_bytes: Option<u64>,
    nodes_leaked_worst: Option<String>,
    nodes_lost_min_bytes: Option<u64>,
    nodes_lost_median_bytes: Option<u64>,
    nodes_lost_max_bytes: Option<u64>,
    nodes_lost_worst: Option<String>,
}

impl GroupRow {
    /// `text`: how a name is written.
    pub(super) fn all(
        grouped: &Grouped,
        text: impl Fn(&[u8]) -> String + Copy,
    ) -> impl Iterator<Item = Self> {
        groups(grouped).map(move |(figures, group)| {
            let known = figures.lost_bytes.is_some();
            let host = |worst: Option<&Worst>| {
                let host = worst?.host.as_deref()?;
                Some(text(host.as_bytes()))
            };
            let ranks = group.ranks.as_ref();
            let [leaked_ranks, lost_ranks] = [
                ranks.map(|ranks| &ranks.leaked),
                ranks.filter(|_| known).map(|ranks| &ranks.lost),
            ];
            let nodes = group.nodes.as_ref();
            let [leaked_nodes, lost_nodes] = [
                nodes.map(|nodes| &nodes.leaked),
                nodes.filter(|_| known).map(|nodes| &nodes.lost),
            ];
            let job = |spread: Option<&Spread<JobRank>>| {
                let job = spread?.worst.as_ref()?.job.as_deref()?;
                Some(text(job.as_bytes()))
            };
            let rank = |rank: &JobRank| rank.rank.to_string();
            let node = |node: &Arc<str>| text(node.as_bytes());
            let sums = &group.sums;
            Self {
                name: figures.name.map(text),
                processes: sums.processes,
                total_allocs_bytes: sums.total_allocs_bytes,
                leaked_bytes: sums.leaked_bytes,
                leaked_blocks: sums.leaked_blocks,
                lost_bytes: figures.lost_bytes,
                worst_pid: figures.worst.map(|worst| worst.pid),
                worst_bytes: figures.worst.map(|worst| worst.bytes),
                worst_host: host(figures.worst),
                worst_lost_pid: figures.worst_lost.map(|worst| worst.pid),
                worst_lost_bytes: figures.worst_lost.map(|worst| worst.bytes),
                worst_lost_host: host(figures.worst_lost),
                job: figures.job.map(|job| text(job.as_bytes())),
                by: figures.by,
                ranks_count: ranks.map(|ranks| ranks.parts),
                ranks_leaked_min_bytes: min(leaked_ranks),
                ranks_leaked_median_bytes: median(leaked_ranks),
                ranks_leaked_max_bytes: leaked_ranks.map(|spread| spread.max),
                ranks_leaked_worst: worst(leaked_ranks, rank),
                ranks_leaked_job: job(leaked_ranks),
                ranks_lost_min_bytes: min(lost_ranks),
                ranks_lost_median_bytes: median(lost_ranks),
                ranks_lost_max_bytes: lost_ranks.map(|spread| spread.max),
                ranks_lost_worst: worst(lost_ranks, rank),
                ranks_lost_job: job(lost_ranks),
                nodes_count: nodes.map(|nodes| nodes.parts),
                nodes_leaked_min_bytes: min(leaked_nodes),
                nodes_leaked_median_bytes: median(leaked_nodes),
                nodes_leaked_max_bytes: leaked_nodes.map(|spread| spread.max),
                nodes_leaked_worst: worst(leaked_nodes, node),
                nodes_lost_min_bytes: min(lost_nodes),
                nodes_lost_median_bytes: median(lost_nodes),
                nodes_lost_max_bytes: lost_nodes.map(|spread| spread.max),
                nodes_lost_worst: worst(lost_nodes, node),
            }
        })
    }
}

fn min<K>(spread: Option<&Spread<K>>) -> Option<u64> {
    spread?.least.map(|(min, _)| min)
}

fn median<K>(spread: Option<&Spread<K>>) -> Option<u64> {
    spread?.least.map(|(_, median)| median)
}

fn worst<K>(spread: Option<&Spread<K>>, name: impl Fn(&K) -> String) -> Option<String> {
    spread?.worst.as_ref().map(name)
}
