//! Where a dynamic loader tells debuggers and tracers that it maps and unmaps libraries. Finds the places only;
//! attaching to them is left to `kernel`.

use object::elf::SHT_NOTE;

use crate::elf::file::ElfFile;
use crate::elf::symbols::exported;

/// `NT_STAPSDT`: a note of a SystemTap probe. The probe is a `nop`, and the note says where the `nop` is.
const STAPSDT: u32 = 3;

/// The provider in the notes of glibc's loader.
const PROVIDER: &[u8] = b"rtld";

/// The empty function on which debuggers set a breakpoint. Every loader that supports debuggers has it.
pub const DEBUG_STATE: &str = "_dl_debug_state";

/// The probes of glibc at which everything is mapped and no mapped code has run yet: at a program's start, and in a
/// dlopen.
const COMPLETE: [&[u8]; 2] = [b"init_complete", b"map_complete"];

/// Bytes of `call rel32`.
const CALL: usize = 5;
/// The opcode of `call rel32`.
const OPCODE: u8 = 0xe8;

/// The most bytes of a loader's code that are searched (glibc's loader has 150 kB).
const SEARCHED: u64 = 8 << 20;

/// Where a loader reports to debuggers that it maps libraries. Both lists are empty if a file is not a loader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoaderHooks {
    /// The places whose probes cost least. At each of them, or at the next one that is reached, everything is mapped
    /// and no mapped code has run yet.
    pub cheap: Vec<Hook>,
    /// The fewest places for the same purpose: the function for debuggers, if the file exports it.
    pub few: Vec<Hook>,
}

/// A place in a loader's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The offset in the file.
    pub offset: u64,
    /// How far behind the place the loader keeps the state that it reports (`r_state` in link.h), in bytes of memory.
    /// Negative: before the place. 0: the place is only reached when everything is mapped, or nothing is known.
    pub state: i64,
}

/// The variable that describes to debuggers what is mapped. glibc exports it.
const DEBUG: &str = "_r_debug";

/// Where `r_state` is in a `struct r_debug` of link.h.
const STATE: u64 = 24;

/// Where a loader reports that it has mapped libraries and has called none of them yet.
///
/// glibc's SystemTap probes are taken if the build has them. Otherwise the loader's calls of [`DEBUG_STATE`] are taken.
/// They come before and after each change. Those before are left out if the code says which they are: each process that
/// maps the loader has a copy of each page with a probe. The calls are better than the function itself: the function is
/// a single `ret`, which the kernel must single-step, and a call is emulated.
///
/// `debug_state` is the address of [`DEBUG_STATE`], if the file exports it.
pub fn loader_hooks(elf: &ElfFile, debug_state: Option<u64>) -> LoaderHooks {
    let state = exported(elf, DEBUG).map(|debug| debug.wrapping_add(STATE));
    let hook = |address: u64| {
        Some(Hook {
            offset: offset_of(elf, address)?,
            state: state.map_or(0, |state| state.wrapping_sub(address).cast_signed()),
        })
    };
    let few: Vec<Hook> = debug_state.and_then(hook).into_iter().collect();
    let mut cheap = marked(elf);
    if cheap.is_empty()
        && let Some(debug_state) = debug_state
    {
        cheap = match calls_of(elf, debug_state) {
            Calls::Complete(calls) => {
                let complete = |address| {
                    let offset = offset_of(elf, address)?;
                    Some(Hook { offset, state: 0 })
                };
                calls.into_iter().filter_map(complete).collect()
            }
            Calls::All(calls) => calls.into_iter().filter_map(hook).collect(),
        };
    }
    if cheap.is_empty() {
        cheap.clone_from(&few);
    }
    let few = match few.is_empty() {
        true => cheap.clone(),
        false => few,
    };
    LoaderHooks { cheap, few }
}

/// The addresses of direct calls of [`DEBUG_STATE`].
enum Calls {
    /// Of those at which everything is mapped.
    Complete(Vec<u64>),
    /// Of all. The code does not tell what they report.
    All(Vec<u64>),
}

/// The direct calls of [`DEBUG_STATE`], which is at an address of its own file.
fn calls_of(elf: &ElfFile, address: u64) -> Calls {
    let none = Calls::All(Vec::new());
    let Some(segment) = elf.text_segment(address) else {
        return none;
    };
    if !cfg!(target_arch = "x86_64") {
        return none;
    }
    let text = elf.read(segment.offset, segment.size.min(SEARCHED));
    let text = text.unwrap_or_default();
    let found = calls(&text, address - segment.address);
    let states: Option<Vec<u32>> = match is_jumped_to(&text, &found) {
        true => None,
        false => found.iter().map(|at| reported(&text, *at)).collect(),
    };
    let address_of = |at: &u64| segment.address + at;
    match states {
        Some(states) if states.contains(&CONSISTENT) => {
            let complete = found.iter().zip(states);
            let complete = complete.filter(|(_, state)| *state == CONSISTENT);
            Calls::Complete(complete.map(|(at, _)| address_of(at)).collect())
        }
        _ => Calls::All(found.iter().map(address_of).collect()),
    }
}

