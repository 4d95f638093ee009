//! Reads a function's table of handlers (`.gcc_except_table`, the LSDA): what its exceptions meet in its own frame. Only
//! as far as one question needs it: whether every exception stops there.
//!
//! The format is that of the Itanium C++ ABI, as `__gxx_personality_v0` reads it. The table lists ranges of code, each
//! with a landing pad and a chain of actions. What is said here about code that no range covers holds for C++ alone:
//! its personality function ends the program there.

/// A longer table is not read.
pub const MAX_TABLE: usize = 1 << 16;

/// The most actions of one call that are looked at. Compilers chain those of a few nested `try` blocks.
const MAX_ACTIONS: usize = 64;

/// How a value is encoded (`DW_EH_PE_…`): the lower half-byte is its form, and the upper one what it is relative to.
mod encoding {
    pub const OMITTED: u8 = 0xff;
    pub const FORM: u8 = 0x0f;
    pub const RELATIVE_TO: u8 = 0x70;
    pub const TO_ITSELF: u8 = 0x10;
    pub const ULEB: u8 = 0x01;
}

/// The landing pads of code in which every exception from a call stops. `None` if one may pass, and if the table cannot
/// be read. Code at a landing pad may lie elsewhere, and then has another table.
///
/// `bytes` begin with the table, which is at `address`. `function` is the address of the code that it is for.
pub fn stops_all(bytes: &[u8], address: u64, function: u64) -> Option<Vec<u64>> {
    let bytes = &bytes[..bytes.len().min(MAX_TABLE)];
    let mut reader = Reader { bytes, at: 0 };
    let pads_from = match reader.byte()? {
        encoding::OMITTED => function,
        form => {
            let here = address.wrapping_add(reader.at as u64);
            let value = reader.encoded(form & encoding::FORM)?;
            match form & !encoding::FORM {
                0 => value,
                encoding::TO_ITSELF => here.wrapping_add(value),
                _ => return None,
            }
        }
    };
    let types = match reader.byte()? {
        encoding::OMITTED => None,
        form => {
            let distance = usize::try_from(reader.uleb()?).ok()?;
            Some((form, reader.at.checked_add(distance)?))
        }
    };
    let form = reader.byte().filter(|form| form & !encoding::FORM == 0)?;
    let length = usize::try_from(reader.uleb()?).ok()?;
    let end = reader.at.checked_add(length)?;
    let actions = Actions {
        bytes: bytes.get(end..)?,
        all: bytes,
        types,
    };
    let mut pads = Vec::new();
    reader.bytes = &bytes[..end];
    while reader.at < end {
        let (_start, _size) = (reader.encoded(form)?, reader.encoded(form)?);
        let (pad, action) = (reader.encoded(form)?, reader.uleb()?);
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
    bytes: &'a [u8],
    all: &'a [u8],
    /// How types are encoded, and where their list ends. It is indexed backwards from there.
    types: Option<(u8, usize)>,
}

impl Actions<'_> {
    /// Whether the actions stop every exception. `first` is the place of the first one plus 1; 0: there is none.
    fn stop_all(&self, first: u64) -> Option<bool> {
        let Some(mut at) = usize::try_from(first).ok()?.checked_sub(1) else {
            return Some(false);
        };
        for _ in 0..MAX_ACTIONS {
            let mut reader = Reader {
                bytes: self.bytes,
                at,
            };
            let filter = reader.sleb()?;
            let next_from = reader.at;
            let next = reader.sleb()?;
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
        let size = match form & encoding::FORM {
            0x02 | 0x0a => 2,
            0x03 | 0x0b => 4,
            0x04 | 0x0c if form & encoding::RELATIVE_TO != 0 => 8,
            _ => return None,
        };
        let start = end.checked_sub(usize::try_from(filter).ok()?.checked_mul(size)?)?;
        let pointer = self.all.get(start..start.checked_add(size)?)?;
        Some(pointer.iter().all(|&byte| byte == 0))
    }
}

/// Reads values one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A value of this form.
    fn encoded(&mut self, form: u8) -> Option<u64> {
        if form == encoding::ULEB {
            return self.uleb();
        }
        let (size, signed) = match form {
            0x02 => (2, false),
            0x03 => (4, false),
            0x04 | 0x0c => (8, false),
            0x0a => (2, true),
            0x0b => (4, true),
            _ => return None,
        };
        let mut value = [0; 8];
        let bytes = self.bytes.get(self.at..self.at.checked_add(size)?)?;
        value[..size].copy_from_slice(bytes);
        self.at += size;
        let unused = 64 - 8 * size as u32;
        let value = u64::from_le_bytes(value);
        Some(match signed {
            true => (value.cast_signed() << unused >> unused).cast_unsigned(),
            false => value,
        })
    }

    fn uleb(&mut self) -> Option<u64> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift >= 63 && bits >> (64 - shift) != 0 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
            shift += 7;
            if shift > 63 {
                return None;
            }
        }
    }

    fn sleb(&mut self) -> Option<i64> {
        let (mut value, mut shift) = (0_i64, 0);
        loop {
            let byte = self.byte()?;
            value |= i64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let unused = 64_u32.saturating_sub(shift);
                return Some(value << unused >> unused);
            }
            if shift > 56 {
                return None;
            }
        }
    }
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
        let mut table = vec![encoding::OMITTED, types];
        table.push((2 + 4 * calls.len() + actions.len() + list.len()) as u8);
        table.extend([encoding::ULEB, 4 * calls.len() as u8]);
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
        let read = |bytes: &[u8], form| Reader { bytes, at: 0 }.encoded(form);
        assert_eq!(read(&[0xe5, 0x8e, 0x26], encoding::ULEB), Some(624_485));
        assert_eq!(read(&[0xfe, 0xff], 0x0a), Some(u64::MAX - 1));
        assert_eq!(read(&[0xfe, 0xff], 0x02), Some(0xfffe));
        assert_eq!(read(&[0xff; 10], encoding::ULEB), None);
        assert_eq!(read(&[0xff; 8], 0x04), Some(u64::MAX));
        assert_eq!(read(&[0xff; 3], 0x03), None);
        let read = |bytes: &[u8]| Reader { bytes, at: 0 }.sleb();
        assert_eq!(read(&[0x7e]), Some(-2));
        assert_eq!(read(&[0x80, 0x7f]), Some(-128));
        assert_eq!(read(&[0xff; 12]), None);
    }
}
