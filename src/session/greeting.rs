//! What `-p` and `-a` say when they begin: on a terminal what is watched, when it is reported, and how to stop. And
//! what `-a` will not see, because memleak has not the rights for it.

use std::time::Duration;

use crate::options::watch::{Filters, Watch};
use crate::os::capabilities::{
    CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, Capabilities,
};
use crate::os::processes::Process;
use crate::text::escape;
use crate::text::units::counted;

/// So many processes are named. The others are counted.
const MOST_NAMED: usize = 3;

/// A process of `-p`.
struct Named {
    pid: u32,
    comm: Vec<u8>,
}

/// The line that says what is watched. `children`: how many children the processes already have. `stop`: how to stop.
pub(super) fn greeting(
    options: &Watch,
    processes: &[Process],
    children: usize,
    stop: &str,
) -> String {
    let named = processes.iter().map(|process| Named {
        pid: process.pid,
        comm: process.comm(),
    });
    let mut whom = match options.all {
        true => "every process".to_owned(),
        false => tree(&named.collect::<Vec<_>>(), children, !options.no_children),
    };
    let filters = filters(&options.filters);
    if !filters.is_empty() {
        whom = format!("{whom} ({})", filters.join(", "));
    }
    line(&whom, options.every(), options.live, stop)
}

fn line(whom: &str, every: Duration, live: bool, stop: &str) -> String {
    let every = every.as_secs_f64();
    let running = if live { " and what runs" } else { "" };
    format!("watching {whom}; every {every} s, what has ended{running}; {stop}")
}

/// The named processes, with their children.
fn tree(named: &[Named], children: usize, follows: bool) -> String {
    let mut whom: Vec<String> = named
        .iter()
        .take(MOST_NAMED)
        .map(|process| format!("{}[{}]", escape::escaped(&process.comm), process.pid))
        .collect();
    if named.len() > MOST_NAMED {
        whom.push(format!("{} more", named.len() - MOST_NAMED));
    }
    let counted = counted(children as u64, "child", "children");
    if follows && children > 0 {
        whom.push(counted);
        return listed(&whom);
    }
    let whom = listed(&whom);
    match (children, named.len()) {
        (0, _) => whom,
        (_, 1) => format!("{whom} without its {counted}"),
        _ => format!("{whom} without their {counted}"),
    }
}

/// `a`, `a and b`, `a, b and c`
fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [item] => item.clone(),
        [items @ .., last] => format!("{} and {last}", items.join(", ")),
    }
}

/// What the filters choose, in words.
fn filters(filters: &Filters) -> Vec<String> {
    let text = |text: &str| escape::escaped(text.as_bytes());
    let users = filters.user_name.iter().map(|name| text(name));
    let users = users.chain(filters.uid.iter().map(ToString::to_string));
    let users: Vec<_> = users.map(|user| format!("of user {user}")).collect();
    let names = filters.comm.iter().map(|glob| {
        let not = if glob.excludes() { "not " } else { "" };
        format!("{not}named {}", text(glob.pattern()))
    });
    let groups = filters.cgroup.iter();
    let groups = groups.map(|path| format!("in control group {}", path.display()));
    let least = filters.min_leak;
    let least = least.map(|bytes| format!("with at least {bytes} bytes"));
    users
        .into_iter()
        .chain(names)
        .chain(groups)
        .chain(least)
        .collect()
}

