//! Reads a function's table of handlers (`.gcc_except_table`, the LSDA): what its exceptions meet in its own frame. Only
//! as far as one question needs it: whether every exception stops there.
//!
//! The format is that of the Itanium C++ ABI, as `__gxx_personality_v0` reads it. The table lists ranges of code, each
//! with a landing pad and a chain of actions. What is said here about code that no range covers holds for C++ alone:
//! its personality function ends the program there.

use gimli::{DwEhPe, LittleEndian, Reader as _, constants};

/// A longer table is not read.
pub const MAX_TABLE: usize = 1 << 16;

/// The most actions of one call that are looked at. Compilers chain those of a few nested `try` blocks.
const MAX_ACTIONS: usize = 64;

/// Bytes of a file's tables, as gimli reads them.
pub type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// The landing pads of code in which every exception from a call stops. `None` if one may pass, and if the table cannot
/// be read. Code at a landing pad may lie elsewhere, and then has another table.
///
/// `bytes` begin with the table, which is at `address`. `function` is the address of the code that it is for.
pub fn stops_all(bytes: &[u8], address: u64, function: u64) -> Option<Vec<u64>> {
    let all = Slice::new(&bytes[..bytes.len().min(MAX_TABLE)], LittleEndian);
    let mut reader = all;
    let pads_from = match encoding(&mut reader)? {
        constants::DW_EH_PE_omit => function,
        form => {
            let here = address.wrapping_add(reader.offset_from(all) as u64);
            let value = encoded(&mut reader, form.format())?;
            match form.application() {
                constants::DW_EH_PE_absptr if !form.is_indirect() => value,
                constants::DW_EH_PE_pcrel if !form.is_indirect() => here.wrapping_add(value),
                _ => return None,
            }
        }
    };
    let types = match encoding(&mut reader)? {
        constants::DW_EH_PE_omit => None,
        form => {
            let distance = usize::try_from(reader.read_uleb128().ok()?).ok()?;
            Some((form, reader.offset_from(all).checked_add(distance)?))
        }
    };
    let form = encoding(&mut reader).filter(|form| *form == form.format())?;
    let length = usize::try_from(reader.read_uleb128().ok()?).ok()?;
    let mut calls = reader.split(length).ok()?;
    let actions = Actions {
        bytes: reader,
        all,
        types,
    };
    let mut pads = Vec::new();
    while !calls.is_empty() {
        let (_start, _size) = (encoded(&mut calls, form)?, encoded(&mut calls, form)?);
        let (pad, action) = (encoded(&mut calls, form)?, calls.read_uleb128().ok()?);
        // Without a landing pad, or with one that only cleans up, an exception passes.
        if pad == 0 || !actions.stop_all(action)? {
            return None;
        }
        pads.push(pads_from.wrapping_add(pad));
    }
    pads.sort_unstable();
    pads.dedup();
    Some(pads)
}

/// The actions of a table, and the types that they refer to.
struct Actions<'a> {
    bytes: Slice<'a>,
    all: Slice<'a>,
    /// How types are encoded, and where their list ends. It is indexed backwards from there.
    types: Option<(DwEhPe, usize)>,
}

impl Actions<'_> {
    /// Whether the actions stop every exception. `first` is the place of the first one plus 1; 0: there is none.
    fn stop_all(&self, first: u64) -> Option<bool> {
        let Some(mut at) = usize::try_from(first).ok()?.checked_sub(1) else {
            return Some(false);
        };
        for _ in 0..MAX_ACTIONS {
            let mut reader = self.bytes;
            reader.skip(at).ok()?;
            let filter = reader.read_sleb128().ok()?;
            let next_from = reader.offset_from(self.bytes);
            let next = reader.read_sleb128().ok()?;
            // 0 only cleans up. A negative filter is a list of the types that may pass; the code behind it may throw.
            if filter > 0 && self.catches_all(filter.unsigned_abs())? {
                return Some(true);
            }
            if next == 0 {
                return Some(false);
            }
            at = next_from.checked_add_signed(isize::try_from(next).ok()?)?;
        }
        None
    }

    /// Whether a handler is for all types: `catch (...)`, whose type is a null pointer.
    fn catches_all(&self, filter: u64) -> Option<bool> {
        let (form, end) = self.types?;
        // An address of full size may be filled in by the loader, so zero means nothing.
        let is_relative = form.application() != constants::DW_EH_PE_absptr;
        let size = match form.format() {
            constants::DW_EH_PE_udata2 | constants::DW_EH_PE_sdata2 => 2,
            constants::DW_EH_PE_udata4 | constants::DW_EH_PE_sdata4 => 4,
            constants::DW_EH_PE_udata8 | constants::DW_EH_PE_sdata8 if is_relative => 8,
            _ => return None,
        };
        let start = end.checked_sub(usize::try_from(filter).ok()?.checked_mul(size)?)?;
        let pointer = self.all.get(start..start.checked_add(size)?)?;
        Some(pointer.iter().all(|&byte| byte == 0))
    }
}

