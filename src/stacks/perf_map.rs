//! The names of code that a process made at run time: its perf map, `/tmp/perf-PID.map`, which JIT compilers write
//! (`tools/perf/Documentation/jit-interface.txt` in Linux). A line has the address of a function, its size in bytes,
//! both hexadecimal, and its name.
//!
//! Anyone may write files to `/tmp`. So a map is only believed if it is a regular file of the process's own user, or of
//! root, and not a link.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use crate::os::root::Root;

/// The most bytes of a map that are read. A large node server wrote 10 MB.
const MAX_MAP: u64 = 64 << 20;

/// The most functions that are kept.
const MAX_FUNCTIONS: usize = 1 << 19;

/// The most bytes of a name.
const MAX_NAME: usize = 4096;

/// A process that may have a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapOwner {
    /// In its own pid namespace.
    pub pid: u32,
    /// As memleak sees it.
    pub user: u32,
    /// When its image began, since the Unix epoch.
    pub began: Duration,
}

/// The maps of processes. It remembers the last one.
#[derive(Debug, Default)]
pub struct PerfMaps {
    last: Option<(MapOwner, PerfMap)>,
}

impl PerfMaps {
    /// The map of a process, as it is now or was when it was last asked for. Empty if there is none. Of a process that has
    /// ended, the map is looked for below memleak's own root.
    pub fn of(&mut self, process: MapOwner) -> &PerfMap {
        let (_, map) = match self.last.take() {
            Some(last) if last.0 == process => self.last.insert(last),
            _ => {
                let root = Root::of_process(process.pid).unwrap_or_else(|_| Root::ours());
                let map = PerfMap::of_process(&root, process);
                self.last.insert((process, map.unwrap_or_default()))
            }
        };
        map
    }
}

/// The functions that a process made at run time.
#[derive(Debug, Default)]
pub struct PerfMap {
    /// By their first address: the address behind the function, and where its name is in `text`. They do not overlap.
    functions: BTreeMap<u64, (u64, std::ops::Range<usize>)>,
    text: Vec<u8>,
    /// Whether something was left out because the map is too long.
    pub cut: bool,
}

impl PerfMap {
    /// Reads the map of a process. `root` is the process's root directory.
    ///
    /// # Errors
    /// There is no map, or it is a link, or it belongs to another user, or to an earlier process.
    pub fn of_process(root: &Root, process: MapOwner) -> io::Result<Self> {
        let MapOwner { pid, user, began } = process;
        let path = PathBuf::from(format!("/tmp/perf-{pid}.map"));
        let file = root.open_itself(&path)?;
        let status = file.metadata()?;
        // Pids are used again, and maps stay. The time of a file may be some milliseconds behind.
        let began = UNIX_EPOCH + began.saturating_sub(Duration::from_secs(1));
        if status.modified()? < began {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Another name of the same file may be a file that its owner did not write as a map.
        if (status.uid() != user && status.uid() != 0) || status.nlink() > 1 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut text = Vec::new();
        file.take(MAX_MAP).read_to_end(&mut text)?;
        let cut = status.len() > MAX_MAP;
        let mut map = Self::parse(text);
        map.cut |= cut;
        Ok(map)
    }

    /// Reads the text of a map. Lines that are damaged are left out. If functions overlap, the last one counts, because
    /// a JIT compiler uses memory again.
    pub fn parse(text: Vec<u8>) -> Self {
        let mut map = Self::default();
        let mut at = 0;
        while at < text.len() {
            let end = memchr::memchr(b'\n', &text[at..]).map_or(text.len(), |length| at + length);
            if let Some((function, name)) = function_of(&text[at..end]) {
                if map.functions.len() >= MAX_FUNCTIONS {
                    map.cut = true;
                    break;
                }
                map.add(function, at + name.start..at + name.end);
            }
            at = end + 1;
        }
        map.text = text;
        map
    }

    fn add(&mut self, function: std::ops::Range<u64>, name: std::ops::Range<usize>) {
        let (start, end) = (function.start, function.end);
        // Cuts the function that began before, and may go on behind the new one.
        if let Some((&before, (its_end, its_name))) = self.functions.range_mut(..start).next_back()
            && *its_end > start
        {
            let (old_end, old_name) = (*its_end, its_name.clone());
            *its_end = start;
            debug_assert!(before < start);
            if old_end > end {
                self.functions.insert(end, (old_end, old_name));
            }
        }
        while let Some((&next, &(its_end, _))) = self.functions.range(start..end).next() {
            let Some((_, its_name)) = self.functions.remove(&next) else {
                break;
            };
            if its_end > end {
                self.functions.insert(end, (its_end, its_name));
            }
        }
        self.functions.insert(start, (end, name));
    }

    /// The name of the function at an absolute address.
    pub fn name(&self, address: u64) -> Option<String> {
        let (_, (end, name)) = self.functions.range(..=address).next_back()?;
        let name = self.text.get(name.clone())?;
        (address < *end).then(|| String::from_utf8_lossy(name).into_owned())
    }

    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }
}

