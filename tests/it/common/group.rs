//! Control groups of version 2, in which tests run processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::newcomers::run;

/// A control group that belongs to one test.
pub struct Group {
    pub path: PathBuf,
    mount: Option<TempDir>,
}

impl Group {
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let mounted = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let path = words.next()?;
            (words.next() == Some("cgroup2")).then(|| PathBuf::from(path))
        });
        let (root, mount) = match mounted {
            Some(root) => (root, None),
            None => {
                let mount = TempDir::new().expect("a temporary directory can be created");
                run(Command::new("mount")
                    .args(["-t", "cgroup2", "none"])
                    .arg(mount.path()));
                (mount.path().to_owned(), Some(mount))
            }
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("memleak-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("control groups can be created");
        Self { path, mount }
    }

    /// Words to put in front of a command: a shell enters the group at `path` and executes the command.
    pub fn enter(path: &Path) -> [String; 4] {
        let script = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        [
            "sh",
            "-c",
            script,
            path.to_str().expect("the path is UTF-8"),
        ]
        .map(str::to_owned)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.path.join("below"));
        let _ = fs::remove_dir(&self.path);
        if let Some(mount) = &self.mount {
            let _ = Command::new("umount").arg("-l").arg(mount.path()).status();
        }
    }
}
