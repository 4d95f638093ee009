//! The rules of unwinding, where the programs find them: rows of places in files, and the rules that rows name.
//!
//! Which rules a file has is read in `stacks::file_rules`. How they are applied is in `bpf/unwind.bpf.h`.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _};

use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::kernel::error::LoadError;
use crate::kernel::mapped::{MapAccess, MappedArray};
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::skeletons::types::{
    limits, module, rule_base, rule_bits, rule_kind, rule_saved,
};
use crate::stacks::file_rules::FileRules;
use crate::stacks::rules::{Base, Saved, StackRule, UnwindRule};

/// The tables of all files that have been examined.
pub(super) struct RuleTables {
    modules: MappedArray<module>,
    rules: MappedArray<u64>,
    numbers: HashMap<u64, u32>,
    /// The maps with rows, and the map that has all of these but the first.
    segments: Vec<MappedArray<u64>>,
    outer: MapHandle,
    next_module: u32,
    next_row: u32,
}

impl RuleTables {
    /// # Errors
    /// There is no address space, or no descriptor, left.
    pub(super) fn open(skel: &MemleakSkel<'static>) -> Result<Self, LoadError> {
        let tables = Self {
            modules: MappedArray::map(&skel.maps.modules, MapAccess::Write)
                .map_err(LoadError::mapping)?,
            rules: MappedArray::map(&skel.maps.rules, MapAccess::Write)
                .map_err(LoadError::mapping)?,
            // UnwindRule 0 says that there is none.
            numbers: HashMap::from([(0, 0)]),
            segments: vec![
                MappedArray::map(&skel.maps.first_rows, MapAccess::Write)
                    .map_err(LoadError::mapping)?,
            ],
            outer: MapHandle::try_from(&skel.maps.rows).map_err(LoadError::ring)?,
            next_module: 1,
            next_row: 0,
        };
        Ok(tables)
    }

    /// A number for a file that has just been examined. 0 if there are too many files. Until its rules are loaded, walks
    /// that come to it end there.
    pub(super) fn add_module(&mut self) -> u32 {
        if self.next_module >= limits::MAX_MODULES.0 {
            return 0;
        }
        self.next_module += 1;
        self.next_module - 1
    }

    /// Loads the rules of a file. If there is no room for them, the file has none.
    ///
    /// # Errors
    /// The kernel has no memory for more rows.
    pub(super) fn load(&mut self, number: u32, rules: &FileRules) -> libbpf_rs::Result<()> {
        let first = self.next_row;
        let rows = u32::try_from(rules.rows.len()).ok();
        let end = rows.and_then(|rows| first.checked_add(rows));
        let most = limits::SEGMENT_ROWS.0 * (1 + limits::ROW_SEGMENTS.0);
        let count = match end.filter(|end| *end <= most) {
            Some(end) => {
                self.make_room(end)?;
                for (at, (offset, rule)) in (first..).zip(&rules.rows) {
                    let row = u64::from(*offset) << 32 | u64::from(self.number(*rule));
                    let segment = &self.segments[(at / limits::SEGMENT_ROWS.0) as usize];
                    segment.put((at % limits::SEGMENT_ROWS.0) as usize, row);
                }
                self.next_row = end;
                end - first
            }
            None => 0,
        };
        let value = module {
            first,
            count,
            loaded: 1,
            pad: 0,
        };
        self.modules.put(number as usize, value);
        Ok(())
    }

    /// Makes segments for the rows up to `end`.
    fn make_room(&mut self, end: u32) -> libbpf_rs::Result<()> {
        while (self.segments.len() as u64) * u64::from(limits::SEGMENT_ROWS.0) < u64::from(end) {
            let options = bpf_map_create_opts {
                sz: size_of::<bpf_map_create_opts>() as _,
                map_flags: libbpf_rs::libbpf_sys::BPF_F_MMAPABLE,
                ..bpf_map_create_opts::default()
            };
            let rows = limits::SEGMENT_ROWS.0;
            let segment =
                MapHandle::create(MapType::Array, Some("memleak_rows"), 4, 8, rows, &options)?;
            let key = (self.segments.len() as u32 - 1).to_ne_bytes();
            let mapped = MappedArray::map(&segment, MapAccess::Write)?;
            let descriptor = segment.as_fd().as_raw_fd().to_ne_bytes();
            self.outer.update(&key, &descriptor, MapFlags::ANY)?;
            self.segments.push(mapped);
        }
        Ok(())
    }

