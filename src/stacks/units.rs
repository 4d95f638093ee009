//! The compilation units of a file's debug information, and which of them have which code.

use std::collections::BTreeMap;
use std::sync::Arc;

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugInfoOffset, DebugLineOffset, EntriesRaw,
    Error, RangeListsOffset, Reader as _, Section as _, UnitHeader, UnitType, constants,
};

use crate::stacks::sections::SectionPart;
use crate::stacks::time_left::TimeLeft;

pub type Dwarf = gimli::Dwarf<SectionPart>;
pub type Unit = gimli::Unit<SectionPart>;

/// The most bytes of a unit's table of abbreviations. Units of large programs have 10 kB. In memory, it takes some
/// twelve times as much.
const MAX_ABBREVIATIONS: usize = 1 << 20;

/// The most bytes of a line program's header. Units of large programs have 100 kB. In memory, it takes at most some 150
/// times as much.
const MAX_LINE_HEADER: u64 = 256 << 10;

/// The most ranges of addresses that are kept, with 24 bytes each. A debug build of 840 MB had 400,000.
const MAX_RANGES: usize = 1 << 20;

/// The most units. Each takes 8 bytes.
const MAX_UNITS: usize = 1 << 20;

/// Units that are searched for one address. More than one has an address only if ranges are wrong.
const MAX_CLAIMS: usize = 4;

/// A unit, ready to be read.
pub struct OpenUnit {
    /// Without its line program.
    pub unit: Unit,
    /// Where its line program is.
    pub lines: Option<DebugLineOffset>,
    /// The code of the unit, as its first entry tells it.
    extent: CodeExtent,
}

impl OpenUnit {
    /// Reads the beginning of the unit that starts at this offset of `.debug_info`.
    pub fn at(dwarf: &Dwarf, start: usize) -> gimli::Result<Self> {
        Self::of(dwarf, dwarf.unit_header(DebugInfoOffset(start))?)
    }

    fn of(dwarf: &Dwarf, header: UnitHeader<SectionPart>) -> gimli::Result<Self> {
        let abbreviations = Arc::new(abbreviations(dwarf, &header)?);
        let encoding = header.encoding();
        let mut unit = Unit {
            abbreviations: Arc::clone(&abbreviations),
            name: None,
            comp_dir: None,
            low_pc: 0,
            str_offsets_base: gimli::DebugStrOffsetsBase::default_for_encoding_and_file(
                encoding,
                dwarf.file_type,
            ),
            addr_base: gimli::DebugAddrBase(0),
            loclists_base: gimli::DebugLocListsBase(0),
            rnglists_base: gimli::DebugRngListsBase::default_for_encoding_and_file(
                encoding,
                dwarf.file_type,
            ),
            line_program: None,
            dwo_id: None,
            header,
        };
        let mut entries = unit.header.entries_raw(&abbreviations, None)?;
        let Some(abbreviation) = entries.read_abbreviation()? else {
            return Err(Error::MissingUnitDie);
        };
        let mut lines = None;
        let mut later = Vec::new();
        for spec in abbreviation.attributes() {
            let attribute = entries.read_attribute(*spec)?;
            match (attribute.name(), attribute.value()) {
                (constants::DW_AT_stmt_list, AttributeValue::DebugLineRef(offset)) => {
                    lines = Some(offset);
                }
                (constants::DW_AT_str_offsets_base, AttributeValue::DebugStrOffsetsBase(base)) => {
                    unit.str_offsets_base = base;
                }
                (
                    constants::DW_AT_addr_base | constants::DW_AT_GNU_addr_base,
                    AttributeValue::DebugAddrBase(base),
                ) => unit.addr_base = base,
                (
                    constants::DW_AT_rnglists_base | constants::DW_AT_GNU_ranges_base,
                    AttributeValue::DebugRngListsBase(base),
                ) => unit.rnglists_base = base,
                // These may need one of the bases above, which may come later.
                (
                    name @ (constants::DW_AT_name
                    | constants::DW_AT_comp_dir
                    | constants::DW_AT_low_pc
                    | constants::DW_AT_high_pc
                    | constants::DW_AT_ranges),
                    value,
                ) => later.push((name, value)),
                _ => {}
            }
        }
        let mut extent = CodeExtent::default();
        for (name, value) in later {
            match name {
                constants::DW_AT_name => unit.name = dwarf.attr_string(&unit, value).ok(),
                constants::DW_AT_comp_dir => unit.comp_dir = dwarf.attr_string(&unit, value).ok(),
                _ => extent.add(dwarf, &unit, name, value)?,
            }
        }
        unit.low_pc = extent.low.unwrap_or(0);
        Ok(Self {
            unit,
            lines,
            extent,
        })
    }

    /// The unit's entries.
    pub fn entries(&self) -> gimli::Result<EntriesRaw<'_, SectionPart>> {
        self.unit.entries_raw(None)
    }

    /// The unit's line program, if its header has a usual size.
    pub fn line_program(&self, dwarf: &Dwarf) -> Option<gimli::IncompleteLineProgram<SectionPart>> {
        let offset = self.lines?;
        let mut header = dwarf.debug_line.reader().clone();
        header.skip(offset.0).ok()?;
        let (_, format) = header.read_initial_length().ok()?;
        if header.read_u16().ok()? >= 5 {
            header.skip(2).ok()?;
        }
        if header.read_length(format).ok()? as u64 > MAX_LINE_HEADER {
            return None;
        }
        let unit = &self.unit;
        dwarf
            .debug_line
            .program(
                offset,
                unit.header.address_size(),
                unit.comp_dir.clone(),
                unit.name.clone(),
            )
            .ok()
    }
}

