//! Where a function returns: follows its code from the entry to every `ret` that leaves it. Pure: code in,
//! addresses out.
//!
//! For functions that may throw, which must carry no return probe (the unwinder does not know the kernel's
//! trampoline), and to see which functions leave all the work to others that are probed. Follows jumps,
//! also those that leave the function for another one of the same file (tail calls), and not calls. The
//! stack pointer is followed with them: a `ret` belongs to the function only where it is what it was at the
//! entry. So what lies behind a call that never returns, which is some other function's code, does no harm.

#[cfg(any(test, target_arch = "aarch64"))]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::collections::{BTreeSet, HashSet};

#[cfg(target_arch = "aarch64")]
use aarch64::{decode, stub};
#[cfg(target_arch = "x86_64")]
use x86_64::{decode, stub};

/// A function with more instructions is given up: the operators of known allocators have a few hundred.
const MAX_INSTRUCTIONS: usize = 8192;

/// No instruction has more bytes than this.
pub const LONGEST: usize = 15;

/// How far the calls of a function are looked into for calls of probed ones.
const HELPER_DEPTH: usize = 2;

/// The code of a file, and what is known of it.
pub trait Text {
    /// The code from an address on, as much of it as an instruction may have; empty outside of the file's code.
    fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8];
    /// What the loader puts into the pointer at this address.
    fn pointer(&self, address: u64) -> Pointer;
    /// What is at this address, if it is the entry of a function with a row in the table.
    fn function(&self, address: u64) -> Option<Probed>;
}

/// What a pointer in a file's data points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// An address in the same file.
    Here(u64),
    /// A function that never returns.
    NeverReturns,
    /// A function of another file that carries a return probe there.
    Probed,
    Unknown,
}

/// What the table says of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It gives out blocks, and its return is probed.
    Allocates,
    /// The same, and may throw.
    MayThrow,
    Frees,
}

/// What following a function found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Addresses of its `ret`s.
    pub returns: BTreeSet<u64>,
    /// Addresses of jumps that leave it for code that cannot be followed.
    pub exits: BTreeSet<u64>,
    /// Calls of, and jumps to, functions that do the work.
    pub inner: BTreeSet<u64>,
    /// Other functions of the file that it calls.
    pub callees: BTreeSet<u64>,
    /// It never returns but by, or after a call of, such a function: that one's probes see all it does.
    pub delegates: bool,
}

/// Why a function could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// It jumps to an address that it computes.
    ComputedJump,
    /// It is too long, or not code.
    TooLong,
}

/// What an instruction does, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// The instruction behind it.
    next: u64,
    flow: Flow,
    stack: Stack,
    /// It writes to memory that is not its own stack's.
    writes: bool,
    /// It takes an address, or what a pointer at an address holds.
    takes: Option<Place>,
}

/// Where control goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    On,
    /// On, from where a jump through a register may land.
    Pad,
    Call(Place),
    Jump(Place),
    /// On, or there.
    Branch(u64),
    Return,
    /// Nowhere.
    End,
}

/// Where a call or a jump goes, or an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Address(u64),
    /// To what the loader puts into the pointer at this address.
    Pointer(u64),
    Register,
    /// By a table of jumps, or in a way that no probe can be on.
    Computed,
}

/// What becomes of the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Same,
    /// So many more bytes are on the stack.
    Grows(i64),
    /// The frame pointer is set to so many bytes above the stack pointer.
    SetsFrame(i64),
    /// The stack pointer is set to so many bytes above the frame pointer.
    ToFrame(i64),
    Lost,
}

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

/// What a function is followed for: which others may do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Allocates,
    /// Frees, and it matters only whether it delegates.
    Frees,
    /// Frees, and may throw.
    FreesAndThrows,
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