/// How a value is encoded: its form, and what it is relative to.
fn encoding(reader: &mut Slice<'_>) -> Option<DwEhPe> {
    reader.read_u8().ok().map(DwEhPe)
}

/// A value of this form.
fn encoded(reader: &mut Slice<'_>, form: DwEhPe) -> Option<u64> {
    let value = match form {
        constants::DW_EH_PE_uleb128 => reader.read_uleb128(),
        constants::DW_EH_PE_udata2 => reader.read_u16().map(u64::from),
        constants::DW_EH_PE_udata4 => reader.read_u32().map(u64::from),
        constants::DW_EH_PE_udata8 | constants::DW_EH_PE_sdata8 => reader.read_u64(),
        constants::DW_EH_PE_sdata2 => reader.read_i16().map(|it| i64::from(it).cast_unsigned()),
        constants::DW_EH_PE_sdata4 => reader.read_i32().map(|it| i64::from(it).cast_unsigned()),
        _ => return None,
    };
    value.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::file::ElfFile;
    use crate::elf::symbols::{self, Names};
    use crate::elf::unwind::UnwindTable;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    const ADDRESS: u64 = 0x10_0000;
    const FUNCTION: u64 = 0x1000;

    /// Functions that meet the exceptions of another one. The compiler sees neither the other one nor a caller.
    const SOURCE: &str = r#"
        extern "C" {
        void other();
        void more();
        void ends() noexcept { other(); }
        void catches_all() noexcept { try { other(); } catch (...) { more(); } }
        void catches_one_then_all() noexcept { try { other(); } catch (int) { more(); } catch (...) {} }
        void catches_one() { try { other(); } catch (int) {} }
        void rethrows() { try { other(); } catch (...) { more(); throw; } }
        void passes_behind() { try { other(); } catch (...) {} more(); }
        void handler_throws() { try { other(); } catch (...) { more(); } }
        struct Guard { ~Guard() { more(); } };
        void cleans_up() { Guard guard; other(); }
        void allows_none() throw() { other(); }
        }"#;

    /// The table of each function, its address and the function's address.
    fn tables(directory: &Path, flags: &[&str]) -> Vec<(String, Vec<u8>, u64, u64)> {
        const NAMES: [&str; 9] = [
            "ends",
            "catches_all",
            "catches_one_then_all",
            "catches_one",
            "rethrows",
            "passes_behind",
            "handler_throws",
            "cleans_up",
            "allows_none",
        ];
        let (source, library) = (directory.join("source.cc"), directory.join("library.so"));
        fs::write(&source, SOURCE).unwrap();
        let output = Command::new("c++")
            .args(["-std=c++14", "-shared", "-fPIC", "-Wno-deprecated"])
            .args(flags)
            .arg("-o")
            .args([&library, &source])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let bytes = fs::read(library).unwrap();
        let elf = ElfFile::in_memory(&bytes).unwrap();
        let table = UnwindTable::read(&elf).unwrap();
        let found = symbols::find(&elf, &Names::new(NAMES), None).unwrap();
        assert_eq!(found.functions.len(), NAMES.len());
        found
            .functions
            .iter()
            .map(|function| {
                let covered = table.covering(function.address).unwrap();
                assert_eq!(covered.range.start, function.address);
                let (address, _) = covered.handlers.unwrap();
                let range = elf.mapped_at(address).unwrap();
                let bytes = elf.read(range.start, range.end - range.start).unwrap();
                (function.name.to_owned(), bytes, address, function.address)
            })
            .collect()
    }

    #[test]
    fn what_stops_in_a_function_is_read_as_the_compiler_wrote_it() {
        let directory = tempfile::tempdir().unwrap();
        // Otherwise the handlers are apart, and have a table of their own.
        let whole = "-fno-reorder-blocks-and-partition";
        for flags in [&["-O0"][..], &["-O2", whole]] {
            let mut stopping = Vec::new();
            for (name, bytes, address, function) in tables(directory.path(), flags) {
                if stops_all(&bytes, address, function).is_some() {
                    stopping.push(name);
                }
            }
            stopping.sort_unstable();
            // The runtime's function behind an empty list of types may throw, as far as the table says.
            let expected = ["catches_all", "catches_one_then_all", "ends"];
            assert_eq!(stopping, expected, "{flags:?}");
        }
    }

    #[test]
    fn a_table_that_is_cut_off_proves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tables = tables(directory.path(), &["-O2"]);
        let (_, bytes, address, function) = (tables.iter())
            .find(|(name, ..)| name == "catches_one_then_all")
            .unwrap();
        let pads = stops_all(bytes, *address, *function).unwrap();
        assert!(!pads.is_empty());
        let whole = (0..bytes.len())
            .find(|&length| stops_all(&bytes[..length], *address, *function).is_some())
            .unwrap();
        assert!(whole > 12, "{whole}");
        assert_eq!(stops_all(&bytes[..whole], *address, *function), Some(pads));
    }

    /// A table with calls that all have the landing pad 0x20, and with these actions and types.
    fn table(types: u8, calls: &[u8], actions: &[u8], list: &[u8]) -> Vec<u8> {
        let mut table = vec![constants::DW_EH_PE_omit.0, types];
        table.push((2 + 4 * calls.len() + actions.len() + list.len()) as u8);
        table.extend([constants::DW_EH_PE_uleb128.0, 4 * calls.len() as u8]);
        table.extend(calls.iter().flat_map(|&action| [0, 1, 0x20, action]));
        table.extend(actions);
        table.extend(list);
        table
    }

    fn pads(table: &[u8]) -> Option<Vec<u64>> {
        stops_all(table, ADDRESS, FUNCTION)
    }

    #[test]
    fn a_chain_of_actions_is_followed_to_the_one_that_stops() {
        let (none, some) = ([0; 4], [1, 0, 0, 0]);
        let types = [none, some].concat();
        let relative = 0x1b;
        // Type 1, then type 2.
        let chain = [1, 1, 2, 0];
        assert_eq!(
            pads(&table(relative, &[1], &chain, &types)),
            Some(vec![FUNCTION + 0x20])
        );
        // Type 1 alone; then one call of two.
        assert_eq!(pads(&table(relative, &[1], &[1, 0], &types)), None);
        assert_eq!(
            pads(&table(relative, &[3, 1], &chain, &types))
                .unwrap()
                .len(),
            1
        );
        assert_eq!(pads(&table(relative, &[3, 0], &chain, &types)), None);
        // A clean-up, alone and before a handler.
        assert_eq!(pads(&table(relative, &[1], &[0, 0], &types)), None);
        assert!(pads(&table(relative, &[1], &[0, 1, 2, 0], &types)).is_some());
        // A chain without an end.
        assert_eq!(pads(&table(relative, &[1], &[1, 0x7f], &types)), None);
        // A list of the types that may pass.
        assert_eq!(pads(&table(relative, &[1], &[0x7f, 0], &[0; 5])), None);
        // An address of full size, which the loader may fill in.
        assert_eq!(pads(&table(0, &[1], &[1, 0], &[0; 8])), None);
    }

    #[test]
    fn a_value_of_any_size_is_read() {
        let read = |bytes, form| encoded(&mut Slice::new(bytes, LittleEndian), DwEhPe(form));
        let uleb = constants::DW_EH_PE_uleb128.0;
        assert_eq!(read(&[0xe5, 0x8e, 0x26], uleb), Some(624_485));
        assert_eq!(read(&[0xfe, 0xff], 0x0a), Some(u64::MAX - 1));
        assert_eq!(read(&[0xfe, 0xff], 0x02), Some(0xfffe));
        assert_eq!(read(&[0xff; 10], uleb), None);
        assert_eq!(read(&[0xff; 8], 0x04), Some(u64::MAX));
        assert_eq!(read(&[0xff; 3], 0x03), None);
        let read = |bytes| Slice::new(bytes, LittleEndian).read_sleb128().ok();
        assert_eq!(read(&[0x7e]), Some(-2));
        assert_eq!(read(&[0x80, 0x7f]), Some(-128));
        assert_eq!(read(&[0xff; 12]), None);
    }
}
