//! Attaches programs to the sites of a file. Multi and session uprobes need one link for each program and file, with
//! all offsets in it.
//!
//! Which files and sites are probed is decided in `find`. Which kind of uprobe is used is decided by trying (`load`),
//! not by the kernel's version, because distributions backport features into older kernels.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys::{
    BPF_F_UPROBE_MULTI_RETURN, BPF_TRACE_UPROBE_MULTI, BPF_TRACE_UPROBE_SESSION, bpf_link_create,
    bpf_link_create_opts, bpf_link_create_opts__bindgen_ty_1,
    bpf_link_create_opts__bindgen_ty_1__bindgen_ty_3,
};
use libbpf_rs::{Link, UprobeOpts};

use crate::find::functions::ProbeProgram;
use crate::find::hooks::Hook;
use crate::find::sites::ProbeSite;
use crate::kernel::cookie::cookie;
use crate::kernel::error::errno_of;
use crate::kernel::method::Method;
use crate::kernel::separate;
use crate::kernel::skeletons::Program;

/// A file that is to be probed.
pub struct Target {
    pub path: PathBuf,
    /// The file's index among the files with probes. Heaps refer to their files by it.
    pub index: u16,
    pub sites: Vec<ProbeSite>,
    /// Index of the file's first site in the table of all sites.
    pub first_site: u32,
}

/// A program to attach.
#[derive(Clone, Copy)]
pub struct Attachable<'a, 'obj> {
    pub program: &'a Program<'obj>,
    /// The program in the kernel, which libbpf need not have loaded.
    pub fd: BorrowedFd<'a>,
}

impl<'a, 'obj> From<&'a Program<'obj>> for Attachable<'a, 'obj> {
    fn from(program: &'a Program<'obj>) -> Self {
        let fd = program.as_fd();
        Self { program, fd }
    }
}

/// The programs to attach, as far as the method needs them.
pub struct Programs<'a, 'obj> {
    /// For functions that have a return probe.
    pub alloc: Attachable<'a, 'obj>,
    /// For the returns of these functions. `None` if `alloc` runs there as well.
    pub alloc_return: Option<Attachable<'a, 'obj>>,
    pub entry: Attachable<'a, 'obj>,
    pub throwing: Attachable<'a, 'obj>,
}

/// How probes are attached.
#[derive(Clone, Copy)]
pub struct How<'a> {
    pub method: Method,
    /// The only processes that the probes are for, by their pids as memleak sees them. Empty: they are for every process.
    /// Only for a method with which [`can_filter`](super::features::can_filter) says so.
    pub only: &'a [u32],
}

impl How<'_> {
    /// In every process.
    pub fn everywhere(method: Method) -> Self {
        Self { method, only: &[] }
    }
}

/// Keeps a probe in place until it is dropped. Dropping takes some 50 ms.
pub enum Attached {
    Link(Link),
    /// A link or a perf event.
    Fd(OwnedFd),
}

/// The error of the kernel on x86_64 for an instruction that cannot carry a probe. No C library has a name for it.
const ENOTSUPP: i32 = 524;

/// In place of a pid.
const EVERY_PROCESS: i32 = -1;

/// Attaches the programs to all sites of the target. `file` is the open target, because its path may lead to
/// another file by now.
///
/// # Errors
/// The kernel refuses: it lacks the method, or the rights are not sufficient. Nothing stays attached.
pub fn attach(
    how: How<'_>,
    programs: &Programs<'_, '_>,
    target: &Target,
    file: &File,
) -> Result<Vec<Attached>> {
    let method = how.method;
    let sites_of = |runs| -> Vec<(&ProbeSite, u32)> {
        let sites = target.sites.iter().zip(target.first_site..);
        sites
            .filter(|(site, _)| site.row.action.program() == runs)
            .collect()
    };
    let with_return = sites_of(ProbeProgram::EntryReturn);
    let entry_only = sites_of(ProbeProgram::Entry);
    let may_throw = sites_of(ProbeProgram::Throwing);
    let mut links = Vec::new();
    let mut attach_to = |program, sites: &[(&ProbeSite, u32)], retprobe| -> Result<()> {
        if sites.is_empty() {
            return Ok(());
        }
        let kind = UprobeKind {
            how,
            retprobe,
            session: method == Method::Session
                && sites[0].0.row.action.program() == ProbeProgram::EntryReturn,
        };
        let cookie_of = |site: &ProbeSite, number| cookie(site.row.action, target.index, number);
        let probes: Vec<_> = sites
            .iter()
            .map(|&(site, number)| (site.file_offset, cookie_of(site, number)))
            .collect();
        let made = attach_one(kind, program, file, &probes);
        links.extend(made.map_err(|error| {
            let names: Vec<_> = sites.iter().map(|(site, _)| site.symbol.as_str()).collect();
            let why = if errno_of(error.as_ref()) == Some(ENOTSUPP) {
                ": the kernel cannot probe an instruction there"
            } else if matches!(method, Method::PerfEvent | Method::Separate) {
                " (perf-event uprobes need root, or CAP_SYS_ADMIN too)"
            } else {
                ""
            };
            error.context(format!(
                "cannot attach to {} in {}{why}",
                names.join(", "),
                target.path.display()
            ))
        })?);
        Ok(())
    };
    attach_to(programs.alloc, &with_return, false)?;
    if let Some(alloc_return) = programs.alloc_return {
        attach_to(alloc_return, &with_return, true)?;
    }
    attach_to(programs.entry, &entry_only, false)?;
    attach_to(programs.throwing, &may_throw, false)?;
    Ok(links)
}

