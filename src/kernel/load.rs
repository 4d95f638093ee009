//! Loads the BPF objects with the best method that this kernel accepts. Attaching to files is left to `attach`.

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{
    Link, MapCore, MapFlags, PrintLevel, ProgramAttachType, num_possible_cpus, set_print,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::kernel::apart::{Apart, Loading};
use crate::kernel::args;
use crate::kernel::block_table::BlockTable;
use crate::kernel::error::{LoadError, messages};
use crate::kernel::features::{BTF, Best, can_filter, is_older};
use crate::kernel::method::{Holds, Method};
use crate::kernel::newer::{self, choose_allocating, leave_out_stacks, read_kernel_types};
use crate::kernel::object::{Globals, Object};
use crate::kernel::own_types::OwnTypes;
use crate::kernel::settings::{
    MAX_CGROUPS, MAX_LABELS, NoStacks, Scope, Settings, StackSettings, Wanted,
};
use crate::kernel::skeletons::types::scope as scopes;
use crate::kernel::skeletons::{MemleakSkel, OlderSkel, OlderSkelBuilder};
use crate::kernel::warmth::Warmth;
use crate::model::limits::Limits;
use crate::model::scan::ScanWanted;
use crate::os::processes::levels_of_proc_above;
use crate::os::release;
use crate::os::room::memory_left;
use crate::os::stages;

pub(super) struct Loaded {
    pub object: Object,
    pub globals: Globals,
    pub method: Method,
    pub holds: Holds,
    /// Whether events that must not be missed are told twice (see bpf/again.bpf.h).
    pub told_twice: bool,
    /// The only processes that probes are for. Empty: they are for every process.
    pub only: Vec<u32>,
    /// The links of the tracepoints.
    pub links: Vec<Link>,
    /// How call stacks are recorded. `None`: they are not.
    pub stacks: Option<StackSettings>,
    /// Why call stacks are not recorded, though they were wanted where that is possible.
    pub no_stacks: Option<NoStacks>,
}

const MAX_SLOTS: u32 = 1 << 18;

/// How many command lines and labels older kernels keep, which take their memory at once.
const OLDER_ARGS: u32 = 8192;

/// With less memory than this, the table of blocks is made when nothing else is done. If there is no memory for it, the
/// error should meet the table, and not whatever needs a page meanwhile.
const AMPLE: u64 = 512 << 20;

/// What is tried to load.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Attempt {
    method: Method,
    holds: Holds,
    stacks: Option<StackSettings>,
}

pub(super) fn load(settings: &Settings) -> Result<Loaded, LoadError> {
    set_print(Some((PrintLevel::Warn, |_, message| {
        messages().push_str(&message);
    })));
    if !Path::new(BTF).exists() {
        return Err(LoadError::NoBtf);
    }
    let wanted = settings.recorded.stacks;
    let is_ample = memory_left() > AMPLE;
    let mut attempt = Attempt {
        method: settings.method.unwrap_or(Method::BEST),
        holds: settings.holds,
        stacks: wanted.filter(|stacks| is_ample || stacks.required),
    };
    let mut no_stacks = match attempt.stacks {
        Some(_) => NoStacks::Kernel,
        None => NoStacks::Memory,
    };
    let mut has_looked_up = false;
    // Not decided by trying: before a kernel refuses these programs, it has already warned of them.
    if is_older() {
        attempt.method = Method::Separate;
    }
    if attempt.method == Method::Separate {
        attempt.holds = Holds::Nowhere;
        attempt.stacks = None;
        no_stacks = NoStacks::Kernel;
    }
    let beside = Beside {
        is_ample,
        table: (attempt.method != Method::Separate && is_ample)
            .then(|| BlockTable::begin(settings.max_blocks)),
        types: (attempt.method != Method::Separate)
            .then(OwnTypes::begin)
            .flatten(),
    };
    // Ends when this function does.
    let _warmth = (attempt.method <= Method::Multi).then(Warmth::begin);
    loop {
        match load_for(attempt, settings, &beside) {
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
                let tried = attempt;
                // Read only now, because the type information has megabytes.
                if !has_looked_up {
                    let best = Best::of_this_kernel();
                    attempt.holds = attempt.holds.min(best.holds);
                    if settings.method.is_none() {
                        attempt.method = attempt.method.max(best.method);
                    }
                    has_looked_up = true;
                }
                if attempt != tried {
                    continue;
                }
                if attempt.stacks.is_some() {
                    attempt.stacks = None;
                } else if attempt.holds != Holds::Nowhere {
                    attempt.holds = attempt.holds.fewer();
                } else {
                    match attempt.method.next_best() {
                        Some(next) if settings.method.is_none() => attempt.method = next,
                        _ => return Err(error),
                    }
                }
            }
            Ok(loaded) => {
                let missing = wanted.filter(|_| loaded.stacks.is_none());
                if missing.is_some_and(|stacks| stacks.required) {
                    let release = release::release();
                    return Err(LoadError::Stacks { release });
                }
                let inside = settings.inside.then_some(NoStacks::Inside);
                return Ok(Loaded {
                    no_stacks: missing.map(|_| no_stacks).or(inside),
                    ..loaded
                });
            }
        }
    }
}

