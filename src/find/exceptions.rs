//! Which functions no exception leaves. Such a function can have a return probe, although its kind may throw.
//!
//! An exception leaves a function in one of two ways: from a function that it calls, through its own frame, or from one
//! that it jumps to, whose caller is then its own. So every call in the code that the function jumps to is looked at.
//! The exception stops at the call if the unwinder does not know the code there, or if the code's table of handlers
//! stops it. What cannot be proved counts as let through.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use crate::code::follow::{self, Followed, Probed, Text};
use crate::elf::file::ElfFile;
use crate::elf::handlers;
use crate::elf::unwind::{Covered, Personality, UnwindTable};
use crate::find::file_text::FileText;

/// The personality function of C++: it ends the program at a call that no entry of the table covers.
pub const CPP: &str = "__gxx_personality_v0";

/// The most pieces of code of one function that are followed: its own, its landing pads, and its other parts.
const MAX_PARTS: usize = 256;

/// What a file says about exceptions.
pub struct Exceptions<'a> {
    elf: &'a ElfFile<'a>,
    /// Addresses of C++'s personality function in this file.
    cpp: BTreeSet<u64>,
    /// Read at the first question. `None` inside: it cannot be read.
    table: OnceCell<Option<UnwindTable>>,
}

impl<'a> Exceptions<'a> {
    /// `cpp` has the addresses of the file's own functions named [`CPP`].
    pub fn new(elf: &'a ElfFile<'a>, cpp: BTreeSet<u64>) -> Self {
        Exceptions {
            elf,
            cpp,
            table: OnceCell::new(),
        }
    }

    /// Whether no exception leaves a function. `followed` is its code.
    pub fn none_leaves(&self, text: &FileText<'_>, followed: &Followed) -> bool {
        let table = self.table.get_or_init(|| UnwindTable::read(self.elf));
        let Some(table) = table else {
            return false;
        };
        let mut proof = Proof {
            exceptions: self,
            text,
            table,
            pending: Vec::new(),
            followed: BTreeSet::new(),
            stopping: BTreeSet::new(),
        };
        proof.run(followed).is_some() && text.whole().is_ok()
    }

    /// Whether C++'s personality function reads the table of handlers.
    fn is_cpp(&self, text: &FileText<'_>, personality: Personality) -> bool {
        let is_ours = |address| self.cpp.contains(&address);
        match personality {
            Personality::At(address) => {
                is_ours(address)
                    || follow::stub(text, address)
                        .is_some_and(|pointer| text.points_to(pointer, CPP))
            }
            Personality::Pointer(pointer) => {
                // The compiler made this pointer, and no code of the program writes to it.
                text.points_to(pointer, CPP) || text.first_value(pointer).is_some_and(is_ours)
            }
        }
    }

    /// The landing pads of code in which every exception stops; `None` if one may pass.
    fn pads(&self, text: &FileText<'_>, covered: &Covered) -> Option<Vec<u64>> {
        let (address, personality) = covered.handlers?;
        if !self.is_cpp(text, personality) {
            return None;
        }
        let range = self.elf.mapped_at(address)?;
        let size = (range.end - range.start).min(handlers::MAX_TABLE as u64);
        let bytes = self.elf.read(range.start, size)?;
        handlers::stops_all(&bytes, address, covered.range.start)
    }
}

/// The proof for one function. Its methods return `None` where an exception may leave.
struct Proof<'a> {
    exceptions: &'a Exceptions<'a>,
    text: &'a FileText<'a>,
    table: &'a UnwindTable,
    /// Addresses from which code is still to be followed.
    pending: Vec<u64>,
    followed: BTreeSet<u64>,
    /// Starts of the code whose table of handlers stops every exception.
    stopping: BTreeSet<u64>,
}

impl Proof<'_> {
    fn run(&mut self, function: &Followed) -> Option<()> {
        self.part(function)?;
        while let Some(address) = self.pending.pop() {
            // A function with a return probe must let none out, either.
            let has_return_probe = self.text.function(address) == Some(Probed::Allocates);
            if has_return_probe || !self.followed.insert(address) {
                continue;
            }
            if self.followed.len() > MAX_PARTS {
                return None;
            }
            self.part(&follow::follow_part(self.text, address).ok()?)?;
        }
        Some(())
    }

    /// Looks at code that was followed. The code behind a table of jumps was not.
    fn part(&mut self, part: &Followed) -> Option<()> {
        let is_whole = part.certain && part.tables.is_empty();
        is_whole.then_some(())?;
        part.calls.iter().try_for_each(|&call| self.call(call))
    }

    /// Whether an exception from the function that is called here stops here.
    fn call(&mut self, call: u64) -> Option<()> {
        // The unwinder does not know this code, and goes no further.
        let Some(covered) = self.table.covering(call) else {
            return Some(());
        };
        if self.stopping.insert(covered.range.start) {
            let pads = self.exceptions.pads(self.text, &covered)?;
            self.pending.extend(pads);
        }
        Some(())
    }
}