/// What a memleak with these capabilities cannot examine of all processes, and what to do. `None`: it can examine all.
pub(super) fn unreadable(own: Capabilities) -> Option<String> {
    let may_find = own.has(CAP_SYS_PTRACE);
    let may_read = own.has(CAP_DAC_READ_SEARCH) || own.has(CAP_DAC_OVERRIDE);
    let (missing, what) = match (may_find, may_read) {
        (true, true) => return None,
        (false, _) => (
            "CAP_SYS_PTRACE",
            "the files of other users' processes, or of those with more rights",
        ),
        (true, false) => (
            "CAP_DAC_READ_SEARCH",
            "files that only their own user may read",
        ),
    };
    let both = match (may_find, may_read) {
        (false, false) => " and CAP_DAC_READ_SEARCH",
        _ => "",
    };
    Some(format!(
        "without {missing}{both}, memleak cannot examine {what}: such processes are 'unexamined' (run memleak as root \
         with this right)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(all: &[(&str, u32)]) -> Vec<Named> {
        let named = |&(comm, pid): &(&str, u32)| Named {
            pid,
            comm: comm.as_bytes().to_vec(),
        };
        all.iter().map(named).collect()
    }

    #[test]
    fn a_right_to_examine_that_is_missing_is_named() {
        let said = |has: &[u32]| {
            let bits = has.iter().map(|number| 1 << number);
            unreadable(Capabilities {
                effective: bits.fold(0, |set: u64, bit: u64| set | bit),
                ..Capabilities::default()
            })
        };
        for (has, begins) in [
            (
                &[CAP_SYS_PTRACE][..],
                "without CAP_DAC_READ_SEARCH, memleak cannot examine files that only",
            ),
            (
                &[CAP_DAC_OVERRIDE],
                "without CAP_SYS_PTRACE, memleak cannot examine the files of other",
            ),
            (
                &[],
                "without CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, memleak cannot examine the files",
            ),
        ] {
            let said = said(has).unwrap();
            assert!(said.starts_with(begins), "{said}");
        }
        assert_eq!(said(&[CAP_SYS_PTRACE, CAP_DAC_OVERRIDE]), None);
        assert_eq!(said(&[CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH]), None);
    }

    #[test]
    fn the_line_names_the_processes_and_counts_their_children() {
        let nginx = named(&[("nginx", 12)]);
        let both = named(&[("nginx", 12), ("a\x1bb", 3)]);
        let five = named(&[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)]);
        for (named, children, follows, whom) in [
            (&nginx, 0, true, "nginx[12]"),
            (&nginx, 1, true, "nginx[12] and 1 child"),
            (&nginx, 4, true, "nginx[12] and 4 children"),
            (&nginx, 0, false, "nginx[12]"),
            (&nginx, 4, false, "nginx[12] without its 4 children"),
            (&both, 0, true, r"nginx[12] and a\x1bb[3]"),
            (&both, 2, true, r"nginx[12], a\x1bb[3] and 2 children"),
            (
                &both,
                1,
                false,
                r"nginx[12] and a\x1bb[3] without their 1 child",
            ),
            (&five, 2, true, "a[1], b[2], c[3], 2 more and 2 children"),
        ] {
            assert_eq!(tree(named, children, follows), whom);
        }
    }

    #[test]
    fn the_line_says_when_a_report_comes_and_how_to_stop() {
        let nginx = tree(&named(&[("nginx", 1234)]), 4, true);
        assert_eq!(
            line(&nginx, Duration::from_secs(10), false, "Ctrl-C ends"),
            "watching nginx[1234] and 4 children; every 10 s, what has ended; Ctrl-C ends"
        );
        assert_eq!(
            line(
                "every process",
                Duration::from_millis(500),
                true,
                "Ctrl-C ends"
            ),
            "watching every process; every 0.5 s, what has ended and what runs; Ctrl-C ends"
        );
    }

    #[test]
    fn the_line_has_every_filter() {
        let chosen = Filters {
            uid: vec![7],
            user_name: vec!["alice".to_owned()],
            comm: vec!["py*".parse().unwrap(), "!python2".parse().unwrap()],
            cgroup: vec!["/x".into()],
            min_leak: Some(1000),
        };
        assert_eq!(
            filters(&chosen).join(", "),
            "of user alice, of user 7, named py*, not named python2, in control group /x, with at least 1000 bytes"
        );
        assert!(filters(&Filters::default()).is_empty());
    }
}
