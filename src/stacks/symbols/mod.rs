//! Names and source lines of addresses in modules.
//!
//! A file and its debug information come from the processes that are watched, so nothing in them is trusted. Damage
//! costs names. Memory and time are bounded by the caller. What was left out is counted.
//!
//! Symbol tables come first, and a name in the file itself counts more than one in a separate debug file. So a debug
//! file adds names and lines, and changes no name.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use gimli::SectionId;

use crate::elf::file::ElfFile;
use crate::elf::symbols::debug::packed_symbols;
use crate::stacks::companions::{self, DebugFile};
use crate::stacks::demangle::demangled;
use crate::stacks::dwarf::{DebugInfo, SourceFrames};
use crate::stacks::module::Module;
use crate::stacks::sections::Sections;
use crate::stacks::symbol_table::{TableSymbol, symbols_at};
use crate::stacks::time_left::TimeLeft;
use crate::stacks::units::{Dwarf, UnitIndex};

/// The sections that are read. All others are left alone, however large they are.
const WANTED: [SectionId; 9] = [
    SectionId::DebugInfo,
    SectionId::DebugAbbrev,
    SectionId::DebugLine,
    SectionId::DebugStr,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugAddr,
    SectionId::DebugStrOffsets,
];

/// The memory that a file takes beside what is unpacked for it: its pages in memory.
const BASE: u64 = 10 << 20;

/// The most answers that are kept.
const MAX_KNOWN: usize = 1 << 16;

/// The most bytes of names in the answers to one call, and the most that are kept.
const MAX_TEXT: usize = 32 << 20;

/// The most files that are named in what was left out.
const MAX_TOLD: usize = 16;

/// A function at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameName {
    /// As in the source: demangled.
    pub function: String,
    /// The raw name in the symbol table, or of debug information if no table has one.
    pub linkage: String,
    /// Whether `linkage` is in the file itself. If not, it is only known because there is a separate debug file.
    pub in_file: bool,
    /// The source file. Of a function into which others are inlined, where it calls the next one.
    pub file: Option<PathBuf>,
    /// The line there.
    pub line: Option<u32>,
    pub inlined: bool,
}

/// What a `Symbolizer` may take.
#[derive(Clone, Copy, Debug)]
pub struct SymbolLimits {
    /// Bytes for what is kept of files. Debug information that is not compressed takes little, however much there is.
    /// Compressed sections are unpacked into memory. If they do not fit, only symbol tables are read.
    pub memory: u64,
    /// Files that are kept open, with up to three descriptors each.
    pub files: usize,
}

impl Default for SymbolLimits {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            files: 16,
        }
    }
}

/// What was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Addresses that have no source lines, because there was no time.
    pub late: u64,
    /// Addresses without names, because their file cannot be read, or is another one by now.
    pub unreadable: u64,
    /// Addresses without source lines, because reading their file failed.
    pub failed: u64,
    /// Addresses that were cut short, because their names are too long together.
    pub too_long: u64,
    /// Files whose debug information does not fit into memory, and the bytes that it would take. At most 16.
    pub too_large: Vec<(PathBuf, u64)>,
}

/// What is kept of a module's files.
struct OpenModule {
    number: u32,
    file: Rc<File>,
    /// Unpacked from the file's `.gnu_debugdata`, when it was first needed.
    packed: Option<Vec<u8>>,
    debug: Option<DebugFile>,
    info: Option<DebugInfo>,
    /// The debug information is in the file itself.
    has_own_info: bool,
    looked_for: LookedFor,
    /// Bytes in memory.
    size: u64,
}

/// What has been looked for already.
#[derive(Default)]
struct LookedFor {
    packed: bool,
    debug: bool,
    info: bool,
}

/// Looks up names, and keeps what it has read within its limits. It belongs to one thread.
pub struct Symbolizer {
    limits: SymbolLimits,
    /// The one that was used last is last.
    open: Vec<OpenModule>,
    known: HashMap<(u32, u64), Vec<FrameName>>,
    /// Bytes of names in `known`.
    text: usize,
    left_out: LeftOut,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new(SymbolLimits::default())
    }
}

