//! Loads the BPF objects, by the best method that this kernel takes.

use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{
    ErrorKind, Link, MapCore, MapFlags, PrintLevel, ProgramAttachType, ProgramInput, set_print,
};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::kernel::attach::Method;
use crate::kernel::object::{Globals, Object};
use crate::kernel::skeletons::types::{limits, scope as scopes};
use crate::kernel::skeletons::{
    FloorSkel, FloorSkelBuilder, MemleakSkel, MemleakSkelBuilder, OlderSkel, OlderSkelBuilder,
};
use crate::os::capabilities::{CAP_BPF, CAP_SYS_ADMIN, Capabilities};
use crate::os::mapping::levels_of_proc_above;
use crate::os::release;
use crate::text::globs::NameAutomaton;

/// How the programs are to be loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Entries in the table of live blocks.
    pub max_blocks: u32,
    /// The method to use; `None` for the best that works.
    pub method: Option<Method>,
    /// Attach programs that do nothing in place of those that count.
    pub floor: bool,
    /// Keep every thread that is started in the slower table.
    pub all_late: bool,
    /// How many times, of two, half of what the kernel tells of tasks is to be missed.
    pub misses: u32,
    /// Where processes are to be held at the most; fewer places where this kernel cannot.
    pub holds: Holds,
    pub scope: Scope,
    pub wanted: Wanted,
}

/// Whom the kernel follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A command, from its exec on, and all that it starts.
    Tree,
    /// Processes that are there already, and all that they start, unless without `children`.
    Chosen { children: bool },
    /// Every process of the machine but memleak itself, as far as it is wanted.
    All,
}

/// Which processes are wanted. Where a list is empty, it leaves nobody out. Out of all, only these are
/// followed; of those that are chosen, the kernel tells who is in none of the control groups.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Real user ids, as the initial user namespace has them.
    pub uids: Vec<u32>,
    pub cgroups: Vec<Cgroup>,
    /// `None`: every command name, or too many patterns of them for the kernel.
    pub names: Option<NameAutomaton>,
}

/// A control group (version 2), as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub id: u64,
    /// How deep it lies below the root.
    pub level: u32,
}

/// How many control groups there can be.
pub const MAX_CGROUPS: usize = limits::MAX_CGROUPS.0 as usize;

/// Where a process can be held until the files that it has mapped have been examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Holds {
    /// Nowhere: only what is found before the command starts is probed in time.
    Nowhere,
    /// Where the dynamic loader tells what it has mapped. A static program goes on unheld.
    Loader,
    /// There, and after every exec.
    Everywhere,
}

impl Holds {
    pub(super) fn at_loader(self) -> bool {
        self >= Holds::Loader
    }
}

/// The best that this kernel can do, by what its type information names, as distributions take features
/// back into older versions.
struct Best {
    method: Method,
    holds: Holds,
}

impl Best {
    fn of_this_kernel() -> Self {
        Self::by_names(&fs::read(BTF).unwrap_or_default())
    }

    fn by_names(btf: &[u8]) -> Self {
        let has = |name: &[u8]| memchr::memmem::find(btf, name).is_some();
        // Not by the functions that sessions need: 6.10 has those, for kprobes only. And 6.1 loads a program
        // for multi uprobes, and refuses only to attach it.
        // The elements of a hash table are from memory that a probe may take.
        let method = if !has(b"\0bpf_mem_alloc\0") {
            Method::Separate
        } else if has(b"\0BPF_TRACE_UPROBE_SESSION\0") {
            Method::Session
        } else if has(b"\0BPF_TRACE_UPROBE_MULTI\0") {
            Method::Multi
        } else {
            Method::PerfEvent
        };
        let holds = if !has(b"\0bpf_iter_task_vma_new\0") {
            Holds::Nowhere
        } else if !has(b"\0bpf_task_work_schedule_resume\0")
            && !has(b"\0bpf_task_work_schedule_resume_impl\0")
        {
            Holds::Loader
        } else {
            Holds::Everywhere
        };
        Best { method, holds }
    }
}

