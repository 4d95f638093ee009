//! Decodes aarch64's instructions as far as control flow and the stack pointer need it. An address takes two
//! instructions: `adrp`, and one that adds the lower bits. At the second, the code before it is searched for the first.

use crate::code::follow::step::{Effect, Flow, LONGEST, Place, Stack, Text};

/// An `adrp` is looked for in this many instructions before the one that adds the lower bits. Compilers put at most a
/// few others between the two.
const BACK: u64 = 12;

const SP: u32 = 31;
const FRAME: u32 = 29;

/// The instruction at an address, if there is one.
pub(super) fn decode(text: &impl Text, address: u64) -> Option<Effect> {
    let word = word(text, address).filter(|word| word >> 16 != 0)?;
    let near = |low, bits| address.wrapping_add_signed(signed(word, low, bits) * 4);
    let register = field(word, 5);
    let flow = match word {
        _ if word & 0xfc00_0000 == 0x1400_0000 => Flow::Jump(Place::Address(near(0, 26))),
        _ if word & 0xfc00_0000 == 0x9400_0000 => Flow::Call(Place::Address(near(0, 26))),
        // b.cond, then cbz and cbnz, then tbz and tbnz
        _ if word & 0xff00_0010 == 0x5400_0000 => Flow::Branch(near(5, 19)),
        _ if word & 0x7e00_0000 == 0x3400_0000 => Flow::Branch(near(5, 19)),
        _ if word & 0x7e00_0000 == 0x3600_0000 => Flow::Branch(near(5, 14)),
        _ if word & 0xffff_fc1f == 0xd61f_0000 => Flow::Jump(jump(text, address, register)),
        _ if word & 0xffff_fc1f == 0xd63f_0000 => {
            Flow::Call(loaded(text, address, register).map_or(Place::Register, Place::Pointer))
        }
        _ if word & 0xffff_fc1f == 0xd65f_0000 => Flow::Return,
        // blraa and the like are calls. The kernel takes no probe on the others: braa and the like, retaa and retab.
        _ if word & 0xfe9f_f800 == 0xd61f_0800 => match word >> 21 & 0b11 {
            0b01 => Flow::Call(Place::Register),
            _ => Flow::Jump(Place::Computed),
        },
        // After svc the code goes on. After other exceptions, and returns from exceptions, it does not.
        _ if word & 0xffe0_001f == 0xd400_0001 => Flow::On,
        _ if word >> 25 & 0b111_1111 == 0b110_1010 && word >> 24 & 1 == 0 => Flow::End,
        _ if word >> 25 & 0b111_1111 == 0b110_1011 => Flow::End,
        // bti, and paciasp, which may stand for it
        _ if word & 0xffff_ff3f == 0xd503_241f || word == 0xd503_233f => Flow::Pad,
        _ => Flow::On,
    };
    Some(Effect {
        next: address + 4,
        flow,
        stack: stack(word),
        writes: stores(word) && register != SP,
        takes: takes(text, address, word),
    })
}

/// The pointer through which the stub at this address jumps. `None` if the code there is not a stub: `adrp`, `ldr`,
/// `add`, `br`.
pub fn stub(text: &impl Text, address: u64) -> Option<u64> {
    let mut at = address;
    if decode(text, at)?.flow == Flow::Pad {
        at += 4;
    }
    page(word(text, at)?, at)?;
    (1..4).find_map(|further| match decode(text, at + 4 * further)?.flow {
        Flow::Jump(Place::Pointer(pointer)) => Some(pointer),
        _ => None,
    })
}

