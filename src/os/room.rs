//! How much memory memleak may take without harm to others: what its control groups and the machine have left.

use std::fs;
use std::path::{Path, PathBuf};

/// The files of a control group in which memory has a limit: the limit, the use, and where of that is named what the
/// kernel could drop.
struct GroupFiles {
    limit: &'static str,
    used: &'static str,
    dropped: [&'static str; 2],
}

const VERSION_2: GroupFiles = GroupFiles {
    limit: "memory.max",
    used: "memory.current",
    dropped: ["active_file ", "inactive_file "],
};

const VERSION_1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    dropped: ["total_active_file ", "total_inactive_file "],
};

/// The bytes of memory that are left: the least of what the machine and each of memleak's control groups have. A group
/// whose files cannot be read has no limit.
pub fn memory_left() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let groups = directories(&groups, &mounts).into_iter();
    let left = groups.filter_map(|(directory, top, names)| least_left(&directory, &top, &names));
    left.chain(machine_left()).min().unwrap_or(u64::MAX)
}

/// memleak's control groups that can limit memory, each with the root of its tree. `groups` and `mounts` are the files
/// of these names in /proc/self.
fn directories(groups: &str, mounts: &str) -> Vec<(PathBuf, PathBuf, GroupFiles)> {
    let mut found = Vec::new();
    for mount in mounts.lines() {
        let words: Vec<&str> = mount.split(' ').collect();
        let &[_, at, kind, options, ..] = &words[..] else {
            continue;
        };
        let names = match kind {
            "cgroup2" => VERSION_2,
            "cgroup" if options.split(',').any(|option| option == "memory") => VERSION_1,
            _ => continue,
        };
        let own = groups.lines().find_map(|group| {
            let (controllers, path) = group.split_once(':')?.1.split_once(':')?;
            let is_own = match kind {
                "cgroup2" => controllers.is_empty(),
                _ => controllers.split(',').any(|one| one == "memory"),
            };
            is_own.then_some(path)
        });
        let top = PathBuf::from(at);
        if let Some(own) = own {
            // From within a namespace, a path outside of it begins with "/..".
            let below = own.trim_start_matches("/..").trim_start_matches('/');
            found.push((top.join(below), top, names));
        }
    }
    found
}

/// The least that a group or one of those above it has left.
fn least_left(directory: &Path, top: &Path, names: &GroupFiles) -> Option<u64> {
    let groups = directory.ancestors();
    let groups = groups.take_while(|group| group.starts_with(top));
    groups.filter_map(|group| left(group, names)).min()
}

fn left(group: &Path, names: &GroupFiles) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    // Without a limit it is a word, or more than any machine has.
    let (limit, used) = (number(names.limit)?, number(names.used)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let dropped = stat.lines().filter_map(|line| {
        let value = names
            .dropped
            .iter()
            .find_map(|name| line.strip_prefix(name))?;
        value.parse::<u64>().ok()
    });
    Some(limit.saturating_sub(used.saturating_sub(dropped.sum())))
}

fn machine_left() -> Option<u64> {
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_are_those_of_memleak_in_their_trees() {
        let of = |groups: &str, mounts: &str| -> Vec<String> {
            let found = directories(groups, mounts).into_iter();
            found
                .map(|(group, ..)| group.display().to_string())
                .collect()
        };
        let second = "none /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(of("0::/a/b\n", second), ["/sys/fs/cgroup/a/b"]);
        assert_eq!(of("0::/\n", second), ["/sys/fs/cgroup/"]);
        assert_eq!(of("0::/../c\n", second), ["/sys/fs/cgroup/c"]);
        let first = "none /x/cpu cgroup rw,cpu 0 0\nnone /x/mem cgroup rw,memory 0 0\n";
        let groups = "3:memory:/a\n2:cpu:/b\n0::/\n";
        assert_eq!(of(groups, first), ["/x/mem/a"]);
        assert!(of(groups, "tmpfs /tmp tmpfs rw 0 0\n").is_empty());
        assert!(of("", second).is_empty());
    }

    #[test]
    fn the_least_of_all_groups_counts_without_what_could_be_dropped() {
        let top = tempfile::tempdir().unwrap();
        let below = top.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        let write = |group: &Path, limit: &str, used: &str, stat: &str| {
            fs::write(group.join("memory.max"), limit).unwrap();
            fs::write(group.join("memory.current"), used).unwrap();
            fs::write(group.join("memory.stat"), stat).unwrap();
        };
        let least = || least_left(&below, top.path(), &VERSION_2);
        assert_eq!(least(), None);
        write(&below, "max\n", "5\n", "");
        assert_eq!(least(), None);
        write(
            &top.path().join("a"),
            "1000\n",
            "900\n",
            "anon 5\nactive_file 300\n",
        );
        assert_eq!(least(), Some(400));
        write(
            &below,
            "500\n",
            "600\n",
            "inactive_file 50\nactive_file 10\n",
        );
        assert_eq!(least(), Some(0));
    }

    #[test]
    fn a_machine_has_memory() {
        assert!(memory_left() > 1 << 20);
    }
}
