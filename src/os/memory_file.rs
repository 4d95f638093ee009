//! Files that exist only in memory.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file in memory with these bytes.
///
/// # Errors
/// The caller allows no files of that length (RLIMIT_FSIZE), or there is no descriptor left.
pub fn file_of(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    let mut file = empty_file(name)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// An empty file in memory.
///
/// # Errors
/// There is no descriptor left.
pub fn empty_file(name: &CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}