fn word(text: &impl Text, address: u64) -> Option<u32> {
    let mut buffer = [0; LONGEST];
    let code = text.code(address, &mut buffer);
    code.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn field(word: u32, low: u32) -> u32 {
    word >> low & 0b1_1111
}

fn signed(word: u32, low: u32, bits: u32) -> i64 {
    i64::from((word >> low << (32 - bits)).cast_signed() >> (32 - bits))
}

/// The register that an `adrp` sets, and the address of the page that it sets it to.
fn page(word: u32, address: u64) -> Option<(u32, u64)> {
    (word & 0x9f00_0000 == 0x9000_0000).then(|| {
        let pages = signed(word, 5, 19) << 2 | i64::from(word >> 29 & 0b11);
        (
            field(word, 0),
            (address & !0xfff).wrapping_add_signed(pages << 12),
        )
    })
}

/// The page address in a register, as an `adrp` in the code before `address` sets it.
fn page_in(text: &impl Text, address: u64, register: u32) -> Option<u64> {
    (1..=BACK).find_map(|back| {
        let at = address.checked_sub(4 * back)?;
        let (set, page) = page(word(text, at)?, at)?;
        (set == register).then_some(page)
    })
}

/// For `ldr x, [x, #offset]`: the register that the instruction sets, and the address of the pointer that it loads.
fn load(text: &impl Text, address: u64, word: u32) -> Option<(u32, u64)> {
    (word & 0xffc0_0000 == 0xf940_0000).then_some(())?;
    let page = page_in(text, address, field(word, 5))?;
    Some((field(word, 0), page + u64::from(word >> 10 & 0xfff) * 8))
}

/// The address of the pointer that the code before `address` loads into a register.
fn loaded(text: &impl Text, address: u64, register: u32) -> Option<u64> {
    (1..=BACK).find_map(|back| {
        let at = address.checked_sub(4 * back)?;
        let (set, pointer) = load(text, at, word(text, at)?)?;
        (set == register).then_some(pointer)
    })
}

/// Where a jump through a register goes.
fn jump(text: &impl Text, address: u64, register: u32) -> Place {
    let before = address.checked_sub(4).and_then(|at| word(text, at));
    // add x, x, w, sxtb #2 and the like: the target comes from a table of distances.
    if before.is_some_and(|word| word & 0x7fe0_0000 == 0x0b20_0000 && field(word, 0) == register) {
        return Place::Computed;
    }
    loaded(text, address, register).map_or(Place::Register, Place::Pointer)
}

/// The address that an instruction loads into a register.
fn takes(text: &impl Text, address: u64, word: u32) -> Option<Place> {
    if word & 0x9f00_0000 == 0x1000_0000 {
        let bytes = signed(word, 5, 19) << 2 | i64::from(word >> 29 & 0b11);
        return Some(Place::Address(address.wrapping_add_signed(bytes)));
    }
    // add x, x, #constant
    if word & 0xffc0_0000 == 0x9100_0000 {
        let page = page_in(text, address, field(word, 5))?;
        return Some(Place::Address(page + u64::from(word >> 10 & 0xfff)));
    }
    load(text, address, word).map(|(_, pointer)| Place::Pointer(pointer))
}

/// Whether an instruction stores to memory, or may do so.
fn stores(word: u32) -> bool {
    let vector = word >> 26 & 1 == 1;
    if word >> 25 & 0b101 != 0b100 {
        return false;
    }
    match word & 0x3a00_0000 {
        // A pair of registers.
        0x2800_0000 => word >> 22 & 1 == 0,
        // One register, or an atomic operation. Atomic operations have bit 21 set, and so have accesses whose offset is
        // in a register.
        0x3800_0000 => {
            let plain = word >> 24 & 1 == 1 || word >> 21 & 1 == 0 || word >> 10 & 0b11 == 0b10;
            !plain || word >> 22 & if vector { 0b01 } else { 0b11 } == 0
        }
        // A load of a literal.
        0x1800_0000 => false,
        _ => true,
    }
}

/// What an instruction does to the stack pointer and the frame pointer.
fn stack(word: u32) -> Stack {
    let (to, from) = (field(word, 0), field(word, 5));
    let is_access = word >> 25 & 0b101 == 0b100;
    // A load or store of a pair that moves the address before or after it, by a multiple of the registers' size.
    if is_access && word & 0x3a80_0000 == 0x2880_0000 && from == SP {
        let vector = word >> 26 & 1 == 1;
        let size = match (vector, word >> 30) {
            (true, size) => 4_i64 << size,
            (false, 0b10) => 8,
            (false, _) => 4,
        };
        return Stack::Grows(-signed(word, 15, 7) * size);
    }
    // The same with one register, by a number of bytes.
    if is_access && word & 0x3b20_0400 == 0x3800_0400 && from == SP {
        return Stack::Grows(-signed(word, 12, 9));
    }
    // Add and sub with a constant.
    if word & 0xbf80_0000 == 0x9100_0000 || word & 0xff80_0000 == 0xd100_0000 {
        let shift = if word >> 22 & 1 == 1 { 12 } else { 0 };
        let constant = i64::from(word >> 10 & 0xfff) << shift;
        let added = if word >> 30 & 1 == 1 {
            -constant
        } else {
            constant
        };
        return match (to, from) {
            (SP, SP) => Stack::Grows(-added),
            (FRAME, SP) => Stack::SetsFrame(added),
            (SP, FRAME) => Stack::ToFrame(added),
            (SP, _) => Stack::Lost,
            _ => Stack::Same,
        };
    }
    // Logic with a constant, and additions of an extended register.
    let logic = word & 0x1f80_0000 == 0x1200_0000 && word >> 29 & 0b11 != 0b11;
    let extended = word & 0x3fe0_0000 == 0x0b20_0000;
    match to == SP && (logic || extended) {
        true => Stack::Lost,
        false => Stack::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::follow::step::Pointer;
    use crate::code::follow::step::Probed;

    const BASE: u64 = 0x1000;

    struct Words(Vec<u32>);

    impl Text for Words {
        fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8] {
            let at = address.checked_sub(BASE).map(|at| at as usize / 4);
            let words = at.and_then(|at| self.0.get(at..)).unwrap_or_default();
            let bytes = words.iter().flat_map(|word| word.to_le_bytes());
            let mut length = 0;
            for (to, from) in buffer.iter_mut().zip(bytes) {
                *to = from;
                length += 1;
            }
            &buffer[..length]
        }

        fn pointer(&self, _: u64) -> Pointer {
            Pointer::Unknown
        }

        fn function(&self, _: u64) -> Option<Probed> {
            None
        }
    }

    fn last(words: &[u32]) -> Effect {
        let at = BASE + 4 * (words.len() as u64 - 1);
        decode(&Words(words.to_vec()), at).expect("it is an instruction")
    }

    fn flow(words: &[u32]) -> Flow {
        last(words).flow
    }

    #[test]
    fn branches_are_decoded_with_their_targets() {
        assert_eq!(flow(&[0x1400_0002]), Flow::Jump(Place::Address(BASE + 8)));
        assert_eq!(flow(&[0x97ff_ffff]), Flow::Call(Place::Address(BASE - 4)));
        // b.eq, cbz, cbnz, tbz, tbnz: back by 4
        for word in [
            0x54ff_ffe0,
            0xb4ff_ffe0,
            0x35ff_ffe0,
            0x3607_ffe0,
            0xb707_ffe0,
        ] {
            assert_eq!(flow(&[word]), Flow::Branch(BASE - 4), "{word:x}");
        }
        assert_eq!(flow(&[0xd65f_03c0]), Flow::Return);
        // br x1, blr x1
        assert_eq!(flow(&[0xd61f_0020]), Flow::Jump(Place::Register));
        assert_eq!(flow(&[0xd63f_0020]), Flow::Call(Place::Register));
        // retaa, braaz x1; blraaz x1
        assert_eq!(flow(&[0xd65f_0bff]), Flow::Jump(Place::Computed));
        assert_eq!(flow(&[0xd61f_083f]), Flow::Jump(Place::Computed));
        assert_eq!(flow(&[0xd63f_083f]), Flow::Call(Place::Register));
        // svc #0; brk #0; bti c; paciasp; nop
        assert_eq!(flow(&[0xd400_0001]), Flow::On);
        assert_eq!(flow(&[0xd420_0000]), Flow::End);
        assert_eq!(flow(&[0xd503_245f]), Flow::Pad);
        assert_eq!(flow(&[0xd503_233f]), Flow::Pad);
        assert_eq!(flow(&[0xd503_201f]), Flow::On);
        assert!(decode(&Words(vec![0]), BASE).is_none(), "udf");
    }

    #[test]
    fn a_jump_table_is_distinguished_from_a_pointer() {
        // add x1, x1, w2, sxtb #2; br x1
        assert_eq!(
            flow(&[0x8b22_8821, 0xd61f_0020]),
            Flow::Jump(Place::Computed)
        );
    }

    #[test]
    fn a_stub_is_followed_to_its_pointer() {
        // adrp x16, +0x1000; ldr x17, [x16, #24]; add x16, x16, #24; br x17
        let stub_code = [0xb000_0010, 0xf940_0e11, 0x9100_6210, 0xd61f_0220];
        let pointer = 0x2018;
        assert_eq!(flow(&stub_code), Flow::Jump(Place::Pointer(pointer)));
        assert_eq!(stub(&Words(stub_code.to_vec()), BASE), Some(pointer));
        let with_pad = [&[0xd503_245f], &stub_code[..]].concat();
        assert_eq!(stub(&Words(with_pad), BASE), Some(pointer));
        assert_eq!(stub(&Words(vec![0xd65f_03c0]), BASE), None);
        assert_eq!(last(&stub_code[..2]).takes, Some(Place::Pointer(pointer)));
        assert_eq!(last(&stub_code[..3]).takes, Some(Place::Address(pointer)));
        // adr x0, +8
        assert_eq!(last(&[0x1000_0040]).takes, Some(Place::Address(BASE + 8)));
    }

    #[test]
    fn changes_of_the_stack_pointer_are_tracked() {
        for (word, stack) in [
            (0xa9bc_7bfd, Stack::Grows(64)),     // stp x29, x30, [sp, #-64]!
            (0xa8c4_7bfd, Stack::Grows(-64)),    // ldp x29, x30, [sp], #64
            (0x6dbe_27e8, Stack::Grows(32)),     // stp d8, d9, [sp, #-32]!
            (0xadbf_27e8, Stack::Grows(32)),     // stp q8, q9, [sp, #-32]!
            (0xf81f_0ffe, Stack::Grows(16)),     // str x30, [sp, #-16]!
            (0xf841_07fe, Stack::Grows(-16)),    // ldr x30, [sp], #16
            (0xd100_83ff, Stack::Grows(32)),     // sub sp, sp, #32
            (0xd140_07ff, Stack::Grows(4096)),   // sub sp, sp, #1, lsl #12
            (0x9100_83ff, Stack::Grows(-32)),    // add sp, sp, #32
            (0x9100_03fd, Stack::SetsFrame(0)),  // mov x29, sp
            (0x9100_43fd, Stack::SetsFrame(16)), // add x29, sp, #16
            (0x9100_03bf, Stack::ToFrame(0)),    // mov sp, x29
            (0xd100_43bf, Stack::ToFrame(-16)),  // sub sp, x29, #16
            (0x9100_001f, Stack::Lost),          // mov sp, x0
            (0xcb30_63ff, Stack::Lost),          // sub sp, sp, x16
            (0x927c_ec1f, Stack::Lost),          // and sp, x0, #0xfffffffffffffff0
            (0xa900_53f3, Stack::Same),          // stp x19, x20, [sp]
            (0xf100_001f, Stack::Same),          // cmp x0, #0
            (0xf940_07e0, Stack::Same),          // ldr x0, [sp, #8]
        ] {
            assert_eq!(last(&[word]).stack, stack, "{word:x}");
        }
    }

    #[test]
    fn only_stores_outside_the_stack_count_as_writes() {
        // str x0, [x1]; stp x0, x1, [x2]; str q0, [x1]; swp x0, x1, [x2]; stxr w3, x0, [x1]; st1 {v0.16b}, [x1]
        for word in [
            0xf900_0020,
            0xa900_0440,
            0x3d80_0020,
            0xf820_8041,
            0xc803_7c20,
            0x4c00_7020,
        ] {
            assert!(last(&[word]).writes, "{word:x}");
        }
        // stp x29, x30, [sp, #-64]!; ldr x0, [x1]; ldp x0, x1, [x2]; ldr q0, [x1]; add x0, x0, #1; ldr x0, +8
        for word in [
            0xa9bc_7bfd,
            0xf940_0020,
            0xa940_0440,
            0x3dc0_0020,
            0x9100_0400,
            0x5800_0040,
        ] {
            assert!(!last(&[word]).writes, "{word:x}");
        }
    }
}
