//! Decides what a trial of `memleak run`, the C library and the measured price mean. Pure.

use crate::code::placement::Kind;
use crate::doctor::c_library::{Libc, Unusable};
use crate::doctor::check::{COUNT, Check};
use crate::doctor::machine::Machine;
use crate::doctor::patient::{BARE, BLOCK, BLOCKS, FREED, MORE, NOT_EXECUTED, NOT_FILTERED, SEAL};
use crate::doctor::price::Price;
use crate::doctor::trial::{Ran, Refusal, Stage, Trial};
use crate::kernel::method::{Holds, Method};
use crate::launch::running::Ended;
use crate::model::image::{Counters, Image, Uncovered};
use crate::os::release::version;

/// The check of something that could not be tested because of a refusal.
pub fn not_tried(name: &'static str, refusal: &Refusal) -> Check {
    let why = match refusal.stage {
        Stage::Fork => "no child process could be created",
        Stage::Load => "the programs could not be loaded",
        Stage::Attach => "the probes could not be attached",
    };
    Check::unknown(name, format!("not tested, because {why}"))
}

/// The checks of the trial.
pub fn trial(trial: &Trial) -> Vec<Check> {
    match trial {
        Trial::Refused(refusal) => {
            let mut checks = refused(refusal);
            checks.extend(["method", "holds", COUNT].map(|name| not_tried(name, refusal)));
            checks
        }
        Trial::Ran(ran) => vec![
            Check::ok("programs", "the kernel has accepted all of them"),
            Check::ok("probes", "attached to the allocator of a child"),
            method(ran.method),
            holds(ran.holds),
            count(ran),
        ],
    }
}

fn refused(refusal: &Refusal) -> Vec<Check> {
    let failed =
        |name| Check::fail(name, &refusal.error, refusal.remedy).with_details(refusal.said.clone());
    match refusal.stage {
        Stage::Fork => vec![
            failed("child"),
            not_tried("programs", refusal),
            not_tried("probes", refusal),
        ],
        Stage::Load => vec![failed("programs"), not_tried("probes", refusal)],
        Stage::Attach => vec![
            Check::ok("programs", "the kernel has accepted all of them"),
            failed("probes"),
        ],
    }
}

fn method(method: Method) -> Check {
    let found = format!("attached by {method}");
    match method {
        Method::Session | Method::Multi => Check::ok("method", found),
        Method::PerfEvent | Method::Separate => Check::warn(
            "method",
            format!("{found}: a descriptor for each function, and CAP_SYS_ADMIN to open it"),
            "Linux 6.6 has better ones".to_owned(),
        ),
    }
}

fn holds(holds: Holds) -> Check {
    match holds {
        Holds::Everywhere => Check::ok(
            "holds",
            "everywhere: code that a process maps is probed before it runs",
        ),
        Holds::Loader => Check::warn(
            "holds",
            "in the dynamic loader only: a static program that a child starts already runs when it is probed",
            "Linux 6.18 can hold such a program after its exec".to_owned(),
        ),
        Holds::Nowhere => Check::warn(
            "holds",
            "nowhere: only files that are found before the command starts are probed in time",
            "Linux 6.7 can hold processes that load libraries later, Linux 6.18 also those that exec".to_owned(),
        ),
    }
}

pub(super) fn image(ran: &Ran, number: u32) -> Option<&Image> {
    ran.images.iter().find(|image| image.image == number)
}

/// The counters of what the child allocates on purpose.
const KNOWN: Counters = Counters {
    total_allocs_bytes: BLOCKS * BLOCK,
    alloc_count: BLOCKS,
    free_count: FREED,
    leaked_bytes: (BLOCKS - FREED) * BLOCK,
    leaked_blocks: BLOCKS - FREED,
    peak_live_bytes: None,
    failed_allocs: 0,
    unknown_frees: 0,
};

