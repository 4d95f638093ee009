//! Files with code that processes had mapped. They are kept so that their symbols can still be read after the process is
//! gone, after the file was deleted, or in a mount namespace that no longer exists. On file systems that may be unmounted
//! meanwhile, a copy is kept. Reading symbols is left to `symbols`.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::elf::file::{ElfFile, Segment, Shape};
use crate::os::memory_file::file_of;
use crate::os::root::Root;

/// The most modules that are registered. A module takes some 300 bytes. After that, the first ones are still known.
const MAX_MODULES: usize = 1 << 16;

/// The most roots that are kept open. Each container has one.
const MAX_ROOTS: usize = 256;

/// What the kernel appends to the path of a mapped file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// What the kernel calls a file in memory begins so.
const MEMORY_FILE: &[u8] = b"/memfd:";

/// The most bytes of copies of files, and of one copy.
const MOST_COPIED: u64 = 256 << 20;
const MOST_OF_A_COPY: u64 = 64 << 20;

/// What tells that a file is still the one that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    /// The time of the last change, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileState {
    fn of(status: &Metadata) -> Self {
        Self {
            device: status.dev(),
            inode: status.ino(),
            size: status.size(),
            changed: (status.ctime(), status.ctime_nsec()),
        }
    }
}

/// A file with code that a process had mapped.
#[derive(Debug)]
pub struct Module {
    number: u32,
    path: Vec<u8>,
    build_id: Option<Vec<u8>>,
    shape: Option<Shape>,
    /// The segments that are executed.
    code: Vec<Segment>,
    state: FileState,
    kept: KeptFile,
    root: Rc<Root>,
}

/// What is kept of a file.
#[derive(Debug)]
enum KeptFile {
    Nothing,
    /// It is open.
    Open(File),
    /// A copy in memory. An open file would keep its file system from being unmounted.
    Copy(File),
}

impl Module {
    /// A module of which only this file is known. Its number is `number`.
    ///
    /// # Errors
    /// The file's status cannot be read.
    pub fn new(number: u32, file: &File, path: &[u8], root: Rc<Root>) -> io::Result<Self> {
        let state = FileState::of(&file.metadata()?);
        let elf = ElfFile::open(file).ok();
        Ok(Self {
            number,
            path: path.to_vec(),
            build_id: elf.as_ref().and_then(ElfFile::build_id),
            shape: elf.as_ref().map(ElfFile::shape),
            code: elf.as_ref().map(ElfFile::code).unwrap_or_default(),
            state,
            kept: KeptFile::Open(file.try_clone()?),
            root,
        })
    }

    /// Keeps a copy of the file instead of the file, or nothing if the copy would have more bytes than `most`. Returns
    /// the bytes that it takes.
    fn keep_a_copy(&mut self, most: u64) -> u64 {
        let size = self.state.size;
        let KeptFile::Open(file) = std::mem::replace(&mut self.kept, KeptFile::Nothing) else {
            return 0;
        };
        match (size <= most).then(|| copy_of(&file, size)) {
            Some(Ok(copy)) => {
                self.kept = KeptFile::Copy(copy);
                size
            }
            _ => 0,
        }
    }

    /// The number under which the module is registered.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The path as the process saw it, of any bytes. It may end with ` (deleted)`.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path without ` (deleted)`.
    pub fn named_path(&self) -> &Path {
        let path = self.path.strip_suffix(DELETED).unwrap_or(&self.path);
        Path::new(OsStr::from_bytes(path))
    }

    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// The ELF address of a call's return address, which is at this offset in the file. `None` if the file gives none.
    pub fn address(&self, offset: u64) -> Option<u64> {
        let at = |segment: &Segment| {
            let from_start = offset.checked_sub(segment.offset)?;
            // A call at the end of a segment returns to its end.
            (from_start <= segment.size).then(|| segment.address.checked_add(from_start))?
        };
        self.code.iter().find_map(at)
    }

    /// How a process uses the file. `None` if it is not an ELF file that memleak can read.
    pub fn shape(&self) -> Option<Shape> {
        self.shape
    }

    /// The root directory of a process that had the file mapped.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Opens the file to read its symbols.
    ///
    /// # Errors
    /// The file is not kept open, and its path leads to no file, or to another one. Or the file was changed since it
    /// was registered.
    pub fn open(&self) -> io::Result<File> {
        let file = match &self.kept {
            KeptFile::Open(file) => file.try_clone()?,
            KeptFile::Copy(copy) => return copy.try_clone(),
            KeptFile::Nothing => self.root.open(self.named_path())?,
        };
        if FileState::of(&file.metadata()?) == self.state || self.has_same_build(&file) {
            return Ok(file);
        }
        Err(io::Error::other("the file is another one by now"))
    }

    fn has_same_build(&self, file: &File) -> bool {
        let id = ElfFile::open(file).ok().and_then(|elf| elf.build_id());
        id.is_some() && id == self.build_id
    }

    /// Whether only an open file leads to the content: the file has no name, and is not on any file system.
    fn is_nameless(&self) -> bool {
        self.path.ends_with(DELETED) || self.path.starts_with(MEMORY_FILE)
    }
}

