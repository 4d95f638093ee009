//! The course of a session from its beginning to its end: `run` launches a command, `watch` attaches to running
//! processes, `merged` reads what other sessions have saved. Loading, launching, counting and printing are done by `kernel`, `launch`, `model` and `report`.

mod books;
mod cost;
pub mod filter;
mod greeting;
mod inside;
mod leaks;
mod listener;
mod merged;
mod origins;
pub mod prober;
pub mod pump;
mod requests;
mod run;
mod sifting;
mod watch;

pub use merged::merged;
pub use run::run;
pub use watch::watch;