/// Why the programs cannot be loaded. Each names its remedy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "no right to load BPF programs: run memleak as root (sudo memleak …), or give its file the \
         capabilities CAP_BPF and CAP_PERFMON (setcap cap_bpf,cap_perfmon=ep)"
    )]
    Rights(#[source] libbpf_rs::Error),
    #[error(
        "this kernel has no type information ({BTF} is missing): use one built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf,
    #[error(
        "this kernel (Linux {release}) lacks what memleak needs: Linux 5.10 or later with CONFIG_BPF_SYSCALL, \
         CONFIG_BPF_EVENTS and CONFIG_UPROBES; -v shows what it said"
    )]
    Kernel {
        release: String,
        #[source]
        source: libbpf_rs::Error,
    },
    #[error(
        "too few descriptors for the programs and their tables: raise the hard limit (ulimit -Hn)"
    )]
    Descriptors(#[source] libbpf_rs::Error),
    #[error(
        "the limit of locked memory ({} kB), for which this kernel counts programs and their tables, is too low: \
         raise the hard limit (ulimit -Hl unlimited, as root; systemd: LimitMEMLOCK=infinity)",
        limit / 1024
    )]
    LockedMemory {
        limit: u64,
        #[source]
        source: libbpf_rs::Error,
    },
    #[error("the programs have no variables: this memleak was built wrong")]
    Variables,
    #[error("no memory for a table of {max_blocks} live blocks: give a lower --max-allocs")]
    Memory {
        max_blocks: u32,
        #[source]
        source: libbpf_rs::Error,
    },
}

impl LoadError {
    pub(super) fn ring(source: libbpf_rs::Error) -> Self {
        Self::of(source, 0)
    }

    fn of(error: libbpf_rs::Error, max_blocks: u32) -> Self {
        match error.kind() {
            // EPERM and EACCES are one kind; only the verifier, whose no is EACCES, explains itself.
            ErrorKind::PermissionDenied if !messages().contains(VERIFIER_LOG) => {
                match locked_memory_limit() {
                    Some(limit) if is_older() => LoadError::LockedMemory {
                        limit,
                        source: error,
                    },
                    _ => LoadError::Rights(error),
                }
            }
            ErrorKind::OutOfMemory => LoadError::Memory {
                max_blocks,
                source: error,
            },
            _ if ran_out_of_descriptors(&error) => LoadError::Descriptors(error),
            _ => LoadError::Kernel {
                release: release::release(),
                source: error,
            },
        }
    }
}

/// Whether an error says that this process may open no more files. libbpf-rs keeps the number in its text only.
pub fn ran_out_of_descriptors(error: &dyn std::error::Error) -> bool {
    let number = format!("(os error {})", libc::EMFILE);
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| format!("{error:#}").contains(&number))
}

pub(super) struct Loaded {
    pub object: Object,
    pub globals: Globals,
    pub floor: Option<FloorSkel<'static>>,
    pub method: Method,
    pub holds: Holds,
    /// Whether what must not be missed is told twice.
    pub told_twice: bool,
    /// Those of the tracepoints.
    pub links: Vec<Link>,
}

const MAX_SLOTS: u32 = 1 << 18;

/// Where the kernel shows the types that it was built with.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What libbpf and the verifier said; for `-v`.
static MESSAGES: Mutex<String> = Mutex::new(String::new());

/// With this libbpf begins to quote the verifier.
const VERIFIER_LOG: &str = "BEGIN PROG LOAD LOG";

fn messages() -> MutexGuard<'static, String> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what libbpf and the verifier have said so far.
pub fn take_messages() -> String {
    std::mem::take(&mut *messages())
}

pub(super) fn load(settings: &Settings) -> Result<Loaded, LoadError> {
    set_print(Some((PrintLevel::Warn, |_, message| {
        messages().push_str(&message);
    })));
    if !Path::new(BTF).exists() {
        return Err(LoadError::NoBtf);
    }
    let mut method = settings.method.unwrap_or(Method::BEST);
    let mut holds = settings.holds;
    let mut looked = false;
    // Not by trying: a kernel that refuses the programs has warned of them before.
    if is_older() {
        method = Method::Separate;
    }
    if method == Method::Separate {
        holds = Holds::Nowhere;
    }
    loop {
        match load_for(method, holds, settings) {
            // Another method would fail in the same way.
            Err(
                error @ (LoadError::Rights(_)
                | LoadError::Memory { .. }
                | LoadError::LockedMemory { .. }
                | LoadError::NoBtf
                | LoadError::Descriptors(_)),
            ) => {
                return Err(error);
            }
            Err(error) => {
                let tried = (method, holds);
                // Looked up only now: the type information has megabytes.
                if !looked {
                    let best = Best::of_this_kernel();
                    holds = holds.min(best.holds);
                    if settings.method.is_none() {
                        method = method.max(best.method);
                    }
                    looked = true;
                }
                if (method, holds) == tried {
                    match method.next_best() {
                        Some(next) if settings.method.is_none() => method = next,
                        _ => return Err(error),
                    }
                }
            }
            loaded => return loaded,
        }
    }
}

