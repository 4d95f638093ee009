//! Looks up libraries in the bytes of `/etc/ld.so.cache`, as glibc's loader does for a name without a path. Pure: the
//! file is read by `loader`.
//!
//! The format is `struct cache_file_new` of glibc's `sysdeps/generic/dl-cache.h`. Older files have it behind a table
//! in the previous format.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// The flags of an entry for an ELF library of this machine and libc6 (`_DL_CACHE_DEFAULT_ID`).
#[cfg(target_arch = "x86_64")]
const FLAGS: u32 = 0x0303;
#[cfg(target_arch = "aarch64")]
const FLAGS: u32 = 0x0a03;

/// A bit of an entry's hwcap word. If it is set, the low 32 bits are the index of a subdirectory's name
/// (`DL_CACHE_HWCAP_EXTENSION`).
const HAS_SUBDIRECTORY: u64 = 1 << 62;

/// The offset in the header of the word that says where the extensions begin.
const EXTENSIONS: usize = 32;
/// The first word of the extensions.
const EXTENSIONS_MAGIC: u32 = 0xeaa4_2174;
/// The extension that holds the names of subdirectories (`cache_extension_tag_glibc_hwcaps`).
const SUBDIRECTORIES: u32 = 1;

/// The path that the cache gives for `soname`. `None` if it gives none, or if the bytes are not a cache.
///
/// `hwcaps` are the subdirectories of `glibc-hwcaps` with variants that this processor can run, best first.
pub fn look_up(cache: &[u8], soname: &[u8], hwcaps: &[&str]) -> Option<PathBuf> {
    let cache = current_format(cache)?;
    let entries = usize::try_from(word(cache, MAGIC.len())?).ok()?;
    let names = subdirectories(cache);
    let rank = |entry: &[u8]| match double_word(entry, 16)? {
        0 => Some(hwcaps.len()),
        hwcap if hwcap & HAS_SUBDIRECTORY != 0 => {
            let index = usize::try_from(hwcap as u32).ok()?;
            let at = word(names?, index.checked_mul(4)?)?;
            hwcaps
                .iter()
                .position(|known| is_at(cache, at, known.as_bytes()))
        }
        // Variants in the format of glibc before 2.33. Which processors they are for is unknown here.
        _ => None,
    };
    (0..entries)
        .map_while(|n| {
            n.checked_mul(ENTRY)?
                .checked_add(HEADER)
                .and_then(|at| cache.get(at..at.checked_add(ENTRY)?))
        })
        .filter(|entry| word(entry, 0) == Some(FLAGS))
        .filter(|entry| word(entry, 4).is_some_and(|at| is_at(cache, at, soname)))
        .filter_map(|entry| Some((rank(entry)?, entry)))
        .min_by_key(|(rank, _)| *rank)
        .and_then(|(_, entry)| string(cache, word(entry, 8)?))
        .map(|path| Path::new(OsStr::from_bytes(path)).to_owned())
}

/// The offsets of the subdirectories' names, one word each.
fn subdirectories(cache: &[u8]) -> Option<&[u8]> {
    let at = usize::try_from(word(cache, EXTENSIONS)?).ok()?;
    let extensions = cache.get(at..).filter(|_| at != 0)?;
    if word(extensions, 0)? != EXTENSIONS_MAGIC {
        return None;
    }
    let count = usize::try_from(word(extensions, 4)?).ok()?;
    // Each extension has a tag, flags, an offset in the cache, and a size.
    let names = extensions
        .get(8..)?
        .chunks_exact(16)
        .take(count)
        .find(|extension| word(extension, 0) == Some(SUBDIRECTORIES))?;
    let start = usize::try_from(word(names, 8)?).ok()?;
    let size = usize::try_from(word(names, 12)?).ok()?;
    cache.get(start..start.checked_add(size)?)
}

