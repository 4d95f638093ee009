//! Control groups, in which tests run processes.

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
    /// A group of version 2.
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
        Self {
            path: create_in(&root),
            mount,
        }
    }

    /// A group with a limit of a controller: of version 1 where the controller is mounted so. Each version has a name and
    /// a value of its own for the limit.
    pub fn limited(controller: &str, first: (&str, &str), second: (&str, &str)) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let mounted = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let is_it = words[2] == "cgroup" && words[3].split(',').any(|word| word == controller);
            is_it.then(|| create_in(Path::new(words[1])))
        });
        let (group, (name, value)) = match mounted {
            Some(path) => (Self { path, mount: None }, first),
            None => (Self::new(), second),
        };
        // Version 1 has no such file. In version 2 the controller may be on already.
        let parent = group.path.parent().expect("it is in the root's");
        let _ = fs::write(
            parent.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
        fs::write(group.path.join(name), value)
            .unwrap_or_else(|error| panic!("{controller} cannot be limited: {error}"));
        group
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

/// Creates a group that no other test has.
fn create_in(root: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = root.join(format!("memleak-test-{}-{number}", std::process::id()));
    fs::create_dir(&path).expect("control groups can be created");
    path
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
