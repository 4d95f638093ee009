//! Follows a function from its entry to its returns, and tracks the stack pointer on each path.

use std::collections::{BTreeSet, HashSet};

use crate::code::follow::decoder::{decode, stub};
use crate::code::follow::step::{
    Effect, Flow, Followed, LONGEST, MAX_INSTRUCTIONS, Place, Pointer, Probed, Stack, Text,
    TooLong, Work,
};

/// A path through the code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Path {
    address: u64,
    /// The address of the jump by which the path has just come; 0: none.
    from: u64,
    /// Bytes on the stack since the entry. Unknown after an instruction that aligns the stack pointer.
    depth: Option<i64>,
    /// The same at the place to which the frame pointer points, if the frame pointer was set.
    frame: Option<i64>,
    /// The path has called a function or written to memory, so it did more than look at an argument.
    acted: bool,
    /// The path has called a function that does the work.
    handed: bool,
}

/// Follows the function at `entry`.
///
/// # Errors
/// See [`TooLong`].
pub fn follow(text: &impl Text, entry: u64, work: Work) -> Result<Followed, TooLong> {
    follow_from(text, entry, work, Some(0))
}

/// Follows code at an address where the depth of the stack is not known, as the unwinder enters it.
///
/// # Errors
/// See [`TooLong`].
pub fn follow_part(text: &impl Text, address: u64) -> Result<Followed, TooLong> {
    follow_from(text, address, Work::Allocates, None)
}

fn follow_from(
    text: &impl Text,
    entry: u64,
    work: Work,
    depth: Option<i64>,
) -> Result<Followed, TooLong> {
    let mut walk = Walk {
        text,
        entry,
        frees: work != Work::Allocates,
        frees_alone: work == Work::Frees,
        found: Followed {
            certain: true,
            ..Followed::default()
        },
        pending: vec![Path {
            address: entry,
            from: 0,
            depth,
            frame: None,
            acted: false,
            handed: false,
        }],
        seen: HashSet::new(),
        taken: BTreeSet::new(),
        own_return: false,
        computed: Vec::new(),
    };
    walk.run()?;
    // Each computed jump may go to each taken address. A file with thousands of both would take gigabytes.
    if walk.computed.len() * walk.taken.len() > MAX_INSTRUCTIONS {
        return Err(TooLong);
    }
    // A jump through a register that leaves the function may go to any code whose address the function takes.
    walk.found.certain &= walk.computed.is_empty();
    for path in std::mem::take(&mut walk.computed) {
        if walk.taken.is_empty() {
            walk.found.exits.insert(path.from);
        }
        for &address in &walk.taken {
            walk.pending.push(Path { address, ..path });
        }
    }
    walk.run()?;
    for path in std::mem::take(&mut walk.computed) {
        walk.found.exits.insert(path.from);
    }
    let found = &mut walk.found;
    found.certain &= found.exits.is_empty() && found.unprobed.is_empty();
    found.delegates = !walk.own_return
        && found.exits.is_empty()
        && found.has_all_ends()
        && !found.inner.is_empty();
    Ok(walk.found)
}

/// The state of following one function.
struct Walk<'text, T> {
    text: &'text T,
    entry: u64,
    /// Whether the function's work is to free.
    frees: bool,
    /// Whether it only matters if the function delegates.
    frees_alone: bool,
    found: Followed,
    /// Paths that remain to be followed.
    pending: Vec<Path>,
    seen: HashSet<Path>,
    /// Addresses of code that the function takes.
    taken: BTreeSet<u64>,
    /// Whether a `ret` was found on a path that did not call a function that does the work.
    own_return: bool,
    /// The jumps through a register with the stack pointer as at the entry.
    computed: Vec<Path>,
}

/// How a path goes on after an instruction.
enum Next {
    /// At the next instruction.
    On,
    /// Not at all.
    Stop,
    /// At this address.
    Jump(u64),
}

