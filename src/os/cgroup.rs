//! Control groups (version 2).

use std::fs::{self, File};
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
