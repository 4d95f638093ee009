//! The machine that was measured. Figures mean nothing without it.

use std::ffi::CStr;
use std::process::Command;

/// One sentence with the day, kernel, libc, processor, and number of rounds.
pub fn caption(rounds: usize) -> String {
    let place = if virtual_machine() {
        "in a virtual machine"
    } else {
        "on bare metal, as far as the processor tells"
    };
    let cpus = std::thread::available_parallelism().map_or(1, |number| number.get());
    format!(
        "{}, Linux {}, glibc {}, {}, {cpus} CPUs, {place}; median of {rounds} interleaved rounds.",
        today(),
        kernel(),
        glibc(),
        processor(),
    )
}

/// As `2026-11-30`, of the world's time.
fn today() -> String {
    let date = Command::new("date").args(["-u", "+%F"]).output();
    date.map_or_else(
        |_| "on an unknown day".to_owned(),
        |date| String::from_utf8_lossy(&date.stdout).trim().to_owned(),
    )
}

/// Major and minor version. The rest names the distribution's build.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release
        .trim()
        .split(['.', '-'])
        .take(2)
        .collect::<Vec<_>>()
        .join(".")
}

fn glibc() -> String {
    // SAFETY: the function returns a pointer to a constant, NUL-terminated string of libc.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_string_lossy().into_owned()
}

fn cpuinfo(field: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == field)
        .map(|(_, value)| value.trim().to_owned())
}

fn processor() -> String {
    cpuinfo("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Whether this is a virtual machine. Single-stepping a probed instruction there exits to the hypervisor,
/// which decides what a probe costs. Only x86 processors report this.
fn virtual_machine() -> bool {
    cpuinfo("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"))
}
