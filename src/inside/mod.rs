//! A C library that counts the calls of its allocator by itself. `edit` makes it of a library: it adds the code of
//! `inside/`, and lets the symbols of the allocator lead there. Nothing else changes. Pure: bytes in, bytes out. Mounting
//! the library for a command, and reading what it has counted, is left to others.
//!
//! What the code relies on is looked up in the library, whatever its version is. A library in which that is not found is
//! not edited ([`Unfit`]).

mod counting;
mod edited;
mod libc;
mod recognise;
mod unfit;
mod unwind_index;

pub use edited::{Edited, edit};
pub use recognise::uses_own_word;
pub use unfit::Unfit;
