//! Probes for kernels that give a program no cookie (before Linux 5.15). Each probe has a program of its own. The
//! program is a copy of a loaded one, with the cookie in place of a constant.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use libbpf_rs::libbpf_sys::{
    BPF_PROG_TYPE_KPROBE, bpf_insn, bpf_prog_load, bpf_prog_load_opts, perf_event_attr,
};

use crate::kernel::skeletons::Program;
use crate::kernel::skeletons::types::placeholder;

/// The opcode of an instruction that loads 64 bits (`BPF_LD | BPF_IMM | BPF_DW` in uapi/linux/bpf.h). The instruction
/// takes two slots, and the first has the lower half.
const LOAD_64: u8 = 0x18;

/// Requests to perf events (uapi/linux/perf_event.h): `_IOW('$', 8, __u32)` and `_IO('$', 0)`.
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
pub(super) const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// The directory where the kernel describes uprobes as events.
const UPROBE: &str = "/sys/bus/event_source/devices/uprobe";

/// Puts a program of its own on each of these offsets in a file, with its cookie. With `at_return`, the program runs
/// where the function returns. The programs run until the returned descriptors are closed.
///
/// # Errors
/// The kernel refuses. Nothing stays attached.
pub fn attach(
    program: &Program<'_>,
    file: &File,
    at_return: bool,
    probes: &[(u64, u64)],
) -> Result<Vec<OwnedFd>> {
    let uprobe = Uprobe::of_this_kernel(at_return)?;
    probes
        .iter()
        .map(|&(offset, cookie)| {
            let program = load(program.insns(), cookie)?;
            let event = uprobe
                .open(file, offset)
                .context("the kernel refuses an event for the probe")?;
            // The event keeps a reference to the program.
            control(&event, PERF_EVENT_IOC_SET_BPF, program.as_raw_fd())
                .and_then(|()| control(&event, PERF_EVENT_IOC_ENABLE, 0))
                .context("the event refuses the program")?;
            Ok(event)
        })
        .collect()
}

/// Loads a program with the instructions of a loaded one, and with this cookie.
fn load(instructions: &[bpf_insn], cookie: u64) -> Result<OwnedFd> {
    let mut instructions = instructions.to_vec();
    ensure!(
        put_cookie(&mut instructions, cookie) > 0,
        "a program has no place for its cookie"
    );
    let options = bpf_prog_load_opts {
        sz: size_of::<bpf_prog_load_opts>() as _,
        ..Default::default()
    };
    // SAFETY: the strings and the instructions outlive the call, which only reads them.
    let program = unsafe {
        bpf_prog_load(
            BPF_PROG_TYPE_KPROBE,
            c"probe".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as _,
            (&raw const options).cast_mut(),
        )
    };
    descriptor(program.into()).context("the kernel refuses the probe's program")
}

/// Puts the cookie in place of the placeholder. Returns in how many places.
fn put_cookie(instructions: &mut [bpf_insn], cookie: u64) -> usize {
    let mut places = 0;
    let mut at = 0;
    while let [low, high, ..] = &mut instructions[at..] {
        if low.code != LOAD_64 {
            at += 1;
            continue;
        }
        // A load of a map has its kind in the source register.
        if low.src_reg() == 0
            && low.imm.cast_unsigned() == placeholder::PLACEHOLDER_LOW.0
            && high.imm.cast_unsigned() == placeholder::PLACEHOLDER_HIGH.0
        {
            low.imm = (cookie as u32).cast_signed();
            high.imm = ((cookie >> 32) as u32).cast_signed();
            places += 1;
        }
        at += 2;
    }
    places
}

/// Uprobes as events of this kernel.
struct Uprobe {
    kind: u32,
    config: u64,
}

impl Uprobe {
    fn of_this_kernel(at_return: bool) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("{UPROBE}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let kind = read("type")?;
        let kind = kind.trim().parse();
        let kind = kind.with_context(|| format!("{UPROBE}/type is not a number"))?;
        let mut config = 0;
        if at_return {
            let format = read("format/retprobe")?;
            let bit = format.trim().strip_prefix("config:");
            let bit = bit.and_then(|bit| bit.parse::<u32>().ok());
            config = bit
                .and_then(|bit| 1_u64.checked_shl(bit))
                .with_context(|| format!("{UPROBE}/format/retprobe does not name a bit"))?;
        }
        Ok(Self { kind, config })
    }

    /// Opens an event of every process. The event belongs to one CPU, but its program runs on every CPU.
    fn open(&self, file: &File, offset: u64) -> io::Result<OwnedFd> {
        // The kernel follows this link to the very file that was examined.
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let mut event = perf_event_attr {
            type_: self.kind,
            size: size_of::<perf_event_attr>() as u32,
            config: self.config,
            ..Default::default()
        };
        event.__bindgen_anon_3.uprobe_path = path.as_ptr() as u64;
        event.__bindgen_anon_4.probe_offset = offset;
        const EVERY_PROCESS: libc::pid_t = -1;
        // SAFETY: the kernel reads `event` and the path in it. Both outlive the call.
        descriptor(unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const event,
                EVERY_PROCESS,
                0,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        })
    }
}

/// Turns the result of a system call, or of libbpf's function for one, into a descriptor.
pub(super) fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the kernel has just opened the descriptor, and it has no other owner.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn control(event: &OwnedFd, request: libc::c_ulong, argument: i32) -> io::Result<()> {
    // SAFETY: both requests take a number.
    match unsafe { libc::ioctl(event.as_raw_fd(), request as _, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, source: u8, imm: u32) -> bpf_insn {
        let mut instruction = bpf_insn {
            code,
            imm: imm.cast_signed(),
            ..Default::default()
        };
        instruction.set_src_reg(source);
        instruction
    }

    fn load_64(source: u8, low: u32, high: u32) -> [bpf_insn; 2] {
        [instruction(LOAD_64, source, low), instruction(0, 0, high)]
    }

    #[test]
    fn a_cookie_goes_where_the_placeholder_is_and_nowhere_else() {
        let (low, high) = (
            placeholder::PLACEHOLDER_LOW.0,
            placeholder::PLACEHOLDER_HIGH.0,
        );
        let mut instructions = [
            load_64(0, low, high),
            // A map's descriptor, another number, and two instructions of another kind with the same words.
            load_64(1, low, high),
            load_64(0, low, 0),
            [instruction(0xb7, 0, low), instruction(0xb7, 0, high)],
            load_64(0, low, high),
        ]
        .concat();
        assert_eq!(put_cookie(&mut instructions, 0x1122_3344_5566_7788), 2);
        let words: Vec<_> = instructions
            .iter()
            .map(|instruction| instruction.imm.cast_unsigned())
            .collect();
        let cookie = [0x5566_7788, 0x1122_3344];
        let expected = [cookie, [low, high], [low, 0], [low, high], cookie];
        assert_eq!(words, expected.concat());
        assert_eq!(put_cookie(&mut instructions, 1), 0);
    }

    #[test]
    fn code_that_is_empty_or_cut_off_has_no_place_for_a_cookie() {
        assert_eq!(put_cookie(&mut [], 1), 0);
        assert_eq!(put_cookie(&mut [instruction(LOAD_64, 0, 0)], 1), 0);
    }
}