/// Attaches a program to the places where a dynamic loader reports what it has mapped.
///
/// # Errors
/// As for [`attach`].
pub fn attach_hooks(
    how: How<'_>,
    program: Attachable<'_, '_>,
    loader: &Path,
    file: &File,
    hooks: &[Hook],
) -> Result<Vec<Attached>> {
    let probes: Vec<_> = hooks
        .iter()
        .map(|hook| (hook.offset, hook.state.cast_unsigned()))
        .collect();
    attach_one(UprobeKind::entry(how), program, file, &probes)
        .with_context(|| format!("cannot attach to the dynamic loader {}", loader.display()))
}

/// Attaches a program to offsets in a file. The program runs when a process reaches an offset.
///
/// # Errors
/// As for [`attach`].
pub fn attach_at(
    how: How<'_>,
    program: Attachable<'_, '_>,
    file: &File,
    offsets: &[u64],
) -> Result<Vec<Attached>> {
    let probes: Vec<_> = offsets.iter().map(|&offset| (offset, 0)).collect();
    attach_one(UprobeKind::entry(how), program, file, &probes)
}

/// The kind of a uprobe.
#[derive(Clone, Copy)]
struct UprobeKind<'a> {
    how: How<'a>,
    retprobe: bool,
    session: bool,
}

impl<'a> UprobeKind<'a> {
    /// A uprobe whose program runs where an instruction is reached.
    fn entry(how: How<'a>) -> Self {
        Self {
            how,
            retprobe: false,
            session: false,
        }
    }
}

/// Attaches a program to offsets in a file, each with its cookie. Processes that have ended get none.
fn attach_one(
    kind: UprobeKind<'_>,
    loaded: Attachable<'_, '_>,
    file: &File,
    probes: &[(u64, u64)],
) -> Result<Vec<Attached>> {
    if kind.how.method == Method::Separate {
        let events = separate::attach(loaded.program, file, kind.retprobe, probes)?;
        return Ok(events.into_iter().map(Attached::Fd).collect());
    }
    // The kernel follows this link to the very file that was examined.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if kind.how.method == Method::PerfEvent {
        return probes
            .iter()
            .map(|&(offset, cookie)| {
                let opts = UprobeOpts {
                    cookie,
                    retprobe: kind.retprobe,
                    ..UprobeOpts::default()
                };
                let program = loaded.program;
                let link =
                    program.attach_uprobe_with_opts(EVERY_PROCESS, &path, offset as usize, opts)?;
                Ok(Attached::Link(link))
            })
            .collect();
    }
    let path = CString::new(path)?;
    if kind.how.only.is_empty() {
        let link = attach_multi(kind, loaded.fd, 0, &path, probes)?;
        return Ok(vec![Attached::Fd(link)]);
    }
    let mut links = Vec::new();
    for pid in kind.how.only {
        match attach_multi(kind, loaded.fd, *pid, &path, probes) {
            Ok(link) => links.push(Attached::Fd(link)),
            // The process has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(links)
}

/// Makes one link for all offsets, in one process, or with 0 in every process.
fn attach_multi(
    kind: UprobeKind<'_>,
    program: BorrowedFd<'_>,
    pid: u32,
    path: &CStr,
    probes: &[(u64, u64)],
) -> io::Result<OwnedFd> {
    let (offsets, cookies): (Vec<u64>, Vec<u64>) = probes.iter().copied().unzip();
    let mut uprobe_multi = bpf_link_create_opts__bindgen_ty_1__bindgen_ty_3 {
        path: path.as_ptr(),
        offsets: offsets.as_ptr(),
        cookies: cookies.as_ptr(),
        cnt: probes.len() as u32,
        pid,
        ..Default::default()
    };
    if kind.retprobe {
        uprobe_multi.flags = BPF_F_UPROBE_MULTI_RETURN;
    }
    let options = bpf_link_create_opts {
        sz: size_of::<bpf_link_create_opts>() as _,
        __bindgen_anon_1: bpf_link_create_opts__bindgen_ty_1 { uprobe_multi },
        ..Default::default()
    };
    let attach_type = match kind.session {
        true => BPF_TRACE_UPROBE_SESSION,
        false => BPF_TRACE_UPROBE_MULTI,
    };
    const NO_FILE: i32 = 0;
    // SAFETY: the path, the offsets and the cookies outlive the call, and there are as many as the options say.
    let link = unsafe {
        bpf_link_create(
            program.as_raw_fd(),
            NO_FILE,
            attach_type,
            &raw const options,
        )
    };
    separate::descriptor(link.into())
}
