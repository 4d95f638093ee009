//! Where in a function a probe goes. Pure: bytes in, offset out.
//!
//! A uprobe costs what its instruction costs: one that the kernel emulates is done within the trap, any
//! other is executed out of line under single-step, which is a second trap, and in a virtual machine one
//! that leaves for the hypervisor. So the probe goes on the first instruction that is emulated, as long as
//! everything that its program reads (the argument registers, the stack pointer) is then
//! still what it was at the function's entry, and as long as that instruction runs exactly once a
//! call: in the entry's own basic block. Some instructions the kernel refuses to probe at all; a function that begins
//! with one has its probe further on, if it can. Each architecture has a module with `place`, which decides that, and
//! `placed_on`, which tells what a given place is.

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