/// A unit's table of abbreviations, if it has a usual size.
fn abbreviations(dwarf: &Dwarf, header: &UnitHeader<SectionPart>) -> gimli::Result<Abbreviations> {
    let mut table = dwarf.debug_abbrev.reader().clone();
    table.skip(header.debug_abbrev_offset().0)?;
    table.truncate(table.len().min(MAX_ABBREVIATIONS))?;
    DebugAbbrev::from(table).abbreviations(gimli::DebugAbbrevOffset(0))
}

/// The addresses of an entry's code.
#[derive(Clone, Copy, Debug, Default)]
pub struct CodeExtent {
    low: Option<u64>,
    high: Option<u64>,
    size: Option<u64>,
    ranges: Option<RangeListsOffset>,
}

impl CodeExtent {
    /// Notes an attribute, if it tells an extent.
    pub fn add(
        &mut self,
        dwarf: &Dwarf,
        unit: &Unit,
        name: constants::DwAt,
        value: AttributeValue<SectionPart>,
    ) -> gimli::Result<()> {
        match name {
            constants::DW_AT_low_pc => self.low = dwarf.attr_address(unit, value)?,
            constants::DW_AT_high_pc => match value.udata_value() {
                Some(size) => self.size = Some(size),
                None => self.high = dwarf.attr_address(unit, value)?,
            },
            constants::DW_AT_ranges => self.ranges = dwarf.attr_ranges_offset(unit, value)?,
            _ => {}
        }
        Ok(())
    }

    /// Calls `found` with the begin and the end of each range.
    pub fn each(
        &self,
        dwarf: &Dwarf,
        unit: &Unit,
        work: &mut TimeLeft,
        mut found: impl FnMut(u64, u64),
    ) -> gimli::Result<()> {
        if let Some(offset) = self.ranges {
            let mut ranges = dwarf.ranges(unit, offset)?;
            while let Some(range) = ranges.next()? {
                found(range.begin, range.end);
                if !work.goes_on(1) {
                    break;
                }
            }
        } else if let Some(low) = self.low {
            let end = self.high.or_else(|| low.checked_add(self.size?));
            found(low, end.unwrap_or(low));
        }
        Ok(())
    }
}

/// The indices of the sorted addresses from `begin` on, before `end`.
pub fn within(addresses: &[u64], begin: u64, end: u64) -> std::ops::Range<usize> {
    let first = addresses.partition_point(|&address| address < begin);
    let rest = &addresses[first..];
    first..first + rest.partition_point(|&address| address < end)
}

/// Which unit has the code in a range of addresses.
#[derive(Clone, Copy, Debug)]
struct UnitRange {
    begin: u64,
    end: u64,
    unit: u32,
}

/// All units of a file.
#[derive(Debug, Default)]
pub struct UnitIndex {
    /// Their offsets in `.debug_info`, in ascending order.
    starts: Vec<usize>,
    ranges: Vec<UnitRange>,
}

impl UnitIndex {
    /// Reads the beginning of each unit. `None` if there is no time for that. Units that are damaged have no code.
    pub fn of(dwarf: &Dwarf, work: &mut TimeLeft) -> Option<Self> {
        let mut index = Self::default();
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            // A unit's abbreviations may take a long time.
            if !work.goes_on_now() {
                return None;
            }
            if index.starts.len() >= MAX_UNITS || index.ranges.len() >= MAX_RANGES {
                break;
            }
            let Some(start) = header.debug_info_offset() else {
                continue;
            };
            let number = u32::try_from(index.starts.len()).ok()?;
            index.starts.push(start.0);
            if !matches!(
                header.type_(),
                UnitType::Compilation | UnitType::Skeleton(_)
            ) {
                continue;
            }
            let Ok(open) = OpenUnit::of(dwarf, header) else {
                continue;
            };
            let ranges = &mut index.ranges;
            let _ = open.extent.each(dwarf, &open.unit, work, |begin, end| {
                if begin < end && ranges.len() < MAX_RANGES {
                    ranges.push(UnitRange {
                        begin,
                        end,
                        unit: number,
                    });
                }
            });
        }
        index.starts.shrink_to_fit();
        index.ranges.shrink_to_fit();
        Some(index)
    }

    /// Only where the units are, for a file whose code does not matter.
    pub fn without_code(dwarf: &Dwarf, work: &mut TimeLeft) -> Self {
        let mut index = Self::default();
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            if !work.goes_on(1) || index.starts.len() >= MAX_UNITS {
                break;
            }
            index
                .starts
                .extend(header.debug_info_offset().map(|start| start.0));
        }
        index
    }

    /// The start of the unit that has this offset of `.debug_info`.
    pub fn containing(&self, offset: usize) -> Option<usize> {
        let behind = self.starts.partition_point(|&start| start <= offset);
        self.starts.get(behind.checked_sub(1)?).copied()
    }

    /// For each unit, by its start, which of the sorted addresses may be in its code.
    pub fn units_of(&self, addresses: &[u64], work: &mut TimeLeft) -> BTreeMap<usize, Vec<usize>> {
        let mut claims = vec![0; addresses.len()];
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for range in &self.ranges {
            for at in within(addresses, range.begin, range.end) {
                if claims[at] < MAX_CLAIMS {
                    claims[at] += 1;
                    found
                        .entry(self.starts[range.unit as usize])
                        .or_default()
                        .push(at);
                }
            }
            if !work.goes_on(1) {
                break;
            }
        }
        // Ranges come in any order, and may overlap.
        for indices in found.values_mut() {
            indices.sort_unstable();
            indices.dedup();
        }
        found
    }

    /// The bytes that this takes in memory.
    pub fn size(&self) -> u64 {
        (self.starts.len() * size_of::<usize>() + self.ranges.len() * size_of::<UnitRange>()) as u64
    }
}
