//! The compiled BPF objects, and the types that the kernel side and user space share (declared in `bpf/memleak.h`).

use libbpf_rs::ProgramImpl;

/// The programs that count.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod memleak {
    include!(concat!(env!("OUT_DIR"), "/memleak.skel.rs"));
}

/// The same programs for older kernels.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod memleak_old {
    include!(concat!(env!("OUT_DIR"), "/memleak_old.skel.rs"));
}

/// A program that does nothing.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod empty {
    include!(concat!(env!("OUT_DIR"), "/empty.skel.rs"));
}

/// A program that does nothing where functions allocate, to measure against.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

pub use empty::{EmptySkel, EmptySkelBuilder};
pub use floor::{FloorSkel, FloorSkelBuilder};
pub use memleak::{MemleakSkel, MemleakSkelBuilder, OpenMemleakSkel, types};
pub use memleak_old::{
    MemleakOldSkel as OlderSkel, MemleakOldSkelBuilder as OlderSkelBuilder, types as older_types,
};

/// A loaded program that can be attached.
pub type Program<'obj> = ProgramImpl<'obj, libbpf_rs::Mut>;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::mem::MaybeUninit;

    use libbpf_rs::skel::{OpenSkel, SkelBuilder};
    use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

    use super::OlderSkelBuilder;

    const OLDER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/memleak_old.bpf.o"));

    /// Has the table of what the object uses, with the release of each feature.
    const PAGE: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/design/old-kernels.md"
    ));
    /// The oldest kernel that the object is for.
    const OLDEST: (u32, u32) = (5, 8);

    const LOAD_64: u8 = 0x18;
    const CALL: u8 = 0x85;
    /// The source register of a call to another function of the program.
    const TO_FUNCTION: u8 = 1;
    /// Class STX, mode ATOMIC (XADD before 5.12), of 64 bits. Of 32 bits, it is 0xc3.
    const ATOMIC: u8 = 0xdb;
    /// The only atomic operation before 5.12: an addition whose result is not used.
    const ATOMIC_ADD: i32 = 0;
    const CLASS_JMP32: u8 = 6;

    /// The instructions that every kernel with BPF programs has, without those that `Used` names. The classes and modes
    /// are those of uapi/linux/bpf_common.h.
    fn is_old(instruction: &[u8]) -> bool {
        let code = instruction[0];
        let offset = i16::from_le_bytes([instruction[2], instruction[3]]);
        let (operation, mode) = (code >> 4, code & 0xe0);
        match code & 7 {
            // A load of a constant, or from memory (mode MEM).
            0 => code == LOAD_64,
            1..=3 => mode == 0x60,
            // Arithmetic; of 32 bits, this has the swap of bytes, too. Signed variants have an offset (6.6).
            4 => operation <= 0xd && offset == 0,
            7 => operation <= 0xc && offset == 0,
            // Jumps, up to JSLE.
            5 => operation <= 0xd,
            _ => false,
        }
    }

    /// What an object uses: the kind of a feature, and its number or name.
    type Used = BTreeSet<(&'static str, String)>;

    fn used_by_code() -> Used {
        let object = object::File::parse(OLDER).unwrap();
        let mut used = Used::new();
        for section in object.sections() {
            if section.kind() != SectionKind::Text {
                continue;
            }
            let name = section.name().unwrap();
            if name != ".text" {
                used.insert(("section", name.to_owned()));
            }
            let mut code = section.data().unwrap().chunks_exact(8);
            while let Some(instruction) = code.next() {
                let immediate = i32::from_le_bytes(*instruction.last_chunk().unwrap());
                let (opcode, source) = (instruction[0], instruction[1] >> 4);
                let numbered = |number: u8| ("instruction", number.to_string());
                match opcode {
                    CALL if source == 0 => {
                        used.insert(("helper", immediate.to_string()));
                    }
                    CALL => {
                        assert_eq!(source, TO_FUNCTION, "{name} calls a function of the kernel");
                        used.insert(numbered(CALL));
                    }
                    ATOMIC | 0xc3 => {
                        assert_eq!(immediate, ATOMIC_ADD, "in {name}");
                        used.insert(numbered(ATOMIC));
                    }
                    // Without the unconditional jump, which came with 6.6.
                    _ if opcode & 7 == CLASS_JMP32 && (1..=0xd).contains(&(opcode >> 4)) => {
                        used.insert(numbered(CLASS_JMP32));
                    }
                    _ => assert!(is_old(instruction), "{name} has {instruction:02x?}"),
                }
                if opcode == LOAD_64 {
                    code.next();
                }
            }
        }
        used
    }

    fn used_by_maps() -> Used {
        /// Programs only read it (5.2), user space maps it (5.5). uapi/linux/bpf.h has both.
        const FLAGS: u32 = 1 << 7 | 1 << 10;
        let mut place = MaybeUninit::uninit();
        let open = OlderSkelBuilder::default().open(&mut place).unwrap();
        let maps = open.open_object().maps();
        maps.map(|map| {
            assert_eq!(map.map_flags() & !FLAGS, 0, "{:?}", map.name());
            ("map", (map.map_type() as u32).to_string())
        })
        .collect()
    }

    /// The rows of the page's table: the feature, and its release.
    fn listed() -> BTreeMap<(&'static str, String), (u32, u32)> {
        let rows = PAGE.lines().filter_map(|line| {
            let [_, kind, name, number, since, _] = line.split('|').collect::<Vec<_>>()[..] else {
                return None;
            };
            let (major, minor) = since.trim().split_once('.')?;
            let since = (major.parse().ok()?, minor.parse().ok()?);
            let what = match number.trim() {
                "–" => name.trim().trim_matches('`'),
                number => number,
            };
            Some(((kind.trim(), what.to_owned()), since))
        });
        rows.collect()
    }

    #[test]
    fn the_programs_for_older_kernels_use_what_the_page_lists_and_nothing_after_linux_5_8() {
        let mut used = used_by_code();
        used.extend(used_by_maps());
        let listed = listed();
        let names: Used = listed.keys().cloned().collect();
        let difference: Vec<_> = used.symmetric_difference(&names).collect();
        assert!(difference.is_empty(), "used or listed only: {difference:?}");
        for (feature, since) in listed {
            assert!(since <= OLDEST, "{feature:?} came with {since:?}");
        }
        // The object has type information of nothing but itself: no variable or function of the kernel.
        let object = object::File::parse(OLDER).unwrap();
        let foreign = object.symbols().find(|symbol| {
            symbol.is_undefined() && symbol.name().is_ok_and(|name| !name.is_empty())
        });
        assert!(foreign.is_none(), "{foreign:?}");
    }

    /// Before 5.12, a function that is verified by itself cannot take a pointer.
    #[test]
    fn the_programs_for_older_kernels_have_no_global_function() {
        let object = object::File::parse(OLDER).unwrap();
        let text = object.section_by_name(".text").unwrap().index();
        let functions: Vec<_> = object
            .symbols()
            .filter(|symbol| {
                symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(text)
            })
            .collect();
        assert!(functions.len() > 5);
        for function in functions {
            assert!(function.is_local(), "{:?}", function.name());
        }
    }
}
