//! Where in a function a probe goes. Pure: takes bytes, returns an offset. Finding the functions is left to `find`.
//!
//! The cost of a uprobe depends on the probed instruction. The kernel emulates some instructions within the trap. It
//! executes any other one out of line under single-step, which takes a second trap. In a virtual machine that second
//! trap leaves for the hypervisor.
//!
//! So the probe goes on the first emulated instruction, under two conditions:
//! - Everything that the probe's program reads (the argument registers, the stack pointer) still has its value from the
//!   function's entry.
//! - The instruction runs exactly once a call: it is in the entry's own basic block.
//!
//! The kernel refuses probes on some instructions. A function that begins with such an instruction is probed further
//! on, if the conditions allow it.
//!
//! Each architecture has a module with two functions. `place` decides where the probe goes. `placed_on` tells which
//! instruction is at a given place, and what the kernel does with it.

#[cfg(any(test, target_arch = "aarch64"))]
pub mod aarch64;
mod place;
#[cfg(any(test, target_arch = "x86_64"))]
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{place, placed_on};
pub use place::{Kind, Placement, Reason, WINDOW};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{place, placed_on};
