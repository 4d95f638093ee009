//! Adds up and judges what the kernel counted, and decides the exit code. Pure: no input, no output, no clock.

pub mod baseline;
pub mod bounds;
pub mod commands;
pub mod exit;
pub mod finished;
pub mod gate;
pub mod gathering;
pub mod grouping;
pub mod image;
pub mod judgement;
pub mod leak_kind;
pub mod ledger;
pub mod limits;
pub mod live;
pub mod lost;
pub mod metrics;
pub mod origin;
pub mod places;
pub mod reach;
pub mod scan;
pub mod selection;
pub mod stack;
pub mod stack_coverage;
pub mod suppressed;
pub mod trend;
pub mod unfreed;
