//! The checks and their results, as plain values. `judge` and `verdict` make them, and `output` prints them.

use crate::kernel::method::{Holds, Method};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// `memleak run` works, but something is worse because of it.
    Warn,
    /// `memleak run` does not work because of it.
    Fail,
    /// It could not be determined.
    Unknown,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
            Status::Unknown => "unknown",
        }
    }
}

/// A check of one thing that `memleak run` needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub found: String,
    /// What to do if the check is not ok and something can be done.
    pub remedy: Option<String>,
    /// Measured numbers, each with its name.
    pub figures: Vec<(&'static str, u64)>,
    /// The lines that `-v` adds.
    pub details: Vec<String>,
}

impl Check {
    fn new(name: &'static str, status: Status, found: String, remedy: Option<String>) -> Self {
        Check {
            name,
            status,
            found,
            remedy,
            figures: Vec::new(),
            details: Vec::new(),
        }
    }

    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, found.into(), None)
    }

    pub fn warn(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<Option<String>>,
    ) -> Self {
        Self::new(name, Status::Warn, found.into(), remedy.into())
    }

    pub fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Status::Fail, found.into(), Some(remedy.into()))
    }

    pub fn unknown(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Unknown, found.into(), None)
    }

    #[must_use]
    pub fn with_figure(mut self, name: &'static str, value: u64) -> Self {
        self.figures.push((name, value));
        self
    }

    #[must_use]
    pub fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

/// All checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    pub checks: Vec<Check>,
    /// How the probes were attached. `None` if they could not be attached.
    pub method: Option<Method>,
    pub holds: Option<Holds>,
}

/// The name of the deciding check: whether a child's allocations were counted correctly.
pub const COUNT: &str = "count";

impl Diagnosis {
    /// Whether `memleak run` works.
    pub fn works(&self) -> bool {
        let counted = |check: &Check| check.name == COUNT && check.status == Status::Ok;
        self.checks.iter().any(counted) && self.failed().next().is_none()
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &'static str> {
        let failed = self
            .checks
            .iter()
            .filter(|check| check.status == Status::Fail);
        failed.map(|check| check.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(checks: Vec<Check>) -> Diagnosis {
        Diagnosis {
            checks,
            method: None,
            holds: None,
        }
    }

    #[test]
    fn memleak_run_works_only_if_the_count_is_right_and_no_check_failed() {
        let count = || Check::ok(COUNT, "right");
        assert!(diagnosis(vec![count()]).works());
        assert!(diagnosis(vec![Check::warn("kernel", "old", None), count()]).works());
        assert!(diagnosis(vec![count(), Check::unknown("lockdown", "?")]).works());
        assert!(!diagnosis(vec![]).works());
        assert!(!diagnosis(vec![Check::ok("kernel", "new")]).works());
        assert!(!diagnosis(vec![Check::unknown(COUNT, "not tried")]).works());
        assert!(!diagnosis(vec![Check::fail(COUNT, "wrong", "report it")]).works());
        let broken = diagnosis(vec![count(), Check::fail("btf", "none", "build it")]);
        assert!(!broken.works());
        assert_eq!(broken.failed().collect::<Vec<_>>(), ["btf"]);
    }
}
