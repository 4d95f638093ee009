//! What a leak is, in valgrind's words, and sets of these.

use std::ops::BitOr;

/// What the blocks of a leak are, as in [`Reached`](crate::model::reach::Reached).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeakKind {
    Definite,
    Indirect,
    Possible,
    Reachable,
    /// It is only known that they were never freed.
    Unknown,
}

impl LeakKind {
    /// The kinds that can be known, with valgrind's words for them.
    pub const KNOWN: [(Self, &str); 4] = [
        (Self::Definite, "definite"),
        (Self::Indirect, "indirect"),
        (Self::Possible, "possible"),
        (Self::Reachable, "reachable"),
    ];

    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Definite,
        Self::Indirect,
        Self::Possible,
        Self::Reachable,
        Self::Unknown,
    ];
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeakKinds(u8);

impl LeakKinds {
    pub const NONE: Self = Self(0);
    /// Every kind, and leaks of which the kind is not known.
    pub const ALL: Self = Self(0b1_1111);

    /// Whether a kind is in the set.
    pub fn contains(self, kind: LeakKind) -> bool {
        self.0 & Self::from(kind).0 != 0
    }

    /// The known kinds of the set in valgrind's words, as `match-leak-kinds:` has them.
    pub fn words(self) -> String {
        let known = LeakKind::KNOWN
            .iter()
            .filter(|(kind, _)| self.contains(*kind));
        let words: Vec<_> = known.map(|(_, word)| *word).collect();
        words.join(",")
    }
}

impl From<LeakKind> for LeakKinds {
    fn from(kind: LeakKind) -> Self {
        Self(1 << kind as u8)
    }
}

impl BitOr for LeakKinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<LeakKind> for LeakKinds {
    fn from_iter<I: IntoIterator<Item = LeakKind>>(kinds: I) -> Self {
        (kinds.into_iter()).fold(Self::NONE, |set, kind| set | kind.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_kinds_that_it_is_made_of() {
        let lost: LeakKinds = [LeakKind::Definite, LeakKind::Indirect]
            .into_iter()
            .collect();
        assert!(lost.contains(LeakKind::Indirect) && !lost.contains(LeakKind::Possible));
        assert!(!lost.contains(LeakKind::Unknown));
        assert_eq!(lost.words(), "definite,indirect");
        assert_eq!(LeakKinds::NONE.words(), "");
        let all = LeakKind::KNOWN.iter().map(|(kind, _)| *kind);
        let all: LeakKinds = all.chain([LeakKind::Unknown]).collect();
        assert_eq!(all, LeakKinds::ALL);
    }
}
