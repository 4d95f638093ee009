//! Type information (BTF) of the few kernel types that the programs read. The kernel's own has some hundred thousand
//! types, and libbpf searches it for each of the programs' types. Pure: bytes in, bytes out.
//!
//! The format is described in Documentation/bpf/btf.rst of Linux. Types that are only pointed at are left out: libbpf
//! does not look behind a pointer.

use std::collections::{HashMap, HashSet, VecDeque};

/// The programs' view of the kernel's types.
const CORE: &str = include_str!("../../bpf/core.h");

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// The three words with which every type begins.
const TYPE: usize = 12;

/// Kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The types of `kernel` that the programs read, as type information of its own. `None` if it has an unknown form.
pub(super) fn of_programs(kernel: &[u8]) -> Option<Vec<u8>> {
    let names: HashSet<&[u8]> = CORE.lines().filter_map(named).collect();
    Btf::read(kernel)?.subset(&names)
}

/// The name of the type that a line of `core.h` begins to declare, without what follows `___`.
fn named(line: &str) -> Option<&[u8]> {
    let rest = line
        .strip_prefix("struct ")
        .or_else(|| line.strip_prefix("union "))?;
    let name = rest.strip_suffix(" {")?;
    Some(name.split("___").next()?.as_bytes())
}

/// Type information that was read.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`. Type 0 is void, and has no entry here.
    starts: Vec<u32>,
}

/// The beginning of a type.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    /// Size in bytes, or the type that this one refers to.
    size_or_type: u32,
    /// What follows: members, values and so on.
    rest: &'a [u8],
}

impl Type<'_> {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes after the beginning of a type.
fn rest_of(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
        kind::ENUM | kind::FUNC_PROTO => 8 * count,
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        _ => return None,
    })
}

impl<'a> Btf<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_le_bytes(*bytes.first_chunk()?);
        let header = word(bytes, 4)? as usize;
        if magic != MAGIC || header < HEADER {
            return None;
        }
        let section = |at: usize| {
            let start = header.checked_add(word(bytes, at)? as usize)?;
            let end = start.checked_add(word(bytes, at + 4)? as usize)?;
            bytes.get(start..end)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut starts = Vec::with_capacity(types.len() / 24);
        let mut at = 0;
        while at < types.len() {
            let info = word(types, at + 4)?;
            starts.push(u32::try_from(at).ok()?);
            at += TYPE + rest_of(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
        }
        (at == types.len()).then_some(Self {
            types,
            strings,
            starts,
        })
    }

    fn at(&self, start: usize) -> Option<Type<'a>> {
        let info = word(self.types, start + 4)?;
        let length = rest_of(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
        Some(Type {
            name: word(self.types, start)?,
            info,
            size_or_type: word(self.types, start + 8)?,
            rest: self.types.get(start + TYPE..start + TYPE + length)?,
        })
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(at as usize..)?;
        rest.get(..memchr::memchr(0, rest)?)
    }

    /// The structures and unions of these names, and all types that lie within them.
    fn subset(&self, names: &HashSet<&[u8]>) -> Option<Vec<u8>> {
        let mut kept = Kept::default();
        for (number, start) in (1..).zip(&self.starts) {
            let info = word(self.types, *start as usize + 4)?;
            if matches!(info >> 24 & 0x1f, kind::STRUCT | kind::UNION)
                && names.contains(self.name(word(self.types, *start as usize)?)?)
            {
                kept.number(number);
            }
        }
        while let Some(number) = kept.queue.pop_front() {
            let start = *self.starts.get(number as usize - 1)?;
            self.keep(self.at(start as usize)?, &mut kept)?;
        }
        Some(kept.finish())
    }

    /// Writes a type, with new numbers for names and types.
    fn keep(&self, of: Type<'a>, kept: &mut Kept<'a>) -> Option<()> {
        let name = kept.name(self.name(of.name)?)?;
        let kind = of.kind();
        let refers = match kind {
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                kept.number(of.size_or_type)
            }
            // To void.
            kind::PTR => 0,
            _ => of.size_or_type,
        };
        let mut rest: Vec<u32> = of
            .rest
            .chunks_exact(4)
            .filter_map(|bytes| word(bytes, 0))
            .collect();
        match kind {
            kind::ARRAY => {
                for part in rest.iter_mut().take(2) {
                    *part = kept.number(*part);
                }
            }
            kind::STRUCT | kind::UNION => {
                for member in rest.chunks_exact_mut(3) {
                    member[0] = kept.name(self.name(member[0])?)?;
                    member[1] = kept.number(member[1]);
                }
            }
            kind::ENUM | kind::ENUM64 => {
                let size = if kind == kind::ENUM { 2 } else { 3 };
                for value in rest.chunks_exact_mut(size) {
                    value[0] = kept.name(self.name(value[0])?)?;
                }
            }
            kind::INT
            | kind::PTR
            | kind::FWD
            | kind::FLOAT
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::TYPE_TAG => {}
            // No type of data refers to these, but by a pointer.
            _ => return None,
        }
        kept.write(&[name, of.info, refers]);
        kept.write(&rest);
        Some(())
    }
}