impl Symbolizer {
    pub fn new(limits: SymbolLimits) -> Self {
        Self {
            limits,
            open: Vec::new(),
            known: HashMap::new(),
            text: 0,
            left_out: LeftOut::default(),
        }
    }

    /// What was left out until now.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    /// The functions at ELF virtual addresses of a module. For a return address, pass the address less one.
    ///
    /// Each address gets its innermost inlined function first, and the physical function last. The list is empty if the
    /// function has no name. After the deadline, names come from symbol tables only.
    pub fn name(
        &mut self,
        module: &Module,
        addresses: &[u64],
        deadline: Instant,
    ) -> Vec<Vec<FrameName>> {
        let number = module.number();
        let mut missing: Vec<u64> = addresses.to_vec();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|&address| !self.known.contains_key(&(number, address)));
        let mut found = HashMap::new();
        if !missing.is_empty() {
            let mut work = TimeLeft::until(deadline);
            // The readers do not panic on any input that is known. If one does, that costs names.
            let looked = catch_unwind(AssertUnwindSafe(|| {
                self.look_up(module, &missing, &mut work)
            }));
            match looked {
                Ok(answers) => found = answers,
                Err(_) => {
                    self.left_out.failed += missing.len() as u64;
                    self.open.retain(|open| open.number != number);
                }
            }
        }
        let of = |address: &u64| {
            let known = self.known.get(&(number, *address));
            known.or_else(|| found.get(address)).cloned()
        };
        addresses
            .iter()
            .map(|address| of(address).unwrap_or_default())
            .collect()
    }

    /// Looks up sorted addresses. Answers that will not change are kept, all others are returned.
    fn look_up(
        &mut self,
        module: &Module,
        addresses: &[u64],
        work: &mut TimeLeft,
    ) -> HashMap<u64, Vec<FrameName>> {
        let Ok(file) = module.open() else {
            self.left_out.unreadable += addresses.len() as u64;
            return HashMap::new();
        };
        let mut open = self.take(module.number(), file);
        let symbols = open.symbols(module, addresses);
        let frames = self.frames(&mut open, module, addresses, work);
        let failed = frames.is_none();
        let (frames, late) =
            frames.unwrap_or_else(|| (vec![SourceFrames::new(); addresses.len()], Vec::new()));
        self.left_out.late += late.len() as u64;
        let mut answers = HashMap::new();
        let mut text = 0;
        for (at, &address) in addresses.iter().enumerate() {
            let names = if text > MAX_TEXT {
                self.left_out.too_long += 1;
                Vec::new()
            } else {
                named(symbols[at].as_ref(), &frames[at], open.has_own_info)
            };
            text += names.iter().map(|named| named.size()).sum::<usize>();
            answers.insert(address, names);
        }
        self.keep(open);
        if self.known.len() + answers.len() > MAX_KNOWN || self.text + text > MAX_TEXT {
            self.known.clear();
            self.text = 0;
        }
        if failed || !late.is_empty() || text > MAX_TEXT || answers.len() > MAX_KNOWN {
            return answers;
        }
        self.text += text;
        let number = module.number();
        let answers = answers.into_iter();
        self.known
            .extend(answers.map(|(address, names)| ((number, address), names)));
        HashMap::new()
    }

    /// The frames of sorted addresses, and which of them there was no time for. `None` if the debug information does not
    /// fit into memory.
    fn frames(
        &mut self,
        open: &mut OpenModule,
        module: &Module,
        addresses: &[u64],
        work: &mut TimeLeft,
    ) -> Option<(Vec<SourceFrames>, Vec<usize>)> {
        let all = || (0..addresses.len()).collect();
        if work.is_over() {
            return Some((vec![SourceFrames::new(); addresses.len()], all()));
        }
        if !open.looked_for.info {
            open.look_for_debug(module);
            let used: u64 = self.open.iter().map(|other| other.size).sum();
            let room = self.limits.memory.saturating_sub(open.size + BASE);
            let mut loaded = open.load(module, room.saturating_sub(used), work);
            if matches!(loaded, LoadOutcome::TooLarge(_)) && !self.open.is_empty() {
                self.open.clear();
                loaded = open.load(module, room, work);
            }
            match loaded {
                LoadOutcome::Done => open.looked_for.info = true,
                LoadOutcome::Late => {
                    return Some((vec![SourceFrames::new(); addresses.len()], all()));
                }
                LoadOutcome::TooLarge(bytes) => {
                    open.looked_for.info = true;
                    if self.left_out.too_large.len() < MAX_TOLD {
                        let path = module.named_path().to_owned();
                        self.left_out.too_large.push((path, bytes));
                    }
                }
            }
        }
        Some(match &open.info {
            Some(info) => info.frames(addresses, work),
            None => (vec![SourceFrames::new(); addresses.len()], Vec::new()),
        })
    }

    /// The module's open files, which `keep` puts back.
    fn take(&mut self, number: u32, file: File) -> OpenModule {
        let known = self.open.iter().position(|open| open.number == number);
        match known {
            Some(at) => self.open.remove(at),
            None => OpenModule {
                number,
                file: Rc::new(file),
                packed: None,
                debug: None,
                info: None,
                has_own_info: false,
                looked_for: LookedFor::default(),
                size: 0,
            },
        }
    }

    /// Keeps a module's files, and drops those that were not used for longest if there are too many.
    fn keep(&mut self, open: OpenModule) {
        self.open.push(open);
        let size = |open: &[OpenModule]| open.iter().map(|open| open.size).sum::<u64>();
        while !self.open.is_empty()
            && (self.open.len() > self.limits.files || size(&self.open) > self.limits.memory)
        {
            self.open.remove(0);
        }
    }
}