/// `RT_CONSISTENT` of link.h: everything is mapped.
const CONSISTENT: u32 = 0;

/// The state that a call of [`DEBUG_STATE`] reports: what the instruction before it stores into `r_state`. `None` if the
/// instruction is another one.
fn reported(text: &[u8], call: u64) -> Option<u32> {
    /// Bytes of `movl $imm32, disp8(%reg)`.
    const STORE: usize = 7;
    let at = usize::try_from(call).ok()?;
    let store = text.get(at.checked_sub(STORE)?..)?;
    let &[0xc7, place, distance, state @ ..] = store.first_chunk::<STORE>()? else {
        return None;
    };
    // A register other than %rsp, which would take one more byte.
    let is_store = place & 0xf8 == 0x40 && place != 0x44 && u64::from(distance) == STATE;
    is_store.then(|| u32::from_le_bytes(state))
}

/// Whether bytes look like a direct jump (x86_64) to one of these offsets.
fn is_jumped_to(text: &[u8], places: &[u64]) -> bool {
    let leads = |next: usize, distance: i32| {
        let target = (next as u64).checked_add_signed(distance.into());
        target.is_some_and(|target| places.contains(&target))
    };
    text.windows(2).enumerate().any(|(at, window)| {
        let near = |behind: usize| {
            let distance = text.get(at + behind..).and_then(|rest| rest.first_chunk());
            distance.is_some_and(|bytes| leads(at + behind + 4, i32::from_le_bytes(*bytes)))
        };
        match *window {
            [0xeb | 0x70..=0x7f, distance] if leads(at + 2, i32::from(distance.cast_signed())) => {
                true
            }
            [0xe9, _] => near(1),
            [0x0f, 0x80..=0x8f] => near(2),
            _ => false,
        }
    })
}

/// The offsets in `text` of the direct calls (x86_64) of the function at the offset `function`. Compares bytes and
/// does not decode instructions. Bytes that are not a call match the opcode and the distance by chance once in 10¹²
/// bytes.
fn calls(text: &[u8], function: u64) -> Vec<u64> {
    let found = targets(text, 0).filter(|(_, target)| *target == function);
    found.map(|(next, _)| next - CALL as u64).collect()
}

/// What looks like a direct call (x86_64) in the code at an address: where each returns to, and what it calls.
pub(super) fn targets(text: &[u8], address: u64) -> impl Iterator<Item = (u64, u64)> {
    let calls = text.windows(CALL).enumerate();
    calls.filter_map(move |(at, window)| {
        let &[OPCODE, a, b, c, d] = window else {
            return None;
        };
        let next = address.wrapping_add((at + CALL) as u64);
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        Some((next, next.wrapping_add_signed(distance)))
    })
}

/// The places that the notes of the provider `rtld` mark. The notes lie in no segment, so a file without section
/// headers has none.
fn marked(elf: &ElfFile) -> Vec<Hook> {
    let Some(notes) = elf.section_named(".note.stapsdt") else {
        return Vec::new();
    };
    if notes.kind != SHT_NOTE {
        return Vec::new();
    }
    let base = elf.section_named(".stapsdt.base").map(|base| base.address);
    let hook = |content: &[u8]| {
        let word = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(
                content.get(at..at + 8)?.try_into().ok()?,
            ))
        };
        // A note has three addresses: of the nop, of the section .stapsdt.base at link time, and of a semaphore.
        // Provider, name and arguments follow. Prelinking moves the sections and does not update the notes.
        let (address, noted_base) = (word(0)?, word(8)?);
        let mut words = content.get(24..)?.split(|&byte| byte == 0);
        if words.next()? != PROVIDER {
            return None;
        }
        let name = words.next()?;
        if !COMPLETE.contains(&name) {
            return None;
        }
        let moved = base.map_or(0, |base| base.wrapping_sub(noted_base));
        Some(Hook {
            offset: offset_of(elf, address.wrapping_add(moved))?,
            state: 0,
        })
    };
    elf.notes(notes.range())
        .iter()
        .filter(|note| note.kind == STAPSDT && note.owner == b"stapsdt")
        .filter_map(|note| hook(&note.content))
        .collect()
}

