//! Objects that are a part of several JSON lines, or of lines in JSON and in CSV. Saved lines are read by the same names.

use serde::{Deserialize, Serialize};

use crate::model::image::Losses;
use crate::model::origin::Origin;
use crate::model::reach::{Amount, Reached};

/// How blocks that were never freed could be reached.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct ReachObject {
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

impl From<ReachObject> for Reached {
    fn from(object: ReachObject) -> Self {
        let amount = |bytes, blocks| Amount { bytes, blocks };
        Self {
            definite: amount(object.definite_bytes, object.definite_blocks),
            indirect: amount(object.indirect_bytes, object.indirect_blocks),
            possible: amount(object.possible_bytes, object.possible_blocks),
            reachable: amount(object.reachable_bytes, object.reachable_blocks),
        }
    }
}

/// Only losses that are not zero are written. Those that are missing are zero.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LossesObject {
    #[serde(skip_serializing_if = "is_zero")]
    blocks_not_recorded: u64,
    #[serde(skip_serializing_if = "is_zero")]
    bytes_not_recorded: u64,
    #[serde(skip_serializing_if = "is_zero")]
    calls_without_return: u64,
    #[serde(skip_serializing_if = "is_zero")]
    calls_in_flight: u64,
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
            calls_in_flight: losses.calls_in_flight,
            rows_lost: losses.rows_lost,
        }
    }
}

impl From<LossesObject> for Losses {
    fn from(object: LossesObject) -> Self {
        Self {
            blocks_not_recorded: object.blocks_not_recorded,
            bytes_not_recorded: object.bytes_not_recorded,
            calls_without_return: object.calls_without_return,
            calls_in_flight: object.calls_in_flight,
            rows_lost: object.rows_lost,
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
