//! Control groups (version 2).

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::text::escape;

/// A control group (version 2), as the kernel identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub id: u64,
    /// The group's depth below the root.
    pub level: u32,
}

/// Where the tree of control groups is mounted, in the order of how usual that is.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Where there is a tree of control groups of version 2 that `--cgroup` can name.
pub fn cgroup_tree() -> Option<&'static Path> {
    let mut mounts = MOUNTS.iter().map(Path::new);
    mounts.find(|mount| matches!(place(mount), Ok(Some(_))))
}

/// The control group of a path: that of its directory, or as /proc/PID/cgroup has it.
pub fn cgroup(given: &Path) -> Result<Cgroup> {
    let name = escape::escaped(given.as_os_str().as_encoded_bytes());
    let below = given.strip_prefix("/").unwrap_or(given);
    let mut paths = vec![given.to_owned()];
    paths.extend(MOUNTS.map(|mount| PathBuf::from(mount).join(below)));
    let mut found = Err(anyhow!("there is no such directory"));
    for path in paths {
        match place(&path) {
            Ok(Some(place)) => return Ok(place),
            Ok(None) => found = Err(anyhow!("it is not a control group of version 2")),
            Err(_) => {}
        }
    }
    found.with_context(|| {
        format!("--cgroup {name} (a directory below /sys/fs/cgroup, or what /proc/PID/cgroup shows after 0::)")
    })
}

/// What the kernel knows a directory by, if it is a control group.
fn place(path: &Path) -> Result<Option<Cgroup>> {
    let path = fs::canonicalize(path)?;
    let directory = File::open(&path)?;
    let metadata = directory.metadata()?;
    if fstatfs(&directory)?.filesystem_type() != CGROUP2_SUPER_MAGIC || !metadata.is_dir() {
        return Ok(None);
    }
    // The root of the tree is where the file system begins, or seems to from within a namespace.
    let device = metadata.dev();
    let above = path
        .ancestors()
        .skip(1)
        .take_while(|above| fs::metadata(above).is_ok_and(|above| above.dev() == device))
        .count();
    ensure!(above < 256, "it lies too deep");
    Ok(Some(Cgroup {
        id: metadata.ino(),
        level: above as u32,
    }))
}

/// How many groups are looked at. A user may have made any number.
const MOST_PATHS: usize = 16_384;

/// The paths of control groups by their numbers, as the trees have them now.
pub fn paths() -> HashMap<u64, String> {
    let mut found = HashMap::new();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(root), Some("cgroup2")) = (words.next(), words.next()) {
            let mut path = String::new();
            add_paths(Path::new(root), &mut path, 0, &mut found);
        }
    }
    found
}

/// How deep a tree is looked at.
const DEEPEST: usize = 64;

/// Adds a group at `path` in its tree and those below it. What vanishes meanwhile is left out.
fn add_paths(directory: &Path, path: &mut String, depth: usize, found: &mut HashMap<u64, String>) {
    if let Ok(metadata) = fs::metadata(directory) {
        let shown = if path.is_empty() { "/" } else { path.as_str() };
        found
            .entry(metadata.ino())
            .or_insert_with(|| shown.to_owned());
    }
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if depth == DEEPEST || found.len() >= MOST_PATHS {
            return;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let length = path.len();
            path.push('/');
            path.push_str(&escape::text(entry.file_name().as_bytes()));
            add_paths(&entry.path(), path, depth + 1, found);
            path.truncate(length);
        }
    }
}

/// The paths of this process's control groups, in all trees.
pub fn own_paths() -> Vec<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.map(str::to_owned).collect()
}