/// What came of loading debug information.
enum LoadOutcome {
    /// There is some, or there is none.
    Done,
    /// There was no time.
    Late,
    /// The bytes that it would take.
    TooLarge(u64),
}

impl OpenModule {
    /// The symbols at sorted addresses, and for each whether it is in the file itself.
    fn symbols(&mut self, module: &Module, addresses: &[u64]) -> Vec<Option<(TableSymbol, bool)>> {
        let file = Rc::clone(&self.file);
        let Ok(elf) = ElfFile::open(&file) else {
            return vec![None; addresses.len()];
        };
        let symbols = symbols_at(&elf, addresses).into_iter();
        let mut found: Vec<_> = symbols.map(|symbol| Some((symbol?, true))).collect();
        let fill = |found: &mut Vec<Option<_>>, elf: &ElfFile, in_file| {
            let missing = |at: &usize| found[*at].is_none();
            let at: Vec<usize> = (0..addresses.len()).filter(missing).collect();
            let wanted: Vec<u64> = at.iter().map(|&at| addresses[at]).collect();
            for (at, symbol) in at.into_iter().zip(symbols_at(elf, &wanted)) {
                found[at] = symbol.map(|symbol| (symbol, in_file));
            }
        };
        if found.iter().any(Option::is_none) {
            if !self.looked_for.packed {
                self.looked_for.packed = true;
                self.packed = packed_symbols(&elf);
                self.size += self.packed.as_ref().map_or(0, |packed| packed.len() as u64);
            }
            if let Some(inner) = self
                .packed
                .as_deref()
                .and_then(|packed| ElfFile::in_memory(packed).ok())
            {
                fill(&mut found, &inner, true);
            }
        }
        if found.iter().any(Option::is_none) {
            self.look_for_debug(module);
            if let Some(debug) = self
                .debug
                .as_ref()
                .and_then(|debug| ElfFile::open(&debug.file).ok())
            {
                fill(&mut found, &debug, false);
            }
        }
        found
    }

    fn look_for_debug(&mut self, module: &Module) {
        if self.looked_for.debug {
            return;
        }
        self.looked_for.debug = true;
        if let Ok(elf) = ElfFile::open(&self.file) {
            self.debug = companions::debug_file(module, &elf);
        }
    }

