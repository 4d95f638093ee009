//! Formats that are written when all is known: each is a function from a finished session to the bytes of a document.

pub(super) mod collapsed;
pub(super) mod dhat;
mod gzip;
pub(super) mod pprof;
mod protobuf;
mod rows;
#[cfg(test)]
mod tests;
