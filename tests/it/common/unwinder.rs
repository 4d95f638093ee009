//! Builds the library that records libgcc's stack of every allocation, and reads the files that it writes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use object::read::elf::{ElfFile64, ProgramHeader};
use serde::Deserialize;

use super::counter::{self, Image};
use super::fixtures::compile;

/// The functions that the library interposes.
const FAMILY: [&str; 10] = [
    "malloc",
    "calloc",
    "realloc",
    "memalign",
    "aligned_alloc",
    "valloc",
    "pvalloc",
    "posix_memalign",
    "free",
    "reallocarray",
];

const SOURCE: &str = "tests/unwinder/unwinder.c";

/// Builds the library to preload. Returns its path.
pub fn library() -> PathBuf {
    let flags = [
        "-O2",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wl,-z,now",
    ];
    compile(SOURCE, "unwinder.so", &flags)
}

/// The flags that link the same into a static program. They stand before the program's own source.
pub fn static_flags() -> Vec<String> {
    let object = compile(SOURCE, "unwinder.o", &["-O2", "-c", "-DSTATIC"]);
    let wrap = FAMILY.map(|function| format!("-Wl,--wrap={function}"));
    let object = object.to_str().expect("a path in target/ is text");
    ["-static".to_string(), object.to_string()]
        .into_iter()
        .chain(wrap)
        .collect()
}

/// A frame of a stack: where a call returns to, or where a signal interrupted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// The path of the file, without symbolic links. `None` for code in no file.
    pub module: Option<Arc<Path>>,
    /// The ELF address in the module, or the address in the process if there is no module.
    pub offset: u64,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.module {
            Some(module) => write!(f, "{}+{:#x}", module.display(), self.offset),
            None => write!(f, "{:#x}", self.offset),
        }
    }
}

/// Why libgcc's walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalkEnd {
    /// The last frame says that it has no caller.
    Complete,
    /// The code of the last frame has no rules in .eh_frame.
    NoRules,
    /// The last frame returns to the trampoline of a return probe.
    Probed,
    Broken,
    TooDeep,
}

/// A stack of one image, and what was allocated there.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The innermost frame first.
    pub frames: Vec<Frame>,
    /// The frames that a signal interrupted, by their index.
    pub interrupted: Vec<usize>,
    pub end: WalkEnd,
    pub sums: Sums,
}

/// What was allocated at a stack, and what of that was never freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Sums {
    pub alloc_count: u64,
    pub alloc_bytes: u64,
    pub leaked_blocks: u64,
    pub leaked_bytes: u64,
}

