//! The files that this process itself has mapped, and how a child does without them.
//!
//! Whoever puts a probe into a file, or takes one out, needs the mappings of each process that has the file mapped. A
//! process that has its own mappings locked for long must not stand in the way. So it has no file mapped that anybody
//! probes.

use std::fs;
use std::io;
use std::ptr;

use crate::os::maps::file_mapping;

/// Pieces of files that are mapped here, all of them private.
pub struct OwnFiles {
    pieces: Vec<Piece>,
}

/// One mapping of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: usize,
    length: usize,
    protection: i32,
    /// The file has code that is mapped, so this process may run it. Any other file is only read.
    is_code: bool,
}

impl OwnFiles {
    /// The files that are mapped now, except memleak's own program.
    ///
    /// # Errors
    /// /proc shows no mappings.
    pub fn read() -> io::Result<Self> {
        let here = Self::read as *const () as usize;
        let maps = fs::read("/proc/self/maps")?;
        Ok(Self {
            pieces: pieces(&maps, here),
        })
    }

    /// Puts copies in place of code, and unmaps other files.
    ///
    /// # Safety
    /// For a process that was forked, has one thread, and uses nothing that was only read from a file. It allocates
    /// nothing. Nothing may have been mapped or unmapped since [`read`](Self::read).
    pub unsafe fn leave(&self) -> io::Result<()> {
        for piece in &self.pieces {
            // SAFETY: by this function's contract the piece is still mapped.
            unsafe {
                if piece.is_code {
                    piece.copy()?;
                } else {
                    libc::munmap(ptr::without_provenance_mut(piece.start), piece.length);
                }
            }
        }
        Ok(())
    }
}

impl Piece {
    /// # Safety
    /// The piece must be mapped.
    unsafe fn copy(self) -> io::Result<()> {
        let at = ptr::without_provenance_mut::<libc::c_void>(self.start);
        // SAFETY: the kernel chooses the address of the copy. It has the size, the content and the protection of what it
        // replaces in one step. So code that runs there does not notice.
        let moved = unsafe {
            let copy = libc::mmap(
                ptr::null_mut(),
                self.length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if copy == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            if self.protection & libc::PROT_READ != 0 {
                ptr::copy_nonoverlapping(at.cast::<u8>(), copy.cast::<u8>(), self.length);
            }
            if libc::mprotect(copy, self.length, self.protection) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::mremap(
                copy,
                self.length,
                self.length,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                at,
            )
        };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The private mappings of files in `maps` (proc_pid_maps(5)), except those of the file that is mapped at `own`.
fn pieces(maps: &[u8], own: usize) -> Vec<Piece> {
    let lines = maps.split(|&byte| byte == b'\n');
    let all: Vec<_> = lines.filter_map(piece).collect();
    let own = all
        .iter()
        .find(|(piece, _)| (piece.start..piece.start + piece.length).contains(&own))
        .map(|(_, file)| *file);
    let has_code = |of| {
        all.iter()
            .any(|(piece, file)| *file == of && piece.protection & libc::PROT_EXEC != 0)
    };
    all.iter()
        .filter(|(_, file)| Some(*file) != own)
        .map(|&(piece, file)| Piece {
            is_code: has_code(file),
            ..piece
        })
        .collect()
}

/// A line's mapping, and its file's device and inode. `None` if it is shared or has no file.
fn piece(line: &[u8]) -> Option<(Piece, (&str, u64))> {
    let mapping = file_mapping(line).filter(|mapping| mapping.access.ends_with('p'))?;
    let granted = [
        ('r', libc::PROT_READ),
        ('w', libc::PROT_WRITE),
        ('x', libc::PROT_EXEC),
    ];
    let protection = granted
        .into_iter()
        .filter(|(letter, _)| mapping.access.contains(*letter))
        .fold(0, |all, (_, one)| all | one);
    let addresses = mapping.addresses;
    let piece = Piece {
        start: addresses.start as usize,
        length: (addresses.end - addresses.start) as usize,
        protection,
        is_code: false,
    };
    Some((piece, (mapping.device, mapping.inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_mappings_of_files_other_than_the_program_are_pieces() {
        let maps = b"\
            1000-2000 r-xp 00000000 fe:00 1 /usr/bin/memleak\n\
            2000-3000 rw-p 00001000 fe:00 1 /usr/bin/memleak\n\
            3000-4000 rw-p 00000000 00:00 0 [heap]\n\
            4000-6000 r-xp 00000000 fe:00 2 /lib/libc.so.6\n\
            6000-7000 r--p 00002000 fe:00 2 /lib/libc.so.6\n\
            7000-8000 rw-s 00000000 00:0e 9 anon_inode:bpf-map\n\
            8000-9000 r--p 00000000 fe:00 3 /a file (deleted)\n\
            a000-b000 r-xp 00000000 00:00 0 [vdso]\n";
        let piece = |start, length, protection, is_code| Piece {
            start,
            length,
            protection,
            is_code,
        };
        let (read, code) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_EXEC);
        assert_eq!(
            pieces(maps, 0x1800),
            [
                piece(0x4000, 0x2000, code, true),
                piece(0x6000, 0x1000, read, true),
                piece(0x8000, 0x1000, read, false),
            ]
        );
    }
}
