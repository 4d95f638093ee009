//! Source files and lines of code, from the line programs of debug information.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gimli::{AttributeValue, LineProgramHeader};

use crate::stacks::sections::SectionPart;
use crate::stacks::time_left::TimeLeft;
use crate::stacks::units::{Dwarf, OpenUnit, within};

/// The most bytes of a path.
const MAX_PATH: u64 = 4096;

/// A place in the source: the file's number in its unit, and the line. 0: unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLine {
    pub file: u64,
    pub line: u64,
}

/// The source files of a unit, and the places of some addresses.
pub struct LineTable {
    header: Option<LineProgramHeader<SectionPart>>,
    paths: HashMap<u64, Option<Rc<Path>>>,
    /// For each address, its place.
    pub places: Vec<Option<SourceLine>>,
}

impl LineTable {
    /// Runs a unit's line program, and notes the places of the sorted addresses. Nothing else is kept.
    pub fn of(dwarf: &Dwarf, open: &OpenUnit, addresses: &[u64], work: &mut TimeLeft) -> Self {
        let mut table = Self {
            header: None,
            paths: HashMap::new(),
            places: vec![None; addresses.len()],
        };
        let Some(program) = open.line_program(dwarf) else {
            return table;
        };
        table.header = Some(program.header().clone());
        let mut rows = program.rows();
        // The row before, which holds up to the next row.
        let mut before: Option<(u64, SourceLine)> = None;
        while let Ok(Some((_, row))) = rows.next_row() {
            let address = row.address();
            if let Some((begin, place)) = before {
                for at in within(addresses, begin, address) {
                    table.places[at].get_or_insert(place);
                }
            }
            let place = SourceLine {
                file: row.file_index(),
                line: row.line().map_or(0, std::num::NonZero::get),
            };
            before = (!row.end_sequence()).then_some((address, place));
            if !work.goes_on(1) {
                break;
            }
        }
        table
    }

    /// The path of the source file with this number.
    pub fn path(&mut self, dwarf: &Dwarf, open: &OpenUnit, file: u64) -> Option<Rc<Path>> {
        if let Some(known) = self.paths.get(&file) {
            return known.clone();
        }
        let path = self
            .header
            .as_ref()
            .and_then(|header| path_of(dwarf, open, header, file));
        self.paths.insert(file, path.clone());
        path
    }
}

fn path_of(
    dwarf: &Dwarf,
    open: &OpenUnit,
    header: &LineProgramHeader<SectionPart>,
    number: u64,
) -> Option<Rc<Path>> {
    let unit = &open.unit;
    let file = header.file(number)?;
    let text = |value: AttributeValue<SectionPart>| {
        let name = dwarf.attr_string(unit, value).ok()?;
        Some(name.text(MAX_PATH))
    };
    let mut path = PathBuf::new();
    if let Some(directory) = &unit.comp_dir {
        path.push(directory.text(MAX_PATH));
    }
    // Up to version 4, directory 0 is the unit's own.
    if (file.directory_index() != 0 || header.version() >= 5)
        && let Some(directory) = file.directory(header).and_then(text)
    {
        path.push(directory);
    }
    path.push(text(file.path_name())?);
    Some(path.into())
}
