//! What memleak does from beginning to end: `run` launches a command, `watch` joins what runs already.

mod books;
pub mod filter;
pub mod prober;
pub mod pump;
mod requests;
mod run;
mod watch;

pub use run::run;
pub use watch::watch;