/// The offset in the file of the code at an address.
pub(super) fn offset_of(elf: &ElfFile, address: u64) -> Option<u64> {
    elf.text_segment(address)?;
    Some(elf.mapped_at(address)?.start)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;
    use crate::elf::symbols::built::Built;

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
    fn text_shorter_than_a_call_has_no_calls() {
        assert!(calls(&[0xe8, 0, 0, 0], 4).is_empty());
    }

    /// `movl $state, 0x18(%rax)` and a call.
    fn report(state: u8) -> Vec<u8> {
        vec![0xc7, 0x40, 0x18, state, 0, 0, 0, 0xe8, 0, 0, 0, 0]
    }

    #[test]
    fn a_call_reports_what_is_stored_before_it() {
        assert_eq!(reported(&report(2), 7), Some(2));
        assert_eq!(reported(&report(0), 7), Some(CONSISTENT));
        assert_eq!(reported(&report(0), 6), None);
        assert_eq!(reported(&report(0)[1..], 6), None);
        for (at, other) in [(0, 0xc6), (1, 0x44), (1, 0x80), (2, 0x10)] {
            let mut text = report(0);
            text[at] = other;
            assert_eq!(reported(&text, 7), None, "{at}");
        }
    }

    #[test]
    fn jumps_to_a_call_are_found() {
        let jumps: [&[u8]; 4] = [
            &[0xeb, 0xf9],
            &[0x75, 0xf9],
            &[0xe9, 0xf6, 0xff, 0xff, 0xff],
            &[0x0f, 0x84, 0xf5, 0xff, 0xff, 0xff],
        ];
        for jump in jumps {
            assert!(
                is_jumped_to(&[&report(0), jump].concat(), &[100, 7]),
                "{jump:x?}"
            );
            let elsewhere = [&report(0), &[0x90][..], jump].concat();
            assert!(!is_jumped_to(&elsewhere, &[100, 7]), "{jump:x?}");
        }
    }

    fn all_hooks(path: impl AsRef<Path>) -> LoaderHooks {
        let file = File::open(path).unwrap();
        let elf = ElfFile::open(&file).unwrap();
        loader_hooks(&elf, exported(&elf, DEBUG_STATE))
    }

    fn hooks(path: impl AsRef<Path>) -> Vec<u64> {
        all_hooks(path)
            .cheap
            .iter()
            .map(|hook| hook.offset)
            .collect()
    }

    /// The byte at an offset in a file.
    #[cfg(target_arch = "x86_64")]
    fn code(path: impl AsRef<Path>, offset: u64) -> u8 {
        fs::read(path).unwrap()[usize::try_from(offset).unwrap()]
    }

    /// A nop and the note that marks it. The note was written before the file was moved by 0x1000.
    #[cfg(target_arch = "x86_64")]
    const NOTED: &str = r#"
        .text
        .globl marked
        .type marked, @function
    marked: ret
    990: nop
        ret
        .size marked, . - marked
        .pushsection .note.stapsdt,"?","note"
        .balign 4
        .4byte 992f-991f, 994f-993f, 3
    991: .asciz "stapsdt"
    992: .balign 4
    993: .8byte 990b - 0x1000
        .8byte _.stapsdt.base - 0x1000
        .8byte 0
        .asciz "rtld"
        .asciz "map_complete"
        .asciz "8@%rdi"
    994: .balign 4
        .popsection
        .pushsection .stapsdt.base,"aG","progbits",.stapsdt.base,comdat
        .weak _.stapsdt.base
        .hidden _.stapsdt.base
_.stapsdt.base: .space 1
        .size _.stapsdt.base, 1
        .popsection
    "#;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_loader_with_notes_has_the_hooks_that_they_mark() {
        let built = Built::new();
        let path = built.cc("noted.s", NOTED, &["-shared", "-nostdlib"]);
        let hooks = hooks(&path);
        assert_eq!(hooks.len(), 1, "{hooks:?}");
        assert_eq!(code(&path, hooks[0]), 0x90, "nop");
    }

    /// Debian builds glibc without SystemTap's probes, Fedora with them.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn glibcs_loader_has_hooks() {
        let path = Path::new("/lib64/ld-linux-x86-64.so.2");
        let hooks = hooks(path);
        assert!(!hooks.is_empty());
        for hook in hooks {
            // A nop if the file has notes, else a call.
            assert!([0x90, 0xe8].contains(&code(path, hook)), "{hook:#x}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn musls_loader_has_the_function_for_debuggers() {
        let hooks = hooks("/lib/ld-musl-x86_64.so.1");
        assert!(!hooks.is_empty());
        for hook in hooks {
            assert_eq!(code("/lib/ld-musl-x86_64.so.1", hook), 0xe8, "call");
        }
    }

    /// Every hook of a build without SystemTap's notes tells where the loader keeps its state.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn glibcs_hooks_tell_where_the_loader_keeps_its_state() {
        let path = Path::new("/lib64/ld-linux-x86-64.so.2");
        let file = File::open(path).unwrap();
        let elf = ElfFile::open(&file).unwrap();
        let state = exported(&elf, "_r_debug").unwrap() + STATE;
        let hooks = all_hooks(path);
        assert_eq!(hooks.few.len(), 1);
        for hook in hooks.few.iter().chain(&hooks.cheap) {
            if hook.state != 0 {
                let place = state.wrapping_add_signed(-hook.state);
                assert_eq!(offset_of(&elf, place), Some(hook.offset));
            }
        }
        assert_ne!(hooks.few[0].state, 0);
    }

    #[test]
    fn a_file_that_is_not_a_loader_has_no_hooks() {
        assert_eq!(all_hooks("/bin/sh"), LoaderHooks::default());
    }
}
