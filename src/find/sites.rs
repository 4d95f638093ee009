//! From functions to the places that are probed. Most functions have one place. A function that may throw also has
//! one at each of its returns, unless it is proved that no exception leaves it. A function that leaves all its work to
//! other probed functions has none.
//!
//! Decides this from the file's code, which `file_text` reads. [`crate::code::placement`] chooses the
//! instruction near a function's entry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

use crate::code::follow::{self, Followed, TooLong, Work};
use crate::code::placement::{self, Placement, Reason, WINDOW};
use crate::elf::file::{ElfFile, Segment};
use crate::find::exceptions::Exceptions;
use crate::find::file_text::FileText;
use crate::find::functions::{Family, FileTable, ProbeProgram, Row};
use crate::find::notation::{Action, Verb};
use crate::find::role::Role;

/// The most bytes of a function that are decoded to place its probe. They show the jumps that land near the entry.
const DECODED: u64 = 4096;

/// The most bytes of a call instruction. Its return address is at most this far behind its own address.
const CALL: u64 = 16;

/// A function that has a row in the table.
#[derive(Clone, Debug)]
pub struct FoundFunction {
    pub row: Row,
    pub symbol: String,
    /// In bytes; 0: unknown.
    pub size: u64,
}

/// A place to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    pub row: Row,
    /// The symbol at the function's address. Of several symbols, the one whose row comes first.
    pub symbol: String,
    /// The probe's offset in the file.
    pub file_offset: u64,
    pub placement: Placement,
    /// Bytes of the allocator's own code before the probe. In a library the executable segment counts as the
    /// allocator's code. In a program only the function counts, since the segment holds the program's own code, too.
    pub text_before: u64,
    /// Bytes of the allocator's own code from the probe on.
    pub text_after: u64,
    /// The same within the allocator's functions, from the first of them to the last. A C library has other functions,
    /// which allocate like a program does (strdup), and the code that a signal handler returns to.
    pub own_before: u64,
    pub own_after: u64,
}

/// The places to probe for these functions. The keys are the functions' addresses. `exceptions` tells which of them no
/// exception leaves. `is_libc`: the file is a C library, of which the allocator is only a part.
///
/// # Errors
/// The file is damaged.
pub fn place(
    elf: &ElfFile<'_>,
    path: &Path,
    role: Role,
    is_libc: bool,
    mut functions: BTreeMap<u64, FoundFunction>,
    table: &FileTable<'_>,
    exceptions: &Exceptions<'_>,
) -> Result<Vec<ProbeSite>> {
    // An operator belongs to the allocator of its file. In a file without an allocator it calls another file's.
    if !is_allocator(functions.values().map(|found| &found.row)) {
        functions.retain(|_, found| found.row.family != Family::Operators);
    }
    let mut placer = Placer::new(elf, path, role, &functions, table, exceptions);
    if is_libc && role == Role::Library {
        placer.allocator = Range::of_functions(&functions);
    }
    for (&address, found) in &functions {
        placer.add_function(address, found)?;
    }
    Ok(placer.sites.into_values().collect())
}

/// Whether these functions are an allocator: one of them gives out blocks, and another one of the same family
/// takes them back. A file that defines only some of the functions (a tool that intercepts malloc, say)
/// passes its calls on to a file that is an allocator.
pub fn is_allocator<'row>(rows: impl Iterator<Item = &'row Row> + Clone) -> bool {
    rows.clone().any(|row| {
        row.action.allocates()
            && row.family != Family::Operators
            && rows
                .clone()
                .any(|other| other.family == row.family && other.action.frees())
    })
}

/// Collects the places of a file's functions.
struct Placer<'a> {
    elf: &'a ElfFile<'a>,
    path: &'a Path,
    text: FileText<'a>,
    exceptions: &'a Exceptions<'a>,
    is_library: bool,
    /// The part of the file that is its allocator, if it is known to have others.
    allocator: Option<Range>,
    /// Whether the file has more than one function. A single free has no other function to leave its work to.
    has_several: bool,
    /// Whether the file bundles an allocator under names that the C library does not have.
    bundles: bool,
    /// A place has at most one site for each program.
    sites: BTreeMap<(u64, ProbeProgram), ProbeSite>,
}