/// The part of a cache that is in the current format.
fn current_format(cache: &[u8]) -> Option<&[u8]> {
    if cache.starts_with(MAGIC) {
        return Some(cache);
    }
    if !cache.starts_with(OLD_MAGIC) {
        return None;
    }
    // The old format: its magic padded to 12 bytes, a count, and 12 bytes an entry. The new one is aligned to 8.
    let old_entries = usize::try_from(word(cache, 12)?).ok()?;
    let at = old_entries
        .checked_mul(12)?
        .checked_add(16)?
        .next_multiple_of(8);
    cache.get(at..).filter(|rest| rest.starts_with(MAGIC))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn double_word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The string at this offset in the cache.
fn string(cache: &[u8], at: u32) -> Option<&[u8]> {
    cache
        .get(usize::try_from(at).ok()?..)?
        .split(|&byte| byte == 0)
        .next()
}

/// Whether the string at this offset is `text`. Does not search for the string's end, which may be far away for a
/// million entries.
fn is_at(cache: &[u8], at: u32, text: &[u8]) -> bool {
    let rest = usize::try_from(at).ok().and_then(|at| cache.get(at..));
    let rest = rest.and_then(|rest| rest.strip_prefix(text));
    rest.is_some_and(|rest| rest.first().is_none_or(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with one entry for each (flags, hwcap, soname, path).
    fn cache(libraries: &[(u32, u64, &str, &str)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((libraries.len() as u32).to_ne_bytes());
        bytes.resize(HEADER, 0);
        let mut strings = Vec::new();
        let base = HEADER + libraries.len() * ENTRY;
        for (flags, hwcap, soname, path) in libraries {
            bytes.extend(flags.to_ne_bytes());
            for text in [soname, path] {
                bytes.extend(((base + strings.len()) as u32).to_ne_bytes());
                strings.extend(text.bytes().chain([0]));
            }
            bytes.extend(0_u32.to_ne_bytes());
            bytes.extend(hwcap.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn the_entry_of_this_machine_is_taken() {
        let cache = cache(&[
            (0x0003, 0, "libc.so.6", "/lib32/libc.so.6"),
            (FLAGS, 1, "libc.so.6", "/lib/hwcaps/libc.so.6"),
            (FLAGS, 0, "libc.so.6", "/lib/libc.so.6"),
        ]);
        assert_eq!(
            look_up(&cache, b"libc.so.6", &[]),
            Some(PathBuf::from("/lib/libc.so.6"))
        );
        assert_eq!(look_up(&cache, b"libm.so.6", &[]), None);
    }

    #[test]
    fn the_best_variant_for_the_processor_is_taken() {
        let entry = |hwcap, path| (FLAGS, hwcap, "libx.so", path);
        let mut cache = cache(&[
            entry(HAS_SUBDIRECTORY | 1, "/v3"),
            entry(HAS_SUBDIRECTORY, "/v2"),
            entry(0, "/any"),
            entry(HAS_SUBDIRECTORY | 9, "/beyond"),
        ]);
        let names = cache.len() as u32;
        cache.extend(b"x86-64-v2\0x86-64-v3\0\0\0");
        let indices = cache.len() as u32;
        cache.extend([names, names + 10].iter().flat_map(|at| at.to_ne_bytes()));
        let extensions = cache.len() as u32;
        for word in [EXTENSIONS_MAGIC, 1, SUBDIRECTORIES, 0, indices, 8] {
            cache.extend(word.to_ne_bytes());
        }
        cache[EXTENSIONS..EXTENSIONS + 4].copy_from_slice(&extensions.to_ne_bytes());
        let found = |hwcaps: &[&str]| look_up(&cache, b"libx.so", hwcaps).unwrap();
        assert_eq!(found(&["x86-64-v3", "x86-64-v2"]), Path::new("/v3"));
        assert_eq!(found(&["x86-64-v2"]), Path::new("/v2"));
        assert_eq!(found(&[]), Path::new("/any"));
        for length in 0..cache.len() {
            look_up(&cache[..length], b"libx.so", &["x86-64-v2"]);
        }
    }

    #[test]
    fn a_cache_behind_one_in_the_old_format_is_found() {
        let mut old = OLD_MAGIC.to_vec();
        old.push(0);
        old.extend(1_u32.to_ne_bytes());
        old.extend([0; 12]);
        old.resize(32, 0);
        let start = old.len();
        let new = cache(&[(FLAGS, 0, "libc.so.6", "/lib/libc.so.6")]);
        assert_eq!(start % 8, 0);
        old.extend(new);
        assert_eq!(
            look_up(&old, b"libc.so.6", &[]),
            Some(PathBuf::from("/lib/libc.so.6"))
        );
    }

    #[test]
    fn a_damaged_cache_causes_no_panic() {
        let whole = cache(&[(FLAGS, 0, "libc.so.6", "/lib/libc.so.6")]);
        for length in 0..whole.len() {
            look_up(&whole[..length], b"libc.so.6", &[]);
        }
        let mut many = whole;
        many[MAGIC.len()..MAGIC.len() + 4].fill(0xff);
        look_up(&many, b"libm.so.6", &[]);
    }

    #[test]
    fn a_cache_made_to_be_slow_is_searched_quickly() {
        // The names of all entries are the same string, which is long and has no end.
        let entry = (FLAGS, 0, "", "");
        let mut cache = cache(&vec![entry; 50_000]);
        let place = (cache.len() as u32).to_ne_bytes();
        cache.resize(cache.len() + (1 << 20), b'x');
        for n in 0..50_000 {
            let at = HEADER + n * ENTRY + 4;
            cache[at..at + 4].copy_from_slice(&place);
        }
        let began = std::time::Instant::now();
        assert_eq!(look_up(&cache, b"xxx", &[]), None);
        assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
    }

    #[test]
    fn the_cache_of_this_system_has_its_c_library() {
        let Ok(cache) = std::fs::read("/etc/ld.so.cache") else {
            return;
        };
        assert!(look_up(&cache, b"libc.so.6", &[]).is_some_and(|path| path.is_file()));
    }
}
