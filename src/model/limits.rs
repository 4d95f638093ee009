//! What the gates allow processes to leak and to lose.

/// Limits of one kind of amount, in bytes. More than that fails the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Limit for each single process.
    pub process: Option<u64>,
    /// Limit for all processes together.
    pub total: Option<u64>,
}

impl Limits {
    /// Whether there is no limit.
    pub fn are_none(self) -> bool {
        self == Self::default()
    }
}

/// What processes are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// To leak: never to free.
    pub leak: Limits,
    /// To lose: never to free, and not to be able to any more.
    pub lost: Limits,
}