/// The types that are kept.
#[derive(Default)]
struct Kept<'a> {
    types: Vec<u8>,
    /// Begins with the empty name.
    strings: Vec<u8>,
    names: HashMap<&'a [u8], u32>,
    /// The new numbers of types, by their old ones.
    numbers: HashMap<u32, u32>,
    /// Types that have a new number and are not written yet, in the order of their numbers.
    queue: VecDeque<u32>,
}

impl<'a> Kept<'a> {
    fn number(&mut self, old: u32) -> u32 {
        if old == 0 {
            return 0;
        }
        let next = self.numbers.len() as u32 + 1;
        *self.numbers.entry(old).or_insert_with(|| {
            self.queue.push_back(old);
            next
        })
    }

    fn name(&mut self, name: &'a [u8]) -> Option<u32> {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return Some(0);
        }
        if let Some(at) = self.names.get(name) {
            return Some(*at);
        }
        let at = u32::try_from(self.strings.len()).ok()?;
        self.strings.extend(name);
        self.strings.push(0);
        self.names.insert(name, at);
        Some(at)
    }

    fn write(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    fn finish(self) -> Vec<u8> {
        let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        // Version 1, no flags.
        bytes.extend([1, 0]);
        bytes.extend((HEADER as u32).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(length(&self.types));
        bytes.extend(length(&self.types));
        bytes.extend(length(&self.strings));
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use libbpf_rs::skel::OpenSkel;
    use std::fs;

    use super::*;
    use crate::kernel::features::BTF;
    use crate::kernel::newer::open;
    use crate::os::memory_file::file_of;

    #[test]
    fn the_names_are_those_of_the_kernels_types() {
        let names: HashSet<&[u8]> = CORE.lines().filter_map(named).collect();
        for name in ["task_struct", "inode", "mm_struct", "pt_regs"] {
            assert!(names.contains(name.as_bytes()), "{name}");
        }
        assert!(
            !names
                .iter()
                .any(|name| name.windows(3).any(|part| part == b"___"))
        );
    }

    #[test]
    fn the_types_of_this_kernel_become_a_hundredth() {
        let kernel = fs::read(BTF).unwrap();
        let types = of_programs(&kernel).unwrap();
        assert!(types.len() * 100 < kernel.len(), "{}", types.len());
        let read = Btf::read(&types).unwrap();
        let names: Vec<_> = (read.starts.iter())
            .filter_map(|start| read.name(read.at(*start as usize)?.name))
            .collect();
        for name in ["task_struct", "list_head", "spinlock", "int"] {
            assert!(names.contains(&name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn damaged_type_information_is_refused() {
        let kernel = fs::read(BTF).unwrap();
        let types = of_programs(&kernel).unwrap();
        assert!(of_programs(&[]).is_none());
        assert!(of_programs(&types[..types.len() - 1]).is_none());
        let mut other = types.clone();
        other[0] ^= 1;
        assert!(of_programs(&other).is_none());
        // An unknown kind, and a type that does not exist.
        for (at, value) in [(HEADER + 7, 0x1f), (HEADER + TYPE + 6, 0xff)] {
            let mut other = types.clone();
            other[at] = value;
            of_programs(&other);
        }
    }

    /// A program's name, and its instructions: code, registers, offset and constant of each.
    type Instructions = (String, Vec<(u8, u8, i16, i32)>);

    /// The programs' instructions, without the numbers of maps and functions, which differ from load to load.
    fn instructions(types: Option<&[u8]>) -> Vec<Instructions> {
        let types = types.map(|types| file_of(c"types", types).unwrap());
        let skel = open(types.as_ref()).unwrap().load().unwrap();
        let programs = libbpf_rs::skel::Skel::object(&skel).progs();
        let all = programs.map(|program| {
            let instructions = program.insns().iter().map(|one| {
                let regs = one.dst_reg() | one.src_reg() << 4;
                let imm = if one.src_reg() == 0 { one.imm } else { 0 };
                (one.code, regs, one.off, imm)
            });
            (
                program.name().to_string_lossy().into_owned(),
                instructions.collect(),
            )
        });
        all.collect()
    }

    #[test]
    fn with_its_own_types_every_program_is_the_same_to_the_instruction() {
        let kernel = fs::read(BTF).unwrap();
        let types = of_programs(&kernel).unwrap();
        let (own, whole) = (instructions(Some(&types)), instructions(None));
        assert_eq!(own.len(), whole.len());
        for (own, whole) in own.iter().zip(&whole) {
            assert!(!own.1.is_empty(), "{}", own.0);
            assert!(own == whole, "{}", own.0);
        }
    }
}
