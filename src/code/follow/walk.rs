//! Follows a function from its entry to its returns.

use std::collections::{BTreeSet, HashSet};

use crate::code::follow::decoder::{decode, stub};
use crate::code::follow::step::{
    Flow, Followed, GaveUp, LONGEST, MAX_INSTRUCTIONS, Place, Pointer, Probed, Stack, Step, Text,
    Work,
};

/// A path through the code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Path {
    address: u64,
    /// The jump that it has just come by; 0: none.
    from: u64,
    /// Bytes on the stack since the entry; unknown behind what aligns it.
    depth: Option<i64>,
    /// The same where the frame pointer was set.
    frame: Option<i64>,
    /// It has called, or written to memory: more than to look at an argument.
    acted: bool,
    /// It has called a function that does the work.
    handed: bool,
}

/// Follows the function at `entry`.
///
/// # Errors
/// See [`GaveUp`].
pub fn follow(text: &impl Text, entry: u64, work: Work) -> Result<Followed, GaveUp> {
    let mut walk = Walk {
        text,
        entry,
        frees: work != Work::Allocates,
        frees_alone: work == Work::Frees,
        found: Followed::default(),
        pending: vec![Path {
            address: entry,
            from: 0,
            depth: Some(0),
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
    // Each may lead to each: what was made to have thousands of both would take gigabytes.
    if walk.computed.len() * walk.taken.len() > MAX_INSTRUCTIONS {
        return Err(GaveUp::TooLong);
    }
    // A jump through a register that leaves the function: to what it was given an address of.
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
    walk.found.delegates =
        !walk.own_return && walk.found.exits.is_empty() && !walk.found.inner.is_empty();
    Ok(walk.found)
}

struct Walk<'text, T> {
    text: &'text T,
    entry: u64,
    frees: bool,
    /// Whether it is only asked if it delegates.
    frees_alone: bool,
    found: Followed,
    pending: Vec<Path>,
    seen: HashSet<Path>,
    /// Code whose address it takes.
    taken: BTreeSet<u64>,
    /// A `ret` has been found that no function which does the work comes before.
    own_return: bool,
    /// Where a register is jumped to with the stack as at the entry.
    computed: Vec<Path>,
}

/// Where control goes from an instruction.
enum Next {
    On,
    Stop,
    Jump(u64),
}

impl<T: Text> Walk<'_, T> {
    fn run(&mut self) -> Result<(), GaveUp> {
        while let Some(mut path) = self.pending.pop() {
            loop {
                if !self.seen.insert(Path { from: 0, ..path }) {
                    break;
                }
                if self.seen.len() > MAX_INSTRUCTIONS {
                    return Err(GaveUp::TooLong);
                }
                let Some(step) = decode(self.text, path.address) else {
                    // Not code: what lies behind a call that never returns.
                    break;
                };
                let next = self.step(&step, &mut path)?;
                // Of a free nothing else is asked.
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

    fn step(&mut self, step: &Step, path: &mut Path) -> Result<Next, GaveUp> {
        match step.flow {
            Flow::On | Flow::Pad => {
                self.take_address(step.takes);
                path.acted |= step.writes;
                path.moves(step.stack);
                Ok(Next::On)
            }
            Flow::Call(Place::Address(target)) => Ok(self.call(target, path)),
            Flow::Call(Place::Pointer(pointer)) => match self.text.pointer(pointer) {
                Pointer::Here(target) => Ok(self.call(target, path)),
                Pointer::NeverReturns => Ok(Next::Stop),
                Pointer::Probed | Pointer::Unknown => {
                    path.acted = true;
                    Ok(Next::On)
                }
            },
            Flow::Call(Place::Register | Place::Computed) => {
                path.acted = true;
                Ok(Next::On)
            }
            Flow::Branch(target) => {
                self.pending.push(Path {
                    address: target,
                    ..*path
                });
                Ok(Next::On)
            }
            Flow::Jump(Place::Address(target)) => {
                path.from = path.address;
                Ok(self.jump(target, path))
            }
            Flow::Jump(place) => self.indirect(place, path),
            Flow::Return => {
                if path.depth.is_none_or(|depth| depth == 0) {
                    self.found.returns.insert(path.address);
                    // A free may look at its argument and return; that takes nobody's work.
                    self.own_return |= !path.handed && (path.acted || !self.frees);
                }
                Ok(Next::Stop)
            }
            Flow::End => Ok(Next::Stop),
        }
    }

    /// Whether this function does the work of the one that is followed, and how.
    fn does_the_work(&self, address: u64) -> Option<Probed> {
        if address == self.entry {
            return None;
        }
        let probed = self.text.function(address)?;
        ((probed == Probed::Frees) == self.frees).then_some(probed)
    }

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

    /// A jump to a known place; `path.from` is where from.
    fn jump(&mut self, target: u64, path: &mut Path) -> Next {
        let as_at_entry = path.depth.is_none_or(|depth| depth == 0);
        if as_at_entry {
            match self.does_the_work(target) {
                // Its own probes take over.
                Some(Probed::Allocates | Probed::Frees) => {
                    self.found.inner.insert(path.from);
                    return Next::Stop;
                }
                // It may or may not be left to that one; its returns are wanted in any case.
                Some(Probed::MayThrow) => {
                    self.found.inner.insert(path.from);
                    path.handed = true;
                }
                None => {}
            }
        }
        Next::Jump(target)
    }

    fn indirect(&mut self, place: Place, path: &mut Path) -> Result<Next, GaveUp> {
        let as_at_entry = path.depth.is_none_or(|depth| depth == 0);
        // Everybody comes by a stub: what counts is who jumped to it.
        if path.from == 0 {
            path.from = path.address;
        }
        if let Place::Pointer(pointer) = place {
            return Ok(match self.text.pointer(pointer) {
                Pointer::Here(target) => self.jump(target, path),
                Pointer::NeverReturns => Next::Stop,
                // Allocators there take over as those here do.
                Pointer::Probed if as_at_entry => {
                    self.own_return |= !path.handed;
                    Next::Stop
                }
                Pointer::Probed | Pointer::Unknown => {
                    self.found.exits.insert(path.from);
                    Next::Stop
                }
            });
        }
        if !as_at_entry || place == Place::Computed {
            // A table of jumps within the function.
            return Err(GaveUp::ComputedJump);
        }
        path.from = path.address;
        self.computed.push(*path);
        Ok(Next::Stop)
    }

    /// Through the stub by which a file calls what another one may define.
    fn through_stub(&self, target: u64) -> Pointer {
        stub(self.text, target).map_or(Pointer::Here(target), |pointer| self.text.pointer(pointer))
    }

    /// Notes code whose address is taken: it may be jumped to later.
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
    /// Keeps count of what an instruction puts on the stack, or takes off.
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
