//! Decides what a trial says about `--lost`: whether a child's blocks that are lost were told from those that are not.
//! Pure.

use crate::doctor::check::Check;
use crate::doctor::machine::Machine;
use crate::doctor::patient::{BLOCKS, FREED, KEPT, SEAL};
use crate::doctor::trial::{Ran, Trial};
use crate::doctor::verdict::{image, not_tried};
use crate::kernel::method::Holds;
use crate::launch::running::Ended;
use crate::model::reach::{Reach, ReachUnknown, Reached};

const NAME: &str = "lost";

/// What the child loses.
const LOST: u64 = BLOCKS - FREED;

/// So many blocks may seem reachable, or lost, by chance: a register or a word on the stack may still have an old pointer.
const BY_CHANCE: u64 = 10;

/// The check whether lost blocks are told from reachable ones.
pub fn lost(trial: &Trial, machine: &Machine) -> Check {
    let ran = match trial {
        Trial::Ran(ran) => ran,
        Trial::Refused(refusal) => return not_tried(NAME, refusal),
    };
    let reach = image(ran, SEAL).map(|image| image.reach);
    match (&ran.ended, reach) {
        (Ok(Ended::Exited(0)), Some(Reach::Known(reached))) => told(ran, machine, reached),
        (Ok(Ended::Exited(0)), Some(Reach::Unknown(why))) => unknown(machine, why),
        _ => Check::unknown(NAME, "no child came to its end"),
    }
}

fn told(ran: &Ran, machine: &Machine, reached: Reached) -> Check {
    let lost = reached.lost();
    let is_right = lost.blocks >= LOST - BY_CHANCE
        && lost.blocks <= LOST + BY_CHANCE
        && lost.bytes < KEPT
        && reached.reachable.bytes >= KEPT;
    let check = match ran.holds {
        _ if !is_right => Check::warn(
            NAME,
            format!(
                "a child lost {LOST} blocks and kept one of {KEPT} bytes; memleak found {} blocks lost and {} bytes \
                 reachable",
                lost.blocks, reached.reachable.bytes
            ),
            "use --lost=never, and report this".to_owned(),
        ),
        Holds::Loader | Holds::Nowhere => Check::warn(
            NAME,
            "told from reachable where asked for (--lost, --fail-on-lost), unless a signal ends the process".to_owned()
                + limited(machine),
            "Linux 6.18 can hold processes unseen, also those that a signal ends".to_owned(),
        ),
        Holds::Everywhere => Check::ok(
            NAME,
            "a child's lost blocks are told from the reachable one".to_owned() + limited(machine),
        ),
    };
    check
        .with_figure("lost_blocks", lost.blocks)
        .with_figure("reachable_bytes", reached.reachable.bytes)
}

/// Of which processes this does not hold.
fn limited(machine: &Machine) -> &'static str {
    match machine.access.capable {
        true => "",
        false => "; of memleak's own user only, as CAP_SYS_PTRACE is missing",
    }
}

fn unknown(machine: &Machine, why: ReachUnknown) -> Check {
    let cannot = |why: &str, remedy: &str| {
        Check::warn(
            NAME,
            format!("not told from reachable: {why}"),
            remedy.to_owned(),
        )
    };
    match (why, machine.access.barrier(None)) {
        (ReachUnknown::Rights, Some(barrier)) => cannot(barrier.phrase(), barrier.remedy()),
        (ReachUnknown::Rights, None) => cannot(
            "memleak may not read its child's memory",
            "run memleak as root with CAP_SYS_PTRACE, outside of the container or service",
        ),
        (ReachUnknown::Kernel, _) => cannot(
            "this kernel cannot hold a process at its end",
            "Linux 6.7 can where asked for, Linux 6.18 unseen",
        ),
        (ReachUnknown::Memory, _) => cannot(why.phrase(), "give the control group more memory"),
        _ => cannot(why.phrase(), "try again while the machine has less to do"),
    }
}
