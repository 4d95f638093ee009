//! Reads what memleak has saved as JSON lines: each line becomes the value that it was made of. Pure: the caller opens the
//! files.

mod baseline;
mod fields;
mod frames;
mod lines;
mod names;
mod processes;
mod record;

pub use baseline::read_baseline;
pub use frames::SharedFrames;
pub use lines::{SavedLine, SavedLines};
pub use processes::SavedProcesses;
pub use record::{LineError, Record, SavedImage, SavedStack, SavedSummary, record};

#[cfg(test)]
mod tests;