/// Whether a function may jump back to its entry, perhaps by way of others: each such jump looks like a call.
pub fn begins_again(text: &impl Text, entry: u64) -> bool {
    let mut pending = vec![entry];
    let mut seen = HashSet::new();
    while let Some(mut address) = pending.pop() {
        while seen.len() < MAX_INSTRUCTIONS && seen.insert(address) {
            let Some(step) = decode(text, address) else {
                break;
            };
            match step.flow {
                Flow::On | Flow::Pad | Flow::Call(_) => address = step.next,
                Flow::Branch(target) | Flow::Jump(Place::Address(target)) if target == entry => {
                    return true;
                }
                Flow::Branch(target) => {
                    pending.push(target);
                    address = step.next;
                }
                Flow::Jump(Place::Address(target)) => address = target,
                Flow::Jump(_) | Flow::Return | Flow::End => break,
            }
        }
    }
    false
}

/// The calls of functions that give out blocks, from these functions or what they call.
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

/// Notes the calls of allocating functions in a function that lies anywhere, and what else it calls.
fn calls_in(text: &impl Text, entry: u64, inner: &mut BTreeSet<u64>, callees: &mut BTreeSet<u64>) {
    let mut pending = vec![entry];
    let mut seen = HashSet::new();
    while let Some(mut address) = pending.pop() {
        while seen.len() < MAX_INSTRUCTIONS && seen.insert(address) {
            let Some(step) = decode(text, address) else {
                break;
            };
            let allocates = |target| {
                matches!(
                    text.function(target),
                    Some(Probed::Allocates | Probed::MayThrow)
                )
            };
            match step.flow {
                Flow::Call(Place::Address(target))
                | Flow::Jump(Place::Address(target))
                | Flow::Branch(target)
                    if allocates(target) =>
                {
                    inner.insert(address);
                }
                Flow::On | Flow::Pad | Flow::Call(Place::Pointer(_)) => {}
                Flow::Call(Place::Register | Place::Computed) => {}
                Flow::Call(Place::Address(target)) => {
                    callees.insert(target);
                }
                Flow::Branch(target) => pending.push(target),
                Flow::Jump(Place::Address(target)) => {
                    address = target;
                    continue;
                }
                Flow::Jump(_) | Flow::Return | Flow::End => break,
            }
            address = step.next;
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Code from address 0x1000 on, an allocating function at 0x9000, one that may throw at 0x9100, one that
    /// frees at 0x9200, and pointers at 0x8000 (a function that never returns), 0x8008 (unknown), 0x8010
    /// (0x1100), 0x8018 (probed elsewhere).
    struct Fake(Vec<u8>);

    const BASE: u64 = 0x1000;

    impl Text for Fake {
        fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8] {
            let at = address.checked_sub(BASE).map(|at| at as usize);
            let code = at.and_then(|at| self.0.get(at..)).unwrap_or_default();
            let length = code.len().min(LONGEST);
            buffer[..length].copy_from_slice(&code[..length]);
            &buffer[..length]
        }

        fn pointer(&self, address: u64) -> Pointer {
            match address {
                0x8000 => Pointer::NeverReturns,
                0x8010 => Pointer::Here(0x1100),
                0x8018 => Pointer::Probed,
                _ => Pointer::Unknown,
            }
        }

        fn function(&self, address: u64) -> Option<Probed> {
            match address {
                0x9000 => Some(Probed::Allocates),
                0x9100 => Some(Probed::MayThrow),
                0x9200 => Some(Probed::Frees),
                _ => None,
            }
        }
    }

    /// A `call`, `jmp` or other instruction that ends in a 32-bit distance, at `at`, to `target`.
    fn to(opcode: &[u8], at: u64, target: u64) -> Vec<u8> {
        let next = at + opcode.len() as u64 + 4;
        let distance = target.wrapping_sub(next) as u32;
        [opcode, &distance.to_le_bytes()].concat()
    }

    const CALL: &[u8] = &[0xe8];
    const JMP: &[u8] = &[0xe9];
    /// jmp *distance(%rip)
    const JMP_POINTER: &[u8] = &[0xff, 0x25];
    const RET: u8 = 0xc3;
    const PUSH_RBX: u8 = 0x53;
    const POP_RBX: u8 = 0x5b;

    fn of(code: &[u8]) -> Result<Followed, GaveUp> {
        follow(&Fake(code.to_vec()), BASE, Work::Allocates)
    }

    #[test]
    fn a_jump_back_to_the_entry_is_seen_through_another_function() {
        // je +1; ret; jmp to a function that jumps to `back`
        let code = |back| {
            let mut code = vec![0x74, 0x01, RET];
            code.extend(to(JMP, BASE + 3, BASE + 16));
            code.resize(16, RET);
            code.extend([PUSH_RBX, POP_RBX]);
            code.extend(to(JMP, BASE + 18, back));
            Fake(code)
        };
        assert!(begins_again(&code(BASE), BASE));
        assert!(!begins_again(&code(BASE + 2), BASE));
        // A call is no jump.
        assert!(!begins_again(&Fake(to(CALL, BASE, BASE)), BASE));
    }

    fn returns(code: &[u8]) -> Vec<u64> {
        let found = of(code).unwrap();
        assert!(found.exits.is_empty(), "{found:x?}");
        found.returns.iter().map(|at| at - BASE).collect()
    }

    #[test]
    fn both_ways_of_a_jump_come_to_a_return() {
        // test %rdi,%rdi; je 1f; ret; 1: nop; ret
        assert_eq!(
            returns(&[0x48, 0x85, 0xff, 0x74, 0x01, RET, 0x90, RET]),
            [5, 7]
        );
        // 1: test; jne 1b; ret
        assert_eq!(returns(&[0x48, 0x85, 0xff, 0x75, 0xfb, RET]), [5]);
    }

    #[test]
    fn a_return_counts_only_with_the_stack_as_at_the_entry() {
        // push %rbx; sub $16,%rsp; add $16,%rsp; pop %rbx; ret
        let code = [
            PUSH_RBX, 0x48, 0x83, 0xec, 16, 0x48, 0x83, 0xc4, 16, POP_RBX, RET,
        ];
        assert_eq!(returns(&code), [10]);
        // push %rbp; mov %rsp,%rbp; sub $32,%rsp; leave; ret
        let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 32, 0xc9, RET];
        assert_eq!(returns(&code), [9]);
        // the same by lea -8(%rbp),%rsp; pop %rbx; pop %rbp
        let code = [
            0x55, 0x48, 0x89, 0xe5, PUSH_RBX, 0x48, 0x83, 0xe4, 0xe0, 0x48, 0x8d, 0x65, 0xf8,
            POP_RBX, 0x5d, RET,
        ];
        assert_eq!(returns(&code), [15]);
    }

    #[test]
    fn what_lies_behind_a_call_that_never_returns_is_another_functions() {
        // push %rbx; call somewhere; then another function: push %rbx; pop %rbx; ret
        let mut code = vec![PUSH_RBX];
        code.extend(to(CALL, BASE + 1, 0x7000));
        code.extend([PUSH_RBX, POP_RBX, RET]);
        assert!(returns(&code).is_empty());
        // By its name it is known not to return: call of a stub, which is at the end.
        let mut code = to(CALL, BASE, BASE + 6);
        code.push(RET);
        code.extend(to(JMP_POINTER, BASE + 6, 0x8000));
        assert!(returns(&code).is_empty());
    }

    #[test]
    fn a_tail_call_is_followed_through_its_stub() {
        // jmp stub; stub: endbr64; jmp *0x8010 → 0x1100: ret
        let mut code = to(JMP, BASE, BASE + 5);
        code.extend([0xf3, 0x0f, 0x1e, 0xfa]);
        code.extend(to(JMP_POINTER, BASE + 9, 0x8010));
        code.resize(0x100, 0xcc);
        code.push(RET);
        assert_eq!(returns(&code), [0x100]);
    }

    #[test]
    fn a_jump_to_another_file_is_an_exit_where_it_is_made() {
        let mut code = vec![0x90];
        code.extend(to(JMP, BASE + 1, BASE + 6));
        code.extend(to(JMP_POINTER, BASE + 6, 0x8008));
        let found = of(&code).unwrap();
        assert_eq!(found.exits, BTreeSet::from([BASE + 1]));
        // Allocators there have probes.
        let found = of(&to(JMP_POINTER, BASE, 0x8018)).unwrap();
        assert!(found.exits.is_empty() && !found.delegates);
    }

    #[test]
    fn a_jump_through_a_register_goes_to_what_has_its_address_taken() {
        // lea 0x1020(%rip),%rdx; jmp *%rdx
        let mut code = to(&[0x48, 0x8d, 0x15], BASE, BASE + 0x20);
        code.extend([0xff, 0xe2]);
        code.resize(0x20, 0xcc);
        code.push(RET);
        assert_eq!(returns(&code), [0x20]);
        // Nothing has.
        let found = of(&[0xff, 0xe2]).unwrap();
        assert_eq!(found.exits, BTreeSet::from([BASE]));
        // notrack jmp *%rdx: no probe can be there.
        assert_eq!(of(&[0x3e, 0xff, 0xe2]), Err(GaveUp::ComputedJump));
        // A table of jumps within the function.
        assert_eq!(of(&[PUSH_RBX, 0xff, 0xe2]), Err(GaveUp::ComputedJump));
    }

    #[test]
    fn a_function_that_leaves_all_to_another_delegates() {
        // sub $8,%rsp; call malloc; add $8,%rsp; ret
        let mut code = vec![0x48, 0x83, 0xec, 8];
        code.extend(to(CALL, BASE + 4, 0x9000));
        code.extend([0x48, 0x83, 0xc4, 8, RET]);
        let found = of(&code).unwrap();
        assert!(found.delegates);
        assert_eq!(found.inner, BTreeSet::from([BASE + 4]));
        for target in [0x9000, 0x9100] {
            assert!(of(&to(JMP, BASE, target)).unwrap().delegates, "{target:x}");
        }
        // test %rdi,%rdi; jne 1f; ret; 1: jmp malloc
        let mut code = vec![0x48, 0x85, 0xff, 0x75, 0x01, RET];
        code.extend(to(JMP, BASE + 6, 0x9000));
        assert!(!of(&code).unwrap().delegates);
        assert!(!of(&[RET]).unwrap().delegates);
    }

    #[test]
    fn a_free_may_look_at_its_argument_before_it_delegates() {
        let frees = |code: &[u8]| {
            follow(&Fake(code.to_vec()), BASE, Work::Frees)
                .unwrap()
                .delegates
        };
        // test %rdi,%rdi; jne 1f; ret; 1: jmp free
        let mut code = vec![0x48, 0x85, 0xff, 0x75, 0x01, RET];
        code.extend(to(JMP, BASE + 6, 0x9200));
        assert!(frees(&code));
        // mov %rdi,(%rsi) in place of the test: it keeps the block
        code.splice(..3, [0x48, 0x89, 0x3e]);
        assert!(!frees(&code));
        // What allocates does not free.
        assert!(!frees(&to(JMP, BASE, 0x9000)));
    }

    #[test]
    fn calls_are_found_two_levels_down() {
        // call f; ret; f: call g; ret; g: call malloc; ret
        let mut code = to(CALL, BASE, BASE + 6);
        code.push(RET);
        code.extend(to(CALL, BASE + 6, BASE + 12));
        code.push(RET);
        code.extend(to(CALL, BASE + 12, 0x9000));
        code.push(RET);
        let found = of(&code).unwrap();
        assert!(found.inner.is_empty() && !found.delegates);
        let text = Fake(code.clone());
        let below = calls_below(&text, BTreeSet::from([BASE]));
        assert!(below.is_empty(), "three levels: {below:?}");
        let below = calls_below(&text, found.callees.clone());
        assert_eq!(below, BTreeSet::from([BASE + 12]));
        assert_eq!(found.returns, BTreeSet::from([BASE + 5]));
    }

    #[test]
    fn code_without_an_end_is_given_up() {
        let code = vec![0x90; 2 * MAX_INSTRUCTIONS];
        assert_eq!(of(&code), Err(GaveUp::TooLong));
    }
}
