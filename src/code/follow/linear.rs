//! Walks over all instructions that can be reached from a function's entry, and does not track the stack. Finding the
//! function's returns is left to `walk`.

use std::collections::{BTreeSet, HashSet};

use crate::code::follow::decoder::decode;
use crate::code::follow::step::{Effect, Flow, MAX_INSTRUCTIONS, Place, Probed, Text};

/// How many levels of calls are searched for calls of probed functions.
const HELPER_DEPTH: usize = 2;

/// How a walk goes on after an instruction.
enum Visit {
    /// Go where the instruction leads.
    Follow,
    /// Go to the next instruction, whatever this one does.
    Next,
    /// End the whole walk.
    End,
}

/// Visits once each instruction that can be reached from `entry` by jumps and branches. Calls are not followed.
/// At most [`MAX_INSTRUCTIONS`] are visited.
fn walk(text: &impl Text, entry: u64, mut visit: impl FnMut(u64, &Effect) -> Visit) {
    let mut pending = vec![entry];
    let mut seen = HashSet::new();
    while let Some(mut address) = pending.pop() {
        while seen.len() < MAX_INSTRUCTIONS && seen.insert(address) {
            let Some(step) = decode(text, address) else {
                break;
            };
            match visit(address, &step) {
                Visit::End => return,
                Visit::Next => address = step.next,
                Visit::Follow => match step.flow {
                    Flow::On | Flow::Pad | Flow::Call(_) => address = step.next,
                    Flow::Branch(target) => {
                        pending.push(target);
                        address = step.next;
                    }
                    Flow::Jump(Place::Address(target)) => address = target,
                    Flow::Jump(_) | Flow::Return | Flow::End => break,
                },
            }
        }
    }
}

/// Whether a function may jump back to its entry, directly or through other functions. A probe at the entry sees
/// each such jump as a call.
pub fn begins_again(text: &impl Text, entry: u64) -> bool {
    let mut again = false;
    walk(text, entry, |_, step| match step.flow {
        Flow::Branch(target) | Flow::Jump(Place::Address(target)) if target == entry => {
            again = true;
            Visit::End
        }
        _ => Visit::Follow,
    });
    again
}

/// The addresses of calls to allocating functions, in `functions` and in the functions that these call.
pub fn calls_below(text: &impl Text, functions: BTreeSet<u64>) -> BTreeSet<u64> {
    let (mut inner, mut level, mut seen) = (BTreeSet::new(), functions.clone(), functions);
    for _ in 0..HELPER_DEPTH {
        let mut next = BTreeSet::new();
        for &function in &level {
            calls_in(text, function, &mut inner, &mut next);
        }
        level = next.difference(&seen).copied().collect();
        seen.extend(&level);
    }
    inner
}

/// Adds one function's calls of allocating functions to `inner`, and the other functions that it calls to `callees`.
fn calls_in(text: &impl Text, entry: u64, inner: &mut BTreeSet<u64>, callees: &mut BTreeSet<u64>) {
    let allocates = |target| {
        matches!(
            text.function(target),
            Some(Probed::Allocates | Probed::MayThrow)
        )
    };
    walk(text, entry, |address, step| match step.flow {
        Flow::Call(Place::Address(target))
        | Flow::Jump(Place::Address(target))
        | Flow::Branch(target)
            if allocates(target) =>
        {
            inner.insert(address);
            Visit::Next
        }
        Flow::Call(Place::Address(target)) => {
            callees.insert(target);
            Visit::Follow
        }
        _ => Visit::Follow,
    });
}