/// The function that a line describes: its addresses, and where its name is in the line.
fn function_of(line: &[u8]) -> Option<(std::ops::Range<u64>, std::ops::Range<usize>)> {
    let first = memchr::memchr(b' ', line)?;
    let second = first + 1 + memchr::memchr(b' ', &line[first + 1..])?;
    let start = hexadecimal(&line[..first])?;
    let size = hexadecimal(&line[first + 1..second])?;
    let end = start.checked_add(size).filter(|&end| end > start)?;
    let rest = &line[second + 1..];
    let name = rest.trim_ascii();
    let at = second + 1 + (rest.len() - rest.trim_ascii_start().len());
    (!name.is_empty()).then(|| (start..end, at..at + name.len().min(MAX_NAME)))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    fn parse(text: &str) -> PerfMap {
        PerfMap::parse(text.as_bytes().to_vec())
    }

    #[test]
    fn an_address_gets_the_name_of_the_function_around_it() {
        let map =
            parse("1000 10 LazyCompile:~f /a/b.js:3\n0x2000 0x20 g\nffffffffffffff00 ff last");
        assert_eq!(map.name(0xfff), None);
        assert_eq!(map.name(0x1000).unwrap(), "LazyCompile:~f /a/b.js:3");
        assert_eq!(map.name(0x100f).unwrap(), "LazyCompile:~f /a/b.js:3");
        assert_eq!(map.name(0x1010), None);
        assert_eq!(map.name(0x201f).unwrap(), "g");
        assert_eq!(map.name(0xffff_ffff_ffff_fffe).unwrap(), "last");
        assert!(!map.cut && !map.is_empty());
    }

    #[test]
    fn of_functions_that_overlap_the_last_one_counts() {
        let map = parse("1000 100 old\n1040 20 new\n");
        let names = [0x103f, 0x1040, 0x105f, 0x1060, 0x10ff].map(|at| map.name(at).unwrap());
        assert_eq!(names, ["old", "new", "new", "old", "old"]);
        let map = parse("1000 10 a\n1010 10 b\n1020 10 c\nf00 128 all\n");
        assert_eq!(map.name(0x1018).unwrap(), "all");
        assert_eq!(map.name(0x1027).unwrap(), "all");
        assert_eq!(map.name(0x1028).unwrap(), "c");
        let map = parse("1000 10 a\n1000 10 b\n");
        assert_eq!(map.name(0x1000).unwrap(), "b");
    }

    #[test]
    fn damaged_lines_are_left_out() {
        let map = parse(
            "\n \n1000\n1000 10\n1000 10 \n1000 zz f\n-1 10 f\n+1 10 f\n1000 0 f\nffffffffffffffff 2 f\n\
             10000000000000000 2 f\n0x 1 f\n2000 1 kept\r\n",
        );
        assert_eq!(map.functions.len(), 1);
        assert_eq!(map.name(0x2000).unwrap(), "kept");
    }

    #[test]
    fn names_of_any_bytes_are_text() {
        let map = PerfMap::parse(b"10 1 a\xff\x1b[2J b\n20 1 ".to_vec());
        assert_eq!(map.name(0x10).unwrap(), "a\u{fffd}\u{1b}[2J b");
        let long = format!("10 1 {}", "x".repeat(10_000));
        assert_eq!(parse(&long).name(0x10).unwrap().len(), MAX_NAME);
    }

    #[test]
    fn more_functions_than_fit_are_cut_off() {
        let lines: String = (0..=MAX_FUNCTIONS)
            .map(|n| format!("{n:x} 1 f\n"))
            .collect();
        let map = parse(&lines);
        assert!(map.cut);
        assert_eq!(map.functions.len(), MAX_FUNCTIONS);
    }

    #[test]
    fn only_a_file_of_the_process_or_of_root_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path()).unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let path = directory.path().join("tmp/perf-7.map");
        fs::write(&path, "1000 10 f\n").unwrap();
        let own = fs::metadata(&path).unwrap().uid();
        let of = |pid, user, began| {
            let began = Duration::from_secs(began);
            PerfMap::of_process(&root, MapOwner { pid, user, began })
        };
        let read = |user| of(7, user, 1);
        assert_eq!(read(own).unwrap().name(0x1000).unwrap(), "f");
        assert!(of(8, own, 1).is_err());
        // A process that began later had the same pid.
        assert!(of(7, own, 1 << 40).is_err());
        if own == 0 {
            assert_eq!(read(1234).unwrap().name(0x1000).unwrap(), "f");
            chown(&path, Some(1234), None).unwrap();
            assert!(read(1234).is_ok());
        }
        assert!(read(4321).is_err());

        let other = directory.path().join("tmp/other");
        fs::hard_link(&path, &other).unwrap();
        assert!(read(1234).is_err());
        fs::remove_file(&path).unwrap();
        symlink("other", &path).unwrap();
        assert!(read(1234).is_err());
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(own).is_err());
    }
}
