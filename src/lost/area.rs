//! A range of a process's addresses, as a line of `/proc/TID/maps` describes it (proc_pid_maps(5)). Pure.
//!
//! `os::maps` reads the files that are mapped executable. Here every line counts, and the process is held meanwhile. So
//! a line is read without a copy, and of its path only the beginning.

use std::ops::Range;

/// What a range of addresses is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The memory that brk(2) grows.
    Heap,
    /// The stack on which the process began.
    Stack,
    /// A file, or shared memory.
    File,
    Anonymous,
    /// A device, or what the kernel maps for itself. Reading it may have effects, and no pointer of the program is there.
    Foreign,
}

/// A range of addresses with one protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    /// Where the range begins in its file.
    pub offset: u64,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    /// Other processes see what is written there.
    pub shared: bool,
    pub backing: Backing,
}

impl Area {
    /// Reads a line. `None` if it cannot be parsed.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let (start, rest) = hexadecimal(line)?;
        let (end, rest) = hexadecimal(rest.strip_prefix(b"-")?)?;
        let [b' ', access @ .., b' '] = rest.get(..6)? else {
            return None;
        };
        let (offset, rest) = hexadecimal(&rest[6..])?;
        let mut words = rest.strip_prefix(b" ")?.splitn(3, |&byte| byte == b' ');
        let _device = words.next()?;
        let inode = words.next()?;
        let path = words.next().unwrap_or_default().trim_ascii();
        let area = Self {
            start,
            end,
            offset,
            readable: access[0] == b'r',
            writable: access[1] == b'w',
            executable: access[2] == b'x',
            shared: access[3] == b's',
            backing: backing(path, inode != b"0"),
        };
        (start < end).then_some(area)
    }

    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

fn backing(path: &[u8], has_inode: bool) -> Backing {
    let begins = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    // Shared memory has its files below these.
    let is_memory = begins(&[b"/dev/shm/", b"/dev/zero", b"/dev/hugepages/"]);
    match path {
        b"[heap]" => Backing::Heap,
        b"[stack]" => Backing::Stack,
        // [vdso], [vvar], [vvar_vclock], [vsyscall]
        _ if begins(&[b"[v", b"/dmabuf:"]) => Backing::Foreign,
        _ if begins(&[b"/dev/"]) && !is_memory => Backing::Foreign,
        _ if has_inode => Backing::File,
        _ => Backing::Anonymous,
    }
}

/// Reads the digits at the beginning of a text. Returns their value and the rest of the text.
fn hexadecimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut value: u64 = 0;
    for (at, byte) in text.iter().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ if at == 0 => return None,
            _ => return Some((value, &text[at..])),
        };
        if value >> 60 != 0 {
            return None;
        }
        value = value << 4 | u64::from(digit);
    }
    None
}

/// The index of the area that an address is in. `areas` are in the order of their addresses.
pub fn find(areas: &[Area], address: u64) -> Option<usize> {
    let at = areas.partition_point(|area| area.start <= address);
    let at = at.checked_sub(1)?;
    areas[at].contains(address).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_range_is_for() {
        let heap = Area {
            start: 0x55d0_c000_1000,
            end: 0x55d0_c000_3000,
            offset: 0x1000,
            readable: true,
            writable: true,
            executable: false,
            shared: false,
            backing: Backing::Heap,
        };
        let line = b"55d0c0001000-55d0c0003000 rw-p 00001000 00:00 0                 [heap]\n";
        assert_eq!(Area::parse(line), Some(heap));
        let backing = |rest: &str| {
            let line = format!("1000-2000 r--p 00000000 {rest}");
            Area::parse(line.as_bytes()).map(|area| area.backing)
        };
        for (rest, expected) in [
            ("00:00 0 ", Backing::Anonymous),
            ("00:00 0", Backing::Anonymous),
            ("00:00 0    [anon:x]", Backing::Anonymous),
            ("00:00 0    [stack]", Backing::Stack),
            ("00:00 0    [vvar_vclock]", Backing::Foreign),
            ("fe:00 42   /lib/\u{ff} libc.so.6", Backing::File),
            ("00:01 9    /dev/zero (deleted)", Backing::File),
            ("00:05 9    /dev/nvidia0", Backing::Foreign),
        ] {
            assert_eq!(backing(rest), Some(expected), "{rest}");
        }
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        for line in [
            &b""[..],
            b"1000-2000",
            b"1000-2000 rw-p",
            b"2000-1000 rw-p 0 00:00 0",
            b"1000-11112222333344445 rw-p 0 00:00 0",
            b"-1 rw-p 0 00:00 0",
            b"1000-2000 rw-p - 00:00 0",
        ] {
            assert_eq!(Area::parse(line), None, "{}", line.escape_ascii());
        }
    }
}
