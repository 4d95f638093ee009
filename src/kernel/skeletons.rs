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

/// Programs that do nothing, to measure against.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

pub use floor::{FloorSkel, FloorSkelBuilder};
pub use memleak::{MemleakSkel, MemleakSkelBuilder, OpenMemleakSkel, types};
pub use memleak_old::{
    MemleakOldSkel as OlderSkel, MemleakOldSkelBuilder as OlderSkelBuilder, types as older_types,
};

/// A loaded program that can be attached.
pub type Program<'obj> = ProgramImpl<'obj, libbpf_rs::Mut>;

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

    const OLDER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/memleak_old.bpf.o"));

    /// What Linux 5.10 accepts, according to that version's uapi/linux/bpf.h and kernel/bpf/verifier.c.
    mod of_5_10 {
        /// `BPF_FUNC_redirect_peer`.
        pub const LAST_HELPER: i32 = 155;
        /// The only atomic operation: an addition whose result is not used.
        pub const ATOMIC_ADD: i32 = 0;
    }

    const LOAD_64: u8 = 0x18;
    const CALL: u8 = 0x85;
    /// The source register of a call to another function of the program.
    const TO_FUNCTION: u8 = 1;
    /// Class STX, mode ATOMIC (XADD in 5.10), of any size.
    fn is_atomic(code: u8) -> bool {
        code & 0xe7 == 0xc3
    }

    #[test]
    fn the_programs_for_older_kernels_use_only_features_of_linux_5_10() {
        let object = object::File::parse(OLDER).unwrap();
        let mut instructions = 0;
        let mut additions = 0;
        let mut helpers = 0;
        for section in object.sections() {
            if section.kind() != SectionKind::Text {
                continue;
            }
            let name = section.name().unwrap();
            let mut code = section.data().unwrap().chunks_exact(8);
            while let Some(instruction) = code.next() {
                let immediate = i32::from_le_bytes(*instruction.last_chunk().unwrap());
                let (opcode, source) = (instruction[0], instruction[1] >> 4);
                instructions += 1;
                if opcode == LOAD_64 {
                    code.next();
                } else if opcode == CALL && source != TO_FUNCTION {
                    assert_eq!(source, 0, "{name} calls a function of the kernel");
                    assert!(
                        immediate <= of_5_10::LAST_HELPER,
                        "{name} calls the helper {immediate}"
                    );
                    helpers += 1;
                } else if is_atomic(opcode) {
                    assert_eq!(immediate, of_5_10::ATOMIC_ADD, "in {name}");
                    additions += 1;
                }
            }
        }
        assert!(instructions > 1000 && helpers > 100 && additions > 20);
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