/// What is made beside the object for newer kernels, once for all tries.
struct Beside {
    /// Whether threads may take memory of their own to be quicker.
    is_ample: bool,
    table: Option<BlockTable>,
    types: Option<OwnTypes>,
}

fn load_for(attempt: Attempt, settings: &Settings, beside: &Beside) -> Result<Loaded, LoadError> {
    let Attempt { method, holds, .. } = attempt;
    let stacks = attempt.stacks.filter(|_| method != Method::Separate);
    let fail = |error| LoadError::of(error, settings.max_blocks);
    let told_twice = settings.misses > 0 || release::may_miss_events();
    let mut object = match method {
        Method::Separate => Object::Older(Box::new(load_older(settings).map_err(fail)?)),
        _ => {
            let (skel, apart) = load_newer(attempt, told_twice, settings, beside).map_err(fail)?;
            Object::Newer {
                skel: Box::new(skel),
                apart,
            }
        }
    };
    stages::mark("object loaded");
    fill_wanted_maps(&object, &settings.wanted).map_err(fail)?;
    let globals = object.globals().ok_or(LoadError::Variables)?;
    globals.proc_level.set(levels_of_proc_above());
    object.identify().map_err(fail)?;
    // The programs are called in this order: a new image has its heap before its files are looked at.
    let held = object.holds_after_exec(holds).into_iter().flatten();
    let shows = object.newer().map(|skel| &skel.progs.exec_shows);
    let shows = shows.filter(|_| holds == Holds::Loader);
    let freed = object.older().map(|skel| &skel.progs.sched_process_free);
    let freed = freed.filter(|_| settings.scope != Scope::Tree);
    let ends = object.newer().map(|skel| &skel.progs.signal_ends);
    let ends = ends
        .filter(|_| holds == Holds::Everywhere && settings.recorded.reads.wanted(holds).is_any());
    let before_exec = object.newer().map(|skel| &skel.progs.sched_prepare_exec);
    let before_exec = before_exec.filter(|_| settings.inside);
    let again = object.second_programs().filter(|_| told_twice);
    let links = object
        .tracepoints()
        .into_iter()
        .chain(again.into_iter().flatten().map(|[_, again]| again))
        .chain(held.take(1 + usize::from(told_twice)))
        .chain(shows)
        .chain(freed)
        .chain(ends)
        .chain(before_exec)
        .map(|program| program.attach())
        .collect::<Result<_, _>>()
        .map_err(fail)?;
    stages::mark("tracepoints attached");
    Ok(Loaded {
        object,
        globals,
        method,
        holds,
        told_twice,
        only: only(method, settings).to_vec(),
        links,
        stacks,
        no_stacks: None,
    })
}

/// The only processes that probes are for.
fn only(method: Method, settings: &Settings) -> &[u32] {
    if can_filter(method) {
        &settings.only
    } else {
        &[]
    }
}

