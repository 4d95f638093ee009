//! The interposing counter: builds it, and reads the files that it leaves.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Counts, compile};

/// What begins an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Exec,
    Fork,
}

/// What the counter counted in one process image.
#[derive(Clone, Debug)]
pub struct Image {
    /// As the process itself sees it: in its own pid namespace.
    pub pid: u32,
    pub kind: Kind,
    /// When the counter first saw the image, in nanoseconds (CLOCK_MONOTONIC).
    pub start: u64,
    pub comm: String,
    pub exe: PathBuf,
    pub counts: Counts,
}

/// The preloadable library.
pub fn library() -> PathBuf {
    compile(
        "tests/counter/counter.c",
        "counter.so",
        &[
            "-O2",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-Wl,-z,now",
        ],
    )
}

/// The program `preload LIBRARY DIRECTORY COMMAND [ARGS]…`, which executes the command under the counter and
/// calls no allocator itself.
pub fn preload() -> PathBuf {
    compile("tests/counter/preload.c", "preload", &["-O1"])
}

/// All images whose files are in `directory`: by pid, and within a pid in the order in which they ran.
pub fn read(directory: &Path) -> Vec<Image> {
    let mut images: Vec<_> = directory
        .read_dir()
        .expect("the counter's directory can be listed")
        .map(|entry| {
            let path = entry.expect("the counter's directory can be listed").path();
            let bytes = fs::read(&path).expect("a counter file can be read");
            decode(&bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
        })
        .collect();
    images.sort_by_key(|image| (image.pid, image.start));
    images
}

/// Decodes `struct image` of tests/counter/counter.c.
fn decode(bytes: &[u8]) -> Result<Image, String> {
    const MAGIC: u64 = 0x3174_6e75_6f63_6c6d;
    const COMM: usize = 96;
    const EXE: usize = 112;
    const SIZE: usize = 368;

    if bytes.len() != SIZE {
        return Err(format!("has {} bytes, not {SIZE}", bytes.len()));
    }
    let word = |i: usize| {
        let bytes = bytes[i * 8..i * 8 + 8].try_into().expect("eight bytes");
        u64::from_ne_bytes(bytes)
    };
    let text = |range: std::ops::Range<usize>| {
        let bytes = bytes[range].split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    if word(0) != MAGIC {
        return Err("was never finished".to_string());
    }
    if word(11) != 0 {
        return Err(format!(
            "the counter's table was too small for {} blocks",
            word(11)
        ));
    }
    Ok(Image {
        pid: u32::try_from(word(1)).map_err(|e| e.to_string())?,
        kind: match word(2) {
            0 => Kind::Exec,
            1 => Kind::Fork,
            other => return Err(format!("an image of kind {other}")),
        },
        start: word(3),
        comm: text(COMM..EXE),
        exe: text(EXE..SIZE).into(),
        counts: Counts {
            total_allocs_bytes: word(4),
            alloc_count: word(5),
            free_count: word(6),
            leaked_bytes: word(7),
            leaked_blocks: word(8),
            failed_allocs: word(9),
            unknown_frees: word(10),
        },
    })
}
