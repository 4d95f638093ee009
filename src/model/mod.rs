//! What was counted, added up and judged. Pure: no input, no output, no clock.

pub mod exit;
pub mod gate;
pub mod image;
pub mod ledger;
pub mod live;
