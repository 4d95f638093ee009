//! Reads which files a process has mapped executable from `/proc/PID/maps` (proc_pid_maps(5)), line by line. Pure.
//!
//! The content is not trusted: a path may be any bytes, and there may be a million lines of 4 kB each.

use std::io::{self, BufRead};
use std::ops::Range;

/// A file that is mapped executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    pub addresses: Range<u64>,
    /// The offset in the file at which the mapping begins.
    pub offset: u64,
    /// The device in the kernel's notation, such as `fe:00`.
    pub device: String,
    /// The file's inode number on the device.
    pub inode: u64,
}

/// Calls `each` for every executable mapping of a file, in order. Skips lines that cannot be parsed.
///
/// # Errors
/// The reader or `each` fails.
pub fn executables(
    mut maps: impl BufRead,
    mut each: impl FnMut(Executable) -> io::Result<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    while maps.read_until(b'\n', &mut line)? > 0 {
        if let Some(found) = executable(&line) {
            each(found)?;
        }
        line.clear();
    }
    Ok(())
}

fn executable(line: &[u8]) -> Option<Executable> {
    let mapping = file_mapping(line)?;
    mapping.access.contains('x').then(|| Executable {
        addresses: mapping.addresses,
        offset: mapping.offset,
        device: mapping.device.to_owned(),
        inode: mapping.inode,
    })
}

/// A line that describes a mapping of a file.
pub(super) struct FileMapping<'a> {
    pub addresses: Range<u64>,
    /// As `r-xp`.
    pub access: &'a str,
    pub offset: u64,
    pub device: &'a str,
    pub inode: u64,
}

/// Reads a line. `None` if it cannot be parsed or its mapping has no file.
pub(super) fn file_mapping(line: &[u8]) -> Option<FileMapping<'_>> {
    let mut words = line
        .trim_ascii_end()
        .split(|&byte| byte == b' ')
        .filter(|word| !word.is_empty())
        .map_while(|word| std::str::from_utf8(word).ok());
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let addresses = hex(start)?..hex(end)?;
    let access = words.next()?;
    let (offset, device) = (hex(words.next()?)?, words.next()?);
    let inode = words.next()?.parse().ok()?;
    let is_file = inode != 0 && !addresses.is_empty();
    is_file.then_some(FileMapping {
        addresses,
        access,
        offset,
        device,
        inode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_of_files_count() {
        let line = b"55d0c0001000-55d0c0003000 r-xp 00002000 fe:00 42       /bin/\xff b\n";
        let found = Executable {
            addresses: 0x55d0_c000_1000..0x55d0_c000_3000,
            offset: 0x2000,
            device: "fe:00".to_owned(),
            inode: 42,
        };
        assert_eq!(executable(line), Some(found));
        for line in [
            &b"7ffd-7fff r-xp 00000000 00:00 0 [vdso]"[..],
            b"7ffd-7fff r--p 00000000 fe:00 42 /x",
            b"7fff-7ffd r-xp 00000000 fe:00 42 /x",
            b"7ffd-7fff r-xp",
            b"",
        ] {
            assert_eq!(executable(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_line_break_in_a_path_cannot_forge_a_line() {
        // The kernel writes the path "/a\n1-2 r-xp 0 fe:00 9" like this.
        let maps =
            b"1000-2000 r-xp 0 fe:00 42 /a\\0121-2 r-xp 0 fe:00 9\n3000-4000 r-xp 0 fe:00 43 /b";
        let mut inodes = Vec::new();
        executables(&maps[..], |found| {
            inodes.push(found.inode);
            Ok(())
        })
        .unwrap();
        assert_eq!(inodes, [42, 43]);
    }
}