/// A function whose places are being added.
struct Placing<'a> {
    found: &'a FoundFunction,
    address: u64,
    segment: &'a Segment,
    action: Action,
    /// The allocator's own code around the function.
    own: Range,
}

impl<'a> Placer<'a> {
    fn new(
        elf: &'a ElfFile<'a>,
        path: &'a Path,
        role: Role,
        functions: &BTreeMap<u64, FoundFunction>,
        table: &'a FileTable<'a>,
        exceptions: &'a Exceptions<'a>,
    ) -> Self {
        let actions = functions
            .iter()
            .map(|(&address, found)| (address, found.row.action));
        Placer {
            elf,
            path,
            text: FileText::new(elf, actions, table),
            exceptions,
            is_library: role == Role::Library,
            allocator: None,
            has_several: functions.len() > 1,
            bundles: functions.values().any(|found| {
                !matches!(found.row.family, Family::Prefix("") | Family::User(_))
                    || found.row.name.ends_with("allocx")
            }),
            sites: BTreeMap::new(),
        }
    }

    /// Adds the places of one function.
    fn add_function(&mut self, address: u64, found: &FoundFunction) -> Result<()> {
        let segment = self.segment_of(address, found)?;
        let mut action = found.row.action;
        let followed = self.follow(address, action);
        if let Some(Ok(followed)) = &followed
            && followed.delegates
            && !is_user(found)
        {
            return Ok(());
        }
        if self.can_have_return_probe(found, followed.as_ref()) {
            action = action.without_exceptions();
        }
        if action.verb == Verb::Free && follow::begins_again(&self.text, address) {
            action.verb = Verb::FreeAgain;
        }
        let placement = placement::place(
            &code(self.elf, segment, address, found.size)?,
            &action.arguments(),
        );
        let placing = Placing {
            found,
            address,
            segment,
            action,
            own: self.own_code(address, found, segment, followed.as_ref()),
        };
        match followed {
            // A jump that is not followed may be where the entry's probe is. One place cannot tell the two apart.
            Some(Ok(followed))
                if action.may_throw()
                    && followed.has_all_ends()
                    && !followed.exits.contains(&(address + placement.offset)) =>
            {
                self.add_entry(&placing, placement, action.verb);
                self.add_ends(&placing, followed.returns, Verb::Return, Reason::Returns);
                self.add_ends(&placing, followed.exits, Verb::Left, Reason::Leaves);
            }
            Some(_) if action.may_throw() => {
                let placement = Placement {
                    reason: Reason::Unfollowed,
                    ..placement
                };
                self.add_entry(&placing, placement, Verb::Unfollowed);
            }
            _ => self.add_entry(&placing, placement, action.verb),
        }
        Ok(())
    }

    /// Whether a function that may throw by its kind can have a return probe all the same: no exception leaves it. For
    /// most functions the file proves that. If a function whose declaration says so cannot be followed for certain,
    /// the declaration decides: its callers were compiled for that.
    fn can_have_return_probe(
        &self,
        found: &FoundFunction,
        followed: Option<&Result<Followed, TooLong>>,
    ) -> bool {
        let action = found.row.action;
        let Some(followed) = followed.filter(|_| action.may_throw()) else {
            return false;
        };
        let Ok(followed) = followed else {
            return action.verb == Verb::NewNothrow;
        };
        let is_whole = followed.certain && followed.has_all_ends();
        (action.verb == Verb::NewNothrow && !is_whole)
            || self.exceptions.none_leaves(&self.text, followed)
    }