/// A copy in memory of the first bytes of a file.
fn copy_of(file: &File, size: u64) -> io::Result<File> {
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    file_of(c"memleak-code", &bytes)
}

/// The modules of a run, by their numbers. It keeps their files open as long as its bound on descriptors allows.
#[derive(Debug)]
pub struct Modules {
    modules: Vec<Module>,
    numbers: HashMap<(FileState, Vec<u8>), u32>,
    /// Modules whose files are open: first those that can be opened again by their path. Within each kind, the first
    /// one is the one that was registered first.
    open: BTreeSet<(bool, u32)>,
    /// The most files that are kept open.
    limit: usize,
    /// The bytes that copies of files may still take.
    copies_left: u64,
    ours: Rc<Root>,
    /// The device of memleak's own root directory.
    our_device: Option<u64>,
    roots: HashMap<(u64, u64, u64), Rc<Root>>,
    not_kept: u64,
}

impl Modules {
    /// Keeps at most `limit` files open. The roots of processes, at most 256, come on top.
    pub fn new(limit: usize) -> Self {
        Self {
            modules: Vec::new(),
            numbers: HashMap::new(),
            open: BTreeSet::new(),
            limit,
            copies_left: MOST_COPIED,
            ours: Rc::new(Root::ours()),
            our_device: fs::metadata("/").ok().map(|root| root.dev()),
            roots: HashMap::new(),
            not_kept: 0,
        }
    }

    /// Registers a file that a process has mapped at `path`, below this root. Returns the module's number. The same file
    /// at the same path has the same number.
    ///
    /// # Errors
    /// The file's status cannot be read, or there are 65,536 modules already.
    pub fn add(&mut self, file: &File, path: &[u8], root: &Rc<Root>) -> io::Result<u32> {
        let key = (FileState::of(&file.metadata()?), path.to_vec());
        if let Some(&number) = self.numbers.get(&key) {
            return Ok(number);
        }
        if self.modules.len() >= MAX_MODULES {
            return Err(io::Error::other("there are too many modules"));
        }
        let number = u32::try_from(self.modules.len()).map_err(io::Error::other)?;
        let mut module = Module::new(number, file, path, Rc::clone(root))?;
        // Nobody can unmount memleak's own root directory, and a file in memory is on no file system.
        let is_in_memory = path.starts_with(MEMORY_FILE);
        if Some(module.state.device) != self.our_device && !is_in_memory {
            self.copies_left -= module.keep_a_copy(self.copies_left.min(MOST_OF_A_COPY));
        }
        self.open.insert((module.is_nameless(), number));
        self.modules.push(module);
        self.numbers.insert(key, number);
        self.close_some();
        Ok(number)
    }

    /// Closes files that are too many. Files that their path leads to are closed first.
    fn close_some(&mut self) {
        while self.open.len() > self.limit
            && let Some((nameless, number)) = self.open.pop_first()
        {
            self.not_kept += u64::from(nameless);
            if let Some(module) = self.modules.get_mut(number as usize) {
                module.kept = KeptFile::Nothing;
            }
        }
    }

    /// The module of this number.
    pub fn get(&self, number: u32) -> Option<&Module> {
        self.modules.get(number as usize)
    }

    pub fn len(&self) -> usize {
        self.modules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// How many files without a name could not be kept open. Their symbols cannot be read any more.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// memleak's own root directory.
    pub fn our_root(&self) -> Rc<Root> {
        Rc::clone(&self.ours)
    }

    /// The root directory of a process. Processes with the same root share it. Memleak's own root stands for roots that
    /// cannot be opened, and for those beyond the bound.
    pub fn root_of(&mut self, pid: u32) -> Rc<Root> {
        self.root_at(Path::new(&format!("/proc/{pid}/root")))
    }

    fn root_at(&mut self, path: &Path) -> Rc<Root> {
        let Ok(root) = Root::at(path) else {
            return Rc::clone(&self.ours);
        };
        let Some(key) = identity_of(&root) else {
            return Rc::clone(&self.ours);
        };
        if Root::at(Path::new("/")).ok().as_ref().and_then(identity_of) == Some(key) {
            return Rc::clone(&self.ours);
        }
        if let Some(known) = self.roots.get(&key) {
            return Rc::clone(known);
        }
        if self.roots.len() >= MAX_ROOTS {
            return Rc::clone(&self.ours);
        }
        let root = Rc::new(root);
        self.roots.insert(key, Rc::clone(&root));
        root
    }
}

/// The mount, device and inode of a root.
fn identity_of(root: &Root) -> Option<(u64, u64, u64)> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let directory = root.directory()?.as_fd();
    let status = statx(directory, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let device = u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor);
    Some((status.stx_mnt_id, device, status.stx_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn modules(limit: usize) -> (Modules, Rc<Root>) {
        (Modules::new(limit), Rc::new(Root::ours()))
    }

    fn text_of(module: &Module) -> Option<String> {
        let file = module.open().ok()?;
        let mut bytes = vec![0; 3];
        file.read_exact_at(&mut bytes, 0).ok()?;
        String::from_utf8(bytes).ok()
    }

    #[test]
    fn a_file_has_one_number_until_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let name = path.as_os_str().as_bytes();
        fs::write(&path, "one").unwrap();
        let (mut modules, root) = modules(10);
        let first = modules
            .add(&File::open(&path).unwrap(), name, &root)
            .unwrap();
        let again = modules
            .add(&File::open(&path).unwrap(), name, &root)
            .unwrap();
        assert_eq!((first, again, modules.len()), (0, 0, 1));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "other").unwrap();
        let other = modules
            .add(&File::open(&path).unwrap(), name, &root)
            .unwrap();
        assert_eq!(other, 1);
        assert_eq!(modules.get(1).unwrap().path(), name);
        assert!(modules.get(2).is_none());
    }

