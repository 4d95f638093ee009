//! Tells which part of a leak is suppressed: by the user's suppressions, or by memleak's own.

use std::collections::BTreeMap;

use crate::model::leak_kind::LeakKind;
use crate::model::reach::Amount;
use crate::model::stack::NamedStack;
use crate::model::unfreed::Unfreed;
use crate::stacks::frame_text::{FrameText, StackText, frame_texts, without_parameters};
use crate::stacks::suppressed_sums::SuppressedSums;
use crate::stacks::suppressions::{Matcher, Suppressions};
use crate::text::wildcards::Wildcard;

/// Tries suppressions on leaks, and keeps how much each has matched.
pub struct LeakFilter<'a> {
    users: Matcher<'a>,
    known: Matcher<'a>,
    /// What was matched of each stack, by the stack's identity.
    by_users: BTreeMap<u64, Matches>,
    kept_reachable: BTreeMap<u64, Matches>,
    kept_otherwise: BTreeMap<u64, Matches>,
}

/// How much each suppression has matched, by its number.
type Matches = Vec<(usize, Amount)>;

/// The parts of a leak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiftedLeak {
    /// What is not suppressed.
    pub left: Unfreed,
    /// What the user's suppressions match.
    pub suppressed: Unfreed,
    /// What memleak's own match.
    pub kept: Unfreed,
    /// The first of the user's suppressions that matched something, by its number.
    pub by: Option<usize>,
}

impl<'a> LeakFilter<'a> {
    /// `known`: memleak's own suppressions, or none.
    pub fn new(users: &'a Suppressions, known: &'a Suppressions) -> Self {
        Self {
            users: Matcher::new(users),
            known: Matcher::new(known),
            by_users: BTreeMap::new(),
            kept_reachable: BTreeMap::new(),
            kept_otherwise: BTreeMap::new(),
        }
    }

    /// Takes apart what an image never freed of what it allocated by one stack. The user's suppressions come first.
    pub fn sift(&mut self, stack: &NamedStack, mut unfreed: Unfreed) -> SiftedLeak {
        let mut sifted = SiftedLeak::default();
        let frames = frame_texts(stack);
        let text = StackText {
            allocator: FrameText::default(),
            frames: &frames,
        };
        for kind in LeakKind::ALL {
            let amount = *unfreed.of_kind(kind);
            if amount.blocks == 0 {
                continue;
            }
            // What is lost indirectly is lost with the owner's blocks, which are these.
            let kind_of_owner = match kind {
                LeakKind::Indirect => LeakKind::Definite,
                other => other,
            };
            let part = if let Some(number) = self.users.find(&text, kind_of_owner) {
                sifted.by.get_or_insert(number);
                add(&mut self.by_users, stack.identity, number, amount);
                &mut sifted.suppressed
            } else if let Some(number) = self.known.find(&text, kind_of_owner) {
                let sums = match kind {
                    LeakKind::Reachable => &mut self.kept_reachable,
                    _ => &mut self.kept_otherwise,
                };
                add(sums, stack.identity, number, amount);
                &mut sifted.kept
            } else {
                &mut sifted.left
            };
            *part.of_kind(kind) += amount;
        }
        sifted
    }

    /// How much each of the user's suppressions has matched.
    pub fn by_users(&self, users: &Suppressions) -> SuppressedSums {
        sums(users, &self.by_users)
    }

    /// How much each of memleak's own has matched of what is reachable, and of what is not known to be.
    pub fn by_known(&self, known: &Suppressions) -> [SuppressedSums; 2] {
        [&self.kept_reachable, &self.kept_otherwise].map(|matches| sums(known, matches))
    }
}

/// Whether one of the patterns matches a function of the stack, with or without its parameters, or the path or name of a
/// program or library there.
pub fn passes_any(stack: &NamedStack, patterns: &[Wildcard]) -> bool {
    frame_texts(stack).iter().any(|frame| {
        let function = frame.shown();
        let module = frame.module;
        let file_name = module.rsplit('/').next();
        let texts = [
            function,
            function.map(without_parameters),
            Some(module),
            file_name,
        ];
        let mut texts = texts.into_iter().flatten();
        texts.any(|text| {
            patterns
                .iter()
                .any(|pattern| pattern.matches(text.as_bytes()))
        })
    })
}

