//! What profiles are made of: what was allocated by each call stack, and beside it what no call stack is known of. So the
//! rows add up to the sums of the session.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::model::finished::{Finished, Site};
use crate::model::image::{End, Image};
use crate::model::lost::reached;
use crate::model::reach::{Amount, Reached};
use crate::model::stack::{NamedFrame, NamedStack, WalkEnd};
use crate::text::escape;

/// What the processes of one executable allocated by one call stack.
#[derive(Debug)]
pub(super) struct ProfileRow<'a> {
    /// A command name of these processes. `None`: of processes that were not kept.
    pub comm: Option<&'a [u8]>,
    pub exe: Option<&'a Path>,
    /// `None`: it is not known which call stacks allocated this.
    pub stack: Option<&'a NamedStack>,
    pub allocated: Amount,
    pub leaked: Amount,
    /// How what leaked could be reached. `None`: not all of it was judged.
    pub reached: Option<Reached>,
}

impl ProfileRow<'_> {
    /// The command name as text.
    pub fn process(&self) -> String {
        match self.comm {
            Some(comm) => escape::escaped(comm),
            None => "(other processes)".to_owned(),
        }
    }
}

/// The amounts of an executable, or what is left of them.
#[derive(Clone, Copy, Debug)]
struct Sums {
    allocated: Amount,
    leaked: Amount,
    reached: Option<Reached>,
}

impl Sums {
    fn none() -> Self {
        Self {
            allocated: Amount::default(),
            leaked: Amount::default(),
            reached: Some(Reached::default()),
        }
    }

    fn add(&mut self, image: &Image) {
        let counters = &image.counters;
        self.allocated += Amount {
            bytes: counters.total_allocs_bytes,
            blocks: counters.alloc_count,
        };
        if matches!(image.end, End::Exited(_) | End::Signaled { .. }) {
            self.leaked += Amount {
                bytes: counters.leaked_bytes,
                blocks: counters.leaked_blocks,
            };
            self.reached = self.reached.zip(reached(image)).map(|(mut sum, more)| {
                sum += more;
                sum
            });
        }
    }

    fn subtract(&mut self, site: &Site) {
        self.allocated = less(self.allocated, site.allocated);
        self.leaked = less(self.leaked, site.leaked);
        self.reached = self.reached.zip(site.reached).map(|(all, part)| Reached {
            definite: less(all.definite, part.definite),
            indirect: less(all.indirect, part.indirect),
            possible: less(all.possible, part.possible),
            reachable: less(all.reachable, part.reachable),
        });
    }
}

fn less(all: Amount, part: Amount) -> Amount {
    Amount {
        bytes: all.bytes.saturating_sub(part.bytes),
        blocks: all.blocks.saturating_sub(part.blocks),
    }
}

/// All rows: the sites, then what is left of each executable, then what is left of processes that were not kept.
pub(super) fn rows(finished: &Finished) -> Vec<ProfileRow<'_>> {
    let mut rows: Vec<ProfileRow<'_>> = finished
        .sites
        .iter()
        .map(|site| ProfileRow {
            comm: Some(&site.comm),
            exe: site.exe.as_deref(),
            stack: Some(&site.stack),
            allocated: site.allocated,
            leaked: site.leaked,
            reached: site.reached,
        })
        .collect();
    rows.extend(left_over(finished));
    rows
}

/// What no site has.
fn left_over(finished: &Finished) -> Vec<ProfileRow<'_>> {
    // By executable, or without one by command name.
    let key = |exe: &Option<PathBuf>, comm: &[u8]| match exe {
        Some(exe) => (Some(exe.clone()), Vec::new()),
        None => (None, comm.to_vec()),
    };
    let mut programs: BTreeMap<_, (&Image, Sums)> = BTreeMap::new();
    let summary = &finished.summary;
    let mut others = Sums {
        allocated: Amount {
            bytes: summary.total_allocs_bytes,
            blocks: 0,
        },
        leaked: Amount {
            bytes: summary.leaked.lower,
            blocks: summary.leaked_blocks,
        },
        reached: None,
    };
    for image in &finished.images {
        let program = programs.entry(key(&image.exe, &image.comm));
        let (_, sums) = program.or_insert((image, Sums::none()));
        sums.add(image);
    }
    for (_, sums) in programs.values() {
        others.allocated = less(others.allocated, sums.allocated);
        others.leaked = less(others.leaked, sums.leaked);
    }
    for site in &finished.sites {
        match programs.get_mut(&key(&site.exe, &site.comm)) {
            Some((_, sums)) => sums.subtract(site),
            None => others.subtract(site),
        }
    }
    let named = programs.values().map(|(image, sums)| (Some(*image), *sums));
    let others = (finished.more_images > 0).then_some((None, others));
    let left = named.chain(others).map(|(image, sums)| ProfileRow {
        comm: image.map(|image| &image.comm[..]),
        exe: image.and_then(|image| image.exe.as_deref()),
        stack: None,
        allocated: sums.allocated,
        leaked: sums.leaked,
        reached: sums.reached,
    });
    let mut left: Vec<ProfileRow<'_>> = left.collect();
    left.retain(|row| row.allocated != Amount::default() || row.leaked != Amount::default());
    left
}

/// A frame's function, or its place in its file: `[libfoo.so+0x1234]`.
pub(super) fn function(frame: &NamedFrame) -> String {
    match (&frame.function, &frame.module) {
        (Some(function), _) => escape::escaped(function.as_bytes()),
        (None, Some(module)) => format!("[{}+{:#x}]", base(module), frame.offset),
        (None, None) => format!("[{:#x}]", frame.offset),
    }
}

/// The last part of a path.
pub(super) fn base(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    escape::escaped(name.as_bytes())
}

/// What stands for the callers that are not known. `None`: all are known.
pub(super) fn missing_callers(stack: &NamedStack) -> Option<&'static str> {
    (stack.end != WalkEnd::Complete).then_some("[callers unknown]")
}

/// What stands for a call stack that is not known, where others are.
pub(super) const STACK_UNKNOWN: &str = "[stack unknown]";

/// Texts that are written once, and then known by their numbers.
#[derive(Default)]
pub(super) struct NumberedTexts {
    numbers: HashMap<String, usize>,
    pub in_order: Vec<String>,
}

impl NumberedTexts {
    pub fn number(&mut self, text: String) -> usize {
        if let Some(number) = self.numbers.get(&text) {
            return *number;
        }
        let number = self.in_order.len();
        self.in_order.push(text.clone());
        self.numbers.insert(text, number);
        number
    }
}
