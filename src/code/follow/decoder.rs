//! The decoder of the architecture that memleak is built for.

#[cfg(target_arch = "aarch64")]
pub(super) use crate::code::follow::aarch64::decode;
#[cfg(target_arch = "x86_64")]
pub(super) use crate::code::follow::x86_64::decode;

#[cfg(target_arch = "aarch64")]
pub use crate::code::follow::aarch64::stub;
#[cfg(target_arch = "x86_64")]
pub use crate::code::follow::x86_64::stub;