fn add(sums: &mut BTreeMap<u64, Matches>, identity: u64, number: usize, amount: Amount) {
    let matches = sums.entry(identity).or_default();
    match matches.iter_mut().find(|(other, _)| *other == number) {
        Some((_, sum)) => *sum += amount,
        None => matches.push((number, amount)),
    }
}

fn sums(suppressions: &Suppressions, matches: &BTreeMap<u64, Matches>) -> SuppressedSums {
    let mut sums = SuppressedSums::new(suppressions);
    matches.values().for_each(|matched| sums.add(matched));
    sums
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::reach::Reached;
    use crate::model::stack::{NamedFrame, WalkEnd};
    use crate::stacks::known;

    fn stack(identity: u64, functions: &[&str]) -> NamedStack {
        let frame = |name: &&str| NamedFrame {
            function: Some((*name).to_owned()),
            linkage: Some((*name).to_owned()),
            module: Some("/app".into()),
            ..NamedFrame::default()
        };
        NamedStack {
            identity,
            frames: functions.iter().map(frame).map(Arc::new).collect(),
            end: WalkEnd::Complete,
            guessed: 0,
        }
    }

    fn amount(bytes: u64) -> Amount {
        Amount { bytes, blocks: 1 }
    }

    fn unfreed() -> Unfreed {
        Unfreed {
            reached: Reached {
                definite: amount(1),
                indirect: amount(2),
                possible: amount(4),
                reachable: amount(8),
            },
            unknown: amount(16),
        }
    }

    #[test]
    fn each_kind_is_sifted_by_itself_and_what_is_unknown_by_rules_for_all_kinds() {
        let text =
            "{\nlost\nMemcheck:Leak\nmatch-leak-kinds: definite\nfun:calloc\nfun:f\n}\nleak:^g$\n";
        let mut users = Suppressions::default();
        users.add("a.supp", text.as_bytes()).unwrap();
        let known = known().unwrap();
        let mut filter = LeakFilter::new(&users, &known);
        let sifted = filter.sift(&stack(1, &["f", "main"]), unfreed());
        assert_eq!(sifted.by, Some(0));
        assert_eq!(
            sifted.suppressed.sum(),
            Amount {
                bytes: 3,
                blocks: 2
            }
        );
        assert_eq!(
            sifted.left.sum(),
            Amount {
                bytes: 28,
                blocks: 3
            }
        );
        let sifted = filter.sift(&stack(2, &["g", "f"]), unfreed());
        assert_eq!((sifted.by, sifted.left), (Some(1), Unfreed::default()));
        // Another process has the same stack.
        filter.sift(&stack(2, &["g", "f"]), unfreed());
        let sifted = filter.sift(&stack(3, &["h"]), unfreed());
        assert_eq!((sifted.by, sifted.left), (None, unfreed()));
        let uses = filter.by_users(&users).uses(&users);
        let found: Vec<_> = uses.iter().map(|u| (u.amount.bytes, u.places)).collect();
        assert_eq!(found, [(3, 1), (62, 1)]);
    }

    #[test]
    fn what_the_runtime_keeps_is_told_apart_and_is_never_what_is_lost() {
        let (users, known) = (Suppressions::default(), known().unwrap());
        let mut filter = LeakFilter::new(&users, &known);
        let sifted = filter.sift(&stack(1, &["_IO_file_doallocate", "puts"]), unfreed());
        assert_eq!(
            sifted.kept.sum(),
            Amount {
                bytes: 24,
                blocks: 2
            }
        );
        assert_eq!(
            sifted.left.sum(),
            Amount {
                bytes: 7,
                blocks: 3
            }
        );
        let [reachable, otherwise] = filter.by_known(&known);
        assert_eq!(reachable.sum().amount, amount(8));
        assert_eq!(otherwise.sum().amount, amount(16));
    }

    #[test]
    fn a_stack_without_frames_is_never_suppressed() {
        let mut users = Suppressions::default();
        users.add("a.supp", b"leak:*\n").unwrap();
        let none = Suppressions::default();
        let mut filter = LeakFilter::new(&users, &none);
        assert_eq!(filter.sift(&stack(1, &[]), unfreed()).left, unfreed());
        let sifted = filter.sift(&stack(1, &["f"]), unfreed());
        assert_eq!(sifted.left, Unfreed::default());
    }
}
