//! The course of a session from its beginning to its end: `run` launches a command, `watch` attaches to running
//! processes. Loading, launching, counting and printing are done by `kernel`, `launch`, `model` and `report`.

mod books;
pub mod filter;
mod greeting;
mod listener;
mod origins;
pub mod prober;
pub mod pump;
mod requests;
mod run;
mod watch;

pub use run::run;
pub use watch::watch;
