//! A finished session: all that a document can be made of. A document is a format that is written when all is known, such
//! as a page, a profile or the result of a test.
//!
//! A session makes it of what it has recorded, and `memleak report` of what other sessions have saved. Where much of it is
//! missing (no call stacks, no scans), a document says less.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::image::{Image, Labels};
use crate::model::ledger::Summary;
use crate::model::reach::{Amount, Reached};
use crate::model::selection::Selection;
use crate::model::stack::NamedStack;

/// A finished session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub about: About,
    /// The images in the order in which they ended, at most as many as are kept.
    pub images: Vec<Image>,
    /// How many more images there were. The summary contains them.
    pub more_images: u64,
    /// What was allocated where, the site with the largest leak first. Empty if no call stacks were recorded.
    pub sites: Vec<Site>,
    /// There were more sites, by which less leaked. The summary contains them.
    pub has_more_sites: bool,
    /// Whom the gates judge, if there are any.
    pub selection: Selection,
    pub summary: Summary,
}

/// What was measured, where and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The words of the command, of any bytes. Of several sessions, or of `-p` and `-a`: empty.
    pub command: Vec<Vec<u8>>,
    /// The directory in which memleak was started. The sources of a project are below it.
    pub directory: Option<PathBuf>,
    /// The names of the machines, without those that are not known.
    pub hosts: Vec<String>,
    /// Since the Unix epoch.
    pub began: Duration,
    /// Since the Unix epoch.
    pub ended: Duration,
}

/// A call stack, and what all processes of one executable, with the same labels, allocated by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The path given to execve, made absolute. `None` if unknown.
    pub exe: Option<PathBuf>,
    /// A command name of these processes, of any bytes.
    pub comm: Vec<u8>,
    pub labels: Labels,
    pub stack: NamedStack,
    pub allocated: Amount,
    /// What was never freed.
    pub leaked: Amount,
    /// How what leaked could be reached. `None`: not all of it was judged.
    pub reached: Option<Reached>,
    /// How many images allocated here.
    pub images: u64,
}

/// A finished session for tests, including those of other modules.
#[cfg(test)]
pub(crate) mod samples;
