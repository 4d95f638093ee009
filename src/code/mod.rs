//! Machine instructions: where a probe may sit, and where a function returns. Pure: bytes in, answers out.

pub mod follow;
pub mod placement;