fn count(ran: &Ran) -> Check {
    let fail = |found: String, remedy: &str| Check::fail(COUNT, found, remedy);
    match &ran.ended {
        Err(error) => {
            return fail(
                format!("the child could not be followed: {error}"),
                "try again",
            );
        }
        Ok(Ended::NotExecuted(error)) => {
            return fail(
                format!("the child was not started: {error}"),
                "make memleak's file executable",
            );
        }
        Ok(Ended::Exited(code)) if *code == NOT_EXECUTED => {
            return fail(
                "the child could not execute itself once more".to_owned(),
                "make memleak's file executable, and mount /proc",
            );
        }
        Ok(_) => {}
    }
    let (Some(bare), Some(more)) = (image(ran, BARE), image(ran, MORE)) else {
        return fail(
            format!("a child of four images has {} rows", ran.images.len()),
            "its figures cannot be trusted: report this, with what run -v prints",
        );
    };
    if let Some((why, remedy)) = [bare, more].into_iter().find_map(incomplete) {
        return fail(
            format!("the child was not counted to the end: {why}"),
            remedy,
        );
    }
    let counted = difference(&more.counters, &bare.counters);
    let check = match counted == Some(KNOWN) {
        true => Check::ok(
            COUNT,
            format!(
                "a child's {BLOCKS} blocks of {BLOCK} bytes, {FREED} of them freed, are counted to the byte"
            ),
        ),
        false => fail(
            format!(
                "a child allocated {BLOCKS} blocks of {BLOCK} bytes and freed {FREED}; memleak counted {}",
                counted.map_or_else(
                    || "fewer than without them".to_owned(),
                    |counted| format!(
                        "{} allocations, {} bytes, {} frees, {} bytes leaked",
                        counted.alloc_count,
                        counted.total_allocs_bytes,
                        counted.free_count,
                        counted.leaked_bytes
                    )
                )
            ),
            "its figures cannot be trusted: report this, with what run -v prints",
        ),
    };
    match counted {
        Some(counted) => check
            .with_figure("alloc_count", counted.alloc_count)
            .with_figure("total_allocs_bytes", counted.total_allocs_bytes)
            .with_figure("free_count", counted.free_count)
            .with_figure("leaked_bytes", counted.leaked_bytes),
        None => check,
    }
}

/// Why not all allocations of an image were counted, and what to do about that. `None` if all were counted.
fn incomplete(image: &Image) -> Option<(&'static str, &'static str)> {
    const LOOK: &str = "see what else is not ok here";
    match image.uncovered {
        Some(Uncovered::Late) => Some(("it ran before its allocator was probed", LOOK)),
        Some(Uncovered::Unexamined) => Some((
            "memleak may not read a file that it executes, such as memleak's own",
            "give the users of memleak the right to read its file (chmod a+r)",
        )),
        Some(_) => Some(("its allocator was not found", LOOK)),
        None => (!image.complete()).then_some(("calls or blocks were missed", LOOK)),
    }
}

/// `more` minus `bare`. `None` if a counter of `more` is smaller.
fn difference(more: &Counters, bare: &Counters) -> Option<Counters> {
    Some(Counters {
        total_allocs_bytes: more
            .total_allocs_bytes
            .checked_sub(bare.total_allocs_bytes)?,
        alloc_count: more.alloc_count.checked_sub(bare.alloc_count)?,
        free_count: more.free_count.checked_sub(bare.free_count)?,
        leaked_bytes: more.leaked_bytes.checked_sub(bare.leaked_bytes)?,
        leaked_blocks: more.leaked_blocks.checked_sub(bare.leaked_blocks)?,
        peak_live_bytes: None,
        failed_allocs: more.failed_allocs.checked_sub(bare.failed_allocs)?,
        unknown_frees: more.unknown_frees.checked_sub(bare.unknown_frees)?,
    })
}