    /// Loads the debug information. `room`: how many bytes may be unpacked.
    fn load(&mut self, module: &Module, room: u64, work: &mut TimeLeft) -> LoadOutcome {
        let own = ElfFile::open(&self.file).ok();
        let has_info = |elf: &ElfFile| {
            let info = elf.section_named(".debug_info");
            info.is_some_and(|section| !section.range().is_empty())
        };
        self.has_own_info = own.as_ref().is_some_and(has_info);
        let (file, path) = match &self.debug {
            _ if self.has_own_info => (Rc::clone(&self.file), module.named_path()),
            Some(debug) => match debug.file.try_clone() {
                Ok(file) => (Rc::new(file), debug.path.as_path()),
                Err(_) => return LoadOutcome::Done,
            },
            None => return LoadOutcome::Done,
        };
        let Ok(elf) = ElfFile::open(&file) else {
            return LoadOutcome::Done;
        };
        let sections = Sections::new(&elf, Some(&file), room);
        let Some(mut dwarf) = dwarf_of(&sections) else {
            return LoadOutcome::TooLarge(sections.too_large.get());
        };
        let mut left = sections.room();
        let shared = companions::shared_file(module.root(), &elf, path).map(Rc::new);
        if let Some(shared) = &shared
            && let Ok(elf) = ElfFile::open_debug(shared)
        {
            let sections = Sections::new(&elf, Some(shared), left);
            if let Some(inner) = dwarf_of(&sections) {
                dwarf.set_sup(inner);
                left = sections.room();
            }
        }
        let Some(index) = UnitIndex::of(&dwarf, work) else {
            return LoadOutcome::Late;
        };
        let shared = dwarf.sup().map(|sup| UnitIndex::without_code(sup, work));
        let indices = index.size() + shared.as_ref().map_or(0, UnitIndex::size);
        self.size += BASE + (room - left) + indices;
        self.info = Some(DebugInfo {
            dwarf,
            index,
            shared,
        });
        LoadOutcome::Done
    }
}

/// The debug sections of a file. `None` if one of them does not fit into memory.
fn dwarf_of(sections: &Sections) -> Option<Dwarf> {
    let section = |id: SectionId| -> gimli::Result<_> {
        let name = if WANTED.contains(&id) { id.name() } else { "" };
        Ok(sections.get(name))
    };
    let dwarf = Dwarf::load(section).ok()?;
    (sections.too_large.get() == 0).then_some(dwarf)
}

/// What a symbol table and debug information say of an address together.
fn named(
    symbol: Option<&(TableSymbol, bool)>,
    frames: &SourceFrames,
    has_own_info: bool,
) -> Vec<FrameName> {
    let function = frames.last();
    let (linkage, in_file) = match (symbol, function) {
        (Some((symbol, in_file)), _) => (symbol.name.as_str(), *in_file),
        (None, Some(function)) if !function.name.is_empty() => (&*function.name, has_own_info),
        _ => return Vec::new(),
    };
    let place = |file: Option<&Path>, line: u64| {
        let line = u32::try_from(line).ok().filter(|&line| line > 0);
        (file.map(Path::to_owned), line)
    };
    let mut names = Vec::new();
    let inlined = frames.iter().take(frames.len().saturating_sub(1));
    for frame in inlined.filter(|frame| !frame.name.is_empty()) {
        let (file, line) = place(frame.file.as_deref(), frame.line);
        names.push(FrameName {
            function: demangled(&frame.name),
            linkage: frame.name.to_string(),
            in_file: has_own_info,
            file,
            line,
            inlined: true,
        });
    }
    let (file, line) = function.map_or((None, None), |frame| {
        place(frame.file.as_deref(), frame.line)
    });
    names.push(FrameName {
        function: demangled(linkage),
        linkage: linkage.to_owned(),
        in_file,
        file,
        line,
        inlined: false,
    });
    names
}

impl FrameName {
    /// Bytes in memory.
    fn size(&self) -> usize {
        let path = self.file.as_ref().map_or(0, |file| file.as_os_str().len());
        size_of::<Self>() + self.function.len() + self.linkage.len() + path
    }
}

#[cfg(test)]
mod tests;
