//! Builds the interposing counter, and reads the files that the counter writes.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Counts, compile};

/// The kind of system call that began an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Exec,
    Fork,
}

/// One process image and its counts, as the counter wrote them.
#[derive(Clone, Debug)]
pub struct Image {
    /// The pid in the process's own pid namespace.
    pub pid: u32,
    pub kind: Kind,
    /// The time at which the counter first saw the image, in nanoseconds (CLOCK_MONOTONIC).
    pub start: u64,
    pub comm: String,
    pub exe: PathBuf,
    pub counts: Counts,
}

/// Builds the library to preload. Returns its path.
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

/// Builds the program `preload LIBRARY DIRECTORY COMMAND [ARGS]…`. The program executes the command under the counter
/// and calls no allocator itself.
pub fn preload() -> PathBuf {
    compile("tests/counter/preload.c", "preload", &["-O1"])
}

/// Reads the images of all files in `directory`, without the files of their stacks. Sorts them by pid, and the images
/// of one pid in the order in which they ran.
pub fn read(directory: &Path) -> Vec<Image> {
    let mut images: Vec<_> = directory
        .read_dir()
        .expect("the counter's directory can be listed")
        .map(|entry| entry.expect("the counter's directory can be listed").path())
        .filter(|path| path.extension() != Some("stacks".as_ref()))
        .map(|path| {
            let bytes = fs::read(&path).expect("a counter file can be read");
            decode(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
        return Err(format!("the file has {} bytes, not {SIZE}", bytes.len()));
    }
    let word = |i: usize| {
        let bytes = bytes[i * 8..i * 8 + 8]
            .try_into()
            .expect("the slice has eight bytes");
        u64::from_ne_bytes(bytes)
    };
    let text = |range: std::ops::Range<usize>| {
        let bytes = bytes[range].split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    if word(0) != MAGIC {
        return Err("the file is not finished".to_string());
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
            other => return Err(format!("the image has the unknown kind {other}")),
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
