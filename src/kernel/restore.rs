//! Puts a file's bytes back where breakpoints were.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::{Duration, Instant};

use crate::os::maps;

/// More than a breakpoint takes, on any architecture.
const BREAKPOINT: u64 = 16;

/// How long the kernel may take to take breakpoints out of a process.
const REMOVAL: Duration = Duration::from_secs(1);

/// Puts what `file` has at these offsets to where `pid` has mapped it executable. There were breakpoints, and the
/// kernel, which is about to take them out, puts back what the file had there before it was written over. The
/// process must be held.
///
/// # Errors
/// The process's memory cannot be read or written, or the breakpoints stay.
pub fn restore(pid: u32, file: &File, offsets: &[u64]) -> io::Result<()> {
    let inode = file.metadata()?.ino();
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))?;
    maps::executables(maps, |found| {
        if found.inode != inode {
            return Ok(());
        }
        let size = found.addresses.end - found.addresses.start;
        let mapped = found.offset..found.offset.saturating_add(size);
        for &offset in offsets.iter().filter(|offset| mapped.contains(offset)) {
            let mut bytes = vec![0; BREAKPOINT.min(mapped.end - offset) as usize];
            let length = file.read_at(&mut bytes, offset)?;
            let address = found.addresses.start + (offset - found.offset);
            await_removal(&memory, address)?;
            memory.write_all_at(&bytes[..length], address)?;
        }
        Ok(())
    })
}

fn await_removal(memory: &File, address: u64) -> io::Result<()> {
    // int3; on aarch64 the instruction `brk` is known by its last byte.
    let (at, breakpoint) = match cfg!(target_arch = "x86_64") {
        true => (address, 0xcc),
        false => (address + 3, 0xd4),
    };
    let began = Instant::now();
    let mut byte = [0];
    loop {
        memory.read_exact_at(&mut byte, at)?;
        if byte[0] != breakpoint {
            return Ok(());
        }
        if began.elapsed() > REMOVAL {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}
