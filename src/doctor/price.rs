//! Measures what a probe costs on this machine, on an instruction that the kernel emulates and on one that it must
//! single-step. The probes are on two functions of memleak itself, and their programs do nothing. They are attached in
//! `kernel::empty`.

use std::arch::naked_asm;
use std::fs::{self, File};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::doctor::patient::PROGRAM;
use crate::kernel::empty::EmptyProbes;
use crate::kernel::method::Method;

/// Nanoseconds that a probe adds to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    pub emulated_ns: u64,
    pub single_stepped_ns: u64,
}

/// Calls of a function in a round, and the number of rounds. The shortest round counts, because other load on the
/// machine makes rounds longer, never shorter.
const CALLS: u32 = 1000;
const ROUNDS: u32 = 12;

/// Begins with an instruction that the kernel emulates: `push` in arch/x86/kernel/uprobes.c, `adr` in
/// arch/arm64/kernel/probes/decode-insn.c.
// SAFETY: it has no arguments, preserves the stack and all callee-saved registers, and returns.
#[unsafe(naked)]
extern "C" fn emulated() {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("push rbp", "pop rbp", "ret");
    #[cfg(target_arch = "aarch64")]
    naked_asm!("adr x1, .", "ret");
}

/// Begins with an instruction that the kernel must single-step.
// SAFETY: it has no arguments, changes only a register that any function may change, and returns.
#[unsafe(naked)]
extern "C" fn single_stepped() {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("mov eax, edi", "ret");
    #[cfg(target_arch = "aarch64")]
    naked_asm!("mov x1, x0", "ret");
}

/// The rest of both functions, without the instruction that carries the probe. The functions themselves cannot be timed
/// without a probe: another doctor that measures at the same time may have attached its own.
// SAFETY: it has no arguments, changes nothing, and returns.
#[unsafe(naked)]
extern "C" fn bare() {
    naked_asm!("ret");
}

type ProbedCode = extern "C" fn();

/// Measures the price of a probe that is attached by `method`.
///
/// # Errors
/// memleak's own file cannot be read, or the kernel refuses the probes.
pub fn measure(method: Method) -> Result<Price> {
    let functions: [ProbedCode; 2] = [emulated, single_stepped];
    let program = PROGRAM.to_string_lossy();
    let file = File::open(&*program).context("cannot read memleak's own file")?;
    let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    let offsets: Option<Vec<_>> = functions
        .iter()
        .map(|&function| offset_in_file(&maps, function as usize as u64))
        .collect();
    let offsets = offsets.context("memleak's own code is not in /proc/self/maps")?;
    let bare = time(bare);
    let probes = EmptyProbes::attach(method, &file, &offsets)?;
    let [emulated_ns, single_stepped_ns] = functions.map(time);
    drop(probes);
    Ok(Price {
        emulated_ns: emulated_ns.saturating_sub(bare),
        single_stepped_ns: single_stepped_ns.saturating_sub(bare),
    })
}

/// The duration of a call in nanoseconds.
fn time(function: ProbedCode) -> u64 {
    let round = |_| {
        let began = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(function)();
        }
        began.elapsed()
    };
    let shortest = (0..ROUNDS).map(round).min().unwrap_or_default();
    shortest.as_nanos() as u64 / u64::from(CALLS)
}

/// The file offset of the code that is mapped at `address`.
fn offset_in_file(maps: &str, address: u64) -> Option<u64> {
    maps.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        let offset = hex(words.nth(1)?)?;
        (start..end)
            .contains(&address)
            .then(|| offset + (address - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_the_mapping_that_contains_it() {
        let maps = "\
            1000-2000 r--p 00000000 00:00 7 /a\n\
            2000-4000 r-xp 00001000 00:00 7 /a\n";
        assert_eq!(offset_in_file(maps, 0x1fff), Some(0xfff));
        assert_eq!(offset_in_file(maps, 0x3004), Some(0x2004));
        assert_eq!(offset_in_file(maps, 0x4000), None);
    }

    #[test]
    fn the_kernel_emulates_one_of_the_functions_and_not_the_other() {
        use crate::code::placement::{Kind, placed_on};
        for (function, kind) in [
            (emulated as ProbedCode, Kind::Emulated),
            (single_stepped, Kind::SingleStepped),
        ] {
            let length = if cfg!(target_arch = "x86_64") { 3 } else { 4 };
            // SAFETY: each of the functions has at least one instruction on aarch64, or three bytes on x86_64.
            let code = unsafe { std::slice::from_raw_parts(function as *const u8, length) };
            assert_eq!(placed_on(code).1, kind, "{code:x?}");
        }
    }
}
