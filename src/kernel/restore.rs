//! Puts a file's own bytes back where breakpoints were, in one process. When that is needed is decided in `arrivals`.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::{Duration, Instant};

use crate::os::maps;

/// A breakpoint is shorter than this on every architecture.
const BREAKPOINT: u64 = 16;

/// How long the kernel may take to remove breakpoints from a process.
const REMOVAL: Duration = Duration::from_secs(1);

/// Writes the bytes that `file` has at these offsets to where `pid` has mapped them executable.
///
/// There were breakpoints, and the kernel is about to remove them. It then puts back the bytes that the file had
/// before it was overwritten. This function waits for that, and corrects the bytes. The process must be held.
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
    // On x86_64 this is int3. On aarch64 the last byte identifies the instruction `brk`.
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
