//! Control groups (version 2).

/// A control group (version 2), as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub id: u64,
    /// How deep it lies below the root.
    pub level: u32,
}