impl Sums {
    pub fn named(&self) -> [(&'static str, u64); 4] {
        [
            ("alloc_count", self.alloc_count),
            ("alloc_bytes", self.alloc_bytes),
            ("leaked_blocks", self.leaked_blocks),
            ("leaked_bytes", self.leaked_bytes),
        ]
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.alloc_count += other.alloc_count;
        self.alloc_bytes += other.alloc_bytes;
        self.leaked_blocks += other.leaked_blocks;
        self.leaked_bytes += other.leaked_bytes;
    }
}

/// A process image with its stacks.
#[derive(Clone, Debug)]
pub struct Unwound {
    pub image: Image,
    pub stacks: Vec<Stack>,
    /// The calls that libgcc made itself, and those before it could walk. They have no stack.
    pub unwalked: Sums,
    /// The build-ids of the modules that have one, in hexadecimal digits.
    pub build_ids: BTreeMap<Arc<Path>, String>,
}

/// Reads all images in `directory`, in the order of `counter::read`.
pub fn read(directory: &Path) -> Vec<Unwound> {
    let read_one = |image: Image| {
        let path = directory.join(format!("{}.{}.stacks", image.pid, image.start));
        let mut file = File::open(&path).expect("an image has a file of stacks");
        decode(&mut file, image).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    counter::read(directory).into_iter().map(read_one).collect()
}

/// The path without symbolic links, by which a file is known. The loader and the kernel may name it otherwise.
pub fn canonical(path: &Path) -> Arc<Path> {
    static KNOWN: LazyLock<Mutex<HashMap<PathBuf, Arc<Path>>>> = LazyLock::new(Mutex::default);
    if path == Path::new("linux-vdso.so.1") {
        return Path::new("[vdso]").into();
    }
    let mut known = KNOWN.lock().expect("no test panics here");
    let found = known
        .entry(path.to_path_buf())
        .or_insert_with(|| fs::canonicalize(path).unwrap_or(path.into()).into());
    Arc::clone(found)
}

/// An object that the loader knows. Offsets are ELF addresses.
const OBJECT: u32 = 1;
/// A file that was mapped by hand. Offsets are in the file.
const MAPPED: u32 = 2;

/// The words of `struct stacks` in tests/unwinder/unwinder.c, and the sizes of its parts.
const MAGIC: u64 = 0x3164_6e69_776e_756d;
const HEADER: usize = 48;
const SLOTS: usize = 1 << 18;
const MODULE: usize = 288;
const STACK: usize = 48;
const EXACT: u64 = 1 << 47;
const MODULE_SHIFT: u32 = 48;

struct Bytes(Vec<u8>);

impl Bytes {
    fn get(&self, at: usize, length: usize) -> Result<&[u8], String> {
        self.0
            .get(at..at + length)
            .ok_or_else(|| format!("the file ends before {at} + {length}"))
    }

    fn word(&self, at: usize) -> Result<u64, String> {
        let bytes = self.get(at, 8)?.try_into().expect("eight bytes");
        Ok(u64::from_ne_bytes(bytes))
    }

    fn half(&self, at: usize) -> Result<u32, String> {
        let bytes = self.get(at, 4)?.try_into().expect("four bytes");
        Ok(u32::from_ne_bytes(bytes))
    }
}

struct Module {
    kind: u32,
    path: Arc<Path>,
    build_id: String,
}

fn size(n: impl TryInto<usize>) -> Result<usize, String> {
    n.try_into().map_err(|_| "a size is too large".to_string())
}

/// Decodes `struct stacks` of tests/unwinder/unwinder.c.
pub fn decode(file: &mut impl Read, image: Image) -> Result<Unwound, String> {
    let mut bytes = Vec::new();
    let mut read_to = |end: u64, bytes: &mut Vec<u8>| {
        let more = end.saturating_sub(bytes.len() as u64);
        file.take(more)
            .read_to_end(bytes)
            .map_err(|e| e.to_string())
    };
    read_to(HEADER as u64, &mut bytes)?;
    let header = Bytes(bytes.clone());
    if header.word(0)? != MAGIC {
        return Err("the file is not finished".to_string());
    }
    // The file is large, but nothing is behind what is used.
    read_to(header.word(8)?, &mut bytes)?;
    let bytes = Bytes(bytes);
    if bytes.word(16)? != 0 {
        let calls = bytes.word(16)?;
        return Err(format!("the file was too small for {calls} calls"));
    }
    let first_module = HEADER + SLOTS * 4;
    let modules = (0..size(bytes.half(40)?)?)
        .map(|n| module(&bytes, first_module + n * MODULE))
        .collect::<Result<Vec<_>, _>>()?;
    let mut stacks = Vec::new();
    for slot in 0..SLOTS {
        let place = size(bytes.half(HEADER + slot * 4)?)? * 8;
        if place != 0 {
            stacks.push(stack(&bytes, place, &modules)?);
        }
    }
    let build_ids = modules
        .iter()
        .filter(|module| module.kind == OBJECT && !module.build_id.is_empty())
        .map(|module| (Arc::clone(&module.path), module.build_id.clone()))
        .collect();
    Ok(Unwound {
        image,
        stacks,
        unwalked: Sums {
            alloc_count: bytes.word(24)?,
            alloc_bytes: bytes.word(32)?,
            ..Sums::default()
        },
        build_ids,
    })
}

fn module(bytes: &Bytes, at: usize) -> Result<Module, String> {
    let id = size(bytes.half(at + 4)?)?;
    let path = bytes.get(at + 32, 256)?.split(|&b| b == 0).next();
    let path = String::from_utf8_lossy(path.unwrap_or_default()).into_owned();
    let build_id = bytes.get(at + 8, id)?;
    Ok(Module {
        kind: bytes.half(at)?,
        path: canonical(Path::new(&path)),
        build_id: build_id.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

fn stack(bytes: &Bytes, at: usize, modules: &[Module]) -> Result<Stack, String> {
    let mut frames = Vec::new();
    let mut interrupted = Vec::new();
    for n in 0..size(bytes.half(at + 44)?)? {
        let word = bytes.word(at + STACK + n * 8)?;
        if word & EXACT != 0 {
            interrupted.push(n);
        }
        let offset = word & (EXACT - 1);
        frames.push(match size(word >> MODULE_SHIFT)? {
            0 => Frame {
                module: None,
                offset,
            },
            n => {
                let module = modules.get(n - 1).ok_or("a frame has an unknown module")?;
                let offset = match module.kind {
                    OBJECT => offset,
                    MAPPED => address_of(&module.path, offset)?,
                    kind => return Err(format!("a module has the unknown kind {kind}")),
                };
                Frame {
                    module: Some(Arc::clone(&module.path)),
                    offset,
                }
            }
        });
    }
    Ok(Stack {
        frames,
        interrupted,
        end: match bytes.half(at + 40)? {
            0 => WalkEnd::Complete,
            1 => WalkEnd::NoRules,
            2 => WalkEnd::Probed,
            3 => WalkEnd::Broken,
            4 => WalkEnd::TooDeep,
            other => return Err(format!("a walk has the unknown end {other}")),
        },
        sums: Sums {
            alloc_count: bytes.word(at + 8)?,
            alloc_bytes: bytes.word(at + 16)?,
            leaked_blocks: bytes.word(at + 24)?,
            leaked_bytes: bytes.word(at + 32)?,
        },
    })
}

/// The ELF address of a place in a file.
fn address_of(path: &Path, offset: u64) -> Result<u64, String> {
    let data = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let elf: ElfFile64 = ElfFile64::parse(&*data).map_err(|error| error.to_string())?;
    let endian = elf.endian();
    elf.elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == object::elf::PT_LOAD)
        .find_map(|header| {
            let within = offset.checked_sub(header.p_offset(endian))?;
            (within < header.p_filesz(endian)).then(|| header.p_vaddr(endian) + within)
        })
        .ok_or_else(|| format!("{}: no segment has {offset:#x}", path.display()))
}
