//! Objects that are a part of several JSON lines.

use serde::Serialize;

use crate::model::image::Losses;
use crate::model::origin::Origin;
use crate::model::reach::Reached;

/// How blocks that were never freed could be reached.
#[derive(Serialize)]
pub(super) struct ReachObject {
    definite_bytes: u64,
    definite_blocks: u64,
    indirect_bytes: u64,
    indirect_blocks: u64,
    possible_bytes: u64,
    possible_blocks: u64,
    reachable_bytes: u64,
    reachable_blocks: u64,
}

impl From<Reached> for ReachObject {
    fn from(reached: Reached) -> Self {
        let Reached {
            definite,
            indirect,
            possible,
            reachable,
        } = reached;
        Self {
            definite_bytes: definite.bytes,
            definite_blocks: definite.blocks,
            indirect_bytes: indirect.bytes,
            indirect_blocks: indirect.blocks,
            possible_bytes: possible.bytes,
            possible_blocks: possible.blocks,
            reachable_bytes: reachable.bytes,
            reachable_blocks: reachable.blocks,
        }
    }
}

/// Only losses that are not zero are written.
#[derive(Serialize)]
pub(super) struct LossesObject {
    #[serde(skip_serializing_if = "is_zero")]
    blocks_not_recorded: u64,
    #[serde(skip_serializing_if = "is_zero")]
    bytes_not_recorded: u64,
    #[serde(skip_serializing_if = "is_zero")]
    calls_without_return: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rows_lost: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<Losses> for LossesObject {
    fn from(losses: Losses) -> Self {
        Self {
            blocks_not_recorded: losses.blocks_not_recorded,
            bytes_not_recorded: losses.bytes_not_recorded,
            calls_without_return: losses.calls_without_return,
            rows_lost: losses.rows_lost,
        }
    }
}

/// Where a process belongs. Only what is known is written.
#[derive(Serialize)]
pub(super) struct OriginFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
}

impl<'a> From<&'a Origin> for OriginFields<'a> {
    fn from(origin: &'a Origin) -> Self {
        Self {
            host: origin.host.as_deref(),
            job: origin.job.as_deref(),
            step: origin.step.as_deref(),
            rank: origin.rank,
            container: origin.container.as_deref(),
            pod: origin.pod.as_deref(),
        }
    }
}