    /// The number of a rule. If there are too many rules, it is that of a rule that nobody knows.
    fn number(&mut self, rule: UnwindRule) -> u32 {
        let word = word_of(rule);
        if let Some(number) = self.numbers.get(&word) {
            return *number;
        }
        let mut number = self.numbers.len() as u32;
        if number >= limits::MAX_RULES.0 {
            number = limits::MAX_RULES.0 - 1;
            self.rules
                .put(number as usize, word_of(UnwindRule::Unknown));
        } else {
            self.rules.put(number as usize, word);
        }
        self.numbers.insert(word, number);
        number
    }
}

/// A rule as the programs read it.
fn word_of(rule: UnwindRule) -> u64 {
    let kind = |kind: rule_kind| u64::from(kind.0);
    match rule {
        UnwindRule::Missing => kind(rule_kind::RULE_MISSING),
        UnwindRule::Outermost => kind(rule_kind::RULE_OUTERMOST),
        UnwindRule::Signal => kind(rule_kind::RULE_SIGNAL),
        UnwindRule::Unknown => kind(rule_kind::RULE_UNKNOWN),
        UnwindRule::Linkage { pushed_at } => {
            kind(rule_kind::RULE_LINKAGE) | u64::from(pushed_at) << rule_bits::RULE_PLUS.0
        }
        UnwindRule::Plain(plain) => {
            plain_word(&plain).unwrap_or_else(|| kind(rule_kind::RULE_UNKNOWN))
        }
    }
}

/// `None` if a distance is too large.
fn plain_word(plain: &StackRule) -> Option<u64> {
    const DISTANCE_BITS: u32 = 24;
    let at = |bits: rule_bits, value: u64| value << bits.0;
    let below = |saved| match saved {
        Saved::InRegister => Some(0),
        Saved::BelowEnd(words) => Some(u64::from(words)),
        Saved::AtFrame(_) => None,
    };
    let base = match plain.base {
        Base::StackPointer => rule_base::BASE_STACK_POINTER,
        Base::FramePointer => rule_base::BASE_FRAME_POINTER,
        Base::Third => rule_base::BASE_THIRD,
    };
    let limit = 1_i32 << (DISTANCE_BITS - 1);
    if !(-limit..limit).contains(&plain.distance) {
        return None;
    }
    let distance = u64::from(plain.distance.cast_unsigned() & ((1 << DISTANCE_BITS) - 1));
    let mut word = at(rule_bits::RULE_KIND, u64::from(rule_kind::RULE_PLAIN.0))
        | at(rule_bits::RULE_BASE, u64::from(base.0))
        | at(rule_bits::RULE_RETURN, below(plain.return_address)?)
        | at(rule_bits::RULE_DISTANCE, distance);
    if let Some(plus) = plain.indirect {
        word |= at(rule_bits::RULE_INDIRECT, 1) | at(rule_bits::RULE_PLUS, u64::from(plus));
    }
    word |= match plain.frame_pointer {
        Saved::AtFrame(words) => {
            let words = u64::from(words.cast_unsigned());
            at(rule_bits::RULE_AT_FRAME, 1) | at(rule_bits::RULE_FRAME, words)
        }
        saved => at(rule_bits::RULE_FRAME, below(saved)?),
    };
    let lost = u64::from(rule_saved::RULE_LOST.0);
    let third = plain.third.and_then(below).unwrap_or(lost);
    Some(word | at(rule_bits::RULE_THIRD, third))
}
