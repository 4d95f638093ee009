//! The decoder of the architecture that memleak is built for.

#[cfg(target_arch = "aarch64")]
pub(super) use crate::code::follow::aarch64::{decode, stub};
#[cfg(target_arch = "x86_64")]
pub(super) use crate::code::follow::x86_64::{decode, stub};
