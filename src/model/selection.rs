//! Which processes a gate judges: by their command name and by their executable's path. Remembers those that it does
//! not judge, so that a gate that judged nobody can say whom there was to judge.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::model::image::Image;
use crate::text::escape;
use crate::text::globs::{CommGlob, CommNames};
use crate::text::paths::{ExePaths, ExePattern};

/// How many different names are remembered, and how many of them are said. A job may run thousands of programs.
const REMEMBERED: usize = 256;
const SAID: usize = 12;

/// Chooses processes by name and by path. A process must pass both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub names: CommNames,
    pub paths: ExePaths,
}

impl Selection {
    /// Whether a process is chosen. `None`: that depends on its path, which is not known.
    pub fn choose(&self, image: &Image) -> Option<bool> {
        match self.names.choose(&image.comm) {
            false => Some(false),
            true => self.paths.choose(&paths_of(image)),
        }
    }

    /// Whether a process with this command name and this executable may be chosen.
    pub fn may_choose(&self, comm: &[u8], exe: Option<&Path>) -> bool {
        let paths: Vec<&Path> = exe.into_iter().collect();
        self.names.choose(comm) && self.paths.choose(&paths) != Some(false)
    }

    /// The including patterns as options. They should match something.
    fn patterns(&self) -> Vec<Including> {
        let names = self.names.globs().iter().filter(|glob| !glob.excludes());
        let names = names.cloned().map(Including::Name);
        let paths = self.paths.including().iter().cloned();
        names.chain(paths.map(Including::Path)).collect()
    }
}

/// The paths of an image: as it was executed, and without symbolic links. Empty if none is known.
fn paths_of(image: &Image) -> Vec<&Path> {
    let paths = [image.exe.as_deref(), image.real_exe.as_deref()];
    paths.into_iter().flatten().collect()
}

/// What a selection met.
#[derive(Clone, Debug)]
pub(super) struct Met {
    /// The including patterns that have not matched yet.
    unmatched: Vec<Including>,
    /// The names of the processes that were not chosen, and how many had each.
    others: BTreeMap<String, u64>,
    /// How many more there were.
    more: u64,
    by_path: bool,
}

impl Met {
    pub(super) fn new(selection: &Selection) -> Self {
        Self {
            unmatched: selection.patterns(),
            others: BTreeMap::new(),
            more: 0,
            by_path: !selection.paths.is_everything(),
        }
    }

    /// A process has ended.
    pub(super) fn met(&mut self, image: &Image, chosen: bool) {
        self.unmatched.retain(|pattern| !pattern.matches(image));
        if chosen {
            return;
        }
        let mut name = escape::escaped(&image.comm);
        if self.by_path {
            name = match &image.exe {
                Some(exe) => escape::escaped(exe.as_os_str().as_bytes()),
                None => format!("{name} (path unknown)"),
            };
        }
        if self.others.len() < REMEMBERED || self.others.contains_key(&name) {
            *self.others.entry(name).or_default() += 1;
        } else {
            self.more += 1;
        }
    }

    pub(super) fn finish(self) -> Unjudged {
        let mut others: Vec<_> = self.others.into_iter().collect();
        others.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let unsaid = others.iter().skip(SAID).map(|(_, count)| count);
        let more = unsaid.sum::<u64>() + self.more;
        others.truncate(SAID);
        Unjudged {
            unmatched: self.unmatched.iter().map(ToString::to_string).collect(),
            others,
            more,
        }
    }
}

/// The processes that a gate did not judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unjudged {
    /// The patterns that should have chosen a process and have not, as options.
    pub unmatched: Vec<String>,
    /// Names and how many processes had each, the most frequent first.
    others: Vec<(String, u64)>,
    more: u64,
}

/// The names of the processes: `sh (3), worker-7 and 4 more`.
impl fmt::Display for Unjudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Vec::new();
        for (name, count) in &self.others {
            names.push(match count {
                1 => name.clone(),
                count => format!("{name} ({count})"),
            });
        }
        f.write_str(&names.join(", "))?;
        if self.more > 0 {
            write!(f, " and {} more", self.more)?;
        }
        Ok(())
    }
}

impl Unjudged {
    /// Whether there was no process.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty()
    }
}

/// A pattern that should choose a process.
#[derive(Clone, Debug)]
enum Including {
    Name(CommGlob),
    Path(ExePattern),
}

impl Including {
    fn matches(&self, image: &Image) -> bool {
        match self {
            Self::Name(glob) => glob.matches(&image.comm),
            Self::Path(pattern) => paths_of(image).iter().any(|path| pattern.matches(path)),
        }
    }
}

impl fmt::Display for Including {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (option, pattern) = match self {
            Self::Name(glob) => ("--gate-comm", glob.pattern()),
            Self::Path(pattern) => ("--gate-exe", &*pattern.given),
        };
        write!(f, "{option} '{}'", escape::escaped(pattern.as_bytes()))
    }
}
