//! Adds up and judges what the kernel counted, and decides the exit code. Pure: no input, no output, no clock.

pub mod commands;
pub mod exit;
pub mod gate;
pub mod image;
pub mod ledger;
pub mod live;
pub mod reach;
pub mod selection;
