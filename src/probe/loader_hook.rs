//! Where a dynamic loader tells that it has mapped what it was asked for, and has run none of it yet.
//!
//! Loaders call an empty function, `_dl_debug_state`, for debuggers to break at (glibc's and musl's alike):
//! after the libraries of a program or of a dlopen are mapped, before their constructors. The function is a
//! mere `ret`, which the kernel must single-step; the calls of it are emulated.

/// The function that a loader calls; `_r_debug.r_brk` points to it.
pub const SYMBOL: &str = "_dl_debug_state";

/// Bytes of `call rel32`, and of its opcode.
const CALL: usize = 5;
const OPCODE: u8 = 0xe8;

/// The offsets in `text` of the direct calls (x86_64) of the function that lies at `function`, as offsets
/// count. Looks for the bytes and not for instructions: that four bytes which are no call have this very
/// distance in them, behind this very opcode, happens once in 10¹² bytes.
pub fn calls(text: &[u8], function: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for (at, window) in text.windows(CALL).enumerate() {
        let [OPCODE, distance @ ..] = window else {
            continue;
        };
        let Ok(distance) = <[u8; 4]>::try_from(distance) else {
            continue;
        };
        let next = (at + CALL) as u64;
        if next.wrapping_add_signed(i64::from(i32::from_le_bytes(distance))) == function {
            found.push(at as u64);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::calls;

    #[test]
    fn calls_forward_and_back_are_found() {
        // ret; call 0; nop; call 0x20; call 0x21
        let mut text = vec![0xc3, 0xe8, 0xfa, 0xff, 0xff, 0xff, 0x90];
        text.extend([0xe8, 20, 0, 0, 0, 0xe8, 16, 0, 0, 0]);
        text.resize(0x40, 0x90);
        assert_eq!(calls(&text, 0), [1]);
        assert_eq!(calls(&text, 0x20), [7]);
        assert!(calls(&text, 0x30).is_empty());
    }

    #[test]
    fn less_than_a_call_is_none() {
        assert!(calls(&[0xe8, 0, 0, 0], 4).is_empty());
    }
}
