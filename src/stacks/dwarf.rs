//! What debug information says of addresses: their functions, the functions inlined there, and their lines.
//!
//! `gimli` decodes the entries. They are walked once for all addresses of a unit, and nothing but the answers is kept.
//! So memory does not depend on the size of the debug information, and the walk may end at any entry. Libraries that
//! answer address by address keep what they have read, and a small hostile file may make that very large.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use gimli::{AttributeValue, UnitOffset, constants};

use crate::stacks::lines::LineTable;
use crate::stacks::sections::SectionPart;
use crate::stacks::time_left::TimeLeft;
use crate::stacks::units::{CodeExtent, Dwarf, OpenUnit, UnitIndex, within};

/// The most functions inlined into each other at one address.
const MAX_INLINED: usize = 64;

/// The most entries that lead from an inlined copy of a function to its name.
const MAX_HOPS: usize = 16;

/// The most units that are kept open to look up names.
const MAX_OPEN: usize = 16;

/// The most bytes of a name.
const MAX_NAME: u64 = 16 << 10;

/// The debug information of a file.
pub struct DebugInfo {
    pub dwarf: Dwarf,
    pub index: UnitIndex,
    /// The units of the file that several debug files share (`.gnu_debugaltlink`).
    pub shared: Option<UnitIndex>,
}

/// What debug information says of a place in the code.
#[derive(Clone, Debug)]
pub struct SourceFrame {
    /// The linkage name, or else the name in the source. Empty if there is none.
    pub name: Rc<str>,
    pub file: Option<Rc<Path>>,
    /// 0: unknown.
    pub line: u64,
}

/// What debug information says of an address, innermost function first. The last one is the physical function.
pub type SourceFrames = Vec<SourceFrame>;

/// A function that is inlined at an address.
#[derive(Clone, Copy)]
struct InlinedCall {
    entry: UnitOffset,
    depth: isize,
    call_file: u64,
    call_line: u64,
}

/// The functions at an address.
#[derive(Clone, Default)]
struct Chain {
    /// The entry of the physical function, and its depth.
    function: Option<(UnitOffset, isize)>,
    /// Outermost first.
    inlined: Vec<InlinedCall>,
}

impl DebugInfo {
    /// Looks up sorted addresses. An address that is unknown, or for which there was no time, has no frames. The second
    /// result has the indices of the addresses for which there was no time.
    pub fn frames(
        &self,
        addresses: &[u64],
        work: &mut TimeLeft,
    ) -> (Vec<SourceFrames>, Vec<usize>) {
        let mut found = vec![SourceFrames::new(); addresses.len()];
        let mut late = Vec::new();
        let mut names = EntryNames::new(self);
        for (start, indices) in self.index.units_of(addresses, work) {
            let indices: Vec<usize> = indices
                .into_iter()
                .filter(|&at| found[at].is_empty())
                .collect();
            if indices.is_empty() {
                continue;
            }
            if !work.goes_on_now() {
                late.extend(indices);
                continue;
            }
            let wanted: Vec<u64> = indices.iter().map(|&at| addresses[at]).collect();
            let Some(frames) = self.frames_of(start, &wanted, &mut names, work) else {
                continue;
            };
            if work.is_over() {
                // The walk was broken off, so an inlined function may be missing.
                late.extend(indices);
                continue;
            }
            for (at, frames) in indices.into_iter().zip(frames) {
                found[at] = frames;
            }
        }
        (found, late)
    }

    /// Looks up addresses of one unit. `None` if the unit is damaged.
    fn frames_of(
        &self,
        start: usize,
        addresses: &[u64],
        names: &mut EntryNames,
        work: &mut TimeLeft,
    ) -> Option<Vec<SourceFrames>> {
        let dwarf = &self.dwarf;
        let open = Rc::new(OpenUnit::at(dwarf, start).ok()?);
        // What comes before damage is right.
        let mut chains = vec![Chain::default(); addresses.len()];
        let _ = walk(dwarf, &open, addresses, &mut chains, work);
        let mut lines = LineTable::of(dwarf, &open, addresses, work);
        let mut frames = Vec::new();
        for (at, chain) in chains.iter().enumerate() {
            let mut place = lines.places[at].map_or((0, 0), |place| (place.file, place.line));
            let mut known = SourceFrames::new();
            if chain.function.is_none() && lines.places[at].is_none() {
                frames.push(known);
                continue;
            }
            let inlined = chain.inlined.iter().rev();
            let entries = inlined
                .map(|call| (Some(call.entry), (call.call_file, call.call_line)))
                .chain([(chain.function.map(|(entry, _)| entry), (0, 0))]);
            for (entry, call) in entries {
                let name = entry.map(|entry| names.of(start, &open, entry, work));
                known.push(SourceFrame {
                    name: name.unwrap_or_else(|| "".into()),
                    file: lines.path(dwarf, &open, place.0),
                    line: place.1,
                });
                place = call;
            }
            frames.push(known);
        }
        Some(frames)
    }
}

