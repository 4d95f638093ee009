//! Turns the filter options into what the kernel can decide and what is decided over the rows. The kernel's own part is
//! in `kernel::settings`.

use std::collections::HashSet;

use anyhow::{Context, Result};
use nix::unistd::User;

use crate::kernel::automaton::NameAutomaton;
use crate::kernel::settings::Wanted;
use crate::model::image::Image;
use crate::options::watch::Filters;
use crate::os::cgroup::{self, Cgroup};
use crate::text::escape;
use crate::text::globs::CommNames;

/// Selects the rows that are reported. The kernel's filters are not sufficient for that. A process may have changed its
/// user or its name since the kernel began to follow it, and its leak is only known at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// If this is empty, all users are reported.
    uids: HashSet<u32>,
    names: CommNames,
    min_leak: u64,
}

impl Filter {
    /// Whether an image is reported.
    pub fn keeps(&self, image: &Image) -> bool {
        (self.uids.is_empty() || self.uids.contains(&image.uid))
            && self.names.choose(&image.comm)
            && image.counters.leaked_bytes >= self.min_leak
    }
}

/// Splits the options into what the kernel can decide and what must be decided over the rows.
///
/// # Errors
/// A named user or control group does not exist.
pub fn resolve(options: &Filters) -> Result<(Wanted, Filter)> {
    let mut uids = options.uid.clone();
    for name in &options.user_name {
        let user = User::from_name(name).context("cannot look up a user")?;
        let user = user.with_context(|| {
            let name = escape::escaped(name.as_bytes());
            format!("--user-name: there is no user '{name}' (--uid takes a number)")
        })?;
        uids.push(user.uid.as_raw());
    }
    let names = CommNames::new(options.comm.clone());
    let cgroups: Result<Vec<Cgroup>> = options
        .cgroup
        .iter()
        .map(|path| cgroup::cgroup(path))
        .collect();
    let wanted = Wanted {
        uids: uids.clone(),
        cgroups: cgroups?,
        names: NameAutomaton::of(&names),
    };
    let filter = Filter {
        uids: uids.into_iter().collect(),
        names,
        min_leak: options.min_leak.unwrap_or(0),
    };
    Ok((wanted, filter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::samples::image;

    fn filter(uids: &[u32], globs: &[&str], min_leak: u64) -> Filter {
        Filter {
            uids: uids.iter().copied().collect(),
            names: CommNames::new(globs.iter().map(|glob| glob.parse().unwrap()).collect()),
            min_leak,
        }
    }

    #[test]
    fn a_row_is_kept_if_every_filter_keeps_it() {
        let mut image = image();
        image.uid = 1001;
        image.comm = b"python3".to_vec();
        image.counters.leaked_bytes = 100;
        for (uids, globs, min_leak, kept) in [
            (&[][..], &[][..], 0, true),
            (&[1001, 7], &["py*"], 100, true),
            (&[7], &["py*"], 100, false),
            (&[1001], &["!py*"], 100, false),
            (&[1001], &["py*"], 101, false),
        ] {
            assert_eq!(filter(uids, globs, min_leak).keeps(&image), kept);
        }
    }

    #[test]
    fn the_error_names_a_missing_user_or_control_group() {
        let mut options = Filters::default();
        options.user_name.push("no\x1bbody".to_owned());
        let said = format!("{:#}", resolve(&options).unwrap_err());
        assert!(said.contains(r"no user 'no\x1bbody'"), "{said}");
        for (path, says) in [
            ("/no/such", "no such directory"),
            ("/tmp", "not a control group"),
        ] {
            let mut options = Filters::default();
            options.cgroup.push(path.into());
            let said = format!("{:#}", resolve(&options).unwrap_err());
            assert!(said.contains(path) && said.contains(says), "{said}");
        }
    }
}