/// Tells the programs which processes to follow. Sets the constants of either object, before it is loaded.
macro_rules! limit_to {
    ($rodata:expr, $settings:expr) => {{
        let Settings { scope, wanted, .. } = $settings;
        $rodata.scope = match scope {
            Scope::Tree => scopes::SCOPE_TREE.0,
            Scope::Chosen { .. } => scopes::SCOPE_CHOSEN.0,
            Scope::All => scopes::SCOPE_ALL.0,
        };
        $rodata.wants_args = $settings.recorded.args;
        $rodata.label_count = $settings.recorded.labels.len() as u32;
        let labels = $settings.recorded.labels.iter().take(MAX_LABELS);
        for (name, wanted) in $rodata.label_names.iter_mut().zip(labels) {
            let bytes = format!("{}=", wanted.as_str()).into_bytes();
            name.length = bytes.len() as u32;
            let words = name.wanted.iter_mut().zip(&mut name.mask);
            for ((word, mask), bytes) in words.zip(bytes.chunks(8)) {
                let mut padded = [0; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                *word = u64::from_ne_bytes(padded);
                *mask = u64::from_ne_bytes(padded.map(|byte| if byte == 0 { 0 } else { 0xff }));
            }
        }
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

/// Loads the object for older kernels.
fn load_older(settings: &Settings) -> libbpf_rs::Result<OlderSkel<'static>> {
    raise_locked_memory_limit();
    // Loaded once, and needed until memleak exits.
    let mut open = OlderSkelBuilder::default().open(Box::leak(Box::new(MaybeUninit::uninit())))?;
    open.maps.blocks.set_max_entries(settings.max_blocks)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        limit_to!(rodata, settings);
    }
    if settings.recorded.args {
        open.maps.command_lines.set_max_entries(OLDER_ARGS)?;
    }
    if !settings.recorded.labels.is_empty() {
        open.maps.labels.set_max_entries(OLDER_ARGS)?;
    }
    let watches = settings.scope != Scope::Tree;
    if !watches {
        // These maps stay empty.
        open.maps.found.set_max_entries(1)?;
        open.maps.processes.set_max_entries(1)?;
        open.maps.chosen.set_max_entries(1)?;
    }
    open.progs.follow.set_autoload(!watches);
    open.progs.choose.set_autoload(watches);
    open.progs.adopt_all.set_autoload(watches);
    open.progs
        .list_chosen
        .set_autoload(settings.scope.has_children());
    open.progs.sched_process_free.set_autoload(watches);
    open.load()
}

/// Loads the object for newer kernels.
fn load_newer(
    attempt: Attempt,
    told_twice: bool,
    settings: &Settings,
    beside: &Beside,
) -> libbpf_rs::Result<(MemleakSkel<'static>, Apart)> {
    let Attempt {
        method,
        holds,
        stacks,
    } = attempt;
    let types = beside.types.as_ref();
    let mut open = newer::open(types.map(OwnTypes::file))?;
    stages::mark("object opened");
    read_kernel_types(&mut open)?;
    stages::mark("kernel's types read");
    if types.is_some_and(|types| !types.are_written()) {
        open = newer::open(None)?;
    }
    stages::mark("own types written");
    match beside.table.as_ref().and_then(BlockTable::fd) {
        Some(table) => open.maps.blocks.reuse_fd(table)?,
        None => open.maps.blocks.set_max_entries(settings.max_blocks)?,
    }
    stages::mark("table made");
    open.maps
        .slots
        .set_max_entries(slots(settings.max_blocks))?;
    if settings.recorded.args {
        open.maps.command_lines.set_max_entries(args::MOST)?;
    }
    if !settings.recorded.labels.is_empty() {
        open.maps.labels.set_max_entries(args::MOST)?;
    }
    if settings.scope == Scope::Tree {
        // This map stays empty.
        open.maps.found.set_max_entries(1)?;
    }
    match stacks {
        Some(stacks) => {
            open.maps.stack_sums.set_max_entries(stacks.table)?;
            open.maps.stack_walks.set_max_entries(walks())?;
        }
        None => leave_out_stacks(&mut open)?,
    }
    let reads = settings.recorded.reads.wanted(holds).is_any();
    if !reads {
        // This map stays empty.
        open.maps.candidates.set_max_entries(1)?;
    }
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.max_blocks = u64::from(settings.max_blocks);
        rodata.slot_mask = slots(settings.max_blocks) - 1;
        rodata.all_late = settings.all_late;
        rodata.misses = settings.misses;
        rodata.inside = settings.inside;
        rodata.pid_filter = !only(method, settings).is_empty();
        match settings.recorded.reads.wanted(holds) {
            ScanWanted::Never => {}
            ScanWanted::Always => rodata.read_all = true,
            ScanWanted::Undecided(Limits { process, total }) => {
                rodata.read_over = process.unwrap_or(u64::MAX);
                rodata.read_total_over = total.unwrap_or(u64::MAX);
            }
        }
        if let Some(stacks) = stacks {
            rodata.stacks = true;
            rodata.dated = stacks.older.is_some();
            rodata.stack_mask = stacks.table - 1;
            rodata.walk_mask = walks() - 1;
            rodata.few_walks = stacks.few_walks;
            rodata.stack_seed = random()?;
        }
        rodata.read_within_ns = settings.recorded.reads.timeout.as_nanos() as u64;
        // Kernels that call back in a task's context (6.18) have what that takes (6.17).
        rodata.reads_ahead = holds == Holds::Everywhere;
        limit_to!(rodata, settings);
    }
    choose_allocating(&mut open, method);
    let progs = &mut open.progs;
    progs.newtask_again.set_autoload(told_twice);
    progs.exec_again.set_autoload(told_twice);
    progs.exit_again.set_autoload(told_twice);
    progs.sched_prepare_exec.set_autoload(settings.inside);
    let everywhere = holds == Holds::Everywhere;
    progs.exec_holds.set_autoload(everywhere);
    progs
        .exec_holds_again
        .set_autoload(everywhere && told_twice);
    progs.exec_shows.set_autoload(holds == Holds::Loader);
    progs.loader_holds.set_autoload(everywhere);
    progs.let_sleep.set_autoload(everywhere);
    progs.at_end.set_autoload(reads && everywhere);
    progs.at_end_waits.set_autoload(reads && !everywhere);
    progs.signal_ends.set_autoload(reads && everywhere);
    progs.stop_process.set_autoload(reads && everywhere);
    progs.look_at_process.set_autoload(reads && !everywhere);
    progs.release_process.set_autoload(reads);
    progs.look_up_blocks.set_autoload(reads);
    progs.loader_waits.set_autoload(holds == Holds::Loader);
    progs.loader_reports.set_autoload(holds == Holds::Nowhere);
    progs.adopt_all.set_autoload(settings.scope != Scope::Tree);
    progs
        .list_chosen
        .set_autoload(settings.scope.has_children());
    match method {
        Method::Session | Method::Multi => {}
        // The object for older kernels has programs of its own.
        Method::Separate => {}
        Method::PerfEvent => {
            for program in [
                &mut progs.entry_only,
                &mut progs.throwing,
                &mut progs.at_end,
                &mut progs.at_end_waits,
                &mut progs.loader_holds,
                &mut progs.loader_waits,
                &mut progs.loader_reports,
            ] {
                program.set_attach_type(ProgramAttachType::CgroupInetIngress);
            }
        }
    }
    let loading = match beside.is_ample {
        true => Loading::begin(&mut open, method, stacks.is_some())?,
        false => None,
    };
    match open.load() {
        Ok(skel) => {
            let apart = loading.map(Loading::wait).transpose()?;
            Ok((skel, apart.unwrap_or_default()))
        }
        Err(error) => {
            if let Some(loading) = loading {
                loading.forget();
            }
            Err(error)
        }
    }
}

/// How many walks up stacks there is room for at one time: a power of two. A walk holds its room while it is preempted.
fn walks() -> u32 {
    const FEWEST: usize = 64;
    const MOST: usize = 1 << 14;
    const ON_A_CPU: usize = 4;
    let cpus = num_possible_cpus().unwrap_or(1);
    let walks = cpus.saturating_mul(ON_A_CPU).clamp(FEWEST, MOST);
    walks.next_power_of_two() as u32
}

/// A number that processes cannot guess.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Raises the limit of locked memory. Before Linux 5.11, programs and their maps count as locked memory. The command
/// is forked already, so it keeps the limit that its caller gave it.
fn raise_locked_memory_limit() {
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        // If the limit is too low, loading fails.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// Fills the maps in which the programs look up which processes are wanted.
fn fill_wanted_maps(object: &Object, wanted: &Wanted) -> libbpf_rs::Result<()> {
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

/// How many slots stand in front of a table of `max_blocks`: a sixteenth, rounded down to a power of two, 8 MB at most.
fn slots(max_blocks: u32) -> u32 {
    1 << (max_blocks / 16).clamp(1, MAX_SLOTS).ilog2()
}
