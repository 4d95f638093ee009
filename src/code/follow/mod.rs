//! Where a function returns: follows the function's code from the entry to every `ret` that leaves it. Pure: takes
//! code, returns addresses.
//!
//! This is needed for functions that may throw. They must not have a return probe, since the unwinder does not know
//! the kernel's trampoline. It also shows which functions leave all their work to other probed functions.
//!
//! Jumps are followed, also to another function of the same file (tail calls). Calls are not followed. The stack
//! pointer is tracked along each path: a `ret` belongs to the function only if the stack pointer is the same as at
//! the entry. The code behind a call that never returns is another function's, and this check ignores its `ret`s.

#[cfg(any(test, target_arch = "aarch64"))]
mod aarch64;
mod decoder;
mod linear;
mod step;
mod walk;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use decoder::stub;
pub use linear::{begins_again, calls_below};
pub use step::{Followed, LONGEST, Pointer, Probed, Text, TooLong, Work};
pub use walk::{follow, follow_part};

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
