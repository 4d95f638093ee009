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
mod decoder;
mod linear;
mod step;
mod walk;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use linear::{begins_again, calls_below};
pub use step::{Followed, GaveUp, LONGEST, Pointer, Probed, Text, Work};
pub use walk::follow;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
