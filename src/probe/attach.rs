//! Attaches programs to the sites of a file: one link a program and file, all offsets in it.
//!
//! Which kind of uprobe is decided by trying, not by the kernel's version: distributions take features
//! back into older kernels.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_rs::{Link, ProgramImpl, UprobeMultiOpts, UprobeOpts};

use super::sites::Site;
use super::table::Program as Runs;

/// The kinds of uprobes, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// One program at entry and return, one link for all functions (6.13).
    Session,
    /// One link for all entries, one for all returns (6.6).
    Multi,
    /// A perf event for each function, entry and return.
    PerfEvent,
}

impl Method {
    /// What to try first.
    pub const BEST: Method = Method::Session;

    /// What to try where this one does not work.
    pub fn next_best(self) -> Option<Method> {
        match self {
            Method::Session => Some(Method::Multi),
            Method::Multi => Some(Method::PerfEvent),
            Method::PerfEvent => None,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Session => "session uprobes",
            Method::Multi => "multi uprobes",
            Method::PerfEvent => "perf-event uprobes",
        })
    }
}

/// A file to be probed, held open: its path may come to mean another one.
pub struct Target {
    pub path: PathBuf,
    pub file: File,
    /// Its number in the `files` bits of a heap.
    pub index: u8,
    pub sites: Vec<Site>,
    /// Number of its first site in the table of all sites.
    pub first_site: u32,
}

/// The programs to attach, as far as the method needs them.
pub enum Programs<'a, 'obj> {
    Session {
        alloc: &'a Program<'obj>,
        entry: &'a Program<'obj>,
        throwing: &'a Program<'obj>,
    },
    EntryReturn {
        alloc: &'a Program<'obj>,
        alloc_return: &'a Program<'obj>,
        entry: &'a Program<'obj>,
        throwing: &'a Program<'obj>,
    },
}

/// A loaded program whose links can be made.
pub type Program<'obj> = ProgramImpl<'obj, libbpf_rs::Mut>;

/// Attaches the programs to all sites of a file.
///
/// # Errors
/// The kernel refuses: it lacks the method, or the rights are not enough. Nothing stays attached.
pub fn attach(method: Method, programs: &Programs<'_, '_>, target: &Target) -> Result<Vec<Link>> {
    let sites_of = |runs| -> Vec<(&Site, u32)> {
        let sites = target.sites.iter().zip(target.first_site..);
        sites
            .filter(|(site, _)| site.row.action.program() == runs)
            .collect()
    };
    let with_return = sites_of(Runs::EntryReturn);
    let entry_only = sites_of(Runs::Entry);
    let may_throw = sites_of(Runs::Throwing);
    let mut links = Vec::new();
    let mut attach_to = |program, sites: &[(&Site, u32)], retprobe| -> Result<()> {
        if sites.is_empty() {
            return Ok(());
        }
        let made = attach_one(method, program, target, sites, retprobe);
        links.extend(made.with_context(|| {
            let names: Vec<_> = sites.iter().map(|(site, _)| site.symbol.as_str()).collect();
            let remedy = match method {
                Method::PerfEvent => " (perf-event uprobes take root, or CAP_SYS_ADMIN too)",
                Method::Session | Method::Multi => "",
            };
            format!(
                "cannot attach to {} in {}{remedy}",
                names.join(", "),
                target.path.display()
            )
        })?);
        Ok(())
    };
    match programs {
        Programs::Session {
            alloc,
            entry,
            throwing,
        } => {
            attach_to(alloc, &with_return, false)?;
            attach_to(entry, &entry_only, false)?;
            attach_to(throwing, &may_throw, false)?;
        }
        Programs::EntryReturn {
            alloc,
            alloc_return,
            entry,
            throwing,
        } => {
            attach_to(alloc, &with_return, false)?;
            attach_to(alloc_return, &with_return, true)?;
            attach_to(entry, &entry_only, false)?;
            attach_to(throwing, &may_throw, false)?;
        }
    }
    Ok(links)
}

fn attach_one(
    method: Method,
    program: &Program<'_>,
    target: &Target,
    sites: &[(&Site, u32)],
    retprobe: bool,
) -> Result<Vec<Link>> {
    // The kernel follows this to the very file that we examined.
    let path = format!("/proc/self/fd/{}", target.file.as_raw_fd());
    let cookie = |(site, number): &(&Site, u32)| site.row.action.cookie(target.index, *number);
    if method == Method::PerfEvent {
        return sites
            .iter()
            .map(|site| {
                let opts = UprobeOpts {
                    cookie: cookie(site),
                    retprobe,
                    ..UprobeOpts::default()
                };
                Ok(
                    program.attach_uprobe_with_opts(
                        -1,
                        &path,
                        site.0.file_offset as usize,
                        opts,
                    )?,
                )
            })
            .collect();
    }
    let opts = UprobeMultiOpts {
        offsets: sites
            .iter()
            .map(|(site, _)| site.file_offset as usize)
            .collect(),
        cookies: sites.iter().map(cookie).collect(),
        retprobe,
        session: method == Method::Session && sites[0].0.row.action.program() == Runs::EntryReturn,
        ..UprobeMultiOpts::default()
    };
    Ok(vec![
        program.attach_uprobe_multi_with_opts(-1, path, "", opts)?,
    ])
}