    #[test]
    fn beyond_the_limit_a_file_is_opened_again_only_if_it_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (mut modules, root) = modules(1);
        for name in ["one", "two", "six"] {
            let path = directory.path().join(name);
            fs::write(&path, name).unwrap();
            let file = File::open(&path).unwrap();
            modules
                .add(&file, path.as_os_str().as_bytes(), &root)
                .unwrap();
        }
        assert_eq!(modules.open.len(), 1);
        let text = |number| text_of(modules.get(number).unwrap());
        assert_eq!(text(0).unwrap(), "one");
        assert_eq!(text(2).unwrap(), "six");
        fs::write(directory.path().join("one"), "new").unwrap();
        assert_eq!(text(0), None);
        fs::remove_file(directory.path().join("two")).unwrap();
        assert_eq!(text(1), None);
        fs::remove_file(directory.path().join("six")).unwrap();
        // Removing its name changes the time of the last change, and the file has no build ID.
        assert_eq!(text(2), None);
        assert_eq!(modules.not_kept(), 0);
    }

    #[test]
    fn files_without_a_name_stay_open_longest() {
        let directory = tempfile::tempdir().unwrap();
        let (mut modules, root) = modules(2);
        let memory = file_of(c"code", b"mem").unwrap();
        modules
            .add(&memory, b"/memfd:code (deleted)", &root)
            .unwrap();
        for name in ["one", "two"] {
            let path = directory.path().join(name);
            fs::File::create(&path)
                .unwrap()
                .write_all(name.as_bytes())
                .unwrap();
            let file = File::open(&path).unwrap();
            modules
                .add(&file, path.as_os_str().as_bytes(), &root)
                .unwrap();
        }
        drop(memory);
        assert_eq!(text_of(modules.get(0).unwrap()).unwrap(), "mem");
        assert!(matches!(modules.get(1).unwrap().kept, KeptFile::Nothing));
        assert_eq!(modules.not_kept(), 0);
        for number in 0..3 {
            let memory = file_of(c"code", &[number]).unwrap();
            modules
                .add(&memory, b"/memfd:code (deleted)", &root)
                .unwrap();
        }
        assert_eq!(modules.not_kept(), 2);
    }

    #[test]
    fn of_a_file_on_another_file_system_a_copy_is_kept() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("one");
        fs::write(&path, "one").unwrap();
        let (mut modules, root) = modules(2);
        let name = path.as_os_str().as_bytes();
        modules
            .add(&File::open(&path).unwrap(), name, &root)
            .unwrap();
        fs::remove_file(&path).unwrap();
        let module = modules.get(0).unwrap();
        assert!(matches!(module.kept, KeptFile::Copy(_)));
        assert_eq!(text_of(module).unwrap(), "one");
        assert_eq!(modules.copies_left, MOST_COPIED - 3);
        modules.copies_left = 2;
        fs::write(&path, "two").unwrap();
        modules
            .add(&File::open(&path).unwrap(), name, &root)
            .unwrap();
        assert!(matches!(modules.get(1).unwrap().kept, KeptFile::Nothing));
    }

    #[test]
    fn a_build_stays_the_same_when_its_file_is_copied_or_unlinked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::copy("/proc/self/exe", &path).unwrap();
        let (mut modules, root) = modules(0);
        let name = path.as_os_str().as_bytes();
        modules
            .add(&File::open(&path).unwrap(), name, &root)
            .unwrap();
        let module = modules.get(0).unwrap();
        assert!(
            module.build_id().is_some_and(|id| id.len() > 7),
            "tests have a build ID"
        );
        assert!(module.shape().is_some());
        let other = directory.path().join("other");
        fs::copy(&path, &other).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(module.open().is_ok());
        fs::copy("/bin/sh", &path).unwrap();
        assert!(module.open().is_err());
    }

    #[test]
    fn processes_with_the_same_root_share_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut modules, _) = modules(1);
        let own = modules.root_of(std::process::id());
        assert!(Rc::ptr_eq(&own, &modules.ours));
        let inner = modules.root_at(directory.path());
        assert!(!Rc::ptr_eq(&inner, &own));
        assert!(Rc::ptr_eq(&inner, &modules.root_at(directory.path())));
        assert!(Rc::ptr_eq(&own, &modules.root_at(Path::new("/nowhere"))));
    }
}
