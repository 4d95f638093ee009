use std::collections::BTreeSet;

use super::*;
use crate::code::follow::step::MAX_INSTRUCTIONS;

/// A file with code from address 0x1000 on. It has an allocating function at 0x9000, a function that may throw at
/// 0x9100, and one that frees at 0x9200. It has pointers at 0x8000 (to a function that never returns), 0x8008
/// (unknown), 0x8010 (to 0x1100) and 0x8018 (to a function that is probed in another file).
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

fn of(code: &[u8]) -> Result<Followed, TooLong> {
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
    // A call is not a jump.
    assert!(!begins_again(&Fake(to(CALL, BASE, BASE)), BASE));
}

fn returns(code: &[u8]) -> Vec<u64> {
    let found = of(code).unwrap();
    assert!(found.exits.is_empty(), "{found:x?}");
    found.returns.iter().map(|at| at - BASE).collect()
}

#[test]
fn both_ways_of_a_branch_are_followed_to_a_return() {
    // test %rdi,%rdi; je 1f; ret; 1: nop; ret
    assert_eq!(
        returns(&[0x48, 0x85, 0xff, 0x74, 0x01, RET, 0x90, RET]),
        [5, 7]
    );
    // 1: test; jne 1b; ret
    assert_eq!(returns(&[0x48, 0x85, 0xff, 0x75, 0xfb, RET]), [5]);
}

#[test]
fn a_return_counts_only_with_the_stack_pointer_as_at_the_entry() {
    // push %rbx; sub $16,%rsp; add $16,%rsp; pop %rbx; ret
    let code = [
        PUSH_RBX, 0x48, 0x83, 0xec, 16, 0x48, 0x83, 0xc4, 16, POP_RBX, RET,
    ];
    assert_eq!(returns(&code), [10]);
    // push %rbp; mov %rsp,%rbp; sub $32,%rsp; leave; ret
    let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 32, 0xc9, RET];
    assert_eq!(returns(&code), [9]);
    // The same with an aligned stack, and back by lea -8(%rbp),%rsp; pop %rbx; pop %rbp; ret
    let code = [
        0x55, 0x48, 0x89, 0xe5, PUSH_RBX, 0x48, 0x83, 0xe4, 0xe0, 0x48, 0x8d, 0x65, 0xf8, POP_RBX,
        0x5d, RET,
    ];
    assert_eq!(returns(&code), [15]);
}

#[test]
fn code_behind_a_call_that_never_returns_is_not_the_functions() {
    // push %rbx; call somewhere; then another function: push %rbx; pop %rbx; ret
    let mut code = vec![PUSH_RBX];
    code.extend(to(CALL, BASE + 1, 0x7000));
    code.extend([PUSH_RBX, POP_RBX, RET]);
    assert!(returns(&code).is_empty());
    // The called function is known by its name not to return. The call goes to a stub at the end of the code.
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
fn a_jump_to_another_file_is_an_exit_at_the_jump() {
    let mut code = vec![0x90];
    code.extend(to(JMP, BASE + 1, BASE + 6));
    code.extend(to(JMP_POINTER, BASE + 6, 0x8008));
    let found = of(&code).unwrap();
    assert_eq!(found.exits, BTreeSet::from([BASE + 1]));
    // The other file's function is probed there, so the jump is not an exit.
    let found = of(&to(JMP_POINTER, BASE, 0x8018)).unwrap();
    assert!(found.exits.is_empty() && !found.delegates);
}

#[test]
fn a_jump_through_a_register_goes_to_code_whose_address_is_taken() {
    // lea 0x1020(%rip),%rdx; jmp *%rdx
    let mut code = to(&[0x48, 0x8d, 0x15], BASE, BASE + 0x20);
    code.extend([0xff, 0xe2]);
    code.resize(0x20, 0xcc);
    code.push(RET);
    assert_eq!(returns(&code), [0x20]);
    // No address is taken.
    let found = of(&[0xff, 0xe2]).unwrap();
    assert_eq!(found.exits, BTreeSet::from([BASE]));
    // notrack jmp *%rdx: the kernel takes no probe there.
    let found = of(&[0x3e, 0xff, 0xe2]).unwrap();
    assert!(found.unprobed == BTreeSet::from([BASE]) && !found.has_all_ends());
    // A jump table within the function.
    let found = of(&[PUSH_RBX, 0xff, 0xe2]).unwrap();
    assert!(found.tables == BTreeSet::from([BASE + 1]) && !found.has_all_ends());
}

#[test]
fn what_a_function_calls_and_jumps_to_is_known_for_certain_or_not() {
    // push %rbx; call somewhere; pop %rbx; jmp malloc
    let mut code = vec![PUSH_RBX];
    code.extend(to(CALL, BASE + 1, 0x7000));
    code.push(POP_RBX);
    code.extend(to(JMP, BASE + 7, 0x9000));
    let found = of(&code).unwrap();
    assert!(found.certain && found.calls == BTreeSet::from([BASE + 1]));
    // A jump to a function that throws, and a jump through a pointer to anywhere.
    for pointer in [0x8000, 0x8008] {
        assert!(!of(&to(JMP_POINTER, BASE, pointer)).unwrap().certain);
    }
    assert!(of(&to(JMP_POINTER, BASE, 0x8018)).unwrap().certain);
    // A jump through a register may go to other code than that whose address is taken.
    let mut code = to(&[0x48, 0x8d, 0x15], BASE, BASE + 9);
    code.extend([0xff, 0xe2, RET]);
    let found = of(&code).unwrap();
    assert!(found.exits.is_empty() && !found.certain);
    // jmp *(%rdi)
    assert!(!of(&[0xff, 0x27]).unwrap().certain);
    // A free has no return probe.
    let frees = follow(&Fake(to(JMP, BASE, 0x9200)), BASE, Work::FreesAndThrows);
    assert!(!frees.unwrap().certain);
    // push %rbx; jmp *%rdx, as the unwinder enters it: the depth of the stack is not known.
    let part = follow_part(&Fake(vec![PUSH_RBX, 0xff, 0xe2]), BASE).unwrap();
    assert!(part.tables.is_empty() && !part.certain);
}

#[test]
fn a_function_that_leaves_all_work_to_another_delegates() {
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
    // mov %rdi,(%rsi) in place of the test: the function stores the block's address.
    code.splice(..3, [0x48, 0x89, 0x3e]);
    assert!(!frees(&code));
    // A jump to an allocating function is not a free.
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
fn code_without_an_end_is_not_followed() {
    let code = vec![0x90; 2 * MAX_INSTRUCTIONS];
    assert_eq!(of(&code), Err(TooLong));
}