    /// The executable segment that a function lies in.
    fn segment_of(&self, address: u64, found: &FoundFunction) -> Result<&'a Segment> {
        self.elf.text_segment(address).with_context(|| {
            format!(
                "{} in {} lies outside its executable segment",
                found.symbol,
                self.path.display()
            )
        })
    }

    /// Follows a function's code, if its probes depend on that; else `None`. The returns of a function that may
    /// throw must be known. A free is followed to see whether it delegates, so a failure there is `None`, too.
    fn follow(&self, address: u64, action: Action) -> Option<Result<Followed, TooLong>> {
        let follow = |work| {
            follow::follow(&self.text, address, work)
                .and_then(|followed| self.text.whole().map(|()| followed))
        };
        if action.may_throw() {
            Some(follow(match action.frees() {
                true => Work::FreesAndThrows,
                false => Work::Allocates,
            }))
        } else if action.verb == Verb::Free && self.has_several {
            follow(Work::Frees).ok().map(Ok)
        } else {
            None
        }
    }

    /// The allocator's own code around a function: see [`ProbeSite::text_before`]. In a program the calls by which the
    /// function allocates count as well.
    fn own_code(
        &self,
        address: u64,
        found: &FoundFunction,
        segment: &Segment,
        followed: Option<&Result<Followed, TooLong>>,
    ) -> Range {
        if self.is_library || is_user(found) {
            return Range::of_function(segment.address, segment.size);
        }
        let mut own = Range::of_function(address, found.size);
        if let Some(Ok(Followed { inner, callees, .. })) = followed {
            own.extend(inner);
            own.extend(&follow::calls_below(&self.text, callees.clone()));
        } else if self.bundles && found.row.action.allocates() {
            own.extend(&follow::calls_below(&self.text, BTreeSet::from([address])));
        }
        own
    }

    /// Adds the probe at, or near, the function's entry.
    fn add_entry(&mut self, placing: &Placing<'_>, placement: Placement, verb: Verb) {
        self.add(placing, placing.address + placement.offset, placement, verb);
    }

    /// Adds the places where the function returns, or leaves for code that is not followed.
    fn add_ends(
        &mut self,
        placing: &Placing<'_>,
        places: BTreeSet<u64>,
        verb: Verb,
        reason: Reason,
    ) {
        let segment = placing.segment;
        for place in places {
            let offset = place.wrapping_sub(placing.address);
            // A tail call may have left the segment.
            if segment.address <= place && place - segment.address < segment.size {
                let placement = self.text.placement(place, offset, reason);
                self.add(placing, place, placement, verb);
            }
        }
    }

    /// Adds a site at the address `at`, unless the place has one for the same program.
    fn add(&mut self, placing: &Placing<'_>, at: u64, placement: Placement, verb: Verb) {
        let Placing {
            found,
            segment,
            action,
            own,
            ..
        } = placing;
        let row = Row {
            action: Action { verb, ..*action },
            ..found.row.clone()
        };
        let allocator = self.allocator.as_ref().unwrap_or(own);
        let key = (at, row.action.program());
        self.sites.entry(key).or_insert_with(|| ProbeSite {
            row,
            symbol: found.symbol.clone(),
            file_offset: segment.offset + (at - segment.address),
            text_before: at.saturating_sub(own.start),
            text_after: own.end.saturating_sub(at),
            own_before: at.saturating_sub(allocator.start),
            own_after: allocator.end.saturating_sub(at),
            placement,
        });
    }
}

/// Whether the user named the function.
fn is_user(found: &FoundFunction) -> bool {
    matches!(found.row.family, Family::User(_))
}

/// A range of addresses.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn of_function(address: u64, size: u64) -> Self {
        Range {
            start: address,
            end: address.saturating_add(size),
        }
    }

    /// From the first of the functions that allocate or free to the end of the last one.
    fn of_functions(functions: &BTreeMap<u64, FoundFunction>) -> Option<Self> {
        let of_allocator =
            |found: &FoundFunction| found.row.action.allocates() || found.row.action.frees();
        let ranges = functions.iter().filter(|(_, found)| of_allocator(found));
        let ranges = ranges.map(|(&address, found)| Range::of_function(address, found.size));
        ranges.reduce(|all, next| Range {
            start: all.start.min(next.start),
            end: all.end.max(next.end),
        })
    }

    /// Extends the range to calls and to their return addresses.
    fn extend(&mut self, calls: &BTreeSet<u64>) {
        if let (Some(first), Some(last)) = (calls.first(), calls.last()) {
            self.start = self.start.min(*first);
            self.end = self.end.max(last.saturating_add(CALL));
        }
    }
}

/// The code of the function at `address`, or as much of it as is decoded. A function of unknown size gives the bytes
/// that [`placement::place`] looks at.
fn code(elf: &ElfFile<'_>, segment: &Segment, address: u64, function_size: u64) -> Result<Vec<u8>> {
    let in_segment = address - segment.address;
    let wanted = if function_size == 0 {
        WINDOW as u64
    } else {
        function_size
    };
    let size = wanted.min(DECODED).min(segment.size - in_segment);
    (segment.offset.checked_add(in_segment))
        .and_then(|offset| elf.read(offset, size))
        .context("the file ends within a function")
}