/// Whether this kernel lacks what the programs for newer ones take. The version is only a reason to look:
/// distributions take features back, and the type information has megabytes.
fn is_older() -> bool {
    const NEWER: (u32, u32) = (6, 1);
    release::version(&release::release()).is_none_or(|version| version < NEWER)
        && Best::of_this_kernel().method == Method::Separate
}

fn load_for(method: Method, holds: Holds, settings: &Settings) -> Result<Loaded, LoadError> {
    let fail = |error| LoadError::of(error, settings.max_blocks);
    let told_twice = settings.misses > 0 || release::may_miss_events();
    let mut object = match method {
        Method::Separate => Object::Older(Box::new(load_older(settings).map_err(fail)?)),
        _ => {
            let skel = load_newer(method, holds, told_twice, settings).map_err(fail)?;
            Object::Newer(Box::new(skel))
        }
    };
    name_wanted(&object, &settings.wanted).map_err(fail)?;
    let globals = object.globals().ok_or(LoadError::Variables)?;
    globals.proc_level.set(levels_of_proc_above());
    object
        .identify()
        .test_run(ProgramInput::default())
        .map_err(fail)?;
    // In this order they are called: a new image has its heap before its files are looked at.
    let held = object.holds_after_exec(holds).into_iter().flatten();
    let shows = object.newer().map(|skel| &skel.progs.exec_shows);
    let shows = shows.filter(|_| holds == Holds::Loader);
    let freed = object.older().map(|skel| &skel.progs.sched_process_free);
    let freed = freed.filter(|_| settings.scope != Scope::Tree);
    let again = object.second_chances().filter(|_| told_twice);
    let links = object
        .tracepoints()
        .into_iter()
        .chain(again.into_iter().flatten().map(|[_, again]| again))
        .chain(held.take(1 + usize::from(told_twice)))
        .chain(shows)
        .chain(freed)
        .map(|program| program.attach())
        .collect::<Result<_, _>>()
        .map_err(fail)?;
    let floor = if settings.floor {
        let open = FloorSkelBuilder::default()
            .open(Box::leak(Box::new(MaybeUninit::uninit())))
            .map_err(fail)?;
        Some(open.load().map_err(fail)?)
    } else {
        None
    };
    Ok(Loaded {
        object,
        globals,
        floor,
        method,
        holds,
        told_twice,
        links,
    })
}

/// Tells the programs whom to follow, before they are loaded: by the constants of either object.
macro_rules! limit_to {
    ($rodata:expr, $settings:expr) => {{
        let Settings { scope, wanted, .. } = $settings;
        $rodata.scope = match scope {
            Scope::Tree => scopes::SCOPE_TREE.0,
            Scope::Chosen { .. } => scopes::SCOPE_CHOSEN.0,
            Scope::All => scopes::SCOPE_ALL.0,
        };
        $rodata.no_children = *scope == Scope::Chosen { children: false };
        $rodata.by_uid = !wanted.uids.is_empty();
        $rodata.by_name = wanted.names.is_some();
        $rodata.cgroup_count = wanted.cgroups.len().min(MAX_CGROUPS) as u32;
        for (place, cgroup) in $rodata.wanted_cgroups.iter_mut().zip(&wanted.cgroups) {
            place.id = cgroup.id;
            place.level = cgroup.level;
        }
    }};
}

/// The object for older kernels.
fn load_older(settings: &Settings) -> libbpf_rs::Result<OlderSkel<'static>> {
    raise_locked_memory_limit();
    // Loaded once, needed until memleak ends.
    let mut open = OlderSkelBuilder::default().open(Box::leak(Box::new(MaybeUninit::uninit())))?;
    open.maps.blocks.set_max_entries(settings.max_blocks)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        limit_to!(rodata, settings);
    }
    let watches = settings.scope != Scope::Tree;
    if !watches {
        // Nobody is in them.
        open.maps.found.set_max_entries(1)?;
        open.maps.processes.set_max_entries(1)?;
        open.maps.chosen.set_max_entries(1)?;
    }
    open.progs.follow.set_autoload(!watches);
    open.progs.choose.set_autoload(watches);
    open.progs.adopt_all.set_autoload(watches);
    open.progs.sched_process_free.set_autoload(watches);
    open.load()
}