/// Walks a unit's entries, and notes the functions at the sorted addresses.
fn walk(
    dwarf: &Dwarf,
    open: &OpenUnit,
    addresses: &[u64],
    chains: &mut [Chain],
    work: &mut TimeLeft,
) -> gimli::Result<()> {
    let unit = &open.unit;
    let mut entries = open.entries()?;
    // The depth of the entry at which `entries` began.
    let mut base = 0;
    // The functions around the current entry.
    let mut around: Vec<(isize, UnitOffset)> = Vec::new();
    while !entries.is_empty() {
        let (offset, depth) = (entries.next_offset(), base + entries.next_depth());
        let Some(abbreviation) = entries.read_abbreviation()? else {
            continue;
        };
        let specs = abbreviation.attributes();
        if !work.goes_on(1 + specs.len()) {
            return Ok(());
        }
        while around.last().is_some_and(|&(outer, _)| outer >= depth) {
            around.pop();
        }
        let is_inlined = match abbreviation.tag() {
            constants::DW_TAG_subprogram => false,
            constants::DW_TAG_inlined_subroutine => true,
            // A type has declarations of functions only. Most entries of C++ belong to types.
            constants::DW_TAG_structure_type
            | constants::DW_TAG_class_type
            | constants::DW_TAG_union_type
            | constants::DW_TAG_enumeration_type => {
                let mut sibling = None;
                for spec in specs {
                    let attribute = entries.read_attribute(*spec)?;
                    if let (constants::DW_AT_sibling, AttributeValue::UnitRef(next)) =
                        (attribute.name(), attribute.value())
                    {
                        sibling = Some(next);
                    }
                }
                // Going back would never end.
                if let Some(next) = sibling.filter(|&next| next > entries.next_offset()) {
                    entries = unit.entries_raw(Some(next))?;
                    base = depth;
                }
                continue;
            }
            _ => {
                entries.skip_attributes(specs)?;
                continue;
            }
        };
        let mut extent = CodeExtent::default();
        let (mut call_file, mut call_line) = (0, 0);
        for spec in specs {
            let attribute = entries.read_attribute(*spec)?;
            match attribute.name() {
                name @ (constants::DW_AT_low_pc
                | constants::DW_AT_high_pc
                | constants::DW_AT_ranges) => {
                    extent.add(dwarf, unit, name, attribute.value())?;
                }
                constants::DW_AT_call_file => match attribute.value() {
                    AttributeValue::FileIndex(file) => call_file = file,
                    value => call_file = value.udata_value().unwrap_or(0),
                },
                constants::DW_AT_call_line => {
                    call_line = attribute.udata_value().unwrap_or(0);
                }
                _ => {}
            }
        }
        let owner = around.last().map(|&(_, owner)| owner);
        let mut steps = 0;
        extent.each(dwarf, unit, work, |begin, end| {
            let range = within(addresses, begin, end);
            steps += range.len();
            for chain in &mut chains[range] {
                if !is_inlined {
                    // A function inside a function has its own code.
                    if chain.function.is_none_or(|(_, outer)| outer < depth) {
                        chain.function = Some((offset, depth));
                        chain.inlined.clear();
                    }
                } else if chain.function.map(|(owner, _)| owner) == owner
                    && chain.inlined.len() < MAX_INLINED
                    && chain.inlined.last().is_none_or(|last| last.depth < depth)
                {
                    chain.inlined.push(InlinedCall {
                        entry: offset,
                        depth,
                        call_file,
                        call_line,
                    });
                }
            }
        })?;
        work.goes_on(steps);
        if !is_inlined && abbreviation.has_children() {
            around.push((depth, offset));
        }
    }
    Ok(())
}

/// The names of entries. An entry for an inlined copy of a function leads to the one with its name.
struct EntryNames<'a> {
    info: &'a DebugInfo,
    /// Units by whether they are in the shared file, and by their start.
    open: HashMap<(bool, usize), Rc<OpenUnit>>,
    known: HashMap<(usize, UnitOffset), Rc<str>>,
}

/// Where an entry's name is.
enum NameSource {
    SameUnit(UnitOffset),
    /// An offset in `.debug_info`.
    SameFile(usize),
    /// An offset in the shared file's `.debug_info`.
    SharedFile(usize),
}

