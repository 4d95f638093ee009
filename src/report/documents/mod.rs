//! Formats that are written when all is known: each is a function from a finished session to the bytes of a document.
//!
//! Names are made of any bytes, and the programs that read a document act on some of them. So each document escapes names
//! by the rules of its format.

#[cfg(test)]
mod ci_tests;
pub(super) mod collapsed;
pub(super) mod dhat;
mod findings;
pub(super) mod github;
pub(super) mod gitlab;
mod gzip;
pub(super) mod html;
pub(super) mod junit;
pub(super) mod markdown;
pub(super) mod pprof;
mod protobuf;
mod rows;
pub(super) mod sarif;
#[cfg(test)]
mod tests;