/// Whether a program under a seccomp filter survives a return probe.
pub fn return_probes(trial: &Trial, machine: &Machine) -> Check {
    const NAME: &str = "return_probes";
    let remedy = "update the kernel (the fix is cf6cb56ef244), and until then watch no container or service that \
                  has a filter".to_owned();
    let ran = match trial {
        Trial::Ran(ran) => ran,
        Trial::Refused(_) if may_kill(machine) => {
            return Check::warn(
                NAME,
                "not tried; on kernels of this version they may kill programs under a seccomp filter",
                remedy,
            );
        }
        Trial::Refused(refusal) => return not_tried(NAME, refusal),
    };
    // Blocks are counted when the call returns.
    let returned = image(ran, SEAL).map_or(0, |seal| seal.counters.alloc_count) >= BLOCKS;
    match &ran.ended {
        Ok(Ended::Exited(0)) if returned => Check::ok(
            NAME,
            "a child under a seccomp filter that kills at their system call survived them",
        ),
        Ok(Ended::Exited(NOT_FILTERED)) => {
            Check::unknown(NAME, "a child could not be put under a seccomp filter")
        }
        Ok(Ended::Signaled { signal, .. }) => Check::warn(
            NAME,
            format!(
                "they kill programs under a seccomp filter: a child under one died of signal {signal}"
            ),
            remedy,
        ),
        _ => Check::unknown(NAME, "no child reached them under a seccomp filter"),
    }
}

/// Whether kernels of this version may lack the fix that lets return probes pass seccomp filters.
fn may_kill(machine: &Machine) -> bool {
    let version = version(&machine.release);
    machine.architecture == "x86_64"
        && version.is_some_and(|version| ((6, 11)..(6, 14)).contains(&version))
}

/// The checks of the C library and of the places of its probes.
pub fn libc(found: &Result<Option<Libc>, Unusable>) -> [Check; 2] {
    const NAMES: [&str; 2] = ["libc", "places"];
    let libc = match found {
        Ok(Some(libc)) => libc,
        Ok(None) => {
            return [
                Check::warn(
                    NAMES[0],
                    "/bin/sh is not dynamically linked",
                    "a file is examined when a command maps it, if processes are held (see holds)"
                        .to_owned(),
                ),
                Check::unknown(NAMES[1], "there is no C library to look at"),
            ];
        }
        Err(Unusable { found, remedy }) => {
            return [
                Check::fail(NAMES[0], found, *remedy),
                Check::unknown(NAMES[1], "there is no C library to look at"),
            ];
        }
    };
    let slow: Vec<_> = libc
        .sites
        .iter()
        .filter(|site| site.placement.kind == Kind::SingleStepped)
        .map(|site| site.symbol.as_str())
        .collect();
    let emulated = libc.sites.len() - slow.len();
    let slow_ones = match &slow[..] {
        [] => "none single-stepped".to_owned(),
        slow => format!("{} single-stepped ({})", slow.len(), slow.join(", ")),
    };
    let details = libc
        .sites
        .iter()
        .map(|site| format!("{}: {}", site.symbol, site.placement));
    [
        Check::ok(NAMES[0], format!("{}, {}", libc.name, libc.path.display())),
        Check::ok(
            NAMES[1],
            format!(
                "{} functions, {emulated} probes emulated, {slow_ones}",
                libc.sites.len()
            ),
        )
        .with_figure("emulated", emulated as u64)
        .with_figure("single_stepped", slow.len() as u64)
        .with_details(details.collect()),
    ]
}

/// The name of the check of the price.
pub const PRICE: &str = "price";

/// The check of what a probe costs.
pub fn price(measured: &Result<Price, String>) -> Check {
    match measured {
        Err(error) => Check::unknown(PRICE, error.clone()),
        Ok(price) => Check::ok(
            PRICE,
            format!(
                "an empty probe adds {} ns to a call where its instruction is emulated, {} ns where it is single-stepped",
                price.emulated_ns, price.single_stepped_ns
            ),
        )
        .with_figure("emulated_ns", price.emulated_ns)
        .with_figure("single_stepped_ns", price.single_stepped_ns),
    }
}