impl<'a> EntryNames<'a> {
    fn new(info: &'a DebugInfo) -> Self {
        Self {
            info,
            open: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// The name of an entry of the unit at `start`. Empty if it has none.
    fn of(
        &mut self,
        start: usize,
        open: &Rc<OpenUnit>,
        entry: UnitOffset,
        work: &mut TimeLeft,
    ) -> Rc<str> {
        if let Some(known) = self.known.get(&(start, entry)) {
            return known.clone();
        }
        let name: Rc<str> = self.search(open, entry, work).unwrap_or_default().into();
        self.known.insert((start, entry), Rc::clone(&name));
        name
    }

    fn search(
        &mut self,
        open: &Rc<OpenUnit>,
        mut entry: UnitOffset,
        work: &mut TimeLeft,
    ) -> Option<String> {
        let mut open = Rc::clone(open);
        let mut shared = false;
        let mut plain = None;
        for _ in 0..MAX_HOPS {
            let info = self.info;
            let dwarf = match info.dwarf.sup() {
                Some(dwarf) if shared => dwarf,
                _ => &info.dwarf,
            };
            let (linkage, name, next) = names_of(dwarf, &open, entry, work).ok()?;
            if linkage.is_some() {
                return linkage;
            }
            plain = plain.or(name);
            let offset = match next {
                None => break,
                Some(NameSource::SameUnit(offset)) => {
                    entry = offset;
                    continue;
                }
                Some(NameSource::SameFile(offset)) => offset,
                Some(NameSource::SharedFile(offset)) if !shared => {
                    shared = true;
                    offset
                }
                Some(NameSource::SharedFile(_)) => break,
            };
            let Some(unit) = self.unit(shared, offset, work) else {
                break;
            };
            let Some(inside) = gimli::DebugInfoOffset(offset).to_unit_offset(&unit.unit.header)
            else {
                break;
            };
            (open, entry) = (unit, inside);
        }
        plain
    }

    /// The unit that has this offset. `None` if there is no time to open it.
    fn unit(&mut self, shared: bool, offset: usize, work: &mut TimeLeft) -> Option<Rc<OpenUnit>> {
        let info = self.info;
        let (dwarf, index) = match shared {
            true => (info.dwarf.sup()?, info.shared.as_ref()?),
            false => (&info.dwarf, &info.index),
        };
        let start = index.containing(offset)?;
        if let Some(open) = self.open.get(&(shared, start)) {
            return Some(Rc::clone(open));
        }
        if !work.goes_on_now() {
            return None;
        }
        if self.open.len() >= MAX_OPEN {
            self.open.clear();
        }
        let open = Rc::new(OpenUnit::at(dwarf, start).ok()?);
        self.open.insert((shared, start), Rc::clone(&open));
        Some(open)
    }
}

/// An entry's linkage name, its name in the source, and where else its name may be.
fn names_of(
    dwarf: &Dwarf,
    open: &OpenUnit,
    entry: UnitOffset,
    work: &mut TimeLeft,
) -> gimli::Result<(Option<String>, Option<String>, Option<NameSource>)> {
    let unit = &open.unit;
    let mut entries = unit.entries_raw(Some(entry))?;
    let Some(abbreviation) = entries.read_abbreviation()? else {
        return Ok((None, None, None));
    };
    let (mut linkage, mut name, mut next) = (None, None, None);
    work.goes_on(abbreviation.attributes().len());
    for spec in abbreviation.attributes() {
        let attribute = entries.read_attribute(*spec)?;
        match attribute.name() {
            constants::DW_AT_linkage_name | constants::DW_AT_MIPS_linkage_name => {
                linkage = text_of(dwarf, open, attribute.value());
            }
            constants::DW_AT_name => name = text_of(dwarf, open, attribute.value()),
            constants::DW_AT_abstract_origin | constants::DW_AT_specification => {
                next = match attribute.value() {
                    AttributeValue::UnitRef(offset) => Some(NameSource::SameUnit(offset)),
                    AttributeValue::DebugInfoRef(offset) => Some(NameSource::SameFile(offset.0)),
                    AttributeValue::DebugInfoRefSup(offset) => {
                        Some(NameSource::SharedFile(offset.0))
                    }
                    _ => None,
                };
            }
            _ => {}
        }
    }
    Ok((linkage, name, next))
}

fn text_of(dwarf: &Dwarf, open: &OpenUnit, value: AttributeValue<SectionPart>) -> Option<String> {
    let text = dwarf.attr_string(&open.unit, value).ok()?;
    Some(text.text(MAX_NAME)).filter(|text| !text.is_empty())
}