/// The object for newer kernels.
fn load_newer(
    method: Method,
    holds: Holds,
    told_twice: bool,
    settings: &Settings,
) -> libbpf_rs::Result<MemleakSkel<'static>> {
    // Loaded once, needed until memleak ends.
    let mut open =
        MemleakSkelBuilder::default().open(Box::leak(Box::new(MaybeUninit::uninit())))?;
    open.maps.blocks.set_max_entries(settings.max_blocks)?;
    open.maps
        .slots
        .set_max_entries(slots(settings.max_blocks))?;
    if settings.scope == Scope::Tree {
        // Nobody is in it.
        open.maps.found.set_max_entries(1)?;
    }
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.max_blocks = u64::from(settings.max_blocks);
        rodata.slot_mask = slots(settings.max_blocks) - 1;
        rodata.all_late = settings.all_late;
        rodata.misses = settings.misses;
        limit_to!(rodata, settings);
    }
    let progs = &mut open.progs;
    let session = method == Method::Session;
    progs.alloc_session.set_autoload(session);
    progs.alloc_enter.set_autoload(!session);
    progs.alloc_return.set_autoload(!session);
    progs.newtask_again.set_autoload(told_twice);
    progs.exec_again.set_autoload(told_twice);
    progs.exit_again.set_autoload(told_twice);
    let everywhere = holds == Holds::Everywhere;
    progs.exec_holds.set_autoload(everywhere);
    progs
        .exec_holds_again
        .set_autoload(everywhere && told_twice);
    progs.exec_shows.set_autoload(holds == Holds::Loader);
    progs.loader_maps.set_autoload(holds.at_loader());
    progs.adopt_all.set_autoload(settings.scope != Scope::Tree);
    match method {
        Method::Session => {}
        Method::Multi => {
            progs
                .alloc_enter
                .set_attach_type(ProgramAttachType::TraceUprobeMulti);
            progs
                .alloc_return
                .set_attach_type(ProgramAttachType::TraceUprobeMulti);
        }
        // The object for older kernels has programs of its own.
        Method::Separate => {}
        Method::PerfEvent => {
            for program in [
                &mut progs.entry_only,
                &mut progs.throwing,
                &mut progs.loader_maps,
            ] {
                program.set_attach_type(ProgramAttachType::CgroupInetIngress);
            }
        }
    }
    open.load()
}

/// Before Linux 5.11 what programs and their tables take is locked memory. The command, forked already, keeps
/// the limit that it was given.
fn raise_locked_memory_limit() {
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        // What is not enough will show.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// What the limit of locked memory is where it may be what the kernel refuses programs for: who may load them
/// got the same answer, EPERM.
fn locked_memory_limit() -> Option<u64> {
    let may_load = Capabilities::get().is_ok_and(|own| own.has(CAP_BPF) || own.has(CAP_SYS_ADMIN));
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (may_load && hard != RLIM_INFINITY).then_some(hard)
}

/// Tells the programs the same, as far as they look it up in maps.
fn name_wanted(object: &Object, wanted: &Wanted) -> libbpf_rs::Result<()> {
    for uid in &wanted.uids {
        object
            .wanted_uids()
            .update(&uid.to_ne_bytes(), &[1], MapFlags::ANY)?;
    }
    if let Some(names) = &wanted.names {
        let zero = 0_u32.to_ne_bytes();
        object
            .wanted_names()
            .update(&zero, names.as_bytes(), MapFlags::ANY)?;
    }
    Ok(())
}

/// How many slots stand before a table of so many blocks: a sixteenth, a power of two, 8 MB at the most.
fn slots(max_blocks: u32) -> u32 {
    1 << (max_blocks / 16).clamp(1, MAX_SLOTS).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_can_do_is_told_by_whole_names() {
        let best = |names: &[&str]| {
            let best = Best::by_names(format!("\0{}\0", names.join("\0")).as_bytes());
            (best.method, best.holds)
        };
        let (multi, session) = ("BPF_TRACE_UPROBE_MULTI", "BPF_TRACE_UPROBE_SESSION");
        let (mappings, work) = (
            "bpf_iter_task_vma_new",
            "bpf_task_work_schedule_resume_impl",
        );
        let newer = "bpf_mem_alloc";
        assert_eq!(best(&[]), (Method::Separate, Holds::Nowhere));
        assert_eq!(best(&["bpf_mem_alloc_init"]).0, Method::Separate);
        assert_eq!(best(&[newer]), (Method::PerfEvent, Holds::Nowhere));
        let likenesses = ["bpf_iter_task_vma_new_impl", "NO_BPF_TRACE_UPROBE_MULTI"];
        assert_eq!(
            best(&[&[newer][..], &likenesses].concat()),
            (Method::PerfEvent, Holds::Nowhere)
        );
        assert_eq!(best(&[newer, multi]), (Method::Multi, Holds::Nowhere));
        assert_eq!(
            best(&[newer, multi, mappings]),
            (Method::Multi, Holds::Loader)
        );
        assert_eq!(
            best(&[newer, multi, session, mappings, work]),
            (Method::Session, Holds::Everywhere)
        );
    }
}
