//! Decides what a trial says about `--stacks`: whether a child's call stack through the handler of a signal is whole. Pure.

use crate::doctor::check::Check;
use crate::doctor::patient::{IN_HANDLER, SEAL};
use crate::doctor::trial::Trial;
use crate::doctor::verdict::{image, not_tried};
use crate::kernel::settings::NoStacks;
use crate::model::stack::{CallStack, WalkEnd};

const NAME: &str = "stacks";

/// The functions between the allocation and the interrupted code: the one that the C library calls, that of the C library,
/// and the handler.
const IN_THE_HANDLER: usize = 3;

/// The check whether call stacks can be recorded, and are right.
pub fn stacks(trial: &Trial) -> Check {
    let ran = match trial {
        Trial::Ran(ran) => ran,
        Trial::Refused(refusal) => return not_tried(NAME, refusal),
    };
    if let Some(why) = ran.no_stacks {
        let remedy = match why {
            NoStacks::Memory => "give the control group more memory",
            NoStacks::Kernel | NoStacks::Inside => "Linux 6.1 or later can",
        };
        let found = format!("not recorded: {}", why.phrase());
        return Check::warn(NAME, found, remedy.to_owned());
    }
    let shares = image(ran, SEAL).and_then(|image| image.stacks.as_ref());
    let mut shares = shares.into_iter().flatten();
    let Some(share) = shares.find(|share| share.alloc_bytes == IN_HANDLER) else {
        return Check::unknown(NAME, "no child has allocated in a handler");
    };
    let depth = share.stack.frames.len() as u64;
    let check = match is_whole(&share.stack) {
        true => Check::ok(
            NAME,
            "a child's call stack through the handler of a signal is whole",
        ),
        false => Check::warn(
            NAME,
            format!(
                "a child's call stack through the handler of a signal has {depth} calls, and then {}",
                share.stack.end.phrase()
            ),
            "use --stacks=never, and report this".to_owned(),
        ),
    };
    check.with_figure("depth", depth)
}

/// Whether the stack leads through a handler to the outermost function.
fn is_whole(stack: &CallStack) -> bool {
    let interrupted = stack.frames.iter().position(|frame| frame.interrupted);
    // In the handler, there may be a frame of the kernel's code that returns from it.
    stack.end == WalkEnd::Complete
        && stack.guessed == 0
        && interrupted.is_some_and(|at| at >= IN_THE_HANDLER && at + 1 < stack.frames.len())
}