impl<T: Text> Walk<'_, T> {
    /// Follows the pending paths to their ends.
    fn run(&mut self) -> Result<(), TooLong> {
        while let Some(mut path) = self.pending.pop() {
            loop {
                if !self.seen.insert(Path { from: 0, ..path }) {
                    break;
                }
                if self.seen.len() > MAX_INSTRUCTIONS {
                    return Err(TooLong);
                }
                let Some(step) = decode(self.text, path.address) else {
                    // These bytes are not code, as may be behind a call that never returns.
                    break;
                };
                let next = self.step(&step, &mut path);
                // Its own return shows that the free does not delegate. Nothing else about it matters.
                if self.frees_alone && self.own_return {
                    return Ok(());
                }
                match next {
                    Next::On => {
                        path.address = step.next;
                        if step.flow != Flow::Pad {
                            path.from = 0;
                        }
                    }
                    Next::Jump(target) => path.address = target,
                    Next::Stop => break,
                }
            }
        }
        Ok(())
    }

    /// Takes one instruction on a path.
    fn step(&mut self, step: &Effect, path: &mut Path) -> Next {
        if let Flow::Call(_) = step.flow {
            self.found.calls.insert(path.address);
        }
        match step.flow {
            Flow::On | Flow::Pad => {
                self.take_address(step.takes);
                path.acted |= step.writes;
                path.moves(step.stack);
                Next::On
            }
            Flow::Call(Place::Address(target)) => self.call(target, path),
            Flow::Call(Place::Pointer(pointer)) => match self.text.pointer(pointer) {
                Pointer::Here(target) => self.call(target, path),
                Pointer::NeverReturns => Next::Stop,
                Pointer::Probed | Pointer::Unknown => {
                    path.acted = true;
                    Next::On
                }
            },
            Flow::Call(Place::Register | Place::Computed) => {
                path.acted = true;
                Next::On
            }
            Flow::Branch(target) => {
                self.pending.push(Path {
                    address: target,
                    ..*path
                });
                Next::On
            }
            Flow::Jump(Place::Address(target)) => {
                path.from = path.address;
                self.jump(target, path)
            }
            Flow::Jump(place) => self.indirect(place, path),
            Flow::Return => {
                if path.depth.is_none_or(|depth| depth == 0) {
                    self.found.returns.insert(path.address);
                    // A free may look at its argument and return. Such a path frees nothing, so it does not count.
                    self.own_return |= !path.handed && (path.acted || !self.frees);
                }
                Next::Stop
            }
            Flow::End => Next::Stop,
        }
    }

    /// What the table says about the function at `address`, if that function does the work of the followed one.
    fn does_the_work(&self, address: u64) -> Option<Probed> {
        if address == self.entry {
            return None;
        }
        let probed = self.text.function(address)?;
        ((probed == Probed::Frees) == self.frees).then_some(probed)
    }

    /// A call of a known address.
    fn call(&mut self, target: u64, path: &mut Path) -> Next {
        let target = match self.through_stub(target) {
            Pointer::Here(target) => target,
            Pointer::NeverReturns => return Next::Stop,
            Pointer::Probed | Pointer::Unknown => {
                path.acted = true;
                return Next::On;
            }
        };
        path.acted = true;
        if self.does_the_work(target).is_some() {
            path.handed = true;
            self.found.inner.insert(path.address);
        } else {
            self.found.callees.insert(target);
        }
        Next::On
    }

    /// A jump to a known address; `path.from` is the address of the jump.
    fn jump(&mut self, target: u64, path: &mut Path) -> Next {
        let as_at_entry = path.depth.is_none_or(|depth| depth == 0);
        if as_at_entry {
            match self.does_the_work(target) {
                // The probes of that function take over.
                Some(probed @ (Probed::Allocates | Probed::Frees)) => {
                    self.found.inner.insert(path.from);
                    // A free has no return probe, and its code was not followed.
                    self.found.certain &= probed == Probed::Allocates;
                    return Next::Stop;
                }
                // That function's returns are wanted in any case, whether the followed one delegates or not.
                Some(Probed::MayThrow) => {
                    self.found.inner.insert(path.from);
                    path.handed = true;
                }
                None => {}
            }
        }
        Next::Jump(target)
    }

    /// A jump through a pointer or a register, or with a computed target.
    fn indirect(&mut self, place: Place, path: &mut Path) -> Next {
        let as_at_entry = path.depth.is_none_or(|depth| depth == 0);
        // All jumps to another file's function share one stub. What counts is the jump that led to the stub.
        if path.from == 0 {
            path.from = path.address;
        }
        if let Place::Pointer(pointer) = place {
            return match self.text.pointer(pointer) {
                Pointer::Here(target) => self.jump(target, path),
                Pointer::NeverReturns => {
                    self.found.certain = false;
                    Next::Stop
                }
                // A probed function of another file takes over, as one of this file does.
                Pointer::Probed if as_at_entry => {
                    self.own_return |= !path.handed;
                    Next::Stop
                }
                Pointer::Probed | Pointer::Unknown => {
                    self.found.exits.insert(path.from);
                    Next::Stop
                }
            };
        }
        if !as_at_entry {
            // A jump table within the function.
            self.found.tables.insert(path.address);
        } else if place == Place::Computed {
            self.found.unprobed.insert(path.address);
        } else {
            path.from = path.address;
            self.computed.push(*path);
        }
        Next::Stop
    }

    /// Where a call goes, through the stub by which a file calls a function that another file may define.
    fn through_stub(&self, target: u64) -> Pointer {
        stub(self.text, target).map_or(Pointer::Here(target), |pointer| self.text.pointer(pointer))
    }

    /// Notes the code whose address an instruction takes. A later jump may go there.
    fn take_address(&mut self, place: Option<Place>) {
        let target = match place {
            Some(Place::Address(address)) => Pointer::Here(address),
            Some(Place::Pointer(address)) => self.text.pointer(address),
            _ => return,
        };
        if let Pointer::Here(target) = target
            && !self.text.code(target, &mut [0; LONGEST]).is_empty()
        {
            self.taken.insert(target);
        }
    }
}

impl Path {
    /// Tracks the stack pointer and the frame pointer over an instruction.
    fn moves(&mut self, stack: Stack) {
        match stack {
            Stack::Same => {}
            Stack::Grows(bytes) => self.depth = self.depth.map(|depth| depth + bytes),
            Stack::SetsFrame(above) => self.frame = self.depth.map(|depth| depth - above),
            Stack::ToFrame(above) => self.depth = self.frame.map(|frame| frame - above),
            Stack::Lost => self.depth = None,
        }
    }
}
